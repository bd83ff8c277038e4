"""Why one layout's step takes longer than another's: the table `ops` by case, or two cases operation by operation.

Each figure is the mean over the ranks, then the median over the runs. What no operation accounts for is Python, its
autograd functions and launching; on an accelerator it is the time in which the device had nothing to do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .aligned import aligned
from .table.read import rows_table, runs_table
from .table.work import work_of

WAIT, REST = "waiting", "in no op"
# By name, the first that matches. A name without `::` is a node of autograd's graph: what it computes is in the
# operations that it calls, and its own time is Python (or waiting, which is a part of its own).
GROUPS = {
    "products": r"aten::(mm|addmm|bmm|baddbmm|matmul|linear|einsum|dot)\b",
    "attention": r"aten::.*(attention|flash)",
    "copies": r"aten::(copy_|_to_copy|cat|stack|clone|contiguous|fill_|zero_|zeros|index\w*|gather|slice_backward|"
    r"select_backward|split\w*|_foreach_(copy|zero)_?)",
    "update": r"aten::(_fused_|_foreach_)",
    "messages": r"(c10d|gloo|nccl|_c10d_functional|mpi)::",
    "other ops": r".*::",
}
COLUMNS = (*GROUPS, WAIT, REST)


@dataclass(frozen=True)
class CaseOps:
    """One case's profiled step, seconds."""

    case_id: str
    model: str
    layout: str
    runs: int
    ranks: int
    timed_s: float | None  # median step of the timed steps, without the profiler
    step_s: float  # under the profiler
    groups: dict[str, float]  # by COLUMNS; they add up to step_s, but for medians
    ops: dict[str, tuple[float, float]]  # operation: calls a step, seconds
    tokens: float | None = None  # of a step

    @property
    def name(self) -> str:
        return f"{self.model} {self.layout}".strip()


def case_ops(path: str | Path, where: str | None = None) -> list[CaseOps]:
    """Every case with profiled runs that ended well, in the order they were started.

    Raises
    ------
    ValueError: nothing at the path, or not a filter
    """
    runs = runs_table(path, where=where)
    wanted = sorted((row for row in runs.to_pylist() if row["status"] == "ok"), key=lambda row: row["started_at"] or "")
    rows = defaultdict(list)
    for row in rows_table(path, "ops", [row["run_id"] for row in wanted]).to_pylist():
        rows[row["run_id"]].append(row)
    cases = defaultdict(list)
    for run in wanted:
        if rows[run["run_id"]]:
            cases[run["case_id"]].append(run)
    return [_case(case_id, members, rows) for case_id, members in cases.items()]


def one_case(cases: Sequence[CaseOps], what: str) -> CaseOps:
    """The only one.

    Raises
    ------
    ValueError: there are none or several; names them
    """
    if len(cases) == 1:
        return cases[0]
    found = ", ".join(case.name for case in cases[:8]) + (", ..." if len(cases) > 8 else "")
    raise ValueError(f"{what} is to leave one profiled case, it leaves {f'{len(cases)}: {found}' if cases else 'none'}")


def group_of(op: str) -> str:
    return next((name for name, pattern in GROUPS.items() if re.match(pattern, op)), REST)


def _case(case_id: str, members: list[dict], rows: dict[str, list[dict]]) -> CaseOps:
    parts = [_run(rows[run["run_id"]]) for run in members]
    first = members[0]
    timed = [run["step_time_s"] for run in members if run["step_time_s"] is not None]
    names = {name for _, _, ops in parts for name in ops}
    return CaseOps(
        case_id,
        first["model"] or "",
        first["layout"] or "",
        len(members),
        first["world_size"] or 1,
        median(timed) if timed else None,
        median(step for step, _, _ in parts),
        {name: median(groups[name] for _, groups, _ in parts) for name in COLUMNS},
        {name: tuple(median(ops.get(name, (0.0, 0.0))[i] for _, _, ops in parts) for i in (0, 1)) for name in names},
        None if (work := work_of(first)) is None else float(work.tokens),
    )


def _run(rows: list[dict]) -> tuple[float, dict[str, float], dict[str, tuple[float, float]]]:
    """(step, seconds by group, calls and seconds by operation) of one run, means over its ranks."""
    ranks = len({row["rank"] for row in rows})
    device = any(row["device_time_s"] for row in rows)
    step, groups, sums = 0.0, dict.fromkeys(COLUMNS, 0.0), defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        time_s = (row["device_time_s"] if device and row["part"] == "op" else row["time_s"]) or 0.0
        if row["part"] == "step":
            step += time_s / ranks
        elif row["part"] == "wait":
            groups[WAIT] += time_s / ranks
        elif row["part"] == "op":
            if (group := group_of(row["op"])) != REST:
                groups[group] += time_s / ranks
            one = sums[row["op"]]
            one[0] += (row["calls"] or 0.0) / ranks
            one[1] += time_s / ranks
    groups[REST] = step - sum(groups.values())
    return step, groups, {name: (calls, time_s) for name, (calls, time_s) in sums.items()}


def as_dict(cases: Sequence[CaseOps]) -> dict:
    return {"cases": [vars(case) for case in cases]}


def as_text(cases: Sequence[CaseOps]) -> Iterator[str]:
    """A line a case."""
    if not cases:
        yield "no run was profiled: measure.profile_steps = 3 asks for it"
        return
    header = ["", "runs", "timed ms", "profiled ms", *COLUMNS]
    body = [
        [case.name, str(case.runs), _ms(case.timed_s), _ms(case.step_s), *(_ms(case.groups[name]) for name in COLUMNS)]
        for case in cases
    ]
    yield from aligned([header, *body])
    yield "ms of a step: mean over the ranks, median over the runs"


def against_dict(case: CaseOps, base: CaseOps) -> dict:
    return {"case": vars(case), "base": vars(base), "difference_s": case.step_s - base.step_s}


def against_text(case: CaseOps, base: CaseOps, rows: int = 12) -> Iterator[str]:
    """Where the difference of two cases lies: group by group, then the operations that differ most."""
    yield f"{case.name} (runs: {case.runs}) against {base.name} (runs: {base.runs}), ms of a step"
    if case.tokens != base.tokens:
        here, there = ("an unknown number of" if n is None else f"{n:,.0f}" for n in (case.tokens, base.tokens))
        yield f"other work: {here} tokens a step against {there}; a ratio of times is none of speeds"
    body = [_compared("timed steps", case.timed_s, base.timed_s), _compared("profiled steps", case.step_s, base.step_s)]
    body += [_compared(f"  {name}", case.groups[name], base.groups[name]) for name in COLUMNS]
    yield from aligned([["", "", "against", "difference", "ratio"], *body])
    yield ""
    none = (0.0, 0.0)
    pairs = {name: (case.ops.get(name, none), base.ops.get(name, none)) for name in {*case.ops, *base.ops}}
    pairs = {name: pair for name, pair in pairs.items() if group_of(name) != REST}
    first = sorted(pairs, key=lambda name: -abs(pairs[name][0][1] - pairs[name][1][1]))[:rows]
    body = [
        [name, f"{here[0]:,.0f}", f"{there[0]:,.0f}", *_compared("", here[1], there[1])[1:]]
        for name, (here, there) in ((name, pairs[name]) for name in first)
    ]
    yield from aligned([["operation", "calls", "against", "ms", "against", "difference", "ratio"], *body])


def _compared(name: str, here: float | None, there: float | None) -> list[str]:
    if here is None or there is None:
        return [name, _ms(here), _ms(there), "-", "-"]
    factor = f"{here / there:.2f}" if there > 0 and here > 0 else "-"
    return [name, _ms(here), _ms(there), f"{(here - there) * 1e3:+,.1f}", factor]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.1f}"
