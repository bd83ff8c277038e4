"""The world that a rank runs in: joined, checked, left. The one file here that sets up a process group."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results.wording import count_of
from ..host.machine import cores
from ..host.placement import Placement, WorldError
from ..process.progress import lost_replicas
from ..process.rendezvous import Seat, agree, ranks_json
from ..process.run_spec import RunSpec
from ..store.client import find

if TYPE_CHECKING:
    from ...parallelism.diloco.quorum import Meeting
    from ..store.torch_store import SharedStore


@dataclass(frozen=True)
class World:
    """The world a rank runs in, checked. The default process group stands."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: str  # what torch.device takes: cpu, cuda:1
    backend: str  # gloo, nccl
    threads: int
    seats: tuple[Seat, ...]  # of all ranks, by rank
    meeting: Meeting | None = None  # with a quorum: the default process group is then that of this rank's replica

    def ranks_json(self) -> str:
        """The column of that name: who ran where."""
        return ranks_json(self.seats)


def join(spec: RunSpec, place: Placement, secret: bytes) -> World:
    """Come together, check the world, and set up the default process group.

    Raises
    ------
    WorldError: the world is not the one that the run needs
    """
    import torch
    import torch.distributed as dist

    from ..store.torch_store import SharedStore, forget

    if place.size != spec.size:
        raise WorldError(f"run {spec.run_id} needs {count_of(spec.size, 'rank')}, {place.source} gives {place.size}")
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, cores() // place.local_size)
    torch.set_num_threads(threads)
    device, identifier = _device(spec.device, place)
    forget()
    client = find(place.rank, spec.address, (spec.port,), secret, spec.join_timeout_s)
    seat = Seat(place.rank, place.local_rank, place.size, spec.nonce, socket.gethostname(), os.getpid(), identifier)
    seats, store = agree(client, seat, spec.join_timeout_s), SharedStore(client)
    more: dict[str, Any] = {} if device == "cpu" else {"device_id": torch.device(device)}
    rank, size, meeting, prefix = place.rank, place.size, None, "group"
    if spec.parsed_case().outer.quorum:  # a world for each replica: a dead one breaks no other
        meeting = _meeting(spec, place, store)
        rank, size, prefix = meeting.position, meeting.positions, f"group/{meeting.replica}"
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore(prefix, store),  # type: ignore[attr-defined]  # torch exports it from C++ only
        rank=rank,
        world_size=size,
        **more,
    )
    backend = "gloo" if device == "cpu" else "nccl"
    return World(place.rank, place.size, place.local_rank, place.local_size, device, backend, threads, seats, meeting)


def _meeting(spec: RunSpec, place: Placement, store: SharedStore) -> Meeting:
    """Where the replicas meet: each has a process group of its own."""
    from ...parallelism.diloco.quorum import Meeting

    outer = spec.parsed_case().outer
    size = place.size // outer.replicas
    replica, position = divmod(place.rank, size)
    return Meeting(store, outer, replica, position, size, lambda: lost_replicas(Path(spec.scratch)))


def leave() -> None:
    """End the process group together: no rank closes a connection that another still reads from."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _device(wanted: str, place: Placement) -> tuple[str, str]:
    """(name for torch, identifier unique on the host)."""
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu", "cpu"
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        where = f"number {place.local_rank} (from 0) on host {socket.gethostname()}"
        raise WorldError(f"rank {place.rank} is {where}, which shows {count} GPUs")
    torch.cuda.set_device(place.local_rank)
    properties = torch.cuda.get_device_properties(place.local_rank)
    return f"cuda:{place.local_rank}", f"cuda:{place.local_rank} {getattr(properties, 'uuid', '')}".strip()
