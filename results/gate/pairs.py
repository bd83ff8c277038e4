"""One metric of one case on both sides: the values to compare, or what keeps the two from a ratio."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..schema.rows import AnyRow, ok_rows, values_in
from ..table.errata import why_missing
from ..table.names import name_of
from ..table.read import printable
from ..table.work import Work, levels, work_of
from ..wording import count_of
from .rule import FAILING, Metric, Verdict


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
class Case:
    """The runs of one case on both sides, oldest first."""

    case_id: str
    name: str
    base: Sequence[AnyRow]
    head: Sequence[AnyRow]

    @cached_property
    def ok_base(self) -> list[AnyRow]:
        return ok_rows(self.base)

    @cached_property
    def ok_head(self) -> list[AnyRow]:
        return ok_rows(self.head)


@dataclass(frozen=True)
class Pair:
    """What was measured of one metric of one case; without values where nothing can be compared."""

    draft: Finding
    base: tuple[float, ...] = ()  # in the order they were measured
    head: tuple[float, ...] = ()


Value = float | None  # None: not measured
_Obstacle = tuple[Verdict, str]  # what keeps two sides from a ratio, and the reason in one line


def cases_of(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> list[Case]:
    """Every case that one of the sides has."""
    base_cases, head_cases = _by_case(base), _by_case(head)
    names = {row["case_id"]: name_of(row) for row in (*base, *head)}
    return [
        Case(case_id, name, base_cases.get(case_id, []), head_cases.get(case_id, [])) for case_id, name in names.items()
    ]


def _by_case(rows: Sequence[AnyRow]) -> dict[str, list[AnyRow]]:
    cases = defaultdict(list)
    for row in sorted(rows, key=_start):
        cases[row["case_id"]].append(row)
    return cases


def _start(row: AnyRow) -> tuple[str, int]:
    return row["started_at"] or "", row["repeat"]


def pair(case: Case, metric: Metric) -> Pair | None:
    """None: this machine does not measure that."""
    base, head = _values(case.ok_base, metric), _values(case.ok_head, metric)
    measured_base, measured_head = _measured(base), _measured(head)
    if not (metric.always or measured_base or measured_head):
        return None
    obstacle = _not_comparable(case) or _not_measured(case, metric, base, head)
    if obstacle is not None:
        verdict, reason = obstacle
        runs = len(case.ok_base), len(case.ok_head)
        return Pair(Finding(case.case_id, case.name, metric.column, verdict, *runs, printable(reason)))
    draft = Finding(
        case.case_id,
        case.name,
        metric.column,
        Verdict.SAME,
        len(measured_base),
        len(measured_head),
        reason=_left_out(case.base, len(case.base) - len(measured_base)),
        base=statistics.median(measured_base),
        head=statistics.median(measured_head),
        interleaved=_interleaved(case.ok_base, case.ok_head),
    )
    return Pair(draft, measured_base, measured_head)


def _left_out(base: Sequence[AnyRow], failed: int) -> str | None:
    return f"{failed} of {count_of(len(base), 'run')} of BASE left out: not ok or not measured" if failed else None


def _values(rows: Sequence[AnyRow], metric: Metric) -> list[Value]:
    """A value that is not above 0 was not measured."""
    return [value if value and value > 0 else None for value in values_in(rows, metric.column)]


def _measured(values: Sequence[Value]) -> tuple[float, ...]:
    return tuple(value for value in values if value is not None)


def _not_comparable(case: Case) -> _Obstacle | None:
    """What keeps the two sides of a case from a ratio, in any metric."""
    return _obstacle_in_head(case) or _obstacle_in_base(case) or _other_work(case.ok_base, case.ok_head)


def _obstacle_in_head(case: Case) -> _Obstacle | None:
    head = case.head
    if _skipped(case.base) and _skipped(head):
        return Verdict.SKIPPED, f"skipped on both sides: {head[0]['reason']}"
    if not head:
        return Verdict.MISSING, "not in HEAD"
    bad = [row for row in head if row["status"] != "ok"]
    if not bad:
        return None
    runs = f"{len(bad)} of {count_of(len(head), 'run')} of HEAD"
    return Verdict.MISSING, f"{runs} {bad[0]['status']}: {bad[0]['reason']}"


def _obstacle_in_base(case: Case) -> _Obstacle | None:
    base = case.base
    if not base or _skipped(base):
        return Verdict.NEW, "nothing in BASE to compare with"
    if not case.ok_base:
        return Verdict.MISSING, f"no run of BASE is ok: {base[0]['status']}: {base[0]['reason']}"
    return None


def _skipped(rows: Sequence[AnyRow]) -> bool:
    """Whether there are runs, and each was skipped."""
    return {row["status"] for row in rows} == {"skipped"}


def _not_measured(case: Case, metric: Metric, base: Sequence[Value], head: Sequence[Value]) -> _Obstacle | None:
    """What keeps them from one in this metric."""
    if not _measured(base):
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
    known = "; ".join(dict.fromkeys(filter(None, reasons)))
    return f": {known}" if known else ""


def _other_work(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> _Obstacle | None:
    """Recorded runs of one case may differ in tokens a step."""
    works = _works(base), _works(head)
    level = levels((*works[0], *works[1]), repeats=True)
    if len(set(level.values())) <= 1:
        return None
    in_base, in_head = map(_amounts, works)
    return Verdict.MISSING, f"other work: tokens per step {in_base} in BASE, {in_head} in HEAD"


def _works(rows: Sequence[AnyRow]) -> set[Work]:
    return set(filter(None, map(work_of, rows)))


def _amounts(works: Collection[Work]) -> str:
    smallest = sorted(works, key=lambda work: work.tokens)[:3]
    return " and ".join(map(str, smallest))


def _interleaved(base: Sequence[AnyRow], head: Sequence[AnyRow]) -> bool | None:
    """Whether the runs took turns, so that a drift of the machine met both alike. None: the rows do not say."""
    times = values_in((*base, *head), "started_at")
    if None in times or len(set(times)) < len(times):
        return None
    in_base = set(values_in(base, "started_at"))
    sides = [time in in_base for time in sorted(times)]
    switches = sum(one != other for one, other in pairwise(sides))
    return switches >= min(len(base), len(head))
