"""One rank of a sweep over collectives through MPI: mpirun starts `python -m scalade.launch.comm.mpi_rank SPEC.json`.

The process that mpirun started is the one that measures: MPI gives its world to no child. So a supervisor watches
mpirun instead of the ranks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...results import files
from ...results.store.store import RunStore
from ...results.wording import count_of
from ..host import mpi
from ..host.launchers import LAUNCHERS
from ..host.placement import WorldError
from ..process.cause import Status, StopDemand, StopReason
from ..process.diagnosis import diagnose
from ..process.error_report import ErrorReport, error_kind, one_line, read_report, write_report
from ..process.guard import MARK, Guard, end_marked, new_mark
from ..process.outcome import Outcome
from ..process.progress import Reporter
from ..process.rank_environment import WAIT_POLICY
from ..process.rendezvous import Seat, wrong_world
from ..process.run_spec import RunSpec, utc
from ..process.scratch import SPEC, WORLD, log_file
from ..process.supervisor import Child, Signals, WatchOptions, watch
from ..rank.main import write_row
from ..rank.world import World
from ..study.comm_case import CommCase
from .torch_rank import dimensions, measure, result


class MpiRanks:
    """The world of MPI."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def barrier(self) -> None:
        self.comm.Barrier()

    def slowest(self, seconds: Sequence[float]) -> list[float]:
        import numpy as np
        from mpi4py import MPI

        every = np.asarray(seconds, dtype=np.float64)
        self.comm.Allreduce(MPI.IN_PLACE, every, MPI.MAX)
        return every.tolist()

    def settle(self) -> None:
        """Calls on host memory are done when they return."""


def measure_over_mpi(spec: RunSpec) -> None:
    """The sweep on this process's MPI world; collective. Rank 0 writes the row.

    Raises
    ------
    WorldError: the world is not the one that is wanted
    """
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")  # before torch is there to read it
    from ...bench.transports import MpiTransport

    comm = mpi.load().COMM_WORLD
    if comm.size != spec.size:
        raise mpi.another(f"{count_of(spec.size, 'rank')} were started", f"{comm.size}")
    hosts = comm.allgather(socket.gethostname())
    neighbours = [rank for rank, host in enumerate(hosts) if host == hosts[comm.rank]]
    local = neighbours.index(comm.rank)
    mine = Seat(comm.rank, local, comm.size, spec.nonce, hosts[comm.rank], os.getpid(), "cpu")
    seats = tuple(comm.allgather(mine))
    if wrong := wrong_world(seats):
        raise WorldError(wrong)
    world = World(comm.rank, comm.size, local, len(neighbours), "cpu", "mpi", _set_threads(len(neighbours)), seats)
    case = spec.parsed_case()
    assert isinstance(case, CommCase)
    scratch = Path(spec.scratch)
    if comm.rank == 0:
        files.write(scratch / WORLD, world.ranks_json(), sync=False)
    reporter = Reporter(scratch, case.steps, active=comm.rank == 0, launched=spec.launched)

    def transport(sets: list[list[int]]) -> MpiTransport:
        return MpiTransport(comm.Split(next(i for i, ranks in enumerate(sets) if comm.rank in ranks), comm.rank))

    rows = measure(case, dimensions(case, transport), MpiRanks(comm), "cpu", reporter)
    if comm.rank == 0:
        write_row(spec, world, result(case, rows, "cpu"), reporter)
    comm.Barrier()


def _set_threads(local_size: int) -> int:
    import torch

    from ..host.machine import cores

    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # the first level's of "4,2"
    threads = (int(asked) if asked.isdigit() else 0) or max(1, cores() // local_size)
    torch.set_num_threads(threads)
    return threads


class MpirunExecutor:
    """Launcher `mpirun` for a sweep over MPI: one child, mpirun itself."""

    launcher, one_host = "mpirun", False
    broken: StopDemand | None = None

    def __init__(self, signals: Signals, start: Callable[..., list[str]] | None = None) -> None:
        self.signals, self.mark = signals, new_mark()
        self.guard: Guard | None = None
        self.start = start or LAUNCHERS["mpirun"].command

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callable, tick: Callable) -> Outcome:
        scratch, begun = Path(spec.scratch), time.monotonic()
        spec = replace(spec, nonce=os.urandom(8).hex())
        files.write(scratch / SPEC, spec.to_json(), sync=False)
        command = self.start(spec.size, ["-m", f"{__package__}.mpi_rank", str(scratch / SPEC)])
        env = {WAIT_POLICY: "PASSIVE"} | os.environ | {MARK: self.mark, "OMP_NUM_THREADS": str(spec.threads or 1)}
        with files.stream(log_file(scratch, 0)) as log:
            process = subprocess.Popen(
                command, env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.guard = self.guard or Guard(self.mark)
        try:
            started()
        except BaseException:
            end_marked(self.mark)
            raise
        options = WatchOptions(deadline=begun + time_limit_s, signals=self.signals, tick=tick)
        ending = watch([Child(0, process)], scratch, self.mark, options)
        reports = tuple(filter(None, (read_report(scratch, rank) for rank in range(spec.size))))
        return diagnose([replace(ending, reports=reports)], scratch, time_limit_s)

    def close(self) -> None:
        if self.guard:
            self.guard.close()


class MpiWorldExecutor:
    """Rank 0's, where mpirun started this very process: the ranks are those that are there.

    An error of any rank is a row and ends the world (MPI_Abort).
    """

    launcher, one_host = "mpirun", False

    def __init__(self, signals: Signals) -> None:
        self.comm, self.mark = mpi.load().COMM_WORLD, new_mark()
        self.broken: StopDemand | None = None

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callable, tick: Callable) -> Outcome:
        started()
        spec = replace(spec, nonce=os.urandom(8).hex())
        self.comm.bcast(spec.to_json())
        try:
            measure_over_mpi(spec)
        except Exception as error:
            self.broken = StopDemand(StopReason.LEFT, one_line(error))
            return Outcome(Status.FAILED, self.broken.line)
        return Outcome(Status.OK)

    def close(self) -> None:
        if self.broken:
            self.comm.Abort(1)
        self.comm.bcast(None)


def follow_over_mpi() -> None:
    """What every other rank does: its part of each run until rank 0 says that there are no more."""
    world = mpi.load().COMM_WORLD
    while (order := world.bcast(None)) is not None:
        spec = RunSpec.from_json(order)
        RunStore(spec.results).scratch(spec.run_id)
        try:
            measure_over_mpi(spec)
        except BaseException as error:
            traceback.print_exc()
            row = {
                "status": "failed",
                "reason": f"rank {world.rank}: {one_line(error)}",
                "finished_at": utc(time.time()),
                "wall_s": spec.launched.time_now() - spec.launched_at,
            }
            try:  # rank 0 waits in a collective for this rank, and would wait for ever
                RunStore(Path(spec.results)).write_run(spec.identity() | row)
            finally:
                world.Abort(1)


def main() -> None:
    spec, world = RunSpec.from_json(files.read(sys.argv[1]).decode()), None
    try:
        world = mpi.load().COMM_WORLD
        measure_over_mpi(spec)
    except BaseException as error:
        trace = traceback.format_exc()
        print(trace, file=sys.stderr, flush=True)
        rank = world.rank if world else 0  # without MPI all say the same
        write_report(Path(spec.scratch), ErrorReport(rank, error_kind(error), one_line(error), trace, time.time()))
        if not world:
            sys.exit(1)
        world.Abort(1)


if __name__ == "__main__":
    main()
