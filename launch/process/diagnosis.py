"""What became of a run, in a status and one line: judged from how every supervisor's ranks came to their end.

A rank that died where its supervisor lived is the run's fault: `failed`. A supervisor that disappeared without a word,
as all of a host's processes do when it crashes, is not: the run is `preempted`, has no row and starts again. What the
other ranks raise when a host is gone is no evidence, whatever it looks like; memory that ran out and a loss that is not
finite are.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...results import files
from .cause import Cause, Kind, Why
from .outcome import Ending, Outcome, all_exits
from .progress import read_progress
from .quorum import Quorum
from .scratch import log_file
from .supervisor import LINGER_S

TAIL_LINES = 12


def judge(
    endings: Sequence[Ending], scratch: Path, time_limit_s: float | None, quorum: Quorum | None = None
) -> Outcome:
    """What became of the run, given how each supervisor's ranks ended. Peers' connection errors take no blame."""
    if quorum and quorum.first_is_done(all_exits(endings)):
        return Outcome("ok")  # how the others ended is the row's `quorum_missed`
    outcome = _judge(endings, scratch, time_limit_s)
    more = [ending.detail for ending in endings if ending.cause == Cause.FAILED and ending.detail]
    return replace(outcome, reason=f"{outcome.reason}; {more[0]}") if more and outcome.bad else outcome


def _judge(endings: Sequence[Ending], scratch: Path, time_limit_s: float | None) -> Outcome:
    causes = {Cause(ending.cause): ending for ending in endings}
    exits = all_exits(endings)
    gone = [ending.stop for ending in endings if ending.stop and ending.stop.why in GONE]
    reports = sorted((report for ending in endings for report in ending.reports), key=lambda report: report.at)
    if not (gone and Cause.CANCELLED in causes) and (
        ended := _ended_by_supervisor(causes, endings, scratch, time_limit_s)
    ):  # a scheduler that sees the host go cancels what is left of the job
        return ended
    if all(code == 0 for code in exits.values()) and set(causes) <= {Cause.DONE}:
        return Outcome("ok", cause=Cause.DONE)
    killed = [rank for rank, code in sorted(exits.items()) if code == -signal.SIGKILL]
    if killed and any(ending.oom_kills for ending in endings):
        line = f"rank {killed[0]} was killed by the kernel's out-of-memory killer {_where(scratch)}"
        return Outcome("oom", line, Cause.FAILED, killed[0])
    first = next((report for report in reports if report.kind in (FINDINGS if gone else RAISED)), None)
    if gone and not first:
        return Outcome("preempted", f"{gone[0].line} {_where(scratch)}", Cause.HOST_GONE, gone[0].rank)
    if killed:
        line = f"rank {killed[0]} was killed by SIGKILL {_where(scratch)}"
        return Outcome("failed", line, Cause.FAILED, killed[0])
    if first:
        status = {Kind.OOM: "oom", Kind.NAN: "diverged"}.get(first.kind, "failed")
        line = first.line if first.kind == Kind.WORLD else f"rank {first.rank}: {first.line}"
        return Outcome(status, line, Cause.FAILED, first.rank, first.kind)
    for rank, code in sorted(exits.items()):
        if code is not None and code < 0:
            how = f"rank {rank} was killed by {_signal_name(-code)} {_where(scratch)}"
            last = last_line(scratch, rank) if -code == signal.SIGABRT else ""  # C++ says why it aborts
            return Outcome("failed", f"{how}: {last}" if last else how, Cause.FAILED, rank)
    left = [ending.stop for ending in endings if ending.stop and ending.stop.why is Why.LEFT]
    if left:
        return Outcome("failed", left[0].line, Cause.STOPPED, left[0].rank)
    if reports:
        blamed = reports[0]
        return Outcome("failed", f"rank {blamed.rank}: {blamed.line}", Cause.FAILED, blamed.rank, blamed.kind)
    if Cause.LINGERED in causes:
        stuck = [rank for rank, code in sorted(exits.items()) if code is None]
        line = f"rank {', '.join(map(str, stuck))} did not end within {LINGER_S:g} s of the others"
        return Outcome("failed", line, Cause.LINGERED, stuck[0] if stuck else None)
    rank, code = next(((rank, code) for rank, code in sorted(exits.items()) if code), (0, None))
    line = f"rank {rank} ended with status {code} and no report: {last_line(scratch, rank)}"
    return Outcome("failed", line, Cause.FAILED, rank)


def _ended_by_supervisor(
    causes: Mapping[Cause, Ending], endings: Sequence[Ending], scratch: Path, time_limit_s: float | None
) -> Outcome | None:
    """Where ranks that may have gone on were ended."""
    if Cause.CANCELLED in causes:
        by = causes[Cause.CANCELLED].detail or "a signal"
        return Outcome("cancelled", f"cancelled by {by}", Cause.CANCELLED)
    if Cause.PREEMPTED in causes:
        told = [ending.detail for ending in endings if ending.cause == Cause.PREEMPTED and ending.detail]
        return Outcome("preempted", f"{told[0] if told else 'stopped'} {_where(scratch)}", Cause.PREEMPTED)
    if Cause.HANG in causes:
        halted = sorted(rank for ending in endings for rank in ending.halted)
        more = "".join(f"; rank {rank} was stopped by a signal" for rank in halted)
        line = f"hang: {causes[Cause.HANG].detail} {_where(scratch)}{more}"
        return Outcome("timeout", line, Cause.HANG, halted[0] if halted else None)
    if Cause.TIMEOUT in causes:
        return Outcome("timeout", f"time limit {time_limit_s:g} s reached {_where(scratch)}", Cause.TIMEOUT)
    return None


GONE = (Why.NO_SUPERVISOR, Why.NO_STORE)
FINDINGS = (Kind.OOM, Kind.NAN)  # that no host's end makes
RAISED = (*FINDINGS, Kind.WORLD, Kind.EXCEPTION)


def _where(scratch: Path) -> str:
    progress = read_progress(scratch)
    if progress is None:
        return "before the ranks had come together"
    return f"at step {progress.step} of {progress.steps}" if progress.step else f"while {progress.phase}"


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
