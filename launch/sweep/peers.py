"""How supervisors on several hosts keep together: orders, endings and heartbeats through one store.

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
        self.missed: dict[int, StopDemand] = {}  # ranks whose supervisors are gone, and the run went on without
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

        quorum: of run `number`, which is on: whose replica may be lost with its supervisor
        """
        self.beat()
        now = time.monotonic()
        for rank, (last, since) in list(self._heard.items()):
            heard = self._ask(self.store.get, f"beat/{rank}") if self._there(f"beat/{rank}") else b""
            if self.gone:
                break
            who = self.seats[rank].label()
            if heard == LEFT.encode():
                self.gone = StopDemand(StopReason.LEFT, f"the supervisor of {who} has ended", rank)
            elif heard == last and now - since > self.patience_s:
                self._miss(
                    StopDemand(StopReason.NO_SUPERVISOR, f"the supervisor of {who} is gone", rank), number, quorum
                )
            elif heard != last:
                self._heard[rank] = (heard, now)
        return self.gone is None

    def _miss(self, stop: StopDemand, number: int, quorum: Quorum | None) -> None:
        """What disappeared ends the run here, or with a quorum its replica."""
        replicas = {quorum.replica(rank) for rank in (*self.missed, stop.rank)} if quorum else set()
        if quorum is None or not quorum.stands(replicas | self.lost(number, quorum)):
            self.gone = stop
            return
        self.missed[stop.rank] = stop
        del self._heard[stop.rank]
        self._ask(self.store.set, f"lost/{number}/{quorum.replica(stop.rank)}", "")

    @property
    def broken(self) -> StopDemand | None:
        """Why this world takes no further run."""
        return self.gone or next(iter(self.missed.values()), None)

    def silence_s(self) -> float:
        """For how long the store has not answered a question. For another thread: who asked is waiting for it."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def stop_demand(self, number: int, quorum: Quorum | None = None) -> StopDemand | None:
        """For `watch`: why run `number` has to end, when that happened at another supervisor."""
        self.beat()
        if time.monotonic() - self._last_check < CHECK_S:
            return None
        self._last_check = time.monotonic()
        if self._there(f"stop/{number}"):
            asked = self._ask(self.store.get, f"stop/{number}")
            return self.gone if asked is None else _stop(json.loads(asked))
        return None if self.all_alive(number, quorum) else self.gone

    def lost(self, number: int, quorum: Quorum) -> set[int]:
        """For `watch`: the replicas that run `number` goes on without."""
        run, since = self._lost_at
        if run != number or time.monotonic() - since >= CHECK_S:
            self._lost_at = number, time.monotonic()
            self._lost = {m for m in range(quorum.replicas) if self._there(f"lost/{number}/{m}")}
        return self._lost

    def publish(self, number: int, ending: Ending, quorum: Quorum | None = None) -> None:
        """Tell how run `number` ended here; anything but well ends it everywhere, or with a quorum its replica."""
        if quorum and ending.cause == Cause.LOST:
            self._ask(self.store.set, f"lost/{number}/{quorum.replica(self.place.rank)}", "")
        stopped = ending.cause == Cause.PREEMPTED and all(code == REQUEUE_STATUS for code in ending.exits.values())
        if ending.cause not in (Cause.DONE, Cause.LOST) and not stopped and not self._there(f"stop/{number}"):
            self._demand(number, self.gone or StopDemand(ASKED.get(ending.cause, StopReason.PEER)))
        self._ask(self.store.set, f"ended/{number}/{self.place.rank}", json.dumps(asdict(ending)))

    def gather(self, number: int, mine: Ending, quorum: Quorum | None = None) -> list[Ending]:
        """The endings of all supervisors that lived to tell; only rank 0 gathers. With a quorum the other replicas are
        ended some seconds after replica 0."""
        endings, missing, done_at = [mine], {seat.rank for seat in self.seats} - {self.place.rank}, None
        while missing := missing - set(self.missed):
            if quorum and quorum.first_is_done(all_exits(endings)):
                done_at = done_at or time.monotonic()
                if time.monotonic() - done_at > PARTING_S:
                    self._demand(number, StopDemand(StopReason.PARTED))
            alive = self.all_alive(number, quorum)  # before looking: who leaves has told how it ended
            for rank in [rank for rank in missing if self._there(f"ended/{number}/{rank}")]:
                if (told := self._ask(self.store.get, f"ended/{number}/{rank}")) is not None:
                    endings.append(_ending(json.loads(told)))
                    missing.remove(rank)
            if not alive:
                break
            time.sleep(0.02)
        if missing:
            endings.append(Ending(Cause.STOPPED, {}, detail=self.gone.line if self.gone else "", stop=self.gone))
        return endings

    def order(self, number: int, order: dict[str, Any]) -> None:
        self._ask(self.store.set, f"order/{number}", json.dumps(order))

    def next_order(self, number: int) -> dict[str, Any] | None:
        """The order, if it has been given yet."""
        return json.loads(self._ask(self.store.get, f"order/{number}")) if self._there(f"order/{number}") else None

    def wait_until_left(self, timeout_s: float = 5.0) -> None:
        """Rank 0 may hold the store: it stays until all have read the last order."""
        deadline = time.monotonic() + timeout_s
        waiting = {seat.rank for seat in self.seats} - {self.place.rank, *self.missed}
        while waiting and self.gone is None and time.monotonic() < deadline:
            heard = {rank: self._ask(self.store.get, f"beat/{rank}") for rank in waiting if self._there(f"beat/{rank}")}
            waiting = {rank for rank in waiting if heard.get(rank) != LEFT.encode()}
            time.sleep(0.02)

    def _demand(self, number: int, stop: StopDemand) -> None:
        self._ask(self.store.set, f"stop/{number}", json.dumps(asdict(stop)))

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


def _ending(told: dict[str, Any]) -> Ending:
    exits = {int(rank): code for rank, code in told["exits"].items()}
    reports = tuple(map(parsed_report, told["reports"]))
    stop = _stop(told["stop"]) if told["stop"] else None
    return Ending(Cause(told["cause"]), exits, reports, told["oom_kills"], told["detail"], stop, tuple(told["halted"]))


def _stop(told: dict[str, Any]) -> StopDemand:
    return StopDemand(StopReason(told["reason"]), told["line"], told["rank"])
