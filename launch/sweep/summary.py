"""What a sweep did, what stands in the table after it, and the exit status that says so."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...results import files
from ..process.outcome import Outcome
from ..process.preemption import REQUEUE_STATUS, UNDONE_FILE

if TYPE_CHECKING:
    from .plan import Plan


@dataclass
class Summary:
    """What a sweep did."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by run_id, in order
    kept: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    skip_reasons: dict[str, int] = field(default_factory=dict)  # why -> cases
    failed_before: dict[str, Outcome] = field(default_factory=dict)  # run_id -> what an earlier sweep left in the table
    elsewhere: list[str] = field(default_factory=list)  # run_ids that another sweep holds
    other_sizes: dict[int, int] = field(default_factory=dict)  # ranks -> cases left for such a world
    interrupted: str | None = None  # why the sweep ended early, for people
    signal: str | None = None  # that ended it, by name
    requeue: bool = False  # the job's time is up, or a host is gone; there is more to do

    @property
    def counts(self) -> Counter[str]:
        return Counter(outcome.status for outcome in self.outcomes.values())

    @classmethod
    def of(cls, plan: Plan) -> Summary:
        """Before anything has run."""
        return cls(
            kept=dict(plan.kept),
            skipped=plan.skipped,
            skip_reasons=dict(plan.skip_reasons),
            failed_before=dict(plan.failed),
            other_sizes=plan.other_sizes,
        )

    def interrupt(self, reason: str, *, signal: str | None = None, requeue: bool = False) -> None:
        """The sweep ends before it is done. signal: that ended it, by name; requeue: its job is to be queued again"""
        self.interrupted, self.signal, self.requeue = reason, signal, requeue

    @property
    def nothing_measured(self) -> bool:
        """The table has no successful run of these cases, and no other sweep is running one."""
        statuses = [*self.kept.values(), *self.counts]
        return "ok" not in statuses and not self.elsewhere

    @property
    def exit_code(self) -> int:
        """What stands in the table, whenever it was run: 0: every case that can run has its runs; 1: one failed, none
        was measured, or the sweep broke; 75: to be queued again; 128 + a signal's number: cancelled by it."""
        if self.requeue:
            return REQUEUE_STATUS
        if self.signal is not None:
            return 128 + signal.Signals[self.signal]
        failed = self.failed_before or any(outcome.bad for outcome in self.outcomes.values())
        return int(self.interrupted is not None or bool(failed) or self.nothing_measured)


@contextmanager
def undone(summary: Summary) -> Iterator[None]:
    """A sweep that has something to do: the file is there until it has ended, and after it where the job is to be
    queued again; it then says why."""
    file = Path(os.environ[UNDONE_FILE]) if os.environ.get(UNDONE_FILE) else None
    if file:
        with suppress(OSError):
            files.write(file, "", sync=False)
    try:
        yield
    finally:
        with suppress(OSError):
            if file and summary.requeue:
                files.write(file, summary.interrupted or "", sync=False)
            elif file:
                files.remove_file(file)
