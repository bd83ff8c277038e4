"""One run's processes: start the ranks, watch them, end all of them together, and say in one line what happened.

Ranks are ended with SIGKILL: what they write is atomic, and one that hangs in a collective hears nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...results import files
from ..host.machine import oom_kills
from ..host.placement import SECRET, Placement
from .cause import Cause, Kind, Stop, Why
from .error_report import ErrorReport, read_report
from .guard import MARK, end_marked
from .outcome import Ending
from .preemption import REQUEUE_STATUS, STOP_FILE, ask_to_stop
from .progress import mark_lost
from .quorum import Quorum
from .rank_environment import child_environment
from .run_spec import RunSpec
from .scratch import SPEC, log_file, report_file
from .watchdog import Watchdog, stopped

RANK_COMMAND = (sys.executable, "-m", f"{__package__.rpartition('.')[0]}.rank")
POLL_S = 0.02
GRACE_S = 0.5  # for the rank to blame to show itself, when the first to fail names a peer
LINGER_S = 30.0  # for the other ranks to end, once one has ended well
PARTING_S = 5.0  # with a quorum: for the other replicas to end, once replica 0 has
STACKS_S = 0.3  # for the ranks to write their stacks
STOP_LOOK_S = 0.2


@dataclass
class Child:
    rank: int
    process: subprocess.Popen  # or what looks like one (warm_pool.py)
    ended_by_us: bool = field(default=False)


class Signals:
    """While open, SIGINT, SIGTERM and SIGHUP are kept for `watch` to see instead of ending this process.

    requeue: names of the signals that are a scheduler's warning instead (preemption.py)
    heeds: False: a warning is for another supervisor to act on

    Attributes
    ----------
    received: the first signal that cancels
    """

    def __init__(self, requeue: Sequence[str] = (), heeds: bool = True) -> None:
        self.received: str | None = None
        self._requeue, self._heeds = requeue, heeds
        self._warned: str | None = None
        self._file, self._looked = os.environ.get(STOP_FILE) if requeue and heeds else None, 0.0

    @property
    def warned(self) -> str | None:
        """What warned that this job's time is up: a signal, or the file that SCALADE_STOP_FILE names."""
        if self._file and self._warned is None and time.monotonic() - self._looked > STOP_LOOK_S:
            self._looked = time.monotonic()
            if os.path.exists(self._file):
                self._warned = f"the file {self._file}"
        return self._warned

    def __enter__(self) -> Signals:
        kept = {"SIGINT", "SIGTERM", "SIGHUP", *self._requeue}
        self._before = {number: signal.signal(number, self._keep) for number in map(signal.Signals.__getitem__, kept)}
        return self

    def _keep(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if name not in self._requeue:
            self.received = self.received or name
        elif self._heeds:
            self._warned = self._warned or name

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def start(
    spec: RunSpec,
    places: Sequence[Placement],
    mark: str,
    secret: str,
    command: Sequence[str] = RANK_COMMAND,
    prefix: Callable[[Placement], Sequence[str]] = lambda place: (),
) -> list[Child]:
    """One process for each place, each in a session of its own with its output in the scratch folder.

    secret: of the run, for the ranks alone
    prefix: of the command, by place; it must become the command by exec, whose process id is watched.
    """
    scratch = Path(spec.scratch)
    files.write(scratch / SPEC, spec.to_json(), sync=False)
    children = []
    for place in places:
        files.remove(report_file(scratch, place.rank))
        env = child_environment(os.environ, place, spec.address, spec.port, spec.threads)
        env |= {MARK: mark, SECRET: secret}
        with files.stream(log_file(scratch, place.rank)) as log:
            process = subprocess.Popen(
                [*prefix(place), *command, str(scratch / SPEC)],
                env=env,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        children.append(Child(place.rank, process))
    return children


def watch(
    children: Sequence[Child],
    scratch: Path,
    mark: str,
    *,
    deadline: float | None,
    signals: Signals,
    asked_to_stop: Callable[[], Stop | None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
    quorum: Quorum | None = None,
    lost_elsewhere: Callable[[], set[int]] = set,
    watchdog: Watchdog | None = None,
    grace_s: float = 0.0,
    keep: bool = False,
) -> Ending:
    """Wait until the ranks have ended, or end them: when one fails, the time is up, none steps any more, a signal
    came, or another asks.
    With a quorum a failed rank ends its replica only, as long as enough are left; and the run is done when replica 0
    is, some seconds later for the others to end (in a world of several supervisors, rank 0's tells the others).

    On return, also by an exception, nothing that these ranks started is left; with `keep` ranks that ended their run
    well wait for another (warm_pool.py).

    deadline: on time.monotonic(); None: no limit
    asked_to_stop: a demand when the ranks have to be ended for a reason that is not seen here
    lost_elsewhere: with a quorum, replicas that other supervisors have lost
    grace_s: on a warning, for the ranks to write a checkpoint and stop
    """
    kills_before = oom_kills()
    cause, detail, stop, halted, failed_at, done_at, warned_at = None, "", None, (), None, None, None
    try:
        while not cause:
            now, codes = time.monotonic(), [child.process.poll() for child in children]
            if warned_at is None and signals.warned:
                warned_at = now
                ask_to_stop(scratch)
            lost: set[int] = set()
            if quorum:
                exits = {child.rank: code for child, code in zip(children, codes, strict=True)}
                lost = quorum.lost(exits) | lost_elsewhere()
                if lost and quorum.stands(lost):
                    _end_replicas(children, quorum, lost, scratch)
                    failed_at = None
                    codes = [code for rank, code in exits.items() if quorum.replica(rank) not in lost]
                if quorum.first_is_done(exits):
                    done_at = done_at or now
                    if now - done_at > PARTING_S:
                        codes = [0]  # the others are ended
            if all(code == 0 for code in codes):
                cause = Cause.DONE if codes else Cause.LOST
            elif signals.received:  # before any failure: the signal may have reached the ranks, too
                cause, detail = Cause.CANCELLED, signals.received
            elif all(code == REQUEUE_STATUS for code in codes):
                cause = Cause.PREEMPTED
                detail = f"stopped by {signals.warned}, with a checkpoint" if warned_at else ""
            elif warned_at and (now - warned_at > grace_s or _failed(codes)):  # the others may be gone already
                cause = Cause.PREEMPTED
                detail = f"stopped by {signals.warned}: no new checkpoint within {grace_s:g} s"
            elif _failed(codes):
                failed_at = failed_at or now
                reports = _reports(children, scratch)
                if None not in codes or now - failed_at > GRACE_S or _blame_is_clear(codes, reports):
                    cause, detail = Cause.FAILED, quorum.too_few(lost) if quorum else ""
            elif quorum and not quorum.stands(lost):
                cause, detail = Cause.FAILED, quorum.too_few(lost)
            elif stop := asked_to_stop():
                cause, detail = Cause.STOPPED, stop.line
            elif deadline is not None and now > deadline:
                cause = Cause.TIMEOUT
            elif watchdog and (waited_s := watchdog.hung_s()):
                cause, detail = Cause.HANG, f"no step for {waited_s:.0f} s"
            elif (0 in codes or REQUEUE_STATUS in codes) and not quorum:
                done_at = done_at or now
                cause = Cause.LINGERED if now - done_at > LINGER_S else None
            tick()
            if not cause:
                time.sleep(POLL_S)
        if cause in (Cause.TIMEOUT, Cause.HANG, Cause.LINGERED) or (stop and stop.why in (Why.TIMEOUT, Why.HANG)):
            halted = tuple(_dump_stacks(children))
    finally:
        if not keep or cause is not Cause.DONE:
            _end(children, mark)
    exits = {child.rank: None if child.ended_by_us else child.process.returncode for child in children}
    reports = tuple(_reports(children, scratch))
    return Ending(cause, exits, reports, oom_kills() - kills_before, detail, stop, halted)


def _end_replicas(children: Sequence[Child], quorum: Quorum, lost: set[int], scratch: Path) -> None:
    """What is left of replicas that lost a rank; their peers may hang on it."""
    for replica in lost:
        mark_lost(scratch, replica)
    for child in children:
        if quorum.replica(child.rank) in lost and child.process.poll() is None:
            child.ended_by_us = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)


def _blame_is_clear(codes: Sequence[int | None], reports: Sequence[ErrorReport]) -> bool:
    return any(code == -signal.SIGKILL for code in codes) or any(report.kind != Kind.PEER for report in reports)


def _reports(children: Sequence[Child], scratch: Path) -> list[ErrorReport]:
    found = [read_report(scratch, child.rank) for child in children]
    return [report for report in found if report is not None]


def _dump_stacks(children: Sequence[Child]) -> list[int]:
    """Ask each rank for the stack of each of its threads, into rank-N.stack (main.py registered faulthandler).

    A signal's handler is C and writes also where Python is stuck in a call. A rank that was stopped is let go on for
    it, the others stopped meanwhile: the run is judged, and does not finish now. Gives which ranks were.
    """
    live = [child for child in children if child.process.poll() is None]
    halted = stopped(child.process.pid for child in live)
    for child in live:
        child.process.send_signal(signal.SIGUSR1)
    time.sleep(STACKS_S * bool(live))
    if halted:
        for child in live:
            child.process.send_signal(signal.SIGCONT if child.process.pid in halted else signal.SIGSTOP)
        time.sleep(STACKS_S)
    return [child.rank for child in live if child.process.pid in halted]


def _failed(codes: Sequence[int | None]) -> bool:
    """Whether a rank has ended otherwise than well or as asked."""
    return any(code not in (None, 0, REQUEUE_STATUS) for code in codes)


def _end(children: Sequence[Child], mark: str) -> None:
    for child in children:
        if child.process.poll() is None:
            child.ended_by_us = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
    left = end_marked(mark)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=0 if child.process.pid in left else 5)
