"""What became of a run, and how one supervisor's ranks ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cause import Cause, ErrorKind, Status, StopDemand
from .error_report import ErrorReport


@dataclass(frozen=True)
class Outcome:
    """What became of a run: the columns `status` and `reason`."""

    status: Status
    reason: str | None = None  # for people: programs decide by the fields below
    cause: Cause | None = None  # how the ranks that decided it ended; None: they wrote the row themselves
    rank: int | None = None  # to blame; None: no single one
    kind: ErrorKind | None = None  # of its exception

    @property
    def bad(self) -> bool:
        return self.status in (Status.FAILED, Status.OOM, Status.TIMEOUT, Status.DIVERGED)


@dataclass(frozen=True)
class Ending:
    """How one supervisor's ranks ended."""

    cause: Cause
    exits: Mapping[int, int | None]  # by rank: exit status, -signal; None: it was ended by us
    reports: tuple[ErrorReport, ...] = ()
    oom_kills: int = 0
    detail: str = ""  # for people
    stop: StopDemand | None = None  # what was asked from elsewhere
    halted: tuple[int, ...] = ()  # ranks that a signal had stopped


def all_exits(endings: Sequence[Ending]) -> dict[int, int | None]:
    """How every rank ended, of those whose supervisors have reported."""
    return {rank: code for ending in endings for rank, code in ending.exits.items()}
