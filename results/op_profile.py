"""Why the step of one layout takes longer than that of another: the table `ops` by case, or two cases by operation.

Each figure is the mean over the ranks, then the median over the runs. Time that belongs to no operation is Python, its
autograd functions and launching; on an accelerator it is the time in which the device is idle.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .schema.rows import AnyRow, distinct, ok_rows, values_in
from .table.read import rows_table, runs_table
from .table.work import work_of
from .terminal import aligned

WAIT, REST = "waiting", "in no op"
# By name, the first that matches. A name without `::` is a node of autograd's graph: its computation is in the
# operations that it calls, and its own time is Python (or waiting, which is a separate part).
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
    """The profiled step of one case, seconds."""

    case_id: str
    model: str
    layout: str
    runs: int
    ranks: int
    timed_s: float | None  # median step of the timed steps, without the profiler
    step_s: float  # under the profiler
    groups: dict[str, float]  # by COLUMNS; their sum is step_s, except that each is a median
    ops: dict[str, tuple[float, float]]  # operation: calls a step, seconds
    tokens: float | None = None  # of a step

    @property
    def name(self) -> str:
        return f"{self.model} {self.layout}".strip()


def case_ops(path: str | Path, where: str | None = None) -> list[CaseOps]:
    """Every case with profiled runs that ended with status ok, in the order of their start.

    Raises
    ------
    ValueError: nothing at the path, or not a filter
    """
    runs = ok_rows(runs_table(path, where=where).to_pylist())
    runs.sort(key=lambda run: run["started_at"] or "")
    rows = defaultdict(list)
    for row in rows_table(path, "ops", [run["run_id"] for run in runs]).to_pylist():
        rows[row["run_id"]].append(row)
    cases = defaultdict(list)
    for run in runs:
        if rows[run["run_id"]]:
            cases[run["case_id"]].append(run)
    return [_case(case_id, members, rows) for case_id, members in cases.items()]


def one_case(cases: Sequence[CaseOps], what: str) -> CaseOps:
    """The only case; what: the option that selects it.

    Raises
    ------
    ValueError: there is none, or there are several; names them
    """
    if len(cases) == 1:
        return cases[0]
    names = ", ".join(case.name for case in cases[:8]) + (", ..." if len(cases) > 8 else "")
    raise ValueError(f"{what} is to leave one profiled case, it leaves {f'{len(cases)}: {names}' if cases else 'none'}")


def group_of(op: str) -> str:
    return next((name for name, pattern in GROUPS.items() if re.match(pattern, op)), REST)


@dataclass(frozen=True)
class _RunOps:
    """One run's profiled step, means over its ranks; as CaseOps."""

    step_s: float
    groups: dict[str, float]
    ops: dict[str, tuple[float, float]]


def _case(case_id: str, members: Sequence[AnyRow], rows: Mapping[str, list[dict]]) -> CaseOps:
    runs = [_run(rows[run["run_id"]]) for run in members]
    first, work = members[0], work_of(members[0])
    timed = [seconds for seconds in values_in(members, "step_time_s") if seconds is not None]
    names = set[str]().union(*(run.ops for run in runs))
    return CaseOps(
        case_id,
        first["model"] or "",
        first["layout"] or "",
        len(members),
        first["world_size"] or 1,
        median(timed) if timed else None,
        median(run.step_s for run in runs),
        {name: median(run.groups[name] for run in runs) for name in COLUMNS},
        {name: _median_op(runs, name) for name in names},
        None if work is None else float(work.tokens),
    )


def _median_op(runs: Sequence[_RunOps], name: str) -> tuple[float, float]:
    """Calls and seconds of an operation; a run without it has none."""
    calls, seconds = zip(*(run.ops.get(name, (0.0, 0.0)) for run in runs), strict=True)
    return median(calls), median(seconds)


def _run(rows: list[dict]) -> _RunOps:
    ranks = len(distinct(rows, "rank"))
    of_op = "device_time_s" if any(values_in(rows, "device_time_s")) else "time_s"
    step_s = 0.0
    groups = dict.fromkeys(COLUMNS, 0.0)
    ops: dict[str, tuple[float, float]] = {}
    for row in rows:
        time_s = (row[of_op if row["part"] == "op" else "time_s"] or 0.0) / ranks
        match row["part"]:
            case "step":
                step_s += time_s
            case "wait":
                groups[WAIT] += time_s
            case "op":
                groups[group_of(row["op"])] += time_s
                calls, seconds = ops.get(row["op"], (0.0, 0.0))
                ops[row["op"]] = (calls + (row["calls"] or 0.0) / ranks, seconds + time_s)
    del groups[REST]  # of operations; what is left of the step is more
    groups[REST] = step_s - sum(groups.values())
    return _RunOps(step_s, groups, ops)


def to_dict(cases: Sequence[CaseOps]) -> dict:
    return {"cases": [vars(case) for case in cases]}


def to_text(cases: Sequence[CaseOps]) -> Iterator[str]:
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


def difference_to_dict(case: CaseOps, base: CaseOps) -> dict:
    return {"case": vars(case), "base": vars(base), "difference_s": case.step_s - base.step_s}


def difference_to_text(case: CaseOps, base: CaseOps, rows: int = 12) -> Iterator[str]:
    """Where the difference between two cases is: group by group, then the operations that differ most."""
    yield f"{case.name} (runs: {case.runs}) against {base.name} (runs: {base.runs}), ms of a step"
    if case.tokens != base.tokens:
        here, there = ("an unknown number of" if n is None else f"{n:,.0f}" for n in (case.tokens, base.tokens))
        yield f"other work: {here} tokens a step against {there}; a ratio of times is none of speeds"
    body = [_compared("timed steps", case.timed_s, base.timed_s), _compared("profiled steps", case.step_s, base.step_s)]
    body += [_compared(f"  {name}", case.groups[name], base.groups[name]) for name in COLUMNS]
    yield from aligned([["", "", "against", "difference", "ratio"], *body])
    yield ""
    body = [
        [op.name, f"{op.here[0]:,.0f}", f"{op.there[0]:,.0f}", *_compared("", op.here[1], op.there[1])[1:]]
        for op in _most_different(case, base, rows)
    ]
    yield from aligned([["operation", "calls", "against", "ms", "against", "difference", "ratio"], *body])


class _Pair(NamedTuple):
    """Calls and seconds of an operation in two cases."""

    name: str
    here: tuple[float, float]
    there: tuple[float, float]


def _most_different(case: CaseOps, base: CaseOps, count: int) -> list[_Pair]:
    absent = (0.0, 0.0)
    names = [name for name in {*case.ops, *base.ops} if group_of(name) != REST]
    pairs = [_Pair(name, case.ops.get(name, absent), base.ops.get(name, absent)) for name in names]
    return sorted(pairs, key=lambda op: -abs(op.here[1] - op.there[1]))[:count]


def _compared(name: str, here: float | None, there: float | None) -> list[str]:
    if here is None or there is None:
        return [name, _ms(here), _ms(there), "-", "-"]
    factor = f"{here / there:.2f}" if there > 0 and here > 0 else "-"
    return [name, _ms(here), _ms(there), f"{(here - there) * 1e3:+,.1f}", factor]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.1f}"
