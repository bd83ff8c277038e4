"""What became of a run, and how one supervisor's ranks came to their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cause import Cause, ErrorKind, StopDemand
from .error_report import ErrorReport


@dataclass(frozen=True)
class Outcome:
    """What became of a run: the columns `status` and `reason`. `preempted` is no row's: the run is not finished."""

    status: str
    reason: str | None = None  # for people: programs take what follows
    cause: Cause | None = None  # how the ranks that decided it came to their end; None: they wrote the row themselves
    rank: int | None = None  # to blame; None: no single one
    kind: ErrorKind | None = None  # of its exception

    @property
    def bad(self) -> bool:
        return self.status in ("failed", "oom", "timeout", "diverged")


@dataclass(frozen=True)
class Ending:
    """How one supervisor's ranks came to their end."""

    cause: Cause
    exits: Mapping[int, int | None]  # by rank: exit status, -signal; None: it was ended by us
    reports: tuple[ErrorReport, ...] = ()
    oom_kills: int = 0
    detail: str = ""  # for people
    stop: StopDemand | None = None  # what was asked from elsewhere
    halted: tuple[int, ...] = ()  # ranks that a signal had stopped


def all_exits(endings: Sequence[Ending]) -> dict[int, int | None]:
    """How every rank ended, of those whose supervisors lived to tell."""
    return {rank: code for ending in endings for rank, code in ending.exits.items()}
