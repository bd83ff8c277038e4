"""The rendezvous of the supervisors that one launcher started: torchrun, mpirun or srun."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..host import mpi
from ..host.placement import Placement, WorldError, find_placement
from ..host.sockets import listen, reachable_address
from ..process.error_report import one_line
from ..process.rendezvous import Seat, agree
from ..store.client import find
from ..store.meeting import Point, other_host, serve, slurm_point, torchrun_point
from ..store.secret import derive, exported, shared
from ..store.server import StoreServer
from .peers import PATIENCE_S, Peers

JOIN_TIMEOUT_S = 120.0


def join_supervisors(
    env: dict[str, str], folder: Path, timeout_s: float = JOIN_TIMEOUT_S, patience_s: float = PATIENCE_S
) -> Peers:
    """Join the supervisors that the same launcher started, and check that they are one whole world.

    folder: the results folder, over which they share their secret (secret.py)

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
    own_secret, listener = exported(env), None
    if place.source == "mpi":
        place, point, own_secret, listener = _through_mpi(place, own_secret)
    else:
        point = slurm_point(env) if place.source == "slurm" else torchrun_point(place, env)
    with shared(folder, point.name, place.rank == 0, own_secret) as secret:
        server, host = None, point.host
        if listener:
            server = StoreServer([listener], secret)
        elif place.rank == 0:
            server, host = serve(point, secret)
        ports = point.ports(secret) if server is None else (server.port,)
        seat = Seat(place.rank, place.local_rank, place.size, point.name, socket.gethostname(), os.getpid(), "cpu")
        try:
            client = find(place.rank, host, ports, secret, timeout_s)
            seats = agree(client, seat, timeout_s)
        except BaseException as error:
            if server:  # else it serves as long as this process lives
                server.close()
            if isinstance(error, OSError):
                line = f"the store at {host} went away while supervisors came together: {error}"
                raise WorldError(line) from error
            raise
    return Peers(client, place, seats, patience_s, secret)


class MpiMeeting(NamedTuple):
    """What MPI's ranks have agreed on."""

    place: Placement
    point: Point  # where they meet
    secret: bytes | None  # the exported one, if all have the same
    listener: socket.socket | None  # rank 0's


def _through_mpi(place: Placement, secret: bytes | None) -> MpiMeeting:
    comm = mpi.load().COMM_WORLD
    if (comm.rank, comm.size) != (place.rank, place.size):
        raise mpi.another(f"mpirun says rank {place.rank} of {place.size}", f"rank {comm.rank} of {comm.size}")
    hosts = comm.allgather(socket.gethostname())
    neighbours = [rank for rank, host in enumerate(hosts) if host == hosts[place.rank]]
    place = replace(place, local_rank=neighbours.index(place.rank), local_size=len(neighbours))
    point, problem, listener = None, "", None
    if place.rank == 0:
        try:
            listener = listen(reachable_address(hosts, other_host(hosts)))
            host, port = listener.getsockname()[:2]
            point = Point(host, f"mpi {os.urandom(8).hex()}.0", port)
        except Exception as error:  # the others wait for a word
            problem = f"rank 0 on {hosts[0]} cannot serve the rendezvous: {one_line(error)}"
    point, problem = comm.bcast((point, problem))
    proofs = comm.allgather(None if secret is None else derive(secret, "proof", point.name if point else ""))
    # From here on they meet in the store: MPI's own end would wait for supervisors that are gone.
    mpi.load().Finalize()
    if point is None:
        raise WorldError(problem)
    return MpiMeeting(place, point, secret if len(set(proofs)) == 1 else None, listener)
