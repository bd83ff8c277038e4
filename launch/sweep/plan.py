"""Which runs of a study are missing: the plan that a sweep executes.

Runs are interleaved by repeat (the first of every case, then the second ...): a machine that drifts then does not
favour one case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...results.store.damage import damage
from ...results.store.store import RunStore, known_status
from ..process.outcome import Outcome
from ..study.case import Case
from .one_link import ASKED, SameLink

if TYPE_CHECKING:
    from ..study.study import PlannedCase, Study

LOOKED_AT = ("status", "reason", "lab", *ASKED)  # columns of a run that a plan asks for
UNFINISHED = (None, "cancelled")
MOST = 5  # damaged runs that are named
RETRIED = ("failed", "oom", "timeout", "diverged")


@dataclass(frozen=True, slots=True)
class PlannedRun:
    case: Case
    repeat: int
    predicted_memory_bytes: int | None = None

    @property
    def run_id(self) -> str:
        return f"{self.case.case_id}-r{self.repeat}"

    @property
    def label(self) -> str:
        return f"{self.case.model_name or 'model'} {self.case.layout_name} r{self.repeat}"


@dataclass(frozen=True)
class Plan:
    pending: tuple[PlannedRun, ...]  # in the order of their execution
    kept: dict[str, str]  # run_id -> status: have their row
    to_skip: tuple[PlannedCase, ...]  # cannot run and have no row that says so
    skipped: int  # cases that cannot run, with a row or without
    skip_reasons: dict[str, int] = field(default_factory=dict)  # why -> cases
    failed: dict[str, Outcome] = field(default_factory=dict)  # run_id -> what stands in the table, of these cases
    unfinished: tuple[Case, ...] = ()  # that lack a run, whether they can run or not
    other_sizes: dict[int, int] = field(default_factory=dict)  # ranks -> cases that need that many
    damaged: dict[str, str] = field(default_factory=dict)  # run_id -> what of its last attempt; it is pending, then


def make_plan(
    study: Study,
    store: RunStore,
    *,
    retry_failed: bool = False,
    size: int | None = None,
    only: Collection[str] = (),
    cases: list[PlannedCase] | None = None,
) -> Plan:
    """size: the world that is there; cases of another number of ranks are left alone and counted. None: all run.
    only: case_ids and run_ids, and nothing else is planned; empty: all. cases: those of the study, as planned for
    another machine than this.

    Raises
    ------
    ValueError: `only` names what the study does not have; or runs were made over another link
    """
    cases = study.cases(size) if cases is None else cases
    asked = _asked(study, cases, only)
    cases = [planned for planned in cases if asked is None or planned.case.case_id in asked]
    others = Counter(planned.case.ranks for planned in cases if size is not None and planned.case.ranks != size)
    cases = [planned for planned in cases if planned.case.ranks not in others]
    impossible = [planned for planned in cases if planned.skip_reason is not None]
    rows, unsaid = Rows(store), []
    missing, kept, failed, unfinished, damaged = [], {}, {}, {}, {}
    for repeat in range(study.run.repeats):
        for planned in cases:
            case, possible = planned.case, planned.skip_reason is None
            run_id = f"{case.case_id}-r{repeat}"
            if not possible and not repeat and rows.status(run_id) is None:
                unsaid.append(planned)
            if asked and asked[case.case_id] and run_id not in asked[case.case_id]:
                continue
            status = rows.status(run_id)
            if possible and status in ("ok", None) and (why := rows.damage(run_id)):
                status, damaged[run_id] = None, why
            if status == "ok" or (possible and not wanted(status, retry_failed)):  # ok: what cannot run here could once
                kept[run_id] = status
                rows.refuse_another_link(run_id)
            else:
                unfinished[case.case_id] = case
            if possible and run_id not in kept:
                missing.append(PlannedRun(case, repeat, planned.predicted_memory_bytes))
            elif status in RETRIED:
                failed[run_id] = Outcome(status, rows.row(run_id).get("reason"))
    if study.run.isolation == "pool":  # a world of each size starts once
        missing.sort(key=lambda run: run.case.ranks)
    return Plan(
        pending=tuple(missing),
        kept=kept,
        to_skip=tuple(unsaid),
        skipped=len(impossible),
        skip_reasons=dict(Counter(planned.skip_reason for planned in impossible)),
        failed=failed,
        unfinished=tuple(unfinished.values()),
        other_sizes=dict(sorted(others.items())),
        damaged=damaged,
    )


def _asked(study: Study, cases: Sequence[PlannedCase], only: Collection[str]) -> dict[str, set[str]] | None:
    """case_id -> the runs of it that are asked for, empty: all of it. None: all is asked for."""
    if not only:
        return None
    known, asked = {planned.case.case_id for planned in cases}, dict[str, set[str]]()
    for name in only:
        case_id = name.split("-r")[0]
        if case_id not in known:
            raise ValueError(f"{study.path}: has no case {name}: was it changed since?")
        asked.setdefault(case_id, set())
        if name != case_id:
            asked[case_id].add(name)
    return {case_id: set() if case_id in only else runs for case_id, runs in asked.items()}


class Rows:
    """The last row of each run as a plan looks at it. One listing says which runs have begun at all; a row that is
    there is read once."""

    def __init__(self, store: RunStore) -> None:
        self.store, self.link = store, SameLink(store.folder)
        self.begun = store.begun()
        self.last: tuple[str, Mapping] = "", {}

    def row(self, run_id: str) -> Mapping:
        """Empty where there is none, or where it is damaged."""
        if run_id not in self.begun:
            return {}
        if self.last[0] != run_id:
            self.last = run_id, self.store.brief(run_id, LOOKED_AT) or {}
        return self.last[1]

    def status(self, run_id: str) -> str | None:
        """None: it has to run."""
        return known_status(self.row(run_id))

    def damage(self, run_id: str) -> str | None:
        """What of the run's last attempt is not as it was written; None: nothing, or there is none."""
        if lost := self.store.lost(run_id):
            return lost
        if run_id not in self.begun or self.store.in_part(run_id):
            return None
        return damage(self.store.run_folder(run_id), self.store.folder)

    def refuse_another_link(self, run_id: str) -> None:
        self.link.refuse(run_id, self.row(run_id))


def damaged_lines(damaged: Mapping[str, str], parts: Mapping[str, str]) -> list[str]:
    """For people, the first few. parts: names of damaged ones, and why."""
    lost = [f"part {part} is damaged, and runs that are nowhere else run again: {why}" for part, why in parts.items()]
    lines = [f"run {run_id} runs again, what is there is kept: {why}" for run_id, why in list(damaged.items())[:MOST]]
    return lost + lines + [f"{len(damaged) - MOST} more runs that are damaged run again"] * (len(damaged) > MOST)


def failed_row(store: RunStore, run_id: str, status: str | None) -> dict[str, Outcome]:
    """What stands in the table of a run that failed, by its run_id; empty: it did not."""
    if status not in RETRIED:
        return {}
    return {run_id: Outcome(status, (store.row(run_id) or {}).get("reason"))}


def wanted(status: str | None, retry_failed: bool) -> bool:
    """Whether a run whose last attempt has this status runs (again). A case that was skipped and now can run does."""
    return status in UNFINISHED or status == "skipped" or (retry_failed and status in RETRIED)
