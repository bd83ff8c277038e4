"""What became of a run, and why its ranks ended: the words that programs decide by. Any text beside them is for people
and is never parsed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What became of a run: the column `status`, and what is not in it yet."""

    OK = "ok"
    FAILED = "failed"
    OOM = "oom"
    TIMEOUT = "timeout"
    DIVERGED = "diverged"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"  # in no row: the run is not finished


class Cause(StrEnum):
    """How one supervisor's ranks ended."""

    DONE = "done"
    FAILED = "failed"
    TIMEOUT = "timeout"
    HANG = "hang"
    CANCELLED = "cancelled"
    PREEMPTED = "preempted"
    STOPPED = "stopped"  # for what happened at another supervisor
    LINGERED = "lingered"  # some exited with 0, and one never did
    LOST = "lost"  # with a quorum: the run goes on without the replicas that were here
    HOST_GONE = "host gone"  # a host or its supervisor disappeared: no fault of the run


class StopReason(StrEnum):
    """What happened elsewhere, for which ranks are ended here."""

    PEER = "peer"  # a rank of another supervisor failed
    TIMEOUT = "timeout"
    HANG = "hang"
    PARTED = "parted"  # with a quorum: replica 0 is done
    NO_SUPERVISOR = "no supervisor"  # one gives no sign of life any more
    LEFT = "left"  # one has ended by itself in the middle of a run
    NO_STORE = "no store"  # the one that the supervisors share does not answer


class ErrorKind(StrEnum):
    """What kind of failure an exception is."""

    OOM = "oom"
    NAN = "nan"
    WORLD = "world"  # the ranks that came together are not the world that was asked for
    EXCEPTION = "exception"
    PEER = "peer"  # it failed because another rank did


@dataclass(frozen=True)
class StopDemand:
    """A demand to end a run's ranks. line: in words, where there is more to say than the reason."""

    reason: StopReason
    line: str = ""
    rank: int | None = None  # to blame
