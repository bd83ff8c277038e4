"""How ranks come together, and the truth check: every rank says who it is, one judges, all hear the verdict.

A wrong MASTER_ADDR, a mismatched mpirun or another job on the same port gives worlds that run and measure the wrong
thing. So before anything is computed, each rank takes a numbered seat in the store that they share; whoever sits first
waits for all, judges, and publishes. Who does not know the run's secret cannot speak there (server.py). Needs
torch only in `join`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from ...results.wording import count_of
from ..host.placement import WorldError

if TYPE_CHECKING:
    pass

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
