"""Outer steps that go on without missing replicas: who takes part is decided once a round, through a store.

A process group does not survive a dead member. So with a quorum each replica is a world of its own, and the replicas
meet in the store that rank 0 serves. Round k, after inner step k H; replica m, position p in it (rank m n + p of M n):

    k/m/p       p's messages, all of this round's buckets, left there by each rank before it waits
    k/members   the replicas whose messages are all there when the first rank (m = 0, p = 0) decides: as soon as
                everybody that it expects is there, or with `quorum` of them after `quorum_timeout_s`
    now         k, once decided
    state/k/p   where a replica was missing: the outer parameters and momentum after the round, left by replica 0

Members take the mean over the members. A replica that discovers that a round closed without it takes the outer state of
the latest round, reports that (back/m), skips the inner steps up to there, keeps its inner optimizer's moments, and is
expected again. A replica that was left out is not waited for until it is back; one known to be dead, never. Keys no
longer needed are deleted. Replica 0 is always a member: it decides, serves the store and writes the row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from ...bench.tensor_file import from_bytes, size_limit, to_bytes
from .algorithm import Exchange, Synchronous
from .config import Outer, in_use
from .link import Link, Transfer

CHUNK_BYTES = 4 * 2**20  # TCPStore refuses values above 8 MiB
POLL_S = 0.002
MEASURED_LIMIT_BYTES = 64 * 2**20


class Store(Protocol):
    """What is used of torch.distributed.Store; torch's own declaration lacks `timeout` and values that are bytes."""

    @property
    def timeout(self) -> timedelta: ...
    def set_timeout(self, timeout: timedelta) -> None: ...
    def set(self, key: str, value: str | bytes) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, value: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...
    def delete_key(self, key: str) -> bool: ...


class Meeting:
    """One rank's way to the other replicas. The default process group is the world of its replica.

    store: shared by all ranks (torch.distributed.Store); it fails with RuntimeError when rank 0 is gone.
    dead: the replicas that are known to have ended.
    """

    def __init__(
        self, store: Any, outer: Outer, replica: int, position: int, positions: int, dead: Callable[[], set[int]] = set
    ) -> None:
        self.store, self.outer, self.dead = cast(Store, PrefixStore("outer", store)), outer, dead
        self.quorum, self.timeout_s = in_use(outer.quorum), in_use(outer.quorum_timeout_s)
        self.replica, self.position, self.positions = replica, position, positions
        self.members = frozenset(range(outer.replicas))  # of the last round
        self.inside = positions > 1

    # Bytes under a key, in chunks; the count of chunks comes last and makes them visible.

    def put(self, key: str, content: bytes) -> None:
        chunks = range(0, len(content), CHUNK_BYTES)
        for i, at in enumerate(chunks):
            self.store.set(f"{key}/{i}", content[at : at + CHUNK_BYTES])
        self.store.set(key, str(len(chunks)))

    def take(self, key: str, limit_bytes: int) -> bytes | None:
        """None: it is not there, or not any more.

        Raises
        ------
        ValueError: more than `limit_bytes`
        """
        if not self.store.check([key]):
            return None
        patience = self.store.timeout
        self.store.set_timeout(timedelta(seconds=5))  # where it is deleted at this moment
        try:
            return b"".join(self._chunks(key, limit_bytes))
        except dist.DistStoreError:
            return None
        finally:
            self.store.set_timeout(patience)

    def _chunks(self, key: str, limit_bytes: int) -> Iterator[bytes]:
        for i in range(int(self.store.get(key))):
            yield (chunk := self.store.get(f"{key}/{i}"))
            limit_bytes -= len(chunk)
            if limit_bytes < 0:
                raise ValueError(f"what another replica left as {key} is larger than it can be")

    def drop(self, key: str) -> None:
        if self.store.check([key]):
            count = int(self.store.get(key))
            self.store.delete_key(key)
            for i in range(count):
                self.store.delete_key(f"{key}/{i}")

    def await_key(self, key: str) -> bytes:
        """Waits as long as it takes: the run's time limit is the supervisor's."""
        while not self.store.check([key]):
            time.sleep(POLL_S)
        return self.store.get(key)

    def begin(self) -> None:
        """Before the first step: wait until every live replica has built its engine."""
        self.store.set(f"ready/{self.replica}/{self.position}", "")
        while not all(
            self.store.check([f"ready/{m}/{p}" for p in range(self.positions)])
            for m in set(range(self.outer.replicas)) - self.dead()
        ):
            time.sleep(POLL_S)

    # One round.

    def leave_messages(self, round: int, content: bytes) -> None:
        self.take_back(round - 2)  # all members of the last round have read it
        self.put(f"{round}/{self.replica}/{self.position}", content)

    def take_back(self, round: int) -> None:
        self.drop(f"{round}/{self.replica}/{self.position}")

    def decide(self, round: int) -> bool:
        """Set `members` of this round, the same for all. False: this replica is not one. Collective in the replica."""
        if self.replica == self.position == 0:
            self.store.set(f"{round}/members", ",".join(map(str, sorted(self._present(round)))))
            self.store.set("now", str(round))
        self.members = frozenset(map(int, self.await_key(f"{round}/members").decode().split(",")))
        return self.replica in self.members

    def _is_here(self, replica: int, round: int) -> bool:
        return self.store.check([f"{round}/{replica}/{p}" for p in range(self.positions)])

    def _present(self, round: int) -> list[int]:
        begun = time.monotonic()
        while True:
            here = [m for m in range(self.outer.replicas) if self._is_here(m, round)]
            back = {m for m in range(self.outer.replicas) if self._back(m) == round - 1}
            expected = self.members.union(back) - self.dead()
            late = time.monotonic() - begun > self.timeout_s
            if 0 in here and len(here) >= self.quorum and (late or expected <= set(here)):
                return here
            time.sleep(POLL_S)

    def _back(self, replica: int) -> int:
        return int(self.store.get(f"back/{replica}")) if self.store.check([f"back/{replica}"]) else -1

    def messages(self, round: int, size_bytes: int) -> dict[int, bytes] | None:
        """By member, what its rank at this position sent, of this size each; None where this replica came too late to
        read it all. Collective in the replica."""
        taken = {m: self.take(f"{round}/{m}/{self.position}", size_bytes) for m in sorted(self.members)}
        complete = {m: content for m, content in taken.items() if content is not None}
        return complete if self.all_inside(len(complete) == len(taken)) else None

    def leave_state(self, round: int, content: bytes) -> None:
        self.drop(f"state/{round - 2}/{self.position}")
        self.put(f"state/{round}/{self.position}", content)

    def latest_state(self, limit_bytes: int) -> tuple[int, bytes]:
        """(round, what replica 0's rank at this position left after it). Collective in the replica."""
        while True:
            now = self._from_first(int(self.await_key("now")) if self.position == 0 else 0)
            begun, content = time.monotonic(), None
            while content is None and time.monotonic() - begun < 1.0:
                content = self.take(f"state/{now}/{self.position}", limit_bytes)
                time.sleep(POLL_S)
            if self.all_inside(content is not None):
                assert content is not None
                if self.position == 0:
                    self.store.set(f"back/{self.replica}", str(now))
                return now, content

    def all_inside(self, mine: bool) -> bool:
        """Whether it is so on every rank of this replica."""
        if not self.inside:
            return mine
        flag = torch.tensor(int(mine))
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def _from_first(self, number: int) -> int:
        shared = torch.tensor(number)
        if self.inside:
            dist.broadcast(shared, src=0)
        return int(shared)

    # The end of the run.

    def send_measurements(self, content: str) -> None:
        """This rank's measurements, for rank 0."""
        self.put(f"measured/{self.replica}/{self.position}", content.encode())

    def collect_measurements(self) -> list[str | None]:
        """Of every rank of the other replicas, None for those that are missing: members of the last round that live
        get `quorum_timeout_s` to come."""
        deadline = time.monotonic() + self.timeout_s
        contents: list[str | None] = []
        for m in range(1, self.outer.replicas):
            for p in range(self.positions):
                content = self.take(f"measured/{m}/{p}", MEASURED_LIMIT_BYTES)
                while content is None and m in self.members - self.dead() and time.monotonic() < deadline:
                    time.sleep(POLL_S)
                    content = self.take(f"measured/{m}/{p}", MEASURED_LIMIT_BYTES)
                contents.append(None if content is None else content.decode())
        return contents

    def leave(self, patience_s: float = 5.0) -> None:
        """Rank 0 serves the store: it goes when the last round's members have gone, or after some seconds."""
        if self.replica or self.position:
            self.store.add("left", 1)
            return
        deadline = time.monotonic() + patience_s
        while (
            self.store.add("left", 0) < len(self.members - self.dead()) * self.positions - 1
            and time.monotonic() < deadline
        ):
            time.sleep(POLL_S)


class _AtTheMeeting(Transfer):
    """A message on the table: `read` is done when the round's members are known."""

    def __init__(self, read) -> None:
        super().__init__(None)
        self.read = read

    def wait(self) -> float:
        self.read()
        return 0.0


@dataclass(frozen=True)
class MeetingLink(Link):
    """Messages of one round gather here and are left in the store together. Absent replicas' are zeros: the zero
    pseudo-gradient in every codec."""

    meeting: Meeting = field(kw_only=True)
    pending: list[Tensor] = field(default_factory=list)
    received: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.local == 1 and self.group is None

    @property
    def sends(self) -> bool:
        return True

    def _post(self, message: Tensor) -> tuple[int, int]:
        at = sum(each.nbytes for each in self.pending)
        self.pending.append(message.detach().flatten().view(torch.uint8))
        return at, at + self.pending[-1].nbytes

    def _parts(self, at: int, end: int, device: torch.device):
        for replica, content in self.received.items():
            yield replica, torch.frombuffer(bytearray(content[at:end]), dtype=torch.uint8).to(device)

    def all_reduce(self, total: Tensor) -> Transfer:
        at, end = self._post(total)

        def read() -> None:
            total.zero_()
            for _, part in self._parts(at, end, total.device):
                total.add_(part.view(total.dtype))

        return _AtTheMeeting(read)

    def all_gather(self, messages: Tensor) -> tuple[Tensor, Transfer]:
        at, end = self._post(messages)
        everyone = torch.zeros(self.replicas, messages.shape[1], dtype=torch.uint8, device=messages.device)

        def read() -> None:
            for replica, part in self._parts(at, end, messages.device):
                everyone[replica] = part

        return everyone, _AtTheMeeting(read)

    def meet(self, round: int) -> bool:
        """Exchange what was posted. False: this replica is not in this round. Collective in the replica."""
        content = b"".join(each.cpu().numpy().tobytes() for each in self.pending)
        self.pending.clear()
        self.received.clear()
        self.meeting.leave_messages(round, content)
        messages = self.meeting.messages(round, len(content)) if self.meeting.decide(round) else None
        if messages is None:
            self.meeting.take_back(round)
            return False
        self.received.update(messages)
        return True


class Quorate(Synchronous):
    """LocalSGD or DiLoCo over the replicas that are present."""

    link: MeetingLink

    @torch.no_grad()
    def exchange(self, step: int) -> Exchange:
        round, meeting = step // self.outer.interval, self.link.meeting
        sent_bytes = sum(bucket.send() for bucket in self.buckets())
        if not self.link.meet(round):
            return self._rejoin(sent_bytes)
        present = len(meeting.members)
        exchange = Exchange(sent_bytes=sent_bytes, received_any=True, present=present)
        for bucket in self.buckets():
            received, _ = bucket.receive()
            exchange.note(received, 0.0)
            bucket.copies[0].descend(received.total.mul_(self.outer.replicas / present))
            bucket.give_to_replicas()
        if meeting.replica == 0 and present < self.outer.replicas:
            meeting.leave_state(round, to_bytes(self.state()))
        return exchange

    def _rejoin(self, sent_bytes: int) -> Exchange:
        for bucket in self.buckets():
            bucket.channel.transfer = None  # never received
        like = self.state()
        round, content = self.link.meeting.latest_state(size_limit(like))
        self.load_state(from_bytes(content, like))
        for bucket in self.buckets():
            bucket.give_to_replicas()
        return Exchange(sent_bytes=sent_bytes, go_on_after=round * self.outer.interval)
