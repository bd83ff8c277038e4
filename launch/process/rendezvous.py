"""How ranks come together, and the check that they are one world: every rank describes itself, the first to arrive
checks, and all learn the result.

A wrong MASTER_ADDR, a mismatched mpirun or another job on the same port gives worlds that run and measure the wrong
thing. So before anything is computed, each rank takes a numbered seat in the store that they share; number 1 waits for
all, checks, and publishes the verdict. Only processes that know the run's secret can use that store (store/server.py).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

from ...results.wording import count_of
from ..host.placement import WorldError

POLL_S = 0.003


class Store(Protocol):
    """The part of StoreClient used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...


@dataclass(frozen=True)
class Seat:
    """What one rank says about itself."""

    rank: int
    local_rank: int
    size: int  # of the world, by its launcher
    nonce: str  # of the run it belongs to
    host: str
    pid: int
    device: str  # cpu, or an identifier unique to one GPU

    def label(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


def ranks_json(seats: Sequence[Seat]) -> str:
    keys = ("rank", "local_rank", "host", "pid", "device")
    return json.dumps([{key: getattr(seat, key) for key in keys} for seat in seats])


class Verdict(NamedTuple):
    """Of number 1, for all."""

    wrong: str | None  # what is wrong with the ranks that came; None: they are one whole world
    seats: tuple[Seat, ...]  # by rank

    def to_json(self) -> str:
        return json.dumps({"wrong": self.wrong, "seats": [asdict(seat) for seat in self.seats]})

    @classmethod
    def from_json(cls, text: bytes) -> Verdict:
        content = json.loads(text)
        return cls(content["wrong"], tuple(Seat(**seat) for seat in content["seats"]))


def wrong_world(seats: Sequence[Seat]) -> str | None:
    """What is wrong with the ranks that came together; None: they are one whole world."""
    checks = (_several_jobs, _several_sizes, _doubled_rank, _missing_rank, _shared_gpu)
    return next((wrong for check in checks if (wrong := check(seats))), None)


def _several_jobs(seats: Sequence[Seat]) -> str | None:
    if len({seat.nonce for seat in seats}) == 1:
        return None
    jobs = "; ".join(f"{seat.label()} belongs to run {seat.nonce}" for seat in seats)
    return f"ranks of different jobs met on one port: {jobs}"


def _several_sizes(seats: Sequence[Seat]) -> str | None:
    if len({seat.size for seat in seats}) == 1:
        return None
    sizes = "; ".join(f"{seat.label()} says {seat.size}" for seat in seats)
    return f"ranks disagree about the size of the world: {sizes}"


def _doubled_rank(seats: Sequence[Seat]) -> str | None:
    doubled = [rank for rank, count in Counter(seat.rank for seat in seats).items() if count > 1]
    if not doubled:
        return None
    missing = set(range(seats[0].size)) - {seat.rank for seat in seats}
    missed = ", ".join(map(str, sorted(missing))) or "none"
    return f"rank {doubled[0]} came more than once and rank {missed} is missing: found {_listed(seats)}"


def _missing_rank(seats: Sequence[Seat]) -> str | None:
    size = seats[0].size
    if sorted(seat.rank for seat in seats) == list(range(size)):
        return None
    return f"a world of {count_of(size, 'rank')} was asked for and {len(seats)} came: found {_listed(seats)}"


def _shared_gpu(seats: Sequence[Seat]) -> str | None:
    users: dict[tuple[str, str], Seat] = {}
    for seat in seats:
        if seat.device == "cpu":
            continue
        first = users.setdefault((seat.host, seat.device), seat)
        if first is not seat:
            return f"{first.label()} and {seat.label()} would share one GPU: {seat.device}"
    return None


def _listed(seats: Sequence[Seat]) -> str:
    return ", ".join(seat.label() for seat in sorted(seats, key=lambda seat: (seat.rank, seat.pid)))


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
        verdict = _reach_verdict(store, seat.size, deadline, timeout_s)
        store.set("world/verdict", verdict.to_json())
    else:
        verdict = _await_verdict(store, seat, number, deadline)
    if verdict.wrong:
        _wait_until_read(store)
        raise WorldError(verdict.wrong)
    if seat not in verdict.seats:
        there = ", ".join(other.label() for other in verdict.seats)
        raise WorldError(f"{seat.label()} of run {seat.nonce} found a world that is already whole: {there}")
    return verdict.seats


def _reach_verdict(store: Store, size: int, deadline: float, timeout_s: float) -> Verdict:
    while (count := store.add("world/arrived", 0)) < size and time.monotonic() < deadline:
        time.sleep(POLL_S)
    seats = [Seat(**json.loads(store.get(f"world/seat/{i + 1}"))) for i in range(count)]
    wrong = wrong_world(seats)
    if wrong and count < size:
        wrong += f" within {timeout_s:g} s (is the master's address the same on every node?)"
    return Verdict(wrong, tuple(sorted(seats, key=lambda seat: seat.rank)))


def _await_verdict(store: Store, seat: Seat, number: int, deadline: float) -> Verdict:
    while not store.check(["world/verdict"]):
        if time.monotonic() > deadline + 5.0:
            raise WorldError(f"{seat.label()} was number {number} to arrive, and the first has left without a word")
        time.sleep(POLL_S)
    return Verdict.from_json(store.get("world/verdict"))


def _wait_until_read(store: Store, patience_s: float = 3.0) -> None:
    """One of the ranks holds the store: it stays until all that came have read the verdict."""
    deadline = time.monotonic() + patience_s
    with suppress(OSError):  # the rank that holds the store has waited long enough
        heard = store.add("world/heard", 1)
        while heard < store.add("world/arrived", 0) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            heard = store.add("world/heard", 0)
