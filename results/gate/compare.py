"""`scalade compare BASE HEAD`: is HEAD slower, and does it still learn as well? For a CI: exit status 0 or 1.

Cases are paired by `case_id`: base and head computed the same thing. The unit of repetition is the run. What cannot
be compared does not pass: a case that is missing or failed in HEAD fails the gate; noise alone does not.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import files
from ..schema.rows import AnyRow, rows_of
from ..stats.rank_test import Sample, best_p, compare_samples, holm, runs_needed, smallest_seen
from ..table import held_out
from ..table.errata import why_missing
from ..table.names import name_of
from ..table.read import noted, printable, runs_table
from ..table.work import levels, work_of
from ..wording import count_of
from .convergence import LossFinding, compare_losses
from .rule import FAILING, IMPROVED, METRICS, Metric, Rule, Verdict

HARDWARE = ("cpu_model", "cpu_count", "host_memory_bytes", "device_name", "device_count", "threads_per_rank", "nodes")
SOFTWARE = (
    "driver_version",
    "os",
    "kernel",
    "backend",
    "launcher",
    "python_version",
    "torch_version",
    "cuda_version",
    "nccl_version",
    "omp_wait_policy",
    "deepspeed_version",
    "megatron_version",
    "mpi_version",
    "scalade_version",
    "git_commit",
    "git_dirty",
)
JSON_KIND = "scalade comparison"


@dataclass(frozen=True)
class Finding:
    """One metric of one case. Null: not compared."""

    case_id: str
    name: str  # study, model and layout, for people
    metric: str
    verdict: Verdict
    base_runs: int
    head_runs: int
    reason: str | None = None
    base: float | None = None  # median over runs
    head: float | None = None
    ratio: float | None = None  # head over base, with its interval at 1 - alpha
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None  # Holm, over all cases and metrics
    smallest_seen: float | None = None  # relative change
    spread: float | None = None  # relative, between runs of one side
    interleaved: bool | None = None  # null: the rows do not say when they ran
    confirmed: bool | None = None  # of an improvement: seen by an earlier comparison, of other runs, too
    noise_fails: bool = False  # the rule fails what is too noisy

    @property
    def fails(self) -> bool:
        return self.verdict in FAILING or (self.noise_fails and self.verdict == Verdict.NOISY)


@dataclass(frozen=True)
class Comparison:
    base: str
    head: str
    rule: Rule
    findings: tuple[Finding, ...]  # what fails first
    losses: tuple[LossFinding, ...]
    notes: tuple[str, ...]
    evidence: tuple[str, ...]  # the head's runs and when each ran: another comparison of these confirms nothing

    @property
    def compared(self) -> int:
        """Cases of which something was measured on both sides."""
        return len({one.case_id for one in self.findings if one.ratio is not None})

    @property
    def passed(self) -> bool:
        failing = any(one.fails for one in self.findings) or any(one.fails for one in self.losses)
        return self.compared > 0 and not failing

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1


@dataclass(frozen=True)
class _Case:
    """The runs of one case on both sides, oldest first."""

    case_id: str
    name: str
    base: Sequence[AnyRow]
    head: Sequence[AnyRow]

    @cached_property
    def ok_base(self) -> list[AnyRow]:
        return _ok(self.base)

    @cached_property
    def ok_head(self) -> list[AnyRow]:
        return _ok(self.head)


@dataclass(frozen=True)
class _Pair:
    """What was measured of one metric of one case; without values where nothing can be compared."""

    draft: Finding
    base: tuple[float, ...] = ()  # in the order they were measured
    head: tuple[float, ...] = ()


def compare(
    base: str | Path,
    head: str | Path,
    rule: Rule | None = None,
    where: str | None = None,
    confirm: str | Path | None = None,
) -> Comparison:
    """Compare two tables: results folders, or Parquet files that `export` wrote.

    where: a filter on both, as `engine == torch`
    confirm: other runs of HEAD, read as it is, or the JSON of an earlier comparison of such; improvements found there
        and here are confirmed

    Raises
    ------
    ValueError: nothing at a path, no runs in BASE, not a filter, or `confirm` is neither other runs nor a
        comparison of such
    """
    rule = rule or Rule()
    with noted() as warnings:
        base_rows, head_rows = (rows_of(runs_table(path, where=where)) for path in (base, head))
    if not base_rows:
        raise ValueError(f"no runs in BASE {str(base)!r}" + (f" where {where}" if where else ""))
    findings = findings_of(base_rows, head_rows, rule)
    evidence = tuple(sorted(map(_execution, _ok(head_rows))))
    if confirm is not None:
        path = Path(confirm)
        again = _compared_again(base_rows, path, where, rule) if _holds_runs(path) else _compared_before(path)
        findings = _confirmed(findings, evidence, path, *again)
    return Comparison(
        base=str(base),
        head=str(head),
        rule=rule,
        findings=tuple(sorted(findings, key=lambda one: not one.fails)),
        losses=tuple(compare_losses(base_rows, head_rows, rule.alpha, declared=rule.loss_tolerance)),
        notes=(*warnings, *_notes(base_rows, head_rows, findings)),
        evidence=evidence,
    )


def findings_of(base: Sequence[AnyRow], head: Sequence[AnyRow], rule: Rule) -> list[Finding]:
    """Every metric of every case, from the rows of both sides."""
    base_cases, head_cases = _by_case(base), _by_case(head)
    names = {row["case_id"]: name_of(row) for row in (*base, *head)}
    cases = [
        _Case(case_id, name, base_cases.get(case_id, []), head_cases.get(case_id, []))
        for case_id, name in names.items()
    ]
    metrics = [METRICS[column] for column in dict.fromkeys(rule.metrics)]
    pairs = [pair for case in cases for metric in metrics if (pair := _pair(case, metric))]
    samples = {
        index: compare_samples(pair.base, pair.head, rule.alpha, blocks=pair.draft.interleaved is False)
        for index, pair in enumerate(pairs)
        if pair.head
    }
    adjusted = dict(zip(samples, holm([sample.p for sample in samples.values()]), strict=True))
    return [
        _judged(pair, samples[index], adjusted[index], len(samples), rule) if index in samples else pair.draft
        for index, pair in enumerate(pairs)
    ]


def _by_case(rows: Sequence[AnyRow]) -> dict[str, list[AnyRow]]:
    cases = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["started_at"] or "", row["repeat"])):
        cases[row["case_id"]].append(row)
    return cases


def _ok(rows: Sequence[AnyRow]) -> list[AnyRow]:
    return [row for row in rows if row["status"] == "ok"]


def _pair(case: _Case, metric: Metric) -> _Pair | None:
    """None: this machine does not measure that."""
    base, head = _values(case.ok_base, metric), _values(case.ok_head, metric)
    measured_base = [value for value in base if value is not None]
    measured_head = [value for value in head if value is not None]
    if not metric.always and not measured_base and not measured_head:
        return None
    obstacle = _not_comparable(case) or _not_measured(case, metric, base, head)
    if obstacle is not None:
        verdict, reason = obstacle
        runs = len(case.ok_base), len(case.ok_head)
        return _Pair(Finding(case.case_id, case.name, metric.column, verdict, *runs, printable(reason)))
    failed = len(case.base) - len(measured_base)
    draft = Finding(
        case.case_id,
        case.name,
        metric.column,
        Verdict.SAME,
        len(measured_base),
        len(measured_head),
        reason=f"{failed} of {count_of(len(case.base), 'run')} of BASE left out: not ok or not measured"
        if failed
        else None,
        base=statistics.median(measured_base),
        head=statistics.median(measured_head),
        interleaved=_interleaved(case.ok_base, case.ok_head),
    )
    return _Pair(draft, tuple(measured_base), tuple(measured_head))


def _values(rows: Sequence[AnyRow], metric: Metric) -> list[float | None]:
    """A value that is not above 0 was not measured."""
    values = [row[metric.column] for row in rows]
    return [value if value and value > 0 else None for value in values]


_Obstacle = tuple[Verdict, str]  # what keeps two sides from a ratio, and the reason in one line


def _not_comparable(case: _Case) -> _Obstacle | None:
    """What keeps the two sides of a case from a ratio, whatever the metric."""
    base, head = case.base, case.head
    base_skipped = bool(base) and all(row["status"] == "skipped" for row in base)
    if base_skipped and head and all(row["status"] == "skipped" for row in head):
        return Verdict.SKIPPED, f"skipped on both sides: {head[0]['reason']}"
    if not head:
        return Verdict.MISSING, "not in HEAD"
    if failed := len(head) - len(case.ok_head):
        bad = next(row for row in head if row["status"] != "ok")
        runs = f"{failed} of {count_of(len(head), 'run')} of HEAD"
        return Verdict.MISSING, f"{runs} {bad['status']}: {bad['reason']}"
    if not base or base_skipped:
        return Verdict.NEW, "nothing in BASE to compare with"
    if not case.ok_base:
        return Verdict.MISSING, f"no run of BASE is ok: {base[0]['status']}: {base[0]['reason']}"
    if other := _other_work(case.ok_base, case.ok_head):
        return Verdict.MISSING, other
    return None


def _not_measured(
    case: _Case, metric: Metric, base: Sequence[float | None], head: Sequence[float | None]
) -> _Obstacle | None:
    """What keeps them from one in this metric."""
    if all(value is None for value in base):
        verdict = Verdict.MISSING if metric.always else Verdict.NEW
        return verdict, f"BASE has no {metric.column}{_because(case.ok_base, metric)}"
    if None in head:
        runs = f"{head.count(None)} of {count_of(len(head), 'run')} of HEAD"
        return Verdict.MISSING, f"{runs} without {metric.column}{_because(case.ok_head, metric)}"
    return None


def _because(rows: Sequence[AnyRow], metric: Metric) -> str:
    """The reasons that reading, or the run itself, gives for a column that is null."""
    reasons = [why_missing(row, metric.column) for row in rows]
    reasons += [row.get(f"{metric.column}_reason") for row in rows]
    known = dict.fromkeys(reason for reason in reasons if reason)
    return f": {'; '.join(known)}" if known else ""


def _other_work(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> str | None:
    """What keeps the two sides of a case from a ratio: recorded runs of one case may differ in tokens a step."""
    works = [[work for row in rows if (work := work_of(row))] for rows in (base, head)]
    level = levels((work for side in works for work in side), repeats=True)
    if len({level[work] for side in works for work in side}) <= 1:
        return None
    amounts = [" and ".join(map(str, sorted(set(side), key=lambda work: work.tokens)[:3])) for side in works]
    return f"other work: tokens per step {amounts[0]} in BASE, {amounts[1]} in HEAD"


def _interleaved(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> bool | None:
    """Whether the runs took turns, so that a drift of the machine met both alike. None: the rows do not say."""
    started = [(row["started_at"], side) for side, rows in enumerate((base, head)) for row in rows]
    if None in (time for time, _ in started) or len({time for time, _ in started}) < len(started):
        return None
    sides = [side for _, side in sorted(started)]
    switches = sum(one != other for one, other in zip(sides, sides[1:], strict=False))
    return switches >= min(len(base), len(head))


def _judged(pair: _Pair, sample: Sample, p_adjusted: float, tests: int, rule: Rule) -> Finding:
    """The verdict of one test among `tests`."""
    verdict, reason = _verdict(pair, sample, p_adjusted, tests, rule)
    return replace(
        pair.draft,
        verdict=verdict,
        reason="; ".join(filter(None, (pair.draft.reason, reason))) or None,
        ratio=sample.ratio,
        low=sample.low,
        high=sample.high,
        p=sample.p,
        p_adjusted=p_adjusted,
        smallest_seen=smallest_seen(sample, len(pair.base), len(pair.head), rule.alpha / tests, rule.power),
        spread=math.expm1(sample.spread),
        confirmed=False if verdict in IMPROVED else None,
        noise_fails=rule.fail_on_noise,
    )


def _verdict(pair: _Pair, sample: Sample, p_adjusted: float, tests: int, rule: Rule) -> tuple[Verdict, str | None]:
    """With the reason where it is not that the sides differ or are the same."""
    metric = METRICS[pair.draft.metric]
    if p_adjusted <= rule.alpha and abs(sample.ratio - 1) >= rule.min_effect:
        got_worse = (sample.ratio > 1) == metric.less_is_better
        return (metric.worse if got_worse else metric.better), None
    low, high = sample.low, sample.high
    if low is not None and high is not None and 1 / (1 + rule.margin) < low and high < 1 + rule.margin:
        return Verdict.SAME, None
    level = rule.alpha / tests
    if sample.best_p > level:
        runs = len(pair.base)
        # BASE has enough: that HEAD's sweep ended early is not noise
        ended_early = len(pair.head) < runs and best_p(runs, runs) <= level
        reason = f"too few runs to tell anything at this level: {runs_needed(level)} a side could"
        return (Verdict.MISSING if ended_early else Verdict.NOISY), reason
    if sample.drift:
        return Verdict.NOISY, f"drift {sample.drift}, and the runs did not take turns: interleave them"
    return Verdict.NOISY, f"the interval does not exclude a change of {rule.margin:.3g}"


_Key = tuple[str, str, str]  # case_id, metric, verdict


def _holds_runs(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".parquet", ".pq")


def _compared_again(base: Sequence[AnyRow], path: Path, where: str | None, rule: Rule) -> tuple[set[_Key], set[str]]:
    """What other runs of HEAD show against BASE, and which runs they are."""
    rows = rows_of(runs_table(path, where=where))
    if not rows:
        raise ValueError(f"no runs in {printable(path)} to confirm by" + (f" where {where}" if where else ""))
    keys = {(one.case_id, one.metric, str(one.verdict)) for one in findings_of(base, rows, rule)}
    return keys, set(map(_execution, _ok(rows)))


def _compared_before(path: Path) -> tuple[set[_Key], set[str]]:
    """What an earlier comparison in a file shows, and of which runs of HEAD."""
    try:
        earlier: Any = files.parse_json(files.read_named(path, 2**26))
        assert earlier["kind"] == JSON_KIND
        keys = {(one["case_id"], one["metric"], one["verdict"]) for one in earlier["findings"]}
        return keys, set(earlier["evidence"])
    except (OSError, ValueError, LookupError, TypeError, AssertionError):
        raise ValueError(
            f"{printable(path)} holds neither runs nor a comparison: give a folder of other runs of HEAD, or what "
            "`scalade compare --json` wrote of such"
        ) from None


def _confirmed(
    findings: Sequence[Finding], evidence: tuple[str, ...], path: Path, before: set[_Key], others: set[str]
) -> list[Finding]:
    """The findings, improvements marked that were seen before, in other runs of HEAD."""
    if again := set(evidence) & others:
        raise ValueError(
            f"{printable(path)} is of the same runs of HEAD, as {printable(min(again))}: run HEAD again to confirm"
        )
    return [
        replace(one, confirmed=(one.case_id, one.metric, one.verdict) in before) if one.verdict in IMPROVED else one
        for one in findings
    ]


def _execution(row: AnyRow) -> str:
    return f"{row['run_id']} attempt {row['attempt']} {row['started_at']}"


def _differences(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> list[str]:
    """In what the machines and the software of the two sides differ, a line for each column."""
    lines = []
    for column in (*HARDWARE, *SOFTWARE):
        values = [sorted({str(row[column]) for row in rows if row[column] is not None}) for rows in (base, head)]
        if all(values) and values[0] != values[1]:
            prefix = "the machines differ: " if column in HARDWARE else ""
            lines.append(printable(f"{prefix}{column} {', '.join(values[0])} in BASE, {', '.join(values[1])} in HEAD"))
    return lines


def _notes(base: Sequence[AnyRow], head: Sequence[AnyRow], findings: Sequence[Finding]) -> list[str]:
    """What a reader must know of the two sides before believing a ratio."""
    base, head = _ok(base), _ok(head)
    notes = []
    if {_execution(row) for row in base if row["started_at"]} & set(map(_execution, head)):
        notes.append("BASE and HEAD hold the same executions: this compares runs with themselves")
    notes += _differences(base, head)
    unknown = _unknown_work(base), _unknown_work(head)
    if any(unknown):
        where = f"{count_of(unknown[0], 'run')} of BASE, {unknown[1]} of HEAD"
        notes.append(f"tokens per step unknown in {where}: taken to be those of their case")
    if unhashed := held_out.unknown([*base, *head]):
        notes.append(unhashed)
    if any(one.interleaved is False for one in findings):
        notes.append(
            "the runs of BASE and HEAD did not take turns: a change of the machine between them looks like a "
            "difference. `scalade compare --interleave` runs them in turns"
        )
    return notes


def _unknown_work(rows: Sequence[AnyRow]) -> int:
    """Recorded runs whose tokens per step are not known."""
    return sum(row["parity"] is not None and work_of(row) is None for row in rows)
