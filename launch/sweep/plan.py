"""Which runs of a study are missing: the plan that a sweep executes.

Runs are interleaved by repeat (the first of every case, then the second ...): a machine that drifts then does not
favour one case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ...results.store.attempts import known_status
from ...results.store.store import RunStore
from ..process.cause import Status
from ..process.outcome import Outcome
from ..study.case import Case
from ..study.comm_case import CommCase
from .one_link import ASKED, SameLink

if TYPE_CHECKING:
    from ..study.schema import Run

LOOKED_AT = ("status", "reason", "lab", *ASKED)  # columns of a run that a plan asks for
UNFINISHED = (None, "cancelled")
MOST = 5  # damaged runs that are named
RETRIED = ("failed", "oom", "timeout", "diverged")

AnyCase = Case | CommCase
CaseT_co = TypeVar("CaseT_co", bound=AnyCase, covariant=True)
CaseT = TypeVar("CaseT", bound=AnyCase)


class CaseToRun(Protocol[CaseT_co]):
    """A case of a study, and whether it can run here."""

    @property
    def case(self) -> CaseT_co: ...
    @property
    def skip_reason(self) -> str | None:
        """None: it can run."""

    @property
    def predicted_memory_bytes(self) -> int | None: ...


class RunnableStudy(Protocol[CaseT_co]):
    """What a sweep needs of a study: a study file has it, and so has a sweep over collectives."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def run(self) -> Run: ...
    @property
    def results(self) -> Path: ...
    @property
    def device(self) -> str: ...
    def threads_per_rank(self, one_host: bool = True) -> int: ...
    def cases(self, world_size: int | None = None) -> Sequence[CaseToRun[CaseT_co]]: ...
    def warnings(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class PlannedRun(Generic[CaseT_co]):
    case: CaseT_co
    repeat: int
    predicted_memory_bytes: int | None = None

    @property
    def run_id(self) -> str:
        return f"{self.case.case_id}-r{self.repeat}"

    @property
    def label(self) -> str:
        return f"{self.case.model_name or 'model'} {self.case.layout_name} r{self.repeat}"


@dataclass(frozen=True)
class Plan(Generic[CaseT_co]):
    pending: tuple[PlannedRun[CaseT_co], ...]  # in the order of their execution
    kept: dict[str, str]  # run_id -> status: have their row
    to_skip: tuple[CaseToRun[CaseT_co], ...]  # cannot run and have no row that says so
    skipped: int  # cases that cannot run, with a row or without
    skip_reasons: dict[str, int] = field(default_factory=dict)  # why -> cases
    failed: dict[str, Outcome] = field(default_factory=dict)  # run_id -> what stands in the table, of these cases
    unfinished: tuple[CaseT_co, ...] = ()  # that lack a run, whether they can run or not
    other_sizes: dict[int, int] = field(default_factory=dict)  # ranks -> cases that need that many
    damaged: dict[str, str] = field(default_factory=dict)  # run_id -> what of its last attempt; it is pending, then


def make_plan(
    study: RunnableStudy[CaseT],
    store: RunStore,
    *,
    retry_failed: bool = False,
    size: int | None = None,
    only: Collection[str] = (),
    cases: Sequence[CaseToRun[CaseT]] | None = None,
) -> Plan[CaseT]:
    """size: the world that is there; cases of another number of ranks are left alone and counted. None: all run.
    only: case_ids and run_ids, and nothing else is planned; empty: all. cases: those of the study, as planned for
    another machine than this.

    Raises
    ------
    ValueError: `only` names what the study does not have; or runs were made over another link
    """
    cases = study.cases(size) if cases is None else cases
    selected = _selected(study, cases, only)
    if selected is not None:
        cases = [planned for planned in cases if planned.case.case_id in selected]
    others = Counter(planned.case.ranks for planned in cases if size is not None and planned.case.ranks != size)
    cases = [planned for planned in cases if planned.case.ranks not in others]
    sorted_runs = _SortedRuns[CaseT](Rows(store), selected or {}, retry_failed)
    for repeat in range(study.run.repeats):
        for planned in cases:
            sorted_runs.add(planned, repeat)
    if study.run.isolation == "pool":  # a world of each size starts once
        sorted_runs.pending.sort(key=lambda run: run.case.ranks)
    reasons = [planned.skip_reason for planned in cases if planned.skip_reason is not None]
    return Plan(
        pending=tuple(sorted_runs.pending),
        kept=sorted_runs.kept,
        to_skip=tuple(sorted_runs.to_skip),
        skipped=len(reasons),
        skip_reasons=dict(Counter(reasons)),
        failed=sorted_runs.failed,
        unfinished=tuple(sorted_runs.unfinished.values()),
        other_sizes=dict(sorted(others.items())),
        damaged=sorted_runs.damaged,
    )


def _selected(
    study: RunnableStudy[CaseT], cases: Sequence[CaseToRun[CaseT]], only: Collection[str]
) -> dict[str, set[str]] | None:
    """case_id -> the runs of it that are selected, empty: all of it. None: all cases are."""
    if not only:
        return None
    known, selected = {planned.case.case_id for planned in cases}, dict[str, set[str]]()
    for name in only:
        case_id = name.split("-r")[0]
        if case_id not in known:
            raise ValueError(f"{study.path}: has no case {name}: was it changed since?")
        selected.setdefault(case_id, set())
        if name != case_id:
            selected[case_id].add(name)
    return {case_id: set() if case_id in only else runs for case_id, runs in selected.items()}


class _SortedRuns(Generic[CaseT]):
    """The runs of a study by what is to be done about them, as far as they have been added."""

    def __init__(self, rows: Rows, selected: Mapping[str, Collection[str]], retry_failed: bool) -> None:
        """selected: by case_id the only runs of it that are looked at"""
        self.rows, self.selected, self.retry_failed = rows, selected, retry_failed
        self.pending: list[PlannedRun[CaseT]] = []
        self.kept: dict[str, str] = {}
        self.to_skip: list[CaseToRun[CaseT]] = []
        self.failed: dict[str, Outcome] = {}
        self.unfinished: dict[str, CaseT] = {}
        self.damaged: dict[str, str] = {}

    def add(self, planned: CaseToRun[CaseT], repeat: int) -> None:
        run = PlannedRun(planned.case, repeat, planned.predicted_memory_bytes)
        possible, run_id = planned.skip_reason is None, run.run_id
        if not possible and not repeat and self.rows.status(run_id) is None:
            self.to_skip.append(planned)
        runs = self.selected.get(planned.case.case_id)
        if not runs or run_id in runs:
            self._add(run, run_id, possible)

    def _add(self, run: PlannedRun[CaseT], run_id: str, possible: bool) -> None:
        status = self._status(run_id, possible)
        if status is not None and self._is_kept(status, possible):
            self.kept[run_id] = status
            self.rows.refuse_another_link(run_id)
        else:
            self.unfinished[run.case.case_id] = run.case
            if possible:
                self.pending.append(run)
                return
        if status in RETRIED:
            self.failed[run_id] = outcome_of(self.rows.row(run_id))

    def _status(self, run_id: str, possible: bool) -> str | None:
        """None: it has no row, or one that does not count."""
        status = self.rows.status(run_id)
        if possible and status in ("ok", None) and (damage := self.rows.damage(run_id)):
            self.damaged[run_id] = damage
            return None
        return status

    def _is_kept(self, status: str, possible: bool) -> bool:
        """A case that cannot run here may have run once, elsewhere."""
        return status == "ok" or (possible and not wanted(status, self.retry_failed))


class Rows:
    """The last row of each run as a plan looks at it. One listing says which runs have begun at all; a row that is
    there is read once."""

    def __init__(self, store: RunStore) -> None:
        self.store, self.link = store, SameLink(store.folder)
        self.begun = store.begun()
        self.last: tuple[str, Mapping[str, Any]] = "", {}

    def row(self, run_id: str) -> Mapping[str, Any]:
        """Empty where there is none, or where it is damaged."""
        if run_id not in self.begun:
            return {}
        if self.last[0] != run_id:
            self.last = run_id, self.store.run(run_id).brief(LOOKED_AT) or {}
        return self.last[1]

    def status(self, run_id: str) -> str | None:
        """None: it has to run."""
        return known_status(self.row(run_id))

    def damage(self, run_id: str) -> str | None:
        """What of the run's last attempt is not as it was written; None: nothing, or there is none."""
        run = self.store.run(run_id)
        return run.lost() or (run.damage() if run_id in self.begun else None)

    def refuse_another_link(self, run_id: str) -> None:
        self.link.refuse(run_id, self.row(run_id))


def damaged_lines(damaged: Mapping[str, str], parts: Mapping[str, str]) -> list[str]:
    """For people, the first few. parts: names of damaged ones, and why."""
    lost = [f"part {part} is damaged, and runs that are nowhere else run again: {why}" for part, why in parts.items()]
    lines = [f"run {run_id} runs again, what is there is kept: {why}" for run_id, why in list(damaged.items())[:MOST]]
    if len(damaged) > MOST:
        lines.append(f"{len(damaged) - MOST} more runs that are damaged run again")
    return lost + lines


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """What the table has of a run."""
    return Outcome(Status(row["status"]), row.get("reason"))


def wanted(status: str | None, retry_failed: bool) -> bool:
    """Whether a run whose last attempt has this status runs (again): also one that was skipped and can run now."""
    return status in UNFINISHED or status == "skipped" or (retry_failed and status in RETRIED)
