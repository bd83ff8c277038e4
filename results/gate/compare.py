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
from pathlib import Path

from .. import files
from ..schema.rows import rows_of
from ..stats.rank_test import Sample, best_p, compare_samples, holm, runs_needed, smallest_seen
from ..table import held_out
from ..table.errata import why_missing
from ..table.names import name_of
from ..table.read import noted, printable, runs_table
from ..table.work import levels, work_of
from ..wording import count_of
from .convergence import LossFinding, compare_losses
from .rule import FAILING, IMPROVED, METRICS, MISSING, NEW, NOISY, SAME, SKIPPED, Metric, Rule

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
    verdict: str
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
        return self.verdict in FAILING or (self.noise_fails and self.verdict == NOISY)


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
        return self.compared > 0 and not any(one.fails for one in (*self.findings, *self.losses))

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1


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
    with noted() as told:
        tables = [rows_of(runs_table(path, where=where)) for path in (base, head)]
    if not tables[0]:
        raise ValueError(f"no runs in BASE {str(base)!r}" + (f" where {where}" if where else ""))
    findings = findings_of(*tables, rule)
    evidence = tuple(sorted(_execution(row) for row in tables[1] if row["status"] == "ok"))
    if confirm is not None:
        path = Path(confirm)
        again = _compared_again(tables[0], path, where, rule) if _holds_runs(path) else _compared_before(path)
        findings = _confirmed(findings, evidence, path, *again)
    return Comparison(
        base=str(base),
        head=str(head),
        rule=rule,
        findings=tuple(sorted(findings, key=lambda one: not one.fails)),
        losses=tuple(compare_losses(*tables, alpha=rule.alpha, declared=rule.loss_tolerance)),
        notes=(*told, *_notes(*tables, findings)),
        evidence=evidence,
    )


def findings_of(base: list[dict], head: list[dict], rule: Rule) -> list[Finding]:
    """Every metric of every case, from the rows of both sides."""
    sides = _by_case(base), _by_case(head)
    names = {row["case_id"]: name_of(row) for row in (*base, *head)}
    pairs = [
        pair
        for case_id in names
        for column in dict.fromkeys(rule.metrics)
        if (pair := _pair(case_id, names[case_id], *(side.get(case_id, []) for side in sides), METRICS[column]))
    ]
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


def _by_case(rows: list[dict]) -> dict[str, list[dict]]:
    cases = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["started_at"] or "", row["repeat"])):
        cases[row["case_id"]].append(row)
    return cases


def _pair(case_id: str, name: str, base: list[dict], head: list[dict], metric: Metric) -> _Pair | None:
    """None: this machine does not measure that."""
    ok = [[row for row in rows if row["status"] == "ok"] for rows in (base, head)]
    values = [[row[metric.column] for row in rows] for rows in ok]
    values = [[value if value and value > 0 else None for value in side] for side in values]
    skipped = [bool(rows) and all(row["status"] == "skipped" for row in rows) for rows in (base, head)]

    def unmeasured(verdict: str, reason: str) -> _Pair:
        return _Pair(Finding(case_id, name, metric.column, verdict, len(ok[0]), len(ok[1]), printable(reason)))

    if not metric.always and not any(value is not None for side in values for value in side):
        return None
    if skipped[0] and skipped[1]:
        return unmeasured(SKIPPED, f"skipped on both sides: {head[0]['reason']}")
    if not head:
        return unmeasured(MISSING, "not in HEAD")
    if len(ok[1]) < len(head):
        bad = next(row for row in head if row["status"] != "ok")
        return unmeasured(
            MISSING,
            f"{len(head) - len(ok[1])} of {count_of(len(head), 'run')} of HEAD {bad['status']}: {bad['reason']}",
        )
    if not base or skipped[0]:
        return unmeasured(NEW, "nothing in BASE to compare with")
    if not ok[0]:
        return unmeasured(MISSING, f"no run of BASE is ok: {base[0]['status']}: {base[0]['reason']}")
    if other := _other_work(*ok):
        return unmeasured(MISSING, other)
    measured = [[value for value in side if value is not None] for side in values]
    if not measured[0]:
        return unmeasured(MISSING if metric.always else NEW, f"BASE has no {metric.column}{_because(ok[0], metric)}")
    if len(measured[1]) < len(values[1]):
        some = f"{values[1].count(None)} of {count_of(len(values[1]), 'run')} of HEAD"
        return unmeasured(MISSING, f"{some} without {metric.column}{_because(ok[1], metric)}")
    failed = len(base) - len(measured[0])
    draft = Finding(
        case_id,
        name,
        metric.column,
        SAME,
        len(measured[0]),
        len(measured[1]),
        reason=f"{failed} of {count_of(len(base), 'run')} of BASE left out: not ok or not measured" if failed else None,
        base=statistics.median(measured[0]),
        head=statistics.median(measured[1]),
        interleaved=_interleaved(*ok),
    )
    return _Pair(draft, tuple(measured[0]), tuple(measured[1]))


def _because(rows: list[dict], metric: Metric) -> str:
    """What reading, or the run itself, has said of a column that is null."""
    told = [why_missing(row, metric.column) for row in rows]
    told += [row.get(f"{metric.column}_reason") for row in rows]
    told = dict.fromkeys(filter(None, told))
    return f": {'; '.join(told)}" if told else ""


def _other_work(base: list[dict], head: list[dict]) -> str | None:
    """What keeps the two sides of a case from a ratio: recorded runs of one case may differ in tokens a step."""
    told = [[work for row in rows if (work := work_of(row))] for rows in (base, head)]
    level = levels((work for side in told for work in side), repeats=True)
    if len({level[work] for side in told for work in side}) <= 1:
        return None
    amounts = [" and ".join(map(str, sorted(set(side), key=lambda work: work.tokens)[:3])) for side in told]
    return f"other work: tokens per step {amounts[0]} in BASE, {amounts[1]} in HEAD"


def _interleaved(base: list[dict], head: list[dict]) -> bool | None:
    """Whether the runs took turns, so that a drift of the machine met both alike. None: the rows do not say."""
    started = [(row["started_at"], side) for side, rows in enumerate((base, head)) for row in rows]
    if None in (time for time, _ in started) or len({time for time, _ in started}) < len(started):
        return None
    sides = [side for _, side in sorted(started)]
    switches = sum(one != other for one, other in zip(sides, sides[1:], strict=False))
    return switches >= min(len(base), len(head))


def _judged(pair: _Pair, sample: Sample, p_adjusted: float, tests: int, rule: Rule) -> Finding:
    """The verdict of one test among `tests`."""
    metric, counts = METRICS[pair.draft.metric], (len(pair.base), len(pair.head))
    seen = smallest_seen(sample, *counts, rule.alpha / tests, rule.power)
    bounded = sample.low is not None and sample.high is not None
    reasons = [pair.draft.reason]
    if p_adjusted <= rule.alpha and abs(sample.ratio - 1) >= rule.min_effect:
        verdict = metric.worse if (sample.ratio > 1) == metric.less_is_better else metric.better
    elif bounded and 1 / (1 + rule.margin) < sample.low and sample.high < 1 + rule.margin:
        verdict = SAME
    else:
        verdict = NOISY
        if sample.best_p > rule.alpha / tests:
            needed = runs_needed(rule.alpha / tests)
            reasons.append(f"too few runs to tell anything at this level: {needed} a side could")
            if counts[1] < counts[0] and best_p(counts[0], counts[0]) <= rule.alpha / tests:
                verdict = MISSING  # BASE has enough: that HEAD's sweep ended early is not noise
        elif sample.drift:
            reasons.append(f"drift {sample.drift}, and the runs did not take turns: interleave them")
        else:
            reasons.append(f"the interval does not exclude a change of {rule.margin:.3g}")
    return replace(
        pair.draft,
        verdict=verdict,
        reason="; ".join(filter(None, reasons)) or None,
        ratio=sample.ratio,
        low=sample.low,
        high=sample.high,
        p=sample.p,
        p_adjusted=p_adjusted,
        smallest_seen=seen,
        spread=math.expm1(sample.spread),
        confirmed=False if verdict in IMPROVED else None,
        noise_fails=rule.fail_on_noise,
    )


_Key = tuple[str, str, str]  # case_id, metric, verdict


def _holds_runs(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".parquet", ".pq")


def _compared_again(base: list[dict], path: Path, where: str | None, rule: Rule) -> tuple[set[_Key], set[str]]:
    """What other runs of HEAD show against BASE, and which runs they are."""
    rows = rows_of(runs_table(path, where=where))
    if not rows:
        raise ValueError(f"no runs in {printable(path)} to confirm by" + (f" where {where}" if where else ""))
    found = {(one.case_id, one.metric, one.verdict) for one in findings_of(base, rows, rule)}
    return found, {_execution(row) for row in rows if row["status"] == "ok"}


def _compared_before(path: Path) -> tuple[set[_Key], set[str]]:
    """What an earlier comparison in a file found, and of which runs of HEAD."""
    try:
        earlier = files.parse_json(files.read_named(path, 2**26))
        assert earlier["kind"] == JSON_KIND
        found = {(one["case_id"], one["metric"], one["verdict"]) for one in earlier["findings"]}
        return found, set(earlier["evidence"])
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


def _execution(row: dict) -> str:
    return f"{row['run_id']} attempt {row['attempt']} {row['started_at']}"


def _differences(base: list[dict], head: list[dict]) -> list[str]:
    """In what the machines and the software of the two sides differ, a line for each column."""
    lines = []
    for column in (*HARDWARE, *SOFTWARE):
        values = [sorted({str(row[column]) for row in rows if row[column] is not None}) for rows in (base, head)]
        if all(values) and values[0] != values[1]:
            what = "the machines differ: " if column in HARDWARE else ""
            lines.append(printable(f"{what}{column} {', '.join(values[0])} in BASE, {', '.join(values[1])} in HEAD"))
    return lines


def _notes(base: list[dict], head: list[dict], findings: Sequence[Finding]) -> list[str]:
    """What a reader must know of the two sides before believing a ratio."""
    notes = []
    sides = [[row for row in rows if row["status"] == "ok"] for rows in (base, head)]
    if {_execution(row) for row in sides[0] if row["started_at"]} & {_execution(row) for row in sides[1]}:
        notes.append("BASE and HEAD hold the same executions: this compares runs with themselves")
    notes += _differences(*sides)
    unknown = [sum(row["parity"] is not None and work_of(row) is None for row in rows) for rows in sides]
    if any(unknown):
        where = f"{count_of(unknown[0], 'run')} of BASE, {unknown[1]} of HEAD"
        notes.append(f"tokens per step unknown in {where}: taken to be those of their case")
    silent = held_out.unknown([row for rows in sides for row in rows])
    notes += [silent] if silent else []
    if any(one.interleaved is False for one in findings):
        notes.append(
            "the runs of BASE and HEAD did not take turns: a change of the machine between them looks like a "
            "difference. `scalade compare --interleave` runs them in turns"
        )
    return notes
