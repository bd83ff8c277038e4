"""What became of a run, as a status and one line: decided from how every supervisor's ranks ended.

A rank that died while its supervisor lived is the run's fault: `failed`. A supervisor that vanished without a report,
as all processes of a host do when it crashes, is not: the run is `preempted`, gets no row and starts again. What the
other ranks raise when a host is gone is no evidence, whatever it looks like; memory that ran out and a loss that is not
finite are.

Each rule names one cause. RULES is their order: the first that applies decides.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...results import files
from .cause import Cause, ErrorKind, Status, StopDemand, StopReason
from .error_report import ErrorReport
from .outcome import Ending, Outcome, all_exits
from .progress import read_progress
from .quorum import Quorum
from .scratch import log_file
from .supervisor import LINGER_S

TAIL_LINES = 12
GONE = (StopReason.NO_SUPERVISOR, StopReason.NO_STORE)
CERTAIN = (ErrorKind.OOM, ErrorKind.NAN)  # errors that no host's end causes
OWN = (*CERTAIN, ErrorKind.WORLD, ErrorKind.EXCEPTION)  # errors that no other rank's end causes


def diagnose(
    endings: Sequence[Ending], scratch: Path, time_limit_s: float | None, quorum: Quorum | None = None
) -> Outcome:
    """What became of the run, from how each supervisor's ranks ended. Connection errors of peers take no blame."""
    if quorum and quorum.first_is_done(all_exits(endings)):
        return Outcome(Status.OK)  # how the others ended is the row's `quorum_missed`
    evidence = Evidence.of(endings, scratch, time_limit_s)
    outcome = next(outcome for rule in RULES if (outcome := rule(evidence)) is not None)
    quorum_lost = [ending.detail for ending in endings if ending.cause == Cause.FAILED and ending.detail]
    if quorum_lost and outcome.bad:
        return replace(outcome, reason=f"{outcome.reason}; {quorum_lost[0]}")
    return outcome


@dataclass(frozen=True)
class Evidence:
    """How all supervisors' ranks ended."""

    endings: Sequence[Ending]
    causes: Mapping[Cause, Ending]  # one ending of each cause
    exits: list[tuple[int, int | None]]  # (rank, exit status or -signal; None: ended by its supervisor), by rank
    reports: list[ErrorReport]  # the earliest first
    scratch: Path
    time_limit_s: float | None

    @classmethod
    def of(cls, endings: Sequence[Ending], scratch: Path, time_limit_s: float | None) -> Evidence:
        causes = {Cause(ending.cause): ending for ending in endings}
        reports = sorted((report for ending in endings for report in ending.reports), key=lambda report: report.at)
        return cls(endings, causes, sorted(all_exits(endings).items()), reports, scratch, time_limit_s)

    def stop(self, *reasons: StopReason) -> StopDemand | None:
        """The first demand to stop that was made for one of these."""
        stops = (ending.stop for ending in self.endings if ending.stop and ending.stop.reason in reasons)
        return next(stops, None)

    def first_report(self, *kinds: ErrorKind) -> ErrorReport | None:
        return next((report for report in self.reports if report.kind in kinds), None)

    @property
    def where(self) -> str:
        """How far the run was."""
        progress = read_progress(self.scratch)
        if progress is None:
            return "before the ranks had come together"
        return f"at step {progress.step} of {progress.steps}" if progress.step else f"while {progress.phase}"


def _cancelled(evidence: Evidence) -> Outcome | None:
    ending = evidence.causes.get(Cause.CANCELLED)
    return Outcome(Status.CANCELLED, f"cancelled by {ending.detail or 'a signal'}", Cause.CANCELLED) if ending else None


def _preempted(evidence: Evidence) -> Outcome | None:
    endings = [ending for ending in evidence.endings if ending.cause == Cause.PREEMPTED]
    if not endings:
        return None
    detail = next((ending.detail for ending in endings if ending.detail), "stopped")
    return Outcome(Status.PREEMPTED, f"{detail} {evidence.where}", Cause.PREEMPTED)


def _hung(evidence: Evidence) -> Outcome | None:
    if Cause.HANG not in evidence.causes:
        return None
    halted = sorted(rank for ending in evidence.endings for rank in ending.halted)
    more = "".join(f"; rank {rank} was stopped by a signal" for rank in halted)
    line = f"hang: {evidence.causes[Cause.HANG].detail} {evidence.where}{more}"
    return Outcome(Status.TIMEOUT, line, Cause.HANG, halted[0] if halted else None)


def _timed_out(evidence: Evidence) -> Outcome | None:
    if Cause.TIMEOUT not in evidence.causes:
        return None
    return Outcome(Status.TIMEOUT, f"time limit {evidence.time_limit_s:g} s reached {evidence.where}", Cause.TIMEOUT)


def _ended_by_supervisor(evidence: Evidence) -> Outcome | None:
    """Ranks that might have gone on were ended. A scheduler that sees a host go cancels what is left of the job: then
    the host is to blame."""
    if evidence.stop(*GONE) and Cause.CANCELLED in evidence.causes:
        return None
    return _cancelled(evidence) or _preempted(evidence) or _hung(evidence) or _timed_out(evidence)


def _completed(evidence: Evidence) -> Outcome | None:
    done = set(evidence.causes) <= {Cause.DONE} and all(code == 0 for _, code in evidence.exits)
    return Outcome(Status.OK, cause=Cause.DONE) if done else None


def _killed_for_memory(evidence: Evidence) -> Outcome | None:
    rank = _killed_rank(evidence)
    if rank is None or not any(ending.oom_kills for ending in evidence.endings):
        return None
    line = f"rank {rank} was killed by the kernel's out-of-memory killer {evidence.where}"
    return Outcome(Status.OOM, line, Cause.FAILED, rank)


def _host_gone(evidence: Evidence) -> Outcome | None:
    stop = evidence.stop(*GONE)
    if stop is None or evidence.first_report(*CERTAIN):
        return None
    return Outcome(Status.PREEMPTED, f"{stop.line} {evidence.where}", Cause.HOST_GONE, stop.rank)


def _killed(evidence: Evidence) -> Outcome | None:
    rank = _killed_rank(evidence)
    if rank is None:
        return None
    return Outcome(Status.FAILED, f"rank {rank} was killed by SIGKILL {evidence.where}", Cause.FAILED, rank)


def _raised(evidence: Evidence) -> Outcome | None:
    report = evidence.first_report(*(CERTAIN if evidence.stop(*GONE) else OWN))
    if report is None:
        return None
    status = {ErrorKind.OOM: Status.OOM, ErrorKind.NAN: Status.DIVERGED}.get(report.kind, Status.FAILED)
    line = report.line if report.kind == ErrorKind.WORLD else f"rank {report.rank}: {report.line}"
    return Outcome(status, line, Cause.FAILED, report.rank, report.kind)


def _killed_by_signal(evidence: Evidence) -> Outcome | None:
    for rank, code in evidence.exits:
        if code is not None and code < 0:
            line = f"rank {rank} was killed by {_signal_name(-code)} {evidence.where}"
            last = last_line(evidence.scratch, rank) if -code == signal.SIGABRT else ""  # C++ says why it aborts
            return Outcome(Status.FAILED, f"{line}: {last}" if last else line, Cause.FAILED, rank)
    return None


def _supervisor_left(evidence: Evidence) -> Outcome | None:
    stop = evidence.stop(StopReason.LEFT)
    return Outcome(Status.FAILED, stop.line, Cause.STOPPED, stop.rank) if stop else None


def _lost_peer(evidence: Evidence) -> Outcome | None:
    """Nothing better is known than what the first rank to lose its peer says."""
    if not evidence.reports:
        return None
    report = evidence.reports[0]
    return Outcome(Status.FAILED, f"rank {report.rank}: {report.line}", Cause.FAILED, report.rank, report.kind)


def _lingered(evidence: Evidence) -> Outcome | None:
    if Cause.LINGERED not in evidence.causes:
        return None
    stuck = [rank for rank, code in evidence.exits if code is None]
    line = f"rank {', '.join(map(str, stuck))} did not end within {LINGER_S:g} s of the others"
    return Outcome(Status.FAILED, line, Cause.LINGERED, stuck[0] if stuck else None)


def _unexplained(evidence: Evidence) -> Outcome:
    rank, code = next(((rank, code) for rank, code in evidence.exits if code), (0, None))
    line = f"rank {rank} ended with status {code} and no report: {last_line(evidence.scratch, rank)}"
    return Outcome(Status.FAILED, line, Cause.FAILED, rank)


RULES: tuple[Callable[[Evidence], Outcome | None], ...] = (
    _ended_by_supervisor,
    _completed,
    _killed_for_memory,
    _host_gone,
    _killed,
    _raised,
    _killed_by_signal,
    _supervisor_left,
    _lost_peer,
    _lingered,
    _unexplained,
)


def _killed_rank(evidence: Evidence) -> int | None:
    """The first rank that somebody other than its supervisor sent SIGKILL."""
    return next((rank for rank, code in evidence.exits if code == -signal.SIGKILL), None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def tail(scratch: Path, rank: int, lines: int = TAIL_LINES) -> list[str]:
    """The last lines that a rank printed."""
    try:
        return files.read_end(log_file(scratch, rank)).decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def last_line(scratch: Path, rank: int) -> str:
    return next((line.strip() for line in reversed(tail(scratch, rank)) if line.strip()), "it printed nothing")
