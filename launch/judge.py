"""What became of a run, in a status and one line: judged from how every supervisor's ranks came to their end."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .progress import read_progress
from .quorum import Quorum
from .supervise import LINGER_S, Ending, Outcome, all_exits

TAIL_LINES = 12


def judge(
    endings: Sequence[Ending], scratch: Path, time_limit_s: float | None, quorum: Quorum | None = None
) -> Outcome:
    """What became of the run, given how each supervisor's ranks ended. Peers' connection errors take no blame."""
    if quorum and quorum.first_is_done(all_exits(endings)):
        return Outcome("ok")  # how the others ended is the row's `quorum_missed`
    outcome = _judge(endings, scratch, time_limit_s)
    more = [ending.detail for ending in endings if ending.cause == "failed" and ending.detail]
    return replace(outcome, reason=f"{outcome.reason}; {more[0]}") if more and outcome.bad else outcome


def _judge(endings: Sequence[Ending], scratch: Path, time_limit_s: float | None) -> Outcome:
    causes = {ending.cause: ending for ending in endings}
    exits = all_exits(endings)
    reports = sorted((report for ending in endings for report in ending.reports), key=lambda report: report.at)
    if "cancelled" in causes:
        return Outcome("cancelled", f"cancelled by {causes['cancelled'].detail or 'a signal'}")
    if "preempted" in causes:
        told = [ending.detail for ending in endings if ending.cause == "preempted" and ending.detail]
        return Outcome("preempted", f"{told[0] if told else 'stopped'} {_where(scratch)}")
    if "hang" in causes:
        line, _, more = causes["hang"].detail.partition(";")
        return Outcome("timeout", f"hang: {line} {_where(scratch)}" + f";{more}" * bool(more))
    if "timeout" in causes:
        return Outcome("timeout", f"time limit {time_limit_s:g} s reached {_where(scratch)}")
    if all(code == 0 for code in exits.values()) and set(causes) <= {"done"}:
        return Outcome("ok")
    killed = [rank for rank, code in sorted(exits.items()) if code == -signal.SIGKILL]
    if killed and any(ending.oom_kills for ending in endings):
        return Outcome("oom", f"rank {killed[0]} was killed by the kernel's out-of-memory killer {_where(scratch)}")
    if killed:
        return Outcome("failed", f"rank {killed[0]} was killed by SIGKILL {_where(scratch)}")
    first = next((report for report in reports if report.kind != "peer"), None)
    if first:
        status = {"oom": "oom", "nan": "diverged"}.get(first.kind, "failed")
        line = first.line if first.kind == "world" else f"rank {first.rank}: {first.line}"
        return Outcome(status, line)
    for rank, code in sorted(exits.items()):
        if code is not None and code < 0:
            how = f"rank {rank} was killed by {_signal_name(-code)} {_where(scratch)}"
            last = last_line(scratch, rank) if -code == signal.SIGABRT else ""  # C++ says why it aborts
            return Outcome("failed", f"{how}: {last}" if last else how)
    gone = [ending.detail for ending in endings if ending.cause == "stopped" and ending.detail not in ("", "peer")]
    if gone:
        return Outcome("failed", gone[0])
    if reports:
        return Outcome("failed", f"rank {reports[0].rank}: {reports[0].line}")
    if "lingered" in causes:
        stuck = [rank for rank, code in sorted(exits.items()) if code is None]
        return Outcome("failed", f"rank {stuck} did not end within {LINGER_S:g} s of the others".translate(NO_BRACKETS))
    rank, code = next(((rank, code) for rank, code in sorted(exits.items()) if code), (0, None))
    return Outcome("failed", f"rank {rank} ended with status {code} and no report: {last_line(scratch, rank)}")


NO_BRACKETS = str.maketrans("", "", "[]")


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
        with open(scratch / f"rank-{rank}.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def last_line(scratch: Path, rank: int) -> str:
    return next((line.strip() for line in reversed(tail(scratch, rank)) if line.strip()), "it printed nothing")
