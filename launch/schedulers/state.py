"""What a job can be: the words that `status`, `submit` and `cancel` decide by.

A scheduler that did not answer says nothing about its jobs, and one that has forgotten a job does not say how it
ended. Neither is a failure, and neither may lead to a second start of what might still be running.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Of a job, or of one task of an array."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # the scheduler answers and does not know it any more, and no row says how it ended
    UNKNOWN = "unknown"  # the scheduler did not answer, or with a word that is not known here


ACTIVE = frozenset((State.WAITING, State.RUNNING))
UNHEARD = frozenset((State.LOST, State.UNKNOWN))  # it might be running: nothing is started again for it unless told to
