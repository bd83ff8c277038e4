"""How supervisors on several hosts work together: orders, endings and heartbeats through one store.

Rank 0's supervisor orders, all obey. Keys: order/K (the K-th run), stop/K (a failure, seen by all), ended/K/R (how
rank R's process came to its end), lost/K/M (with a quorum: replica M is gone, the others go on), beat/R (rank R's
supervisor is alive; `left` once it has gone on purpose).

A supervisor that disappears (its host crashed, or lost its link) ends the run for all, and the world; with a quorum
its replica is lost, and the run goes on as long as enough are left. No other run follows in either case.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from ..host.placement import Placement
from ..process.cause import Cause, StopDemand, StopReason
from ..process.error_report import parsed_report
from ..process.outcome import Ending, all_exits
from ..process.preemption import REQUEUE_STATUS
from ..process.quorum import Quorum
from ..process.rendezvous import Seat, Store
from ..process.supervisor import PARTING_S

BEAT_S = 0.5
CHECK_S = 0.2
PATIENCE_S = 15.0  # without a heartbeat, after which a supervisor counts as gone
LEFT = "left"
ASKED = {Cause.TIMEOUT: StopReason.TIMEOUT, Cause.HANG: StopReason.HANG}  # by how a run ended here; else a peer failed


class Peers:
    """The other supervisors, as this one sees them. Every method may find the store gone: then `gone` says so."""

    def __init__(
        self,
        store: Store,
        place: Placement,
        seats: tuple[Seat, ...],
        patience_s: float = PATIENCE_S,
        secret: bytes = b"",
    ) -> None:
        self.store, self.place, self.seats, self.patience_s = store, place, seats, patience_s
        self.secret = secret  # of this world of supervisors
        self.gone: StopDemand | None = None  # which of them, or what they share
        self.missed: dict[int, StopDemand] = {}  # ranks without a supervisor, while the run went on
        self._beats, self._last_beat, self._last_check = 0, 0.0, 0.0
        self._lost, self._lost_at = set[int](), (0, 0.0)  # as of (run, time)
        self._asked_at: float | None = None  # what the store has not answered yet
        watched = [seat.rank for seat in seats if seat.rank != place.rank] if place.rank == 0 else [0]
        self._heard: dict[int, tuple[bytes, float]] = {rank: (b"", time.monotonic()) for rank in watched}

    def beat(self) -> None:
        if time.monotonic() - self._last_beat >= BEAT_S:
            self._last_beat, self._beats = time.monotonic(), self._beats + 1
            self._ask(self.store.set, f"beat/{self.place.rank}", str(self._beats))

    def leave(self) -> None:
        self._ask(self.store.set, f"beat/{self.place.rank}", LEFT)

    def all_alive(self, number: int = 0, quorum: Quorum | None = None) -> bool:
        """Whether every supervisor that this one depends on still gives signs of life.

        quorum: of run `number`, which is running: with one, a replica may be lost with its supervisor
        """
        self.beat()
        now = time.monotonic()
        for rank, (last, since) in list(self._heard.items()):
            heard = self._read(f"beat/{rank}") or b""
            if self.gone:
                break
            if heard == LEFT.encode():
                line = f"the supervisor of {self.seats[rank].label()} has ended"
                self.gone = StopDemand(StopReason.LEFT, line, rank)
            elif heard == last and now - since > self.patience_s:
                self._miss(rank, number, quorum)
            elif heard != last:
                self._heard[rank] = (heard, now)
        return self.gone is None

    def _miss(self, rank: int, number: int, quorum: Quorum | None) -> None:
        """A supervisor that disappeared ends the run here, or with a quorum its replica."""
        demand = StopDemand(StopReason.NO_SUPERVISOR, f"the supervisor of {self.seats[rank].label()} is gone", rank)
        replicas = {quorum.replica(each) for each in (*self.missed, rank)} if quorum else set()
        if quorum is None or not quorum.stands(replicas | self.lost(number, quorum)):
            self.gone = demand
            return
        self.missed[rank] = demand
        del self._heard[rank]
        self._ask(self.store.set, f"lost/{number}/{quorum.replica(rank)}", "")

    @property
    def broken(self) -> StopDemand | None:
        """Why this world takes no further run."""
        return self.gone or next(iter(self.missed.values()), None)

    def silence_s(self) -> float:
        """For how long the store has not answered a question. Call it from another thread: the requester is blocked."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def stop_demand(self, number: int, quorum: Quorum | None = None) -> StopDemand | None:
        """For `watch`: why run `number` has to end, when that happened at another supervisor."""
        self.beat()
        if time.monotonic() - self._last_check < CHECK_S:
            return None
        self._last_check = time.monotonic()
        if self._there(f"stop/{number}"):
            content = self._ask(self.store.get, f"stop/{number}")
            return self.gone if content is None else _stop(json.loads(content))
        return None if self.all_alive(number, quorum) else self.gone

    def lost(self, number: int, quorum: Quorum) -> set[int]:
        """For `watch`: the replicas that run `number` goes on without."""
        run, since = self._lost_at
        if run != number or time.monotonic() - since >= CHECK_S:
            self._lost_at = number, time.monotonic()
            self._lost = {m for m in range(quorum.replicas) if self._there(f"lost/{number}/{m}")}
        return self._lost

    def publish(self, number: int, ending: Ending, quorum: Quorum | None = None) -> None:
        """Say how run `number` ended here; anything but a success ends it everywhere, or with a quorum its replica."""
        if quorum and ending.cause == Cause.LOST:
            self._ask(self.store.set, f"lost/{number}/{quorum.replica(self.place.rank)}", "")
        stopped = ending.cause == Cause.PREEMPTED and all(code == REQUEUE_STATUS for code in ending.exits.values())
        if ending.cause not in (Cause.DONE, Cause.LOST) and not stopped and not self._there(f"stop/{number}"):
            self._demand(number, self.gone or StopDemand(ASKED.get(ending.cause, StopReason.PEER)))
        self._ask(self.store.set, f"ended/{number}/{self.place.rank}", json.dumps(asdict(ending)))

    def gather(self, number: int, mine: Ending, quorum: Quorum | None = None) -> list[Ending]:
        """The endings that all supervisors which still live have published; only rank 0 gathers. With a quorum the
        other replicas are ended some seconds after replica 0."""
        endings = {self.place.rank: mine}
        missing = {seat.rank for seat in self.seats} - {self.place.rank}
        done_at: float | None = None
        while missing := missing - endings.keys() - self.missed.keys():
            if quorum and quorum.first_is_done(all_exits(list(endings.values()))):
                done_at = done_at or time.monotonic()
                if time.monotonic() - done_at > PARTING_S:
                    self._demand(number, StopDemand(StopReason.PARTED))
            alive = self.all_alive(number, quorum)  # before looking: a supervisor publishes its ending before it leaves
            endings |= self._published(number, missing)
            if not alive:
                break
            time.sleep(0.02)
        gathered = list(endings.values())
        if missing - endings.keys():
            detail = self.gone.line if self.gone else ""
            gathered.append(Ending(Cause.STOPPED, {}, detail=detail, stop=self.gone))
        return gathered

    def _published(self, number: int, ranks: set[int]) -> dict[int, Ending]:
        """The endings of run `number` that are there, by rank."""
        endings = {}
        for rank in ranks:
            if (content := self._read(f"ended/{number}/{rank}")) is not None:
                endings[rank] = _ending(json.loads(content))
        return endings

    def order(self, number: int, order: dict[str, Any]) -> None:
        self._ask(self.store.set, f"order/{number}", json.dumps(order))

    def next_order(self, number: int) -> dict[str, Any] | None:
        """The order, if it has been published yet."""
        content = self._read(f"order/{number}")
        return None if content is None else json.loads(content)

    def wait_until_left(self, timeout_s: float = 5.0) -> None:
        """Rank 0 may hold the store: it stays until all have read the last order."""
        deadline = time.monotonic() + timeout_s
        waiting = {seat.rank for seat in self.seats} - {self.place.rank, *self.missed}
        while waiting and self.gone is None and time.monotonic() < deadline:
            waiting = {rank for rank in waiting if self._read(f"beat/{rank}") != LEFT.encode()}
            time.sleep(0.02)

    def _demand(self, number: int, stop: StopDemand) -> None:
        self._ask(self.store.set, f"stop/{number}", json.dumps(asdict(stop)))

    def _read(self, key: str) -> bytes | None:
        """None: it has not been set, or the store is gone."""
        return self._ask(self.store.get, key) if self._there(key) else None

    def _there(self, key: str) -> bool:
        return bool(self._ask(self.store.check, [key]))

    def _ask(self, method: Any, *arguments: Any) -> Any:
        if self.gone and self.gone.reason is StopReason.NO_STORE:
            return None
        self._asked_at = time.monotonic()
        try:
            return method(*arguments)
        except (ValueError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.gone = StopDemand(StopReason.NO_STORE, f"the store that the supervisors share is gone ({first})")
            return None
        finally:
            self._asked_at = None


def _ending(content: dict[str, Any]) -> Ending:
    return Ending(
        cause=Cause(content["cause"]),
        exits={int(rank): code for rank, code in content["exits"].items()},
        reports=tuple(map(parsed_report, content["reports"])),
        oom_kills=content["oom_kills"],
        detail=content["detail"],
        stop=_stop(content["stop"]) if content["stop"] else None,
        halted=tuple(content["halted"]),
    )


def _stop(content: dict[str, Any]) -> StopDemand:
    return StopDemand(StopReason(content["reason"]), content["line"], content["rank"])
