"""How ranks come together, and the truth check: every rank says who it is, one judges, all hear the verdict.

A wrong MASTER_ADDR, a mismatched mpirun or another job on the same port gives worlds that run and measure the wrong
thing. So before anything is computed, each rank takes a numbered seat in the store that they share; whoever sits first
waits for all, judges, and publishes. Who does not know the run's secret cannot speak there (server.py). Needs
torch only in `join`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...results.wording import count_of
from ..host.machine import cores
from ..host.placement import Placement, WorldError
from ..store.client import find
from .progress import lost_replicas
from .run_spec import RunSpec

if TYPE_CHECKING:
    from ...parallelism.diloco.quorum import Meeting

POLL_S = 0.003


class Store(Protocol):
    """The part of StoreClient used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...


@dataclass(frozen=True)
class Seat:
    """One rank's word about itself."""

    rank: int
    local_rank: int
    size: int  # of the world it was told of
    nonce: str  # of the run it belongs to
    host: str
    pid: int
    device: str  # cpu, or an identifier unique to one GPU

    def who(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


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


def ranks_json(seats: Sequence[Seat]) -> str:
    keys = ("rank", "local_rank", "host", "pid", "device")
    return json.dumps([{key: getattr(seat, key) for key in keys} for seat in seats])


def wrong_world(seats: Sequence[Seat]) -> str | None:
    """What is wrong with the ranks that came together, or None where they are one whole world."""
    found = ", ".join(seat.who() for seat in sorted(seats, key=lambda seat: (seat.rank, seat.pid)))
    if len({seat.nonce for seat in seats}) > 1:
        jobs = "; ".join(f"{seat.who()} belongs to run {seat.nonce}" for seat in seats)
        return f"ranks of different jobs met on one port: {jobs}"
    if len({seat.size for seat in seats}) > 1:
        return "ranks disagree about the size of the world: " + "; ".join(f"{s.who()} says {s.size}" for s in seats)
    size = seats[0].size
    doubled = [rank for rank, count in Counter(seat.rank for seat in seats).items() if count > 1]
    if doubled:
        missing = ", ".join(str(rank) for rank in sorted(set(range(size)) - {seat.rank for seat in seats}))
        return f"rank {doubled[0]} came more than once and rank {missing or 'none'} is missing: found {found}"
    if len(seats) != size or {seat.rank for seat in seats} != set(range(size)):
        return f"a world of {count_of(size, 'rank')} was asked for and {len(seats)} came: found {found}"
    used: dict[tuple[str, str], Seat] = {}
    for seat in seats:
        if seat.device != "cpu" and (other := used.setdefault((seat.host, seat.device), seat)) is not seat:
            return f"{other.who()} and {seat.who()} would share one GPU: {seat.device}"
    return None


def agree(store: Store, seat: Seat, timeout_s: float) -> tuple[Seat, ...]:
    """All seats of this world, by rank; collective.

    Raises
    ------
    WorldError: the ranks that came within `timeout_s` are not one whole world; every rank that came gets the message
    """
    deadline = time.monotonic() + timeout_s
    number = store.add("world/arrived", 1)
    store.set(f"world/seat/{number}", json.dumps(asdict(seat)))
    if number == 1:
        while (count := store.add("world/arrived", 0)) < seat.size and time.monotonic() < deadline:
            time.sleep(POLL_S)
        seats = [Seat(**json.loads(store.get(f"world/seat/{i + 1}"))) for i in range(count)]
        wrong = wrong_world(seats)
        if wrong and count < seat.size:
            wrong += f" within {timeout_s:g} s (is the master's address the same on every node?)"
        verdict = {"wrong": wrong, "seats": [asdict(s) for s in sorted(seats, key=lambda s: s.rank)]}
        store.set("world/verdict", json.dumps(verdict))
    else:
        while not store.check(["world/verdict"]):
            if time.monotonic() > deadline + 5.0:
                raise WorldError(f"{seat.who()} was number {number} to arrive, and the first has left without a word")
            time.sleep(POLL_S)
        verdict = json.loads(store.get("world/verdict"))
    if verdict["wrong"]:
        _wait_until_heard(store)
        raise WorldError(verdict["wrong"])
    seats = tuple(Seat(**each) for each in verdict["seats"])
    if seat not in seats:
        there = ", ".join(s.who() for s in seats)
        raise WorldError(f"{seat.who()} of run {seat.nonce} found a world that is already whole: {there}")
    return seats


def _wait_until_heard(store: Store, patience_s: float = 3.0) -> None:
    """One of the ranks holds the store: it stays until all that came have read the verdict."""
    deadline = time.monotonic() + patience_s
    with suppress(OSError):  # its holder has waited long enough
        heard = store.add("world/heard", 1)
        while heard < store.add("world/arrived", 0) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            heard = store.add("world/heard", 0)


def join(spec: RunSpec, place: Placement, secret: bytes) -> World:
    """Come together, check the world, and set up the default process group.

    Raises
    ------
    WorldError: the world is not the one that the run wants
    """
    import torch
    import torch.distributed as dist

    from ..store.torch_store import SharedStore, forget

    if place.size != spec.size:
        raise WorldError(f"run {spec.run_id} wants {count_of(spec.size, 'rank')}, {place.source} gives {place.size}")
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, cores() // place.local_size)
    torch.set_num_threads(threads)
    device, identifier = _device(spec.device, place)
    forget()
    client = find(place.rank, spec.address, (spec.port,), secret, spec.join_timeout_s)
    seat = Seat(place.rank, place.local_rank, place.size, spec.nonce, socket.gethostname(), os.getpid(), identifier)
    seats, store = agree(client, seat, spec.join_timeout_s), SharedStore(client)
    more: dict[str, Any] = {} if device == "cpu" else {"device_id": torch.device(device)}
    outer, rank, size, meeting, prefix = spec.parsed_case().outer, place.rank, place.size, None, "group"
    if outer.quorum:  # a world for each replica: a dead one breaks no other
        from ...parallelism.diloco.quorum import Meeting

        size = place.size // outer.replicas
        replica, rank = divmod(place.rank, size)
        meeting = Meeting(store, outer, replica, rank, size, lambda: lost_replicas(Path(spec.scratch)))
        prefix = f"group/{replica}"
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore(prefix, store), rank=rank, world_size=size, **more,
    )  # fmt: skip
    backend = "gloo" if device == "cpu" else "nccl"
    return World(place.rank, place.size, place.local_rank, place.local_size, device, backend, threads, seats, meeting)


def leave() -> None:
    """End the process group together: nobody tears a connection down that another still reads from."""
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
