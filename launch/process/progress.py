"""How far a run is: rank 0 keeps one small file up to date for its supervisor and its display.

The file is replaced, never appended to, and at most five times a second: it costs the run next to nothing and cannot
be read half-written. Beside it the number of the last step is kept exactly (20 bytes in place, some 2 us a step), so
that a run that hangs is known to hang there. No row is made from either.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ...results import files
from ..host.clock import Moment
from .run_spec import read_json
from .scratch import LOST_REPLICA, PROGRESS, STEP, lost_replica_file

INTERVAL_S = 0.2


@dataclass(frozen=True)
class Progress:
    phase: str  # joining, building, training, evaluating, writing
    step: int  # steps done
    steps: int  # of the run
    loss: float | None = None  # the last one that was brought to the host
    tokens_per_s: float | None = None
    first_step_at: float | None = None  # Unix time at which the first step was done, s
    trained_from: int | None = None  # the attempt's first step; None: it is not so far
    trained_at: float | None = None  # Unix time at which that began, s
    at: float | None = None  # Unix time of this report; all three by the clock as it stood at the launch


class Reporter:
    """Writes the progress that a run's program reports. On ranks other than 0 it does nothing.

    Attributes
    ----------
    folder: the run's scratch folder; it outlives a killed attempt, so checkpoints belong there
    launched: when the ranks were started
    run_id: of the run, which its checkpoints are bound to
    """

    def __init__(
        self, folder: Path, steps: int, active: bool, launched: Moment | None = None, run_id: str = ""
    ) -> None:
        self.folder, self.run_id = folder, run_id
        self.launched = launched or Moment.now()
        self._active = active
        self._phase, self._step, self._steps = "joining", 0, steps
        self._loss: float | None = None
        self._tokens_per_s: float | None = None
        self._first_step_at: float | None = None
        self.trained_from: int | None = None
        self.trained_at: float | None = None
        self._written = 0.0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._step_fd = files.open_file(folder / STEP, None, flags, 0o600) if active else -1

    def phase(self, name: str) -> None:
        self._phase = name
        if self._active:
            self._write()

    def begin(self, first_step: int = 0) -> None:
        """Training begins, at a later step than the first where it goes on from a checkpoint."""
        self._step, self.trained_from, self.trained_at = first_step, first_step, self.launched.time_now()
        self.phase("training")

    def step(self, done: int, loss: float | None = None, tokens_per_s: float | None = None) -> None:
        """`done` steps are done. None keeps the last value. Cheap enough to be called after every step."""
        if not self._active:
            return
        self._step = done
        with suppress(OSError):  # a full disk ends a run where its results are written, not here
            os.pwrite(self._step_fd, b"%20d" % done, 0)
        if loss is not None:
            self._loss = loss
        if tokens_per_s is not None:
            self._tokens_per_s = tokens_per_s
        first = self._first_step_at is None
        if first:
            self._first_step_at = self.launched.time_now()
        if first or time.monotonic() - self._written >= INTERVAL_S:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        now = Progress(
            phase=self._phase,
            step=self._step,
            steps=self._steps,
            loss=self._loss,
            tokens_per_s=self._tokens_per_s,
            first_step_at=self._first_step_at,
            trained_from=self.trained_from,
            trained_at=self.trained_at,
            at=self.launched.time_now(),
        )
        with suppress(OSError):
            files.write(self.folder / PROGRESS, json.dumps(asdict(now)), sync=False)


def read_progress(folder: Path, below: Path | None = None) -> Progress | None:
    """What the run reported last; None: nothing yet, or the file is none of ours. below: as files.read."""
    content = read_json(folder / PROGRESS, below)
    if content is None:
        return None
    try:
        content["step"] = max(content["step"], int(files.read(folder / STEP, below, 64)))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no step is done yet
    try:
        progress = Progress(**content)
    except TypeError:
        return None
    return progress if _is_sound(progress) else None


def _is_sound(progress: Progress) -> bool:
    """Whether each value is of its type."""
    if not isinstance(progress.phase, str) or {type(progress.step), type(progress.steps)} != {int}:
        return False
    numbers = (
        progress.loss,
        progress.tokens_per_s,
        progress.first_step_at,
        progress.trained_from,
        progress.trained_at,
        progress.at,
    )
    return {int, float, type(None)}.issuperset(map(type, numbers))


def mark_lost(folder: Path, replica: int) -> None:
    """With a quorum: let rank 0 know that this replica has ended."""
    files.write(lost_replica_file(folder, replica), "", sync=False)


def lost_replicas(folder: Path) -> set[int]:
    return {int(name.removeprefix(LOST_REPLICA)) for name in os.listdir(folder) if name.startswith(LOST_REPLICA)}
