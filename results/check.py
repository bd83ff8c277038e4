"""`scalade check`: the twelve rules of Hoefler and Belli as checks over the table, and beyond them two on the machine.

"Scientific Benchmarking of Parallel Computing Systems", SC'15, doi 10.1145/2807591.2807644. Each rule passes, fails
with the runs named, or does not apply; so do the two beyond (quiet.py, clocks.py).
A check says whether the table holds what the rule asks to be reported; it cannot say whether a paper then reports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from . import clocks
from .coded import Coded
from .damage import damaged_tables
from .efficiency.command import MODES
from .efficiency.grouping import groups
from .efficiency.workload import BATCH, DATA, MODEL, OUTER, RECIPE, TOKENS, Group, work_keys
from .held_out import unbelieved
from .quiet import quiet
from .rank_intervals import MIN_RUNS
from .ranks import hosts_of
from .read import noted, printable, runs_table
from .rows import rows_of
from .work import work_of

BEYOND = 0  # the number of a rule that is none of the twelve
PASS, FAIL, SKIP = "pass", "fail", "does not apply"
TAIL = 1.5  # 95th percentile over median beyond which a median alone misleads
TAIL_STEPS = 20  # fewer timed steps have no 95th percentile but their maximum
NOT_NULL = (
    "params_total", "tokens_per_step", "data_source", "data_hash", "optimizer", "lr", "precision", "seed", "layout",
    "engine", "launcher", "world_size", "nodes", "ranks_json", "device_type", "threads_per_rank", "os", "kernel",
    "scalade_version", "git_commit", "python_version", "torch_version", "model_layers", "model_width", "global_batch",
)  # fmt: skip
FACTORS = (*MODEL, *DATA, *RECIPE, BATCH, TOKENS, *OUTER, "seed", "outer_replicas", "engine", "layout", "world_size",
           "nodes")  # fmt: skip
UNINTENDED = ("git_commit", "torch_version", "cuda_version", "nccl_version", "driver_version", "python_version",
              "kernel", "device_name", "cpu_model", "scalade_version")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One rule against the table."""

    rule: int  # of the twelve, or BEYOND
    title: str
    verdict: str
    why: str
    run_ids: tuple[str, ...] = ()  # of a failure

    def to_dict(self) -> dict:
        return {"rule": self.rule, "title": self.title, "verdict": self.verdict, "why": self.why,
                "run_ids": list(self.run_ids)}  # fmt: skip


@dataclass(frozen=True)
class CheckReport:
    path: str
    runs: int
    findings: tuple[Finding, ...]  # of the twelve
    beyond: Finding
    notes: tuple[str, ...] = ()
    clocks: Finding | None = None  # beyond, too

    @property
    def _all(self) -> tuple[Finding, ...]:
        return (*self.findings, self.beyond, *([self.clocks] if self.clocks else []))

    @property
    def exit_code(self) -> int:
        return 1 if any(one.verdict == FAIL for one in self._all) else 0

    def to_dict(self) -> dict:
        return {"path": self.path, "runs": self.runs, "rules": [one.to_dict() for one in self.findings],
                "beyond": self.beyond.to_dict(), "clocks": self.clocks and self.clocks.to_dict(),
                "notes": list(self.notes), "passed": self.exit_code == 0}  # fmt: skip

    def to_text(self) -> str:
        lines = [f"twelve rules (Hoefler and Belli, SC'15) over {self.runs} runs"]
        marks = {PASS: "pass", FAIL: "FAIL", SKIP: "n/a "}
        for one in self._all:
            lines.append(f"{one.rule or '+':>2} {marks[one.verdict]}  {one.title}: {one.why}")
            if one.run_ids:
                more = f" and {len(one.run_ids) - 4} more" if len(one.run_ids) > 4 else ""
                lines.append(f"         {', '.join(one.run_ids[:4])}{more}")
        counts = {verdict: sum(one.verdict == verdict for one in self.findings) for verdict in marks}
        counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return "\n".join([*lines, f"of the twelve {counted}", *self.notes])


@dataclass(frozen=True)
class _Table:
    rows: tuple[dict, ...]
    ok: tuple[dict, ...]
    groups: tuple[Group, ...]


def check(path: str | Path, where: str | None = None) -> CheckReport:
    """The twelve rules, and the two beyond, over the runs at `path` (see read_runs), or those that `where` keeps.

    Raises
    ------
    ValueError: nothing at the path, no run, or not a filter
    """
    with noted() as told:
        rows = rows_of(runs_table(path, where=where))
        attempts = rows_of(runs_table(path, all_attempts=True, where=where, columns=clocks.COLUMNS))
    if not rows:
        raise ValueError(f"no runs at {str(path)!r}" + (f" match {where!r}" if where else ""))
    damaged = damaged_tables(Path(path)) if Path(path).is_dir() else []
    notes = [f"warning: {printable(line)}" for line in (*told, *damaged, *unbelieved(rows))]
    return CheckReport(str(path), len(rows), tuple(findings(rows)), beyond(rows), tuple(notes), agreeing(attempts))


def findings(rows: Sequence[dict]) -> list[Finding]:
    """The twelve, in order, over rows of `runs`."""
    table = _Table(tuple(rows), _ok(rows), tuple(groups(rows)[0]))
    return [_finding(number, title, rule(table)) for number, (title, rule) in enumerate(RULES, 1)]


def beyond(rows: Sequence[dict]) -> Finding:
    """What the twelve do not ask of the rows of `runs`: a quiet machine."""
    return _finding(BEYOND, "the machine was quiet", quiet(_ok(rows), _outcome, SKIP))


def agreeing(attempts: Sequence[dict]) -> Finding:
    """Nor this, of rows of all attempts: clocks that nobody set."""
    return _finding(BEYOND, "clocks agree", clocks.clocks(attempts, _outcome, SKIP))


def _ok(rows: Sequence[dict]) -> tuple[dict, ...]:
    return tuple(row for row in rows if row["status"] == "ok")


def _finding(number: int, title: str, outcome: Outcome) -> Finding:
    verdict, why, failed = outcome
    assert (verdict == FAIL) == bool(failed)
    return Finding(number, title, verdict, why, tuple(row["run_id"] for row in failed))


Outcome = tuple[str, str, Sequence[dict]]


def _outcome(failed: Sequence[dict], fails: str, passes: str) -> Outcome:
    return (FAIL, fails, failed) if failed else (PASS, passes, ())


def _base(table: _Table) -> Outcome:
    """1: with a speedup, say what the base is, and its absolute performance."""
    smallest: dict[tuple, int] = {}  # device count, of a workload and of what may be compared in a mode
    workloads = Coded([group.rows[0] for group in table.groups]).joint(MODEL + DATA).tolist()
    works = (zip([mode] * len(workloads), work_keys(table.groups, mode).tolist(), strict=True) for mode in MODES)
    keys = list(zip((("model and data", one) for one in workloads), *works, strict=True))
    for group, some in zip(table.groups, keys, strict=True):
        for key in some:
            smallest[key] = min(smallest.get(key, group.devices), group.devices)
    bases, failed = set(), []
    for group, (workload, *modes) in zip(table.groups, keys, strict=True):
        least = min(smallest[key] for key in modes)
        if least < group.devices:
            bases.add(least)
        elif group.devices > smallest[workload]:
            failed += group.rows
    if not bases and not failed:
        return SKIP, "one device count for each workload: no speedup" if table.groups else "no timed run", ()
    kinds = " and ".join("a single process" if n == 1 else f"{n} processes" for n in sorted(bases))
    return _outcome(failed, "no run on fewer devices does the same work, in all or per device: there is no base",
                    f"the base is {kinds}; its tokens/s and step time stand beside every ratio")  # fmt: skip


def _subsets(table: _Table) -> Outcome:
    """2: say why only a part was measured."""
    silent = [row for row in table.rows if row["status"] != "ok" and not row["reason"]]
    gaps = []
    for _, members in groupby(sorted(table.rows, key=lambda r: (r["case_id"], r["repeat"])), lambda r: r["case_id"]):
        some = list(members)
        if [row["repeat"] for row in some] != list(range(len(some))):
            gaps.append(some[-1])
    left_out = sum(row["status"] != "ok" for row in table.rows)
    return _outcome(silent + gaps,
                    f"{len(silent)} runs came to nothing without a reason, {len(gaps)} cases lack repeats",
                    f"{left_out} runs are not ok, each with its reason; no repeat is missing")  # fmt: skip


def _means(table: _Table) -> Outcome:
    """3: rates are not averaged: they are the work over the summarised cost."""
    rated = [row for row in table.ok if row["tokens_per_s"] is not None]
    if not rated:
        return SKIP, "no rate in the table", ()

    def holds(row: dict) -> bool:
        if row.get("timed_tokens") is not None:
            return _close(row["tokens_per_s"], _over(row["timed_tokens"], row["timed_s"]))
        if row.get("quorum_missed"):  # batches of missing replicas do not count; tokens_seen is whole sequences
            tokens, a_row = _over(row["tokens_seen"], row["step_rows"]), row["model_seq_len"] or 0
            return _close(row["tokens_per_s"], _over(tokens, row["step_time_s"]), a_row / (row["tokens_seen"] or 1))
        return _close(row["tokens_per_s"], _over(row["tokens_per_step"], row["step_time_s"]))

    failed = [row for row in rated if not holds(row)]
    return _outcome(failed, "tokens_per_s is neither tokens_per_step / step_time_s nor timed_tokens / timed_s: a rate "
                    "was averaged",
                    "every rate is work over the summarised time")  # fmt: skip


def _ratios(table: _Table) -> Outcome:
    """4: ratios are not averaged: they are formed from costs and rates."""
    names = ("6n", "palm", "causal")
    given = [(row, name) for row in table.ok for name in names if row[f"mfu_{name}"] is not None]
    if not given:
        return SKIP, "no ratio in the table (no mfu: the peak is unknown)", ()

    def holds(row: dict, name: str) -> bool:
        flops, rate = row[f"flops_per_token_{name}"], row["tokens_per_s_per_device"]
        done = None if flops is None or rate is None else flops * rate
        return _close(row[f"mfu_{name}"], _over(done, row["peak_flops"]))

    failed = [row for row, name in given if not holds(row, name)]
    return _outcome(list({row["run_id"]: row for row in failed}.values()), "mfu is not FLOPs x rate / peak of its row",
                    "every ratio follows from the rate and the peak of its own row")  # fmt: skip


def _intervals(table: _Table) -> Outcome:
    """5: say whether values are deterministic; where not, give intervals."""
    if not table.groups:
        return SKIP, "no timed run", ()
    few = [group for group in table.groups if len(group.rows) < MIN_RUNS]
    repeated = [group for group in table.groups if len(group.rows) > 1 and len({r["seed"] for r in group.rows}) == 1]
    same = sum(len({row["train_loss_last"] for row in group.rows}) == 1 for group in repeated)
    losses = f"the losses of {same} of {len(repeated)} repeated cases are bitwise the same, times never are"
    return _outcome([row for group in few for row in group.rows],
                    f"{len(few)} of {len(table.groups)} cases have fewer than {MIN_RUNS} runs: no interval; {losses}",
                    f"every case has at least {MIN_RUNS} runs; {losses}")  # fmt: skip


def _normality(table: _Table) -> Outcome:
    """6: no assumption of normality without a test. Nothing here assumes it, so this passes or does not apply."""
    enough = [group for group in table.groups if len(group.rows) >= MIN_RUNS]
    if not enough:
        return SKIP, f"no case has {MIN_RUNS} runs: nothing is estimated that could assume it", ()
    from scipy.stats import shapiro

    varied = [[row["step_time_s"] for row in group.rows] for group in enough]
    rejected = sum(len(set(x)) > 1 and shapiro(x).pvalue < 0.05 / len(enough) for x in varied)
    tested = f"Shapiro-Wilk rejects it in {rejected} of {len(enough)} cases"
    return PASS, f"intervals are rank-based and assume none; {tested}", ()


def _comparison(table: _Table) -> Outcome:
    """7: compare by intervals or tests."""
    by_work: dict[tuple, list[Group]] = {}
    for group in table.groups:
        by_work.setdefault((*group.match_key, group.level("strong")), []).append(group)
    compared = [some for some in by_work.values() if len(some) > 1]
    if not compared:
        return SKIP, "no two cases do the same work", ()
    few = [group for some in compared for group in some if len(group.rows) < MIN_RUNS]
    from scipy.stats import kruskal

    sound = [[[row["step_time_s"] for row in g.rows] for g in some if len(g.rows) >= MIN_RUNS] for some in compared]
    sound = [some for some in sound if len(some) > 1 and len({x for times in some for x in times}) > 1]
    differ = sum(kruskal(*some).pvalue < 0.05 / len(sound) for some in sound)
    test = f"Kruskal-Wallis tells the layouts apart in {differ} of {len(sound)} workloads"
    return _outcome([row for group in few for row in group.rows],
                    f"{len(few)} compared cases have fewer than {MIN_RUNS} runs; {test}", test)  # fmt: skip


def _center(table: _Table) -> Outcome:
    """8: does the median say it all?"""
    timed = [row for row in table.ok if row["step_time_s"] is not None]
    if not timed:
        return SKIP, "no timed run", ()
    short = [r for r in timed if r["step_time_p95_s"] is None or (r["timed_steps"] or 0) < TAIL_STEPS]
    heavy = [r for r in timed if r not in short and r["step_time_p95_s"] > TAIL * r["step_time_s"]]
    said = [f"{len(short)} runs time fewer than {TAIL_STEPS} steps: no 95th percentile"] if short else []
    said += [f"in {len(heavy)} runs the 95th percentile is above {TAIL:g} medians: report it too"] if heavy else []
    return _outcome(short + heavy, "; ".join(said), f"the 95th percentile is known and within {TAIL:g} medians")


def _factors(table: _Table) -> Outcome:
    """9: every factor, its levels and the whole set-up are written down."""
    if not table.ok:
        return SKIP, "no run with status ok", ()
    lacking = {name: [row for row in table.ok if row.get(name) is None] for name in NOT_NULL}
    lacking[TOKENS] = [row for row in lacking[TOKENS] if work_of(row) is None]  # null where steps differ
    lacking = {name: rows for name, rows in lacking.items() if rows}
    unnamed = [r for r in table.ok if r["device_name"] is None and r["cpu_model"] is None]
    dirty = [r for r in table.ok if r["git_dirty"]]
    codes = Coded(table.ok)
    mixed = [name for name in UNINTENDED if _kinds(codes, name) > 1]
    failed = {r["run_id"]: r for r in (*(r for rows in lacking.values() for r in rows), *unnamed, *dirty)}
    levels = {name: _kinds(codes, name) for name in FACTORS}
    varied = ", ".join(f"{name} ({count})" for name, count in levels.items() if count > 1) or "none"
    said = [f"null: {', '.join(lacking)}"] if lacking else []
    said += ["no device or CPU model"] if unnamed else []
    said += [f"{len(dirty)} runs of uncommitted code"] if dirty else []
    also = f"; not factors, yet varying: {', '.join(mixed)}" if mixed else ""
    if mixed and not failed:
        return FAIL, f"varying without being a factor: {', '.join(mixed)}", _minority(table.ok, mixed)
    return _outcome(list(failed.values()), "; ".join(said) + also, f"set-up complete; factors (levels): {varied}")


def _time(table: _Table) -> Outcome:
    """10: how time was measured, synchronised and summarised over processes."""
    timed = [row for row in table.ok if row["step_time_s"] is not None]
    if not timed:
        return SKIP, "no timed run", ()
    failed = [
        row for row in timed
        if not row["measure_warmup_steps"] or not row["timed_steps"]
        or len(hosts_of(row["ranks_json"])) != row["world_size"]
    ]  # fmt: skip
    return _outcome(failed,
                    "no warm-up was left out, no step is counted as timed, or the ranks' hosts are not all known",
                    "each step is that of its slowest rank, a run the median over its timed steps; warm-up is marked, "
                    "the map of ranks is kept")  # fmt: skip


def _bounds(table: _Table) -> Outcome:
    """11: upper bounds of performance."""
    if not table.ok:
        return SKIP, "no run with status ok", ()
    failed = [row for row in table.ok if row["peak_flops"] is None and row["predicted_step_time_s"] is None]
    return _outcome(failed, "neither peak_flops nor a predicted step time: ask for `measure.peak_matmul = true`",
                    "a peak or a predicted step time bounds every run")  # fmt: skip


def _plots(table: _Table) -> Outcome:
    """12: enough to plot, and lines only where they mean a trend."""
    if not table.ok:
        return SKIP, "no run with status ok", ()
    failed = [row for row in table.ok if row["step_rows"] != row["steps"]]
    counts: dict[tuple, set[int]] = {}
    for group in table.groups:
        counts.setdefault((group["model"], group["engine"], group.family), set()).add(group.devices)
    for (model, engine, _), devices in counts.items():  # a single process belongs to every family
        devices |= counts.get((model, engine, "single"), set())
    lines = sum(len(devices) > 2 for devices in counts.values())
    return _outcome(failed, "not every step of the run is kept",
                    f"every step is kept; {lines} of {len(counts)} families have three device counts or more; "
                    "draw the others as points, not lines")  # fmt: skip


RULES: tuple[tuple[str, Callable[[_Table], Outcome]], ...] = (
    ("speedups have a base with its absolute performance", _base),
    ("what was left out has a reason", _subsets),
    ("rates are work over cost, not averages", _means),
    ("ratios are not averaged", _ratios),
    ("nondeterministic values have intervals", _intervals),
    ("normality is not assumed", _normality),
    ("comparisons are statistical", _comparison),
    ("the median is the right summary", _center),
    ("factors and set-up are documented", _factors),
    ("parallel time: measured, synchronised, summarised", _time),
    ("upper bounds are known", _bounds),
    ("there is enough to plot", _plots),
)


def _over(work: float | None, cost: float | None) -> float | None:
    return None if work is None or not cost else work / cost


def _close(value: float, wanted: float | None, tolerance: float = 1e-6) -> bool:
    return wanted is not None and abs(value - wanted) <= tolerance * abs(wanted)


def _kinds(codes: Coded, name: str) -> int:
    """Different values of a column, null among them."""
    return len(np.unique(codes.of(name)))


def _minority(rows: Sequence[dict], names: Sequence[str]) -> list[dict]:
    """The rows that are not like most."""
    kinds = Coded(rows).joint(names)
    return [row for row, kind in zip(rows, (kinds != np.bincount(kinds).argmax()).tolist(), strict=True) if kind]
