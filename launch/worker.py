"""`scalade worker`: one supervisor for each rank that torchrun, mpirun or srun started. Rank 0's decides, all run.

The ranks of each run are fresh children of these supervisors, so that what ends a run ends no supervisor.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import files
from ..results.store import RunStore
from . import meeting, mpi
from .display import Display
from .environment import (
    Placement,
    WorldError,
    find_placement,
    link_columns,
    listen,
    listen_anywhere,
    loopback,
    reachable_address,
    slurm_meeting_point,
)
from .failure import one_line
from .here import refuse_here
from .judge import judge
from .peers import BEAT_S, PATIENCE_S, Peers
from .plan import make_plan
from .pool import Pool
from .processes import Guard, end_marked, new_mark
from .quorum import Quorum
from .rendezvous import Seat, agree, connect
from .schedulers import job_columns
from .spec import RunSpec
from .stop import REQUEUE_STATUS
from .supervise import RANK_COMMAND, Outcome, Signals, start, watch
from .sweep import Callback, Summary, Sweep
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .study import Study

JOIN_TIMEOUT_S = 120.0


def join_supervisors(env: dict[str, str], timeout_s: float = JOIN_TIMEOUT_S, patience_s: float = PATIENCE_S) -> Peers:
    """Come together with the supervisors that the same launcher started, and check that they are one whole world.

    Raises
    ------
    WorldError: no launcher started this process, or the world is not what the launcher says
    """
    place = find_placement(env)
    if place is None:
        raise WorldError(
            "no launcher started this worker: use `torchrun --nproc-per-node N -m scalade worker STUDY`, "
            "`mpirun -n N scalade worker STUDY`, `srun -n N scalade worker STUDY`, or `scalade run STUDY`, which "
            "starts the ranks itself"
        )
    host, fd = None, None
    if place.source == "mpi":
        place, address, port, nonce, listener = _through_mpi(place)
        fd = None if listener is None else listener.detach()  # the store closes it
    elif place.source == "slurm":
        address, ports, nonce = slurm_meeting_point(env)
        if place.rank == 0:
            import torch.distributed  # noqa: F401  # holds the interpreter for seconds, in which nobody is answered

            listener = listen_anywhere()
            port = listener.getsockname()[1]
            address, host = loopback(), meeting.Host(ports, nonce, port)
            fd = listener.detach()  # the store closes it
        else:
            address, port = meeting.find(place.rank, address, ports, nonce, timeout_s)
    else:
        for key in ("MASTER_ADDR", "MASTER_PORT"):
            if key not in env:
                raise WorldError(f"{place.source} set rank and size but not {key}: set it to {_MASTER[key]}")
        address, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
        nonce = f"{env.get('TORCHELASTIC_RUN_ID', 'none')}.{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    from torch.distributed import PrefixStore

    seat = Seat(place.rank, place.local_rank, place.size, nonce, socket.gethostname(), os.getpid(), "cpu")
    try:
        store = PrefixStore(f"scalade/{nonce.rsplit('.', 1)[-1]}", connect(place, address, port, timeout_s, fd))
        seats = agree(store, seat, timeout_s)
    except RuntimeError as error:  # torch's DistError; a WorldError says it better
        if isinstance(error, WorldError):
            raise
        said = str(error).strip().splitlines()[0]
        raise WorldError(f"the store at {address}:{port} went away while supervisors came together: {said}") from error
    finally:
        if host:
            host.close()
    return Peers(store, place, seats, patience_s)


_MASTER = {"MASTER_ADDR": "an address of rank 0's host that every node can reach", "MASTER_PORT": "a free port of it"}


def _through_mpi(place: Placement) -> tuple[Placement, str, int, str, socket.socket | None]:
    comm = mpi.load().COMM_WORLD
    if (comm.rank, comm.size) != (place.rank, place.size):
        raise mpi.another(f"mpirun says rank {place.rank} of {place.size}", f"rank {comm.rank} of {comm.size}")
    hosts = comm.allgather(socket.gethostname())
    neighbours = [rank for rank, host in enumerate(hosts) if host == hosts[place.rank]]
    place = replace(place, local_rank=neighbours.index(place.rank), local_size=len(neighbours))
    told, listener = None, None
    if place.rank == 0:
        other = next((host for host in hosts if host != hosts[0]), hosts[0])
        listener = listen(reachable_address(hosts, other))
        told = (*listener.getsockname()[:2], f"{os.urandom(8).hex()}.0")
    address, port, nonce = comm.bcast(told)
    # From here on they meet in the store: MPI's own end would wait for supervisors that are gone.
    mpi.load().Finalize()
    return place, address, port, nonce, listener


class WorldExecutor:
    """Rank 0's: publishes each run as an order, runs its own rank of it, and judges what all supervisors report."""

    def __init__(self, peers: Peers, signals: Signals, launcher: str, command: Sequence[str] = RANK_COMMAND) -> None:
        self.peers, self.signals, self.launcher, self.command = peers, signals, launcher, command
        self.mark, self.guard, self.number, self.broken = new_mark(), None, 0, None
        self.pool = Pool()
        hosts = [seat.host for seat in peers.seats]
        # A lab's nodes share one machine; another world of a scheduler's job may have more hosts than this one.
        self.one_host = bool(link_columns()) or (len(set(hosts)) == 1 and not job_columns())
        other = next((host for host in hosts if host != hosts[0]), hosts[0])
        self.address = reachable_address(hosts, other)

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        self.number += 1
        scratch, begun = Path(spec.scratch), time.monotonic()
        with listen(self.address) as listener:
            port = listener.getsockname()[1]
            spec = replace(spec, address=self.address, port=port, nonce=os.urandom(8).hex())
            self.peers.order(self.number, {"run": spec.to_json()})
            try:
                begin = self.pool.start if spec.isolation == "pool" else start
                children = begin(spec, [self.peers.place], self.mark, listener, self.command)
                self.guard = self.guard or Guard(self.mark)
                started()
            except BaseException:
                end_marked(self.mark)
                raise
        quorum = Quorum.of(spec.parsed_case())  # whose replicas are at different steps: no checkpoint
        ending = watch(
            children, scratch, self.mark, deadline=begun + time_limit_s, signals=self.signals, tick=tick,
            asked_to_stop=lambda: self.peers.asked_to_stop(self.number, quorum),
            watchdog=Watchdog(scratch, spec.hang_limit_s),
            quorum=quorum, lost_elsewhere=lambda: self.peers.lost(self.number, quorum),
            grace_s=0.0 if quorum else spec.grace_s, keep=spec.isolation == "pool",
        )  # fmt: skip
        self.peers.publish(self.number, ending, quorum)
        outcome = judge(self.peers.gather(self.number, ending, quorum), scratch, time_limit_s, quorum)
        self.broken = self.peers.broken
        return outcome

    def dismiss(self, code: int, message: str | None) -> None:
        """The last order: all supervisors end with this exit status."""
        self.peers.order(self.number + 1, {"end": message, "code": code})
        self.peers.wait_until_left()
        self.close()

    def close(self) -> None:
        self.pool.close()
        if self.guard:
            self.guard.close()


def follow(peers: Peers, signals: Signals, command: Sequence[str] = RANK_COMMAND) -> tuple[int, str | None]:
    """What every other supervisor does: run its rank of each order until the last one. Gives exit status and why."""
    mark, guard, number, pool = new_mark(), None, 0, Pool()
    threading.Thread(target=_end_when_cut_off, args=(peers, mark), daemon=True).start()
    try:
        while True:
            number += 1
            order = _await_order(peers, signals, number)
            if order is None:
                return (REQUEUE_STATUS, peers.gone.line) if peers.gone else (1, f"ended by {signals.received}")
            if "run" not in order:
                return order["code"], order["end"]
            spec = RunSpec.from_json(order["run"])
            scratch = Path(spec.scratch)
            Path(spec.results).mkdir(parents=True, exist_ok=True)  # a disk of its own, where it is not shared
            files.make_folder(scratch, spec.results)
            try:
                begin = pool.start if spec.isolation == "pool" else start
                children = begin(spec, [peers.place], mark, None, command)
                guard = guard or Guard(mark)
            except BaseException:
                end_marked(mark)
                raise
            quorum = Quorum.of(spec.parsed_case())
            ending = watch(
                children, scratch, mark, deadline=None, signals=signals,
                asked_to_stop=lambda number=number: peers.asked_to_stop(number),
                quorum=quorum, lost_elsewhere=lambda number=number, quorum=quorum: peers.lost(number, quorum),
                keep=spec.isolation == "pool",
            )  # fmt: skip
            peers.publish(number, ending, quorum)
    finally:
        peers.leave()
        pool.close()
        if guard:
            guard.close()


def _end_when_cut_off(peers: Peers, mark: str) -> None:
    """A host that lost its link: TCP would keep a question to the store, and the ranks, for a quarter of an hour."""
    while peers.silence_s() < peers.patience_s:
        time.sleep(BEAT_S)
    end_marked(mark)
    who, what = peers.seats[peers.place.rank].who(), "the store that the supervisors share"
    print(f"scalade: {who}: {what} has not answered for {peers.patience_s:g} s", file=sys.stderr, flush=True)
    os._exit(REQUEUE_STATUS)


def _await_order(peers: Peers, signals: Signals, number: int) -> dict[str, Any] | None:
    while True:
        order = peers.next_order(number)
        if order is not None:
            return order
        if signals.received or not peers.all_alive():
            return None
        time.sleep(0.02)


def work(
    study: Study, store_folder: Path, peers: Peers, signals: Signals, display: Display, *,
    retry_failed: bool = False, only: Collection[str] = (), command: Sequence[str] = RANK_COMMAND,
) -> Summary:  # fmt: skip
    """Rank 0's part of the sweep: every missing run whose ranks are as many as this world's.

    only: case_ids and run_ids; empty: all
    """
    launcher = {"mpi": "mpirun", "slurm": "srun"}.get(peers.place.source, peers.place.source)
    executor = WorldExecutor(peers, signals, launcher, command)
    message, code = "rank 0's supervisor failed", 1
    try:
        store = RunStore(store_folder)
        plan = make_plan(study, store, retry_failed=retry_failed, size=peers.place.size, only=only)
        refuse_here(study.path, study.run.device, plan.unfinished)
        summary = Sweep(study, store, executor, display, signals, retry_failed=retry_failed).run(plan)
        message, code = summary.interrupted, summary.exit_code
        return summary
    except (ValueError, OSError) as error:
        message, code = str(error), 2
        raise
    except Exception as error:
        message = f"rank 0's supervisor failed: {one_line(error)}"
        raise
    finally:
        executor.dismiss(code, message)
