"""How a sweep has a run's ranks started: the protocol of the executors, and the ranks that one supervisor starts.

LocalExecutor        local.py           this process starts all ranks on this host
LabExecutor          lab/executor.py    this process starts each rank on its node of a lab
WorldExecutor        worker.py          each of several supervisors starts one rank
MpirunExecutor, MpiWorldExecutor        comm/mpi_rank.py: a sweep over MPI's collectives
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ..host.placement import Placement
from ..process.cause import StopDemand
from ..process.guard import Guard, end_marked, new_mark
from ..process.outcome import Ending, Outcome
from ..process.quorum import Quorum
from ..process.run_spec import RunSpec
from ..process.supervisor import RANK_COMMAND, Child, Signals, WatchOptions, start, watch
from ..process.warm_pool import WarmPool
from ..process.watchdog import Watchdog

Callback = Callable[[], None]
Prefix = Callable[[Placement], Sequence[str]]


class Executor(Protocol):
    """Runs the ranks of one run after the other to their end."""

    @property
    def launcher(self) -> str:
        """As the table names it."""

    @property
    def mark(self) -> str:
        """That every process it starts carries."""

    @property
    def broken(self) -> StopDemand | None:
        """Why no further run can be started."""

    @property
    def one_host(self) -> bool:
        """Whether it starts all ranks of every run here."""

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        """spec: address, port and nonce are filled in here. started: called once, when the ranks have been started."""

    def close(self) -> None:
        """End what is left of its ranks."""


class HostRanks:
    """The ranks that this supervisor starts, run after run: fresh processes, or those that wait in a pool.

    command: starts one rank; prefix: words before it, by rank
    """

    def __init__(
        self, signals: Signals, command: Sequence[str] = RANK_COMMAND, prefix: Prefix = lambda place: ()
    ) -> None:
        self.signals, self.command, self.prefix = signals, command, prefix
        self.mark, self._pool = new_mark(), WarmPool()
        self._guard: Guard | None = None

    def start(
        self, spec: RunSpec, places: Sequence[Placement], secret: str, started: Callback = lambda: None
    ) -> list[Child]:
        """started: called once they have been; whatever it raises ends them"""
        begin = self._pool.start if spec.isolation == "pool" else start
        try:
            children = begin(spec, places, self.mark, secret, self.command, self.prefix)
            self._guard = self._guard or Guard(self.mark)
            started()
        except BaseException:
            end_marked(self.mark)
            raise
        return children

    def watch(self, spec: RunSpec, children: Sequence[Child], options: WatchOptions) -> Ending:
        return watch(children, Path(spec.scratch), self.mark, options)

    def options(self, spec: RunSpec, deadline: float, quorum: Quorum | None, tick: Callback) -> WatchOptions:
        """For the supervisor that decides when the run ends. Its watch for hangs begins now."""
        return WatchOptions(
            deadline=deadline,
            signals=self.signals,
            tick=tick,
            quorum=quorum,
            watchdog=Watchdog(Path(spec.scratch), spec.hang_limit_s),
            grace_s=0.0 if quorum else spec.grace_s,  # replicas of a quorum are at different steps: no checkpoint
            keep=spec.isolation == "pool",
        )

    def close(self) -> None:
        self._pool.close()
        if self._guard:
            self._guard.close()
