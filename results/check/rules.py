"""The twelve rules of Hoefler and Belli over the rows of a table, by whole columns.

"Scientific Benchmarking of Parallel Computing Systems", SC'15, doi 10.1145/2807591.2807644. A rule gives its verdict,
why, and the rows that fail it. Numbers in `runs` are finite or null, so NaN stands for null here, and what is compared
with it does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from ..efficiency.series import MODES
from ..efficiency.workload import BATCH, DATA, MODEL, OUTER, RECIPE, TOKENS, Group, work_keys
from ..schema.rows import AnyRow
from ..stats.many_tests import kruskal_p, shapiro_p
from ..stats.rank_intervals import MIN_RUNS
from ..table.column_codes import Coded, first_of, joint, parts
from ..table.rank_places import hosts_of
from ..table.work import work_of
from ..wording import count_of
from .checked_table import (
    FAIL,
    PASS,
    SKIP,
    Outcome,
    Table,
    alike,
    close,
    have,
    kinds,
    minority,
    of_few,
    once,
    outcome_of,
    over,
    those,
    true,
)

TAIL = 1.5  # 95th percentile over median beyond which a median alone misleads
TAIL_STEPS = 20  # fewer timed steps have no 95th percentile but their maximum
NOT_NULL = (
    "params_total", "tokens_per_step", "data_source", "data_hash", "optimizer", "lr", "precision", "seed", "layout",
    "engine", "launcher", "world_size", "nodes", "ranks_json", "device_type", "threads_per_rank", "os", "kernel",
    "scalade_version", "git_commit", "python_version", "torch_version", "model_layers", "model_width", "global_batch",
)  # fmt: skip
FACTORS = (
    *MODEL,
    *DATA,
    *RECIPE,
    BATCH,
    TOKENS,
    *OUTER,
    "seed",
    "outer_replicas",
    "engine",
    "layout",
    "world_size",
    "nodes",
)
UNINTENDED = (
    "git_commit",
    "torch_version",
    "cuda_version",
    "nccl_version",
    "driver_version",
    "python_version",
    "kernel",
    "device_name",
    "cpu_model",
    "scalade_version",
)


def _base(table: Table) -> Outcome:
    """1: with a speedup, say what the base is, and its absolute performance."""
    keys = _keys(table.groups)
    smallest = _smallest(table.groups, keys)
    bases: set[int] = set()
    failed: list[AnyRow] = []
    for group, (workload, *modes) in zip(table.groups, keys, strict=True):
        least = min(smallest[key] for key in modes)
        if least < group.devices:
            bases.add(least)
        elif group.devices > smallest[workload]:
            failed += group.rows
    if not bases and not failed:
        return Outcome(SKIP, "one device count for each workload: no speedup" if table.groups else "no timed run")
    kinds = " and ".join("a single process" if n == 1 else f"{n} processes" for n in sorted(bases))
    return outcome_of(
        failed,
        "no run on fewer devices does the same work, in all or per device: there is no base",
        f"the base is {kinds}; its tokens/s and step time stand beside every ratio",
    )


def _smallest(groups: Sequence[Group], keys: Sequence[tuple]) -> dict[tuple, int]:
    """Device count, of a workload and of what may be compared in a mode. keys: of each group"""
    smallest: dict[tuple, int] = {}
    for group, some in zip(groups, keys, strict=True):
        for key in some:
            smallest[key] = min(smallest.get(key, group.devices), group.devices)
    return smallest


def _keys(groups: Sequence[Group]) -> list[tuple]:
    """Of each group: the key of its workload, and in each mode that of the groups it may be compared with."""
    workloads = Coded([group.rows[0] for group in groups]).joint(MODEL + DATA).tolist()
    works = (zip([mode] * len(workloads), work_keys(groups, mode).tolist(), strict=True) for mode in MODES)
    return list(zip((("model and data", one) for one in workloads), *works, strict=True))


def _subsets(table: Table) -> Outcome:
    """2: say why only a part was measured."""
    silent = [row for row in table.rows if row["status"] != "ok" and not row["reason"]]
    columns, gaps = Coded(table.rows), []
    repeat, cases = columns.numbers("repeat"), parts(joint([columns.of("case_id")], len(table.rows)))
    for case in cases:
        order = case[np.argsort(repeat[case], kind="stable")]
        if (repeat[order] != np.arange(len(order))).any():
            gaps.append(table.rows[order[-1]])
    gaps.sort(key=lambda row: row["case_id"] or "")
    left_out = len(table.rows) - len(table.ok)
    return outcome_of(
        silent + gaps,
        f"{count_of(len(silent), 'run')} produced no result without a reason, "
        + count_of(len(gaps), "case lacks repeats", "cases lack repeats"),
        count_of(left_out, "run is not ok, with its reason", "runs are not ok, each with its reason")
        + "; no repeat is missing",
    )


def _means(table: Table) -> Outcome:
    """3: rates are not averaged: they are the work over the summarised cost."""
    number = table.of_ok.numbers
    rate, timed, seen, step_s = map(number, ("tokens_per_s", "timed_tokens", "tokens_seen", "step_time_s"))
    rated = ~np.isnan(rate)
    if not rated.any():
        return Outcome(SKIP, "no rate in the table")
    partly = np.isnan(timed) & true(number("quorum_missed"))  # batches of missing replicas do not count
    there = over(over(seen, number("step_rows")), step_s)
    wanted = np.where(partly, there, over(number("tokens_per_step"), step_s))
    wanted = np.where(np.isnan(timed), wanted, over(timed, number("timed_s")))
    a_row = np.nan_to_num(number("model_seq_len")) / np.where(true(seen), seen, 1)  # tokens_seen is whole sequences
    holds = close(rate, wanted, np.where(partly, a_row, 1e-6))
    return outcome_of(
        those(table.ok, rated & ~holds),
        "tokens_per_s is neither tokens_per_step / step_time_s nor timed_tokens / timed_s: a rate was averaged",
        "every rate is work over the summarised time",
    )


def _ratios(table: Table) -> Outcome:
    """4: ratios are not averaged: they are formed from costs and rates."""
    number, failed, any_ratio = table.of_ok.numbers, np.zeros(len(table.ok), bool), False
    for name in ("6n", "palm", "causal"):
        ratio, flops = number(f"mfu_{name}"), number(f"flops_per_token_{name}")
        wanted = over(flops * number("tokens_per_s_per_device"), number("peak_flops"))
        failed |= ~np.isnan(ratio) & ~close(ratio, wanted)
        any_ratio = any_ratio or not np.isnan(ratio).all()
    if not any_ratio:
        return Outcome(SKIP, "no ratio in the table (no mfu: the peak is unknown)")
    return outcome_of(
        once(those(table.ok, failed)),
        "mfu is not FLOPs x rate / peak of its row",
        "every ratio follows from the rate and the peak of its own row",
    )


def _intervals(table: Table) -> Outcome:
    """5: say whether values are deterministic; where not, give intervals."""
    if not table.groups:
        return Outcome(SKIP, "no timed run")
    few = of_few(table, np.arange(len(table.groups)))
    repeated = (table.sizes > 1) & alike(table, "seed")
    same = (repeated & alike(table, "train_loss_last")).sum()
    losses = f"the losses of {same} of {repeated.sum()} repeated cases are bitwise the same, times never are"
    return outcome_of(
        list(chain.from_iterable(group.rows for group in few)),
        f"{len(few)} of {count_of(len(table.groups), 'case')} {have(few)} fewer than {MIN_RUNS} runs: "
        f"no interval; {losses}",
        f"every case has at least {MIN_RUNS} runs; {losses}",
    )


def _normality(table: Table) -> Outcome:
    """6: no assumption of normality without a test. Nothing here assumes it, so this passes or does not apply."""
    enough = table.sizes >= MIN_RUNS
    if not enough.any():
        return Outcome(SKIP, f"no case has {MIN_RUNS} runs: nothing is estimated that could assume it")
    times = table.members.numbers("step_time_s")[np.repeat(enough, table.sizes)]
    rejected = (shapiro_p(times, table.sizes[enough]) < 0.05 / enough.sum()).sum()
    tested = f"Shapiro-Wilk rejects it in {rejected} of {count_of(enough.sum(), 'case')}"
    return Outcome(PASS, f"intervals are rank-based and assume none; {tested}")


def _comparison(table: Table) -> Outcome:
    """7: compare by intervals or tests."""
    works = work_keys(table.groups, "strong") if table.groups else np.zeros(0, np.int64)
    compared = [some for some in parts(works) if len(some) > 1]
    if not compared:
        return Outcome(SKIP, "no two cases do the same work")
    few = of_few(table, np.concatenate(compared))
    group = np.repeat(np.arange(len(works)), table.sizes)
    enough = (table.sizes >= MIN_RUNS)[group]
    group, times = group[enough], table.members.numbers("step_time_s")[enough]
    p = kruskal_p(times, group, works[group], int(works.max()) + 1)
    sound = (~np.isnan(p)).sum()
    differ = (p < 0.05 / max(sound, 1)).sum()
    test = f"Kruskal-Wallis tells the layouts apart in {differ} of {sound} workloads"
    return outcome_of(
        list(chain.from_iterable(group.rows for group in few)),
        f"{count_of(len(few), 'compared case')} {have(few)} fewer than {MIN_RUNS} runs; {test}",
        test,
    )


def _center(table: Table) -> Outcome:
    """8: does the median say it all?"""
    median, tail, steps = map(table.of_ok.numbers, ("step_time_s", "step_time_p95_s", "timed_steps"))
    timed = ~np.isnan(median)
    if not timed.any():
        return Outcome(SKIP, "no timed run")
    known = ~np.isnan(tail) & (steps >= TAIL_STEPS)
    short = those(table.ok, timed & ~known)
    heavy = those(table.ok, timed & known & (tail > TAIL * median))
    reasons = []
    if short:
        reasons.append(
            f"{count_of(len(short), 'run times', 'runs time')} fewer than {TAIL_STEPS} steps: no 95th percentile"
        )
    if heavy:
        runs = count_of(len(heavy), "run")
        reasons.append(f"in {runs} the 95th percentile is above {TAIL:g} medians: report it too")
    return outcome_of(short + heavy, "; ".join(reasons), f"the 95th percentile is known and within {TAIL:g} medians")


def _factors(table: Table) -> Outcome:
    """9: every factor, its levels and the whole set-up are written down."""
    if not table.ok:
        return Outcome(SKIP, "no run with status ok")
    columns = table.of_ok
    gaps, failed = _set_up_gaps(table)
    mixed = [name for name in UNINTENDED if kinds(columns, name) > 1]
    if mixed and not failed:
        why = f"varying without being a factor: {', '.join(mixed)}"
        return Outcome(FAIL, why, minority(table.ok, columns, mixed))
    also = f"; not factors, yet varying: {', '.join(mixed)}" if mixed else ""
    levels = {name: kinds(columns, name) for name in FACTORS}
    varied = ", ".join(f"{name} ({count})" for name, count in levels.items() if count > 1) or "none"
    return outcome_of(failed, "; ".join(gaps) + also, f"set-up complete; factors (levels): {varied}")


def _set_up_gaps(table: Table) -> tuple[list[str], list[AnyRow]]:
    """What of the set-up is not written down, and the runs that lack it."""
    columns = table.of_ok
    lacking = {name: np.flatnonzero(columns.null(name)).tolist() for name in NOT_NULL}
    lacking[TOKENS] = [at for at in lacking[TOKENS] if work_of(table.ok[at]) is None]  # null where steps differ
    lacking = {name: some for name, some in lacking.items() if some}
    unnamed = np.flatnonzero(columns.null("device_name") & columns.null("cpu_model")).tolist()
    dirty = np.flatnonzero(true(columns.numbers("git_dirty"))).tolist()
    gaps = []
    if lacking:
        gaps.append(f"null: {', '.join(lacking)}")
    if unnamed:
        gaps.append("no device or CPU model")
    if dirty:
        gaps.append(f"{count_of(len(dirty), 'run')} of uncommitted code")
    places = dict.fromkeys(chain(*lacking.values(), unnamed, dirty))
    return gaps, once(map(table.ok.__getitem__, places))


def _time(table: Table) -> Outcome:
    """10: how time was measured, synchronised and summarised over processes."""
    number = table.of_ok.numbers
    timed = ~np.isnan(number("step_time_s"))
    if not timed.any():
        return Outcome(SKIP, "no timed run")
    maps = joint([table.of_ok.of("ranks_json")], len(table.ok))
    mapped = np.array([len(hosts_of(table.ok[at]["ranks_json"])) for at in first_of(maps)])[maps]
    holds = true(number("measure_warmup_steps")) & true(number("timed_steps")) & (mapped == number("world_size"))
    return outcome_of(
        those(table.ok, timed & ~holds),
        "no warm-up was left out, no step is counted as timed, or the ranks' hosts are not all known",
        "each step is that of its slowest rank, a run the median over its timed steps; warm-up is "
        "marked, the map of ranks is kept",
    )


def _bounds(table: Table) -> Outcome:
    """11: upper bounds of performance."""
    if not table.ok:
        return Outcome(SKIP, "no run with status ok")
    failed = those(table.ok, table.of_ok.null("peak_flops") & table.of_ok.null("predicted_step_time_s"))
    return outcome_of(
        failed,
        "neither peak_flops nor a predicted step time: ask for `measure.peak_matmul = true`",
        "a peak or a predicted step time bounds every run",
    )


def _plots(table: Table) -> Outcome:
    """12: enough to plot, and lines only where they mean a trend."""
    if not table.ok:
        return Outcome(SKIP, "no run with status ok")
    kept, wanted = map(table.of_ok.numbers, ("step_rows", "steps"))
    failed = those(table.ok, (kept != wanted) & ~(np.isnan(kept) & np.isnan(wanted)))
    counts: dict[tuple, set[int]] = {}
    for group in table.groups:
        counts.setdefault((group["model"], group["engine"], group.family), set()).add(group.devices)
    for (model, engine, _), devices in counts.items():  # a single process belongs to every family
        devices |= counts.get((model, engine, "single"), set())
    lines = sum(len(devices) > 2 for devices in counts.values())
    return outcome_of(
        failed,
        "not every step of the run is kept",
        f"every step is kept; {lines} of {len(counts)} families have three device counts or more; "
        "draw the others as points, not lines",
    )


RULES: tuple[tuple[str, Callable[[Table], Outcome]], ...] = (
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
