"""One run's processes: start the ranks, watch them, end all of them together, and say how they ended.

Ranks are ended with SIGKILL: what they write is atomic, and a rank that hangs in a collective reacts to nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ...results import files
from ..host.machine import oom_kills
from ..host.placement import SECRET, Placement
from .cause import Cause, ErrorKind, StopDemand, StopReason
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
GRACE_S = 0.5  # when the first rank to fail blames a peer: for that peer's own failure to show
LINGER_S = 30.0  # once a rank has exited with 0: for the other ranks to exit
PARTING_S = 5.0  # with a quorum, once replica 0 is done: for the other replicas to end
STACKS_S = 0.3  # for the ranks to write their stacks
STOP_LOOK_S = 0.2


class Process(Protocol):
    """The part of subprocess.Popen used here; a warm rank has it, too (warm_pool.py)."""

    pid: int

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


@dataclass
class Child:
    """One rank's process."""

    rank: int
    process: Process
    ended_by_us: bool = False

    def kill(self) -> None:
        """End it and its process group, unless it has ended."""
        if self.process.poll() is None:
            self.ended_by_us = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def exit_code(self) -> int | None:
        """Exit status or -signal; None: it was ended by us."""
        return None if self.ended_by_us else self.process.returncode


class Signals:
    """While open, SIGINT, SIGTERM and SIGHUP are recorded for `watch` instead of ending this process.

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
        """The signal that warned that this job's time is up, or the file that SCALADE_STOP_FILE names."""
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


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """For what, beside a failure or the end of all ranks, `watch` ends the ranks.

    deadline: on time.monotonic(); None: no limit
    signals: those that cancel the run, or warn that the job's time is up
    grace_s: after a warning: for the ranks to write a checkpoint and stop
    watchdog: None: a rank may take any time for a step
    stop_demand: asked in each round whether the ranks have to end for what happened at another supervisor
    quorum: a failed rank ends only its replica as long as enough replicas are left, and the run is done when
        replica 0 is, some seconds later for the others to end (of several supervisors rank 0's tells the others)
    lost_elsewhere: with a quorum: replicas that other supervisors have lost
    tick: called in each round
    keep: ranks that completed their run stay for the next one (warm_pool.py)
    """

    deadline: float | None
    signals: Signals
    grace_s: float = 0.0
    watchdog: Watchdog | None = None
    stop_demand: Callable[[], StopDemand | None] = lambda: None
    quorum: Quorum | None = None
    lost_elsewhere: Callable[[], set[int]] = set
    tick: Callable[[], None] = lambda: None
    keep: bool = False


def watch(children: Sequence[Child], scratch: Path, mark: str, options: WatchOptions) -> Ending:
    """Wait until the ranks have ended, or end them: when one fails, the time is up, no step is made any more, a signal
    arrives, or another supervisor demands it.

    On return, also by an exception, nothing that these ranks started is left, but for the ranks that are to be kept.
    """
    kills_before = oom_kills()
    decision = None
    halted: list[int] = []
    state = _Watch(children, scratch, options)
    try:
        while decision is None:
            decision = state.look()
            options.tick()
            if decision is None:
                time.sleep(POLL_S)
        if decision.wants_stacks:
            halted = _dump_stacks(children)
    finally:
        if not (options.keep and decision and decision.cause is Cause.DONE):
            _end(children, mark)
    return Ending(
        decision.cause,
        {child.rank: child.exit_code for child in children},
        tuple(_reports(children, scratch)),
        oom_kills() - kills_before,
        decision.detail,
        decision.stop,
        tuple(halted),
    )


class _Decision(NamedTuple):
    """That the ranks' time is over, and why: the fields of Ending."""

    cause: Cause
    detail: str = ""
    stop: StopDemand | None = None

    @property
    def wants_stacks(self) -> bool:
        """Whether it helps to know where each rank was."""
        hung_elsewhere = self.stop is not None and self.stop.reason in (StopReason.TIMEOUT, StopReason.HANG)
        return hung_elsewhere or self.cause in (Cause.TIMEOUT, Cause.HANG, Cause.LINGERED)


class _Watch:
    """What was seen of the ranks round by round, and one method for each cause to end them.

    Attributes
    ----------
    exits: of every rank here, as of `now`; None: it runs
    codes: of those ranks that the run still depends on
    lost: with a quorum: replicas that the run goes on without
    """

    def __init__(self, children: Sequence[Child], scratch: Path, options: WatchOptions) -> None:
        self.children, self.scratch, self.options = children, scratch, options
        self.now = 0.0
        self.exits: dict[int, int | None] = {}
        self.codes: list[int | None] = []
        self.lost: set[int] = set()
        self.warned_at: float | None = None
        self.failed_at: float | None = None
        self.first_done_at: float | None = None

    def look(self) -> _Decision | None:
        """One round. None: the ranks go on.

        The order of the causes is part of their meaning: a signal may have reached the ranks, too, and made them fail;
        and what else is seen while a failure is looked into may follow from it.
        """
        self.now = time.monotonic()
        self.exits = {child.rank: child.process.poll() for child in self.children}
        self.codes = list(self.exits.values())
        self._pass_on_warning()
        if self.options.quorum:
            self._apply(self.options.quorum)
        if decision := self._done() or self._cancelled() or self._preempted() or self._out_of_grace():
            return decision
        if _failed(self.codes):
            return self._rank_failed()
        return self._quorum_lost() or self._stopped() or self._timed_out() or self._hung() or self._lingered()

    def _pass_on_warning(self) -> None:
        if self.warned_at is None and self.options.signals.warned:
            self.warned_at = self.now
            ask_to_stop(self.scratch)

    def _apply(self, quorum: Quorum) -> None:
        """End what is left of lost replicas, and leave their ranks out of account; all ranks, once the run is done."""
        self.lost = quorum.lost(self.exits) | self.options.lost_elsewhere()
        if self.lost and quorum.stands(self.lost):
            _end_replicas(self.children, quorum, self.lost, self.scratch)
            self.failed_at = None
            self.codes = [code for rank, code in self.exits.items() if quorum.replica(rank) not in self.lost]
        if quorum.first_is_done(self.exits) and self._passed_since_first_done(PARTING_S):
            self.codes = [0]  # the other replicas are ended

    def _passed_since_first_done(self, seconds: float) -> bool:
        if self.first_done_at is None:
            self.first_done_at = self.now
        return self.now - self.first_done_at > seconds

    def _done(self) -> _Decision | None:
        if any(code != 0 for code in self.codes):
            return None
        return _Decision(Cause.DONE if self.codes else Cause.LOST)

    def _cancelled(self) -> _Decision | None:
        received = self.options.signals.received
        return _Decision(Cause.CANCELLED, received) if received else None

    def _preempted(self) -> _Decision | None:
        """All ranks have stopped as they were asked to."""
        if any(code != REQUEUE_STATUS for code in self.codes):
            return None
        warned = self.warned_at is not None
        return _Decision(
            Cause.PREEMPTED, f"stopped by {self.options.signals.warned}, with a checkpoint" if warned else ""
        )

    def _out_of_grace(self) -> _Decision | None:
        """A warning was not followed in time. A rank that fails meanwhile may have lost peers to the same warning."""
        if self.warned_at is None:
            return None
        grace_s = self.options.grace_s
        if self.now - self.warned_at <= grace_s and not _failed(self.codes):
            return None
        detail = f"stopped by {self.options.signals.warned}: no new checkpoint within {grace_s:g} s"
        return _Decision(Cause.PREEMPTED, detail)

    def _rank_failed(self) -> _Decision | None:
        """Wait a moment where the rank to blame is not known yet."""
        if self.failed_at is None:
            self.failed_at = self.now
        reports = _reports(self.children, self.scratch)
        waited = None not in self.codes or self.now - self.failed_at > GRACE_S
        if not waited and not _blame_is_clear(self.codes, reports):
            return None
        return _Decision(Cause.FAILED, self._missing_replicas())

    def _missing_replicas(self) -> str:
        quorum = self.options.quorum
        return quorum.too_few(self.lost) if quorum else ""

    def _quorum_lost(self) -> _Decision | None:
        quorum = self.options.quorum
        if quorum is None or quorum.stands(self.lost):
            return None
        return _Decision(Cause.FAILED, self._missing_replicas())

    def _stopped(self) -> _Decision | None:
        stop = self.options.stop_demand()
        return _Decision(Cause.STOPPED, stop.line, stop) if stop else None

    def _timed_out(self) -> _Decision | None:
        deadline = self.options.deadline
        return _Decision(Cause.TIMEOUT) if deadline is not None and self.now > deadline else None

    def _hung(self) -> _Decision | None:
        waited_s = self.options.watchdog.hung_s() if self.options.watchdog else None
        return _Decision(Cause.HANG, f"no step for {waited_s:.0f} s") if waited_s else None

    def _lingered(self) -> _Decision | None:
        """Some ranks have ended, and others do not."""
        if self.options.quorum or not {0, REQUEUE_STATUS}.intersection(self.codes):
            return None
        return _Decision(Cause.LINGERED) if self._passed_since_first_done(LINGER_S) else None


def _end_replicas(children: Sequence[Child], quorum: Quorum, lost: set[int], scratch: Path) -> None:
    """What is left of replicas that lost a rank; their other ranks may hang on it."""
    for replica in lost:
        mark_lost(scratch, replica)
    for child in children:
        if quorum.replica(child.rank) in lost:
            child.kill()


def _blame_is_clear(codes: Sequence[int | None], reports: Sequence[ErrorReport]) -> bool:
    return any(code == -signal.SIGKILL for code in codes) or any(report.kind != ErrorKind.PEER for report in reports)


def _reports(children: Sequence[Child], scratch: Path) -> list[ErrorReport]:
    reports = [read_report(scratch, child.rank) for child in children]
    return [report for report in reports if report is not None]


def _dump_stacks(children: Sequence[Child]) -> list[int]:
    """Ask each rank for the stack of each of its threads, into rank-N.stack (rank/main.py registered faulthandler).
    Gives the ranks that a signal had stopped.

    The handler is C code and also writes where Python is stuck in a call. A rank that was stopped is continued for
    it while the others are stopped: the run is decided, and must not finish now.
    """
    live = [child for child in children if child.process.poll() is None]
    halted = stopped(child.process.pid for child in live)
    for child in live:
        child.process.send_signal(signal.SIGUSR1)
    if live:
        time.sleep(STACKS_S)
    if halted:
        for child in live:
            child.process.send_signal(signal.SIGCONT if child.process.pid in halted else signal.SIGSTOP)
        time.sleep(STACKS_S)
    return [child.rank for child in live if child.process.pid in halted]


def _failed(codes: Sequence[int | None]) -> bool:
    """Whether a rank has ended with another status than success or stopped as asked."""
    return any(code not in (None, 0, REQUEUE_STATUS) for code in codes)


def _end(children: Sequence[Child], mark: str) -> None:
    for child in children:
        child.kill()
    left = end_marked(mark)
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=0 if child.process.pid in left else 5)
