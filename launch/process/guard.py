"""No orphans: every process that a supervisor starts carries the supervisor's mark in its environment.

The mark is inherited by grandchildren, also by those that made a session of their own or lost their parent. So a run
is ended by looking for the mark in /proc, and a guard (this file as a program: standard library only, it starts in
10 ms) does the same when its supervisor is gone, SIGKILL included: the pipe between them then reads end-of-file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

MARK = "SCALADE_SUPERVISOR"


def new_mark() -> str:
    """A token for this process, behind those of the supervisors above it."""
    token = f"{os.getpid()}.{os.urandom(6).hex()}"
    return "/".join(part for part in (os.environ.get(MARK, ""), token) if part)


def supervisor_pid(mark: str) -> int:
    return int(mark.rsplit("/", 1)[-1].split(".")[0])


def marked(mark: str) -> list[int]:
    """Ids of the live processes with `mark` in their environment, whatever started them; never this process."""
    token, pids = mark.rsplit("/", 1)[-1].encode(), []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:  # gone meanwhile, or another user's
            content = file.read()
            if token in content and any(
                token in value[len(MARK) + 1 :].split(b"/")
                for value in content.split(b"\0")
                if value.startswith(MARK.encode() + b"=")
            ):
                pids.append(int(name))
    return pids


def end_marked(mark: str, patience_s: float = 5.0) -> list[int]:
    """SIGKILL everything under `mark` until nothing is left; gives those that are still there (stuck in the kernel)."""
    deadline = time.monotonic() + patience_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return left


def die_with_supervisor() -> None:
    """Second line behind the guard: the kernel ends this process when its parent ends (prctl PR_SET_PDEATHSIG)."""
    import ctypes

    mark = os.environ.get(MARK)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if mark and os.getppid() != supervisor_pid(mark):  # it went before the line above
        os._exit(1)


class Guard:
    """Ends what is left under `mark` once this process has ended, however it ended."""

    def __init__(self, mark: str) -> None:
        command = [sys.executable, "-I", "-S", __file__, mark]
        env = {key: value for key, value in os.environ.items() if key != MARK}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env=env,
        )

    def close(self) -> None:
        """Let the guard look once more, and wait for it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def _guard(mark: str) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.read(0, 1)  # until the supervisor's end of the pipe is closed
    end_marked(mark, patience_s=60.0)


if __name__ == "__main__":
    _guard(sys.argv[1])
