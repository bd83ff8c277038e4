"""A sweep under torchrun, mpirun or srun: the launcher is started once for each world size, its workers do the runs.

The workers (worker.py) write the rows and show the progress. Files beside the runs carry what a launcher may not pass
on: the request to stop, that rank 0's supervisor has ended, and that it ended in the middle of a run.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...results import files
from ...results.store.store import RunStore
from ...results.wording import count_of
from ..host.launchers import WorldLauncher
from ..process.guard import MARK, Guard, end_marked, new_mark
from ..process.preemption import STOP_FILE, UNDONE_FILE
from ..process.supervisor import Signals
from .plan import AnyCase, Plan, outcome_of
from .summary import Summary

FAREWELL_S = 10.0  # for workers to write their row, after SIGTERM
LEAVE_S = 30.0  # for a launcher to end once rank 0's supervisor has; one may wait for a host that is cut off
POLL_S = 0.05
ENDED_FILE = "SCALADE_ENDED_FILE"  # names the file that rank 0's supervisor writes when it has ended


class LauncherSweep:
    """Call `run` once. options: of `scalade worker`, for every world"""

    def __init__(
        self, launcher: WorldLauncher, study: Path, store: RunStore, signals: Signals, options: list[str]
    ) -> None:
        self.launcher, self.study, self.store, self.signals = launcher, study, store, signals
        self.options = ["--results", str(store.folder.absolute()), "--exit-zero", *options]
        self.mark = new_mark()
        self._guard: Guard | None = None
        folder, name = store.folder.absolute(), self.mark.rsplit("/", 1)[-1]
        self.stop_file = Path(os.environ.get(STOP_FILE, folder / f".stop-{name}"))
        self.ended_file, self.undone_file = folder / f".ended-{name}", folder / f".undone-{name}"

    def run(self, plan: Plan[AnyCase]) -> Summary:
        summary = Summary.of(plan)
        before = {run.run_id: self.store.attempts(run.run_id) for run in plan.pending}
        try:
            for size in sorted({run.case.ranks for run in plan.pending}):
                if summary.interrupted:
                    break
                self._run_world(size, summary)
        finally:
            self._close()
        for run in plan.pending:
            row = self.store.row(run.run_id)
            if row and self.store.attempts(run.run_id) != before[run.run_id]:
                summary.outcomes[run.run_id] = outcome_of(row)
            elif not summary.interrupted:
                summary.elsewhere.append(run.run_id)
        return summary

    def _run_world(self, size: int, summary: Summary) -> None:
        files.remove_file(self.ended_file)
        process = self._start(size)
        self._guard = self._guard or Guard(self.mark)
        self._wait(process)
        status = process.poll()
        if status is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(FAREWELL_S)
        self._judge(f"{self.launcher.name} with {count_of(size, 'rank')}", status, summary)
        end_marked(self.mark)

    def _start(self, size: int) -> subprocess.Popen[Any]:
        env = os.environ | {
            MARK: self.mark,
            STOP_FILE: str(self.stop_file),
            ENDED_FILE: str(self.ended_file),
            UNDONE_FILE: str(self.undone_file),
        }
        env.setdefault("OMP_NUM_THREADS", "1")  # of the supervisors; torchrun prints a warning where it is not set
        program = ["-m", "scalade", "worker", str(self.study.absolute()), *self.options]
        command = self.launcher.command(size, program)
        return subprocess.Popen(command, env=env, start_new_session=True, stdin=subprocess.DEVNULL)

    def _wait(self, process: subprocess.Popen[Any]) -> None:
        """Until the launcher has ended, or has to be ended."""
        ended_at: float | None = None
        while process.poll() is None and not self.signals.received:
            if self.signals.warned:  # a launcher may not hand a signal on: the worker looks for the file
                files.write(self.stop_file, "", sync=False)
            if ended_at is None and files.is_file(self.ended_file):
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() - ended_at > LEAVE_S:
                return
            time.sleep(POLL_S)

    def _judge(self, started: str, status: int | None, summary: Summary) -> None:
        """Whether the sweep ends here. status: of the launcher; None: it had to be ended."""
        if self.signals.received:
            summary.interrupt(self.signals.received, signal=self.signals.received)
        elif files.is_file(self.undone_file) and not self.signals.warned:  # a host is gone, or the launcher ended all
            with_status = "" if status is None else f" with status {status}"
            reason = _content(self.undone_file) or f"{started} ended{with_status} in the middle of a run"
            summary.interrupt(reason, requeue=True)
        elif status is None:
            summary.interrupt(f"{started} had not ended {LEAVE_S:g} s after rank 0's supervisor")
        elif self.signals.warned:
            summary.interrupt(f"stopped by {self.signals.warned}", requeue=True)
        elif status:
            summary.interrupt(f"{started} ended with status {status}")

    def _close(self) -> None:
        end_marked(self.mark)
        files.remove_file(self.ended_file)
        files.remove_file(self.undone_file)
        if STOP_FILE not in os.environ:
            files.remove_file(self.stop_file)
        if self._guard:
            self._guard.close()


def _content(file: Path) -> str:
    """Why the sweep ended, as its worker wrote it; empty where it cannot be read."""
    with suppress(OSError):
        return files.read(file, limit=files.MIB).decode(errors="replace")
    return ""
