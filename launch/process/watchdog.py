"""Hangs: no step for much longer than any step took. Then the stack of every rank is kept.

The limit is run.hang_limit_s, or ten times the longest wait for a step so far (an evaluation or a checkpoint lies
between two steps), whichever is more: a run of long steps needs no setting. The start, up to the first step, has two
minutes in any case.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ...results import files
from .scratch import PROGRESS, STEP, stack_files

TIMES = 10  # the longest wait so far
START_S = 120.0  # for imports, the ranks' coming together, building, compiling, the first step
LOOK_S = 0.25
STACKS = "stacks"  # in the run's folder


class Watchdog:
    """Reads a run's progress as rank 0 writes it. limit_s: 0: no limit."""

    def __init__(self, scratch: Path, limit_s: float) -> None:
        self.scratch, self.limit_s = scratch, limit_s
        self._seen: tuple[bytes, bytes] = (b"", b"")
        self._since = self._looked = time.monotonic()
        self._steps, self._longest = 0, 0.0

    def hung_s(self) -> float | None:
        """Seconds without a step, where they are too many; else None. It reads the files a few times a second."""
        now = time.monotonic()
        if not self.limit_s or now - self._looked < min(LOOK_S, self.limit_s / 10):
            return None
        self._looked = now
        seen = (self._read(STEP), self._phase())
        if seen != self._seen:
            if self._steps:  # the wait for the first one is the start
                self._longest = max(self._longest, now - self._since)
            if seen[0] not in (b"", self._seen[0]):
                self._steps += 1
            self._seen, self._since = seen, now
        waited = now - self._since
        least = self.limit_s if self._steps else max(self.limit_s, START_S)
        return waited if waited > max(least, TIMES * self._longest) else None

    def _read(self, name: str) -> bytes:
        with suppress(OSError):
            return files.read(self.scratch / name)
        return b""

    def _phase(self) -> bytes:
        return self._read(PROGRESS).partition(b'"phase": ')[2].partition(b",")[0]


def stopped(pids: Iterable[int]) -> list[int]:
    """Those of the processes that a signal has stopped (SIGSTOP, SIGTSTP)."""
    halted = []
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
            if state in "Tt":
                halted.append(pid)
    return halted


def keep_stacks(scratch: Path, run_folder: Path, attempt: int) -> Path | None:
    """Copy the stacks that ranks wrote to the run's folder, where no later attempt removes them. Gives their folder;
    None: there are none."""
    folder = run_folder / STACKS
    with suppress(OSError):  # a full disk
        stacks = [file for file in stack_files(scratch) if file.lstat().st_size]
        for file in stacks:
            files.make_folder(folder)
            files.write(folder / f"a{attempt}-{file.stem}.txt", files.read(file), run_folder)
        return folder if stacks else None
    return None
