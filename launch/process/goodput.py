"""What became of every start of a run's ranks, and the goodput of the whole run that follows from it.

    <run>/starts.jsonl    append-only, one JSON object a line:
        {"event": "start", "at", "monotonic", "clock", "attempt", "host", "mark", "job", "line"}
        {"event": "end", "at", "cause", "trained_from", "trained_at", "steps_done", "kept", "line"}

A run gets its row once, when it has ended; its ranks may have been started several times before (killed, preempted,
out of time, a node gone). A start whose supervisor was killed has no end event: the next start writes it, from the
progress that was left in the scratch folder. A line that is cut off is left out, and no other with it. Where lines are
damaged or gone the columns over all starts are null, with a reason: what is left would give wrong numbers.

    goodput                  useful step time / time in which ranks were held
                             ("runtime goodput" of Google's ML Productivity Goodput, 2024)
    effective training time  useful step time / time since the first start, waits between the starts counted
                             (Llama 3, arXiv 2407.21783, section 3.3.4)

A step is useful when the result is made of it: one computed twice, since the first time was lost, counts once.

A run that takes its host down every time must not be started for ever: see `chances_used_up`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ...results import files
from ..host.clock import Moment
from .cause import Cause
from .guard import end_marked
from .progress import read_progress
from .scratch import CHECKPOINT, CHECKPOINT_STEP

LOG = "starts.jsonl"
SKEW_S = 5.0  # by which hosts' clocks may differ
LONGEST_WAIT_S = 90 * 86_400.0  # from one start to the next
GONE = "gone"  # cause of a start whose supervisor recorded no end
EVENT_BEGINS = b'{"event": "'
CHANCES = 3  # starts in a row that a lost host may end, without a later checkpoint


@dataclass(frozen=True)
class Start:
    """One start of a run's ranks. Times are Unix times, s, by the clock as it stood at this start (clock.py)."""

    at: float
    host: str = ""
    mark: str = ""  # of its supervisor's processes
    ended_at: float | None = None  # None: it is on, or its supervisor is gone
    cause: str | None = None  # the run's status then, `preempted`, `host gone`, or `gone`
    trained_from: int | None = None  # its first step; None: it ended before training
    trained_at: float | None = None  # when that began
    steps_done: int = 0  # of the run, with those of earlier starts that it resumed from
    monotonic: float = 0.0  # of `at`, s
    clock: str = ""  # of which clock
    attempt: int = 0  # the number that its row would have had
    job: str = ""  # id of the scheduler's job; empty: there was none
    kept: int = 0  # step from which the next start can resume


@dataclass(frozen=True)
class RecordedStarts:
    """The log, as far as it can be read."""

    starts: list[Start]
    damage: str | None = None  # what of it is lost, in words; None: nothing that can be seen


def read_starts(run_folder: Path) -> list[Start]:
    """Every start of the run, in order; lines that are cut off or not of this format are left out."""
    return read_log(run_folder).starts


def read_log(run_folder: Path) -> RecordedStarts:
    """As read_starts, with the damage that shows: a line that is not of this format, or does not follow the others.

    A line that is only cut off is no damage: the next line records the same event.
    """
    starts: list[Start] = []
    try:
        lines = files.read(run_folder / LOG).split(b"\n")
    except FileNotFoundError:
        return RecordedStarts([])
    except OSError as error:
        return RecordedStarts([], f"{LOG}: {error.strerror}")
    damage = None
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines):
        try:
            fits = _add_event(starts, json.loads(line), number)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            fits = EVENT_BEGINS.startswith(line[: len(EVENT_BEGINS)]) and not line.endswith(b"}")  # cut off
        if not fits:
            damage = damage or f"{LOG}: line {number + 1} is damaged, or lines before it are gone"
    return RecordedStarts(starts, damage)


def _add_event(starts: list[Start], content: dict[str, Any], number: int) -> bool:
    """Add what line `number` records. False: it does not follow the lines before it.

    Raises
    ------
    ValueError, LookupError, TypeError, OverflowError: it is not of this format
    """
    event, fits = content["event"], content.get("line", number) == number
    running = bool(starts) and starts[-1].ended_at is None
    if event == "start":
        starts.append(_start(content))
        return fits and not running
    if event != "end":
        raise ValueError(event)
    ended = _ended(starts[-1] if starts else Start(0.0), content)
    if not running:
        return False
    starts[-1] = ended
    return fits


def _start(content: dict[str, Any]) -> Start:
    return Start(
        at=float(content["at"]),
        host=str(content["host"]),
        mark=str(content["mark"]),
        monotonic=float(content.get("monotonic", 0.0)),
        clock=str(content.get("clock", "")),
        attempt=int(content.get("attempt", 0)),
        job=str(content.get("job") or ""),
    )


def _ended(start: Start, content: dict[str, Any]) -> Start:
    first, at = content["trained_from"], content["trained_at"]
    return replace(
        start,
        ended_at=float(content["at"]),
        cause=str(content["cause"]),
        trained_from=None if first is None else int(first),
        trained_at=None if at is None else float(at),
        steps_done=int(content["steps_done"]),
        kept=int(content.get("kept", 0)),
    )


def was_cut_off(run_folder: Path) -> bool:
    """Whether the last start ended with a lost host, or recorded no end."""
    last = read_starts(run_folder)[-1:]
    return any(start.ended_at is None or start.cause in (GONE, Cause.HOST_GONE) for start in last)


class StartLog:
    """The log as the supervisor that holds the run's claim writes it."""

    def __init__(self, run_folder: Path, scratch: Path) -> None:
        self.run_folder, self.scratch = run_folder, scratch

    def settle(self) -> None:
        """Before the scratch folder is emptied: end the processes that a dead supervisor has left, and log how far its
        start came.

        Its guard ends them, too, within moments; but a run never starts beside what is left of it.
        """
        starts = read_starts(self.run_folder)
        if not starts or starts[-1].ended_at is not None:
            return
        if starts[-1].mark and starts[-1].host == socket.gethostname():
            end_marked(starts[-1].mark)
        progress = read_progress(self.scratch)
        last_seen = progress.at if progress and progress.at is not None else starts[-1].at
        self.end(max(starts[-1].at, last_seen), GONE)

    def begin(self, launched: Moment, attempt: int, mark: str, job: str = "") -> None:
        """Raises OSError where the disk is full."""
        self._append(
            event="start",
            at=launched.at,
            monotonic=launched.monotonic,
            clock=launched.clock,
            attempt=attempt,
            host=socket.gethostname(),
            mark=mark,
            job=job,
        )

    def end(self, at: float, cause: str) -> None:
        """On a full disk nothing is written: the next start then writes it."""
        progress = read_progress(self.scratch)
        trained_from = progress.trained_from if progress else None
        names = [folder.name.rpartition("-")[2] for folder in (self.scratch / CHECKPOINT).glob(f"{CHECKPOINT_STEP}*")]
        with suppress(OSError):
            self._append(
                event="end",
                at=at,
                cause=cause,
                trained_from=trained_from,
                trained_at=progress.trained_at if progress else None,
                steps_done=progress.step if progress else 0,
                kept=max([trained_from or 0, *(int(name) for name in names if name.isdecimal())]),
            )

    def _append(self, **content: Any) -> None:
        try:
            number = files.read(self.run_folder / LOG).count(b"\n")
        except FileNotFoundError:
            number = 0
        descriptor = files.open_file(self.run_folder / LOG, None, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            cut_off = bool(size) and os.pread(descriptor, 1, size - 1) != b"\n"
            if cut_off:  # the new line must not become part of it
                number += 1
            line = json.dumps(content | {"line": number}).encode() + b"\n"
            if cut_off:
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise OSError(28, f"cannot write {LOG}: no space left on device", str(self.run_folder))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def chances_used_up(starts: Sequence[Start], attempt: int, job: str) -> str | None:
    """Why a run is not to be started once more: a lost host ended CHANCES starts in a row, none of which left a later
    checkpoint than the one before; in words.

    A start without a recorded end counts where a scheduler has queued the same job again; elsewhere a person has
    started it again.
    attempt: which has no row yet: a row, and `--retry-failed` after it, give new chances
    """

    def lost(start: Start) -> bool:
        again = start.cause == GONE and bool(job) and start.job == job
        return start.attempt == attempt and (again or start.cause == Cause.HOST_GONE)

    last = list(takewhile(lost, reversed(starts)))[::-1]
    before = starts[: len(starts) - len(last)]
    best, count = max((start.kept for start in before), default=0), 0
    for start in last:
        count = 0 if start.kept > best else count + 1
        best = max(best, start.kept)
    if count < CHANCES:
        return None
    how = f"and none left a checkpoint later than step {best}" if best else "and none left a checkpoint"
    return f"{count} starts in a row ended with a lost host, {how}"


def goodput_columns(starts: Sequence[Start], useful_s: float | None, damage: str | None = None) -> dict[str, object]:
    """Columns of a run over all its starts, the last of which has its end.

    useful_s: step times of the steps that the result is made of; None: not known, or the run has no result
    damage: what of the log is lost; None: nothing
    """
    if damage := damage or _gap(starts):
        return {"useful_step_time_s": useful_s, "goodput_reason": f"not known over all starts: {damage}"}
    if not starts or starts[-1].ended_at is None:
        return {}
    ends = [starts[-1].ended_at if start.ended_at is None else start.ended_at for start in starts]
    held_s = sum(max(0.0, end - start.at) for start, end in zip(starts, ends, strict=True))
    elapsed_s = _elapsed_s(starts, ends, held_s)
    row: dict[str, object] = {
        "restarts": len(starts) - 1,
        "elapsed_s": elapsed_s,
        "held_s": held_s,
        "restart_time_s": sum(map(_start_up_s, starts[1:], ends[1:])),
        "lost_steps": lost_steps(starts),
        "useful_step_time_s": useful_s,
    }
    if useful_s is not None:
        row["goodput"] = useful_s / held_s if held_s else None
        row["effective_training_time"] = useful_s / elapsed_s if elapsed_s else None
    return row


def _elapsed_s(starts: Sequence[Start], ends: Sequence[float], held_s: float) -> float | None:
    """Since the first start; None: a wait between two starts is not known."""
    waited_s = 0.0
    for start, end, following in zip(starts, ends, starts[1:], strict=False):
        wait_s = _wait_s(start, end, following)
        if wait_s is None:
            return None
        waited_s += wait_s
    return held_s + waited_s


def _start_up_s(start: Start, end: float) -> float:
    """From the start to its first step; all of it, where it ended before."""
    return max(0.0, (end if start.trained_at is None else start.trained_at) - start.at)


def _gap(starts: Sequence[Start]) -> str | None:
    """Why these cannot be all starts: one resumed from a step that none before it had reached."""
    done = 0
    for start in starts:
        if (start.trained_from or 0) > done:
            return f"a start went on from step {start.trained_from}, and {LOG} has none before it that came so far"
        done = max(done, start.steps_done, start.kept)
    return None


def _wait_s(start: Start, end: float, following: Start) -> float | None:
    """From the end of one start to the next; by the monotonic clock where both have the same.

    Between two hosts, and over a reboot, there are only the hosts' clocks to go by: None where they cannot be right
    (`scalade check` then names the run).
    """
    if start.clock and start.clock == following.clock:
        return max(0.0, following.monotonic - (start.monotonic + end - start.at))
    wait_s = following.at - end
    return max(0.0, wait_s) if -SKEW_S <= wait_s <= LONGEST_WAIT_S else None


def lost_steps(starts: Sequence[Start]) -> int:
    """Steps that were computed and, since the next start went on from an older checkpoint, computed again."""
    lost, done = 0, 0
    for start in starts:
        if start.trained_from is not None:
            lost += max(0, done - start.trained_from)
            done = start.steps_done
    return lost
