"""The collectives of a sweep: the call that is timed, and what every rank must have afterwards.

Each is one class: its buffers, `fill` (what a rank puts in), `call`, and `right` (whether the rank has what it must).
Copied elements differ by rank and place; summed ones are small whole numbers, exact also in 16 bits, so a
result is right or wrong and no tolerance hides a lost or doubled message.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

COPIED, SUMMED = 251, 5  # values are below these: whole numbers up to 256 are exact in bf16


class Transport(Protocol):
    """What moves the messages of one group. `rank`: this process's place in the group of `size`."""

    rank: int
    size: int

    def all_reduce(self, buffer: Tensor) -> None: ...
    def all_gather(self, whole: Tensor, part: Tensor) -> None: ...
    def reduce_scatter(self, part: Tensor, whole: Tensor) -> None: ...
    def all_to_all(self, received: Tensor, sent: Tensor) -> None: ...
    def send_recv(self, received: Tensor, sent: Tensor) -> None: ...
    def broadcast(self, buffer: Tensor) -> None: ...


def copied(rank: int, count: int, like: Tensor) -> Tensor:
    """(count,): the values that rank `rank` sends."""
    return ((31 * rank + torch.arange(count, device=like.device)) % COPIED).to(like.dtype)


def summand(rank: int, count: int, like: Tensor) -> Tensor:
    """(count,): what rank `rank` adds."""
    return ((rank + torch.arange(count, device=like.device)) % SUMMED).to(like.dtype)


def total(ranks: int, count: int, like: Tensor) -> Tensor:
    """(count,): the sum of all ranks' summands, in the way that any order of adding gives it while it is exact."""
    parts = (torch.arange(SUMMED).unsqueeze(1) + torch.arange(SUMMED)) % SUMMED  # rank mod 5, place mod 5
    times = torch.tensor([len(range(first, ranks, SUMMED)) for first in range(SUMMED)])
    sums = (parts * times.unsqueeze(1)).sum(0).to(like.device)
    return sums[torch.arange(count, device=like.device) % SUMMED].to(like.dtype)


class Collective:
    """elements: of the whole message; a multiple of the group's size where it is cut in parts."""

    cut = True  # the message is cut in one part for each rank

    def __init__(self, transport: Transport, elements: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self.transport, self.elements = transport, elements
        n = transport.size
        assert not self.cut or elements % n == 0, (elements, n)
        self.part = slice(transport.rank * (elements // n), (transport.rank + 1) * (elements // n))
        sizes = self.sizes()
        self.given = torch.zeros(sizes[0], dtype=dtype, device=device)
        self.got = self.given if sizes[1] is None else torch.zeros(sizes[1], dtype=dtype, device=device)

    def sizes(self) -> tuple[int, int | None]:
        """Elements of the buffers of input and output; None: in place."""
        raise NotImplementedError

    def call(self) -> None:
        raise NotImplementedError

    def mine(self) -> Tensor:
        """The input."""
        return copied(self.transport.rank, len(self.given), self.given)

    def truth(self) -> Tensor:
        """The output."""
        raise NotImplementedError

    def fill(self) -> None:
        self.got.fill_(-1)
        self.given.copy_(self.mine())

    def clear(self) -> None:
        """For the timed calls: nothing that is added up in place again and again grows."""
        self.given.zero_()

    def right(self) -> bool:
        return torch.equal(self.got, self.truth())


class AllReduce(Collective):
    cut = False

    def sizes(self) -> tuple[int, int | None]:
        return self.elements, None

    def call(self) -> None:
        self.transport.all_reduce(self.given)

    def mine(self) -> Tensor:
        return summand(self.transport.rank, self.elements, self.given)

    def truth(self) -> Tensor:
        return total(self.transport.size, self.elements, self.given)


class ReduceScatter(Collective):
    def sizes(self) -> tuple[int, int | None]:
        return self.elements, self.elements // self.transport.size

    def call(self) -> None:
        self.transport.reduce_scatter(self.got, self.given)

    def mine(self) -> Tensor:
        return summand(self.transport.rank, self.elements, self.given)

    def truth(self) -> Tensor:
        return total(self.transport.size, self.elements, self.given)[self.part]


class AllGather(Collective):
    def sizes(self) -> tuple[int, int | None]:
        return self.elements // self.transport.size, self.elements

    def call(self) -> None:
        self.transport.all_gather(self.got, self.given)

    def truth(self) -> Tensor:
        return torch.cat([copied(rank, len(self.given), self.given) for rank in range(self.transport.size)])


class AllToAll(Collective):
    def sizes(self) -> tuple[int, int | None]:
        return self.elements, self.elements

    def call(self) -> None:
        self.transport.all_to_all(self.got, self.given)

    def truth(self) -> Tensor:
        return torch.cat([copied(r, self.elements, self.given)[self.part] for r in range(self.transport.size)])


class SendRecv(Collective):
    """Round a ring, all at once: to the next rank, from the one before."""

    cut = False

    def sizes(self) -> tuple[int, int | None]:
        return self.elements, self.elements

    def call(self) -> None:
        self.transport.send_recv(self.got, self.given)

    def truth(self) -> Tensor:
        return copied((self.transport.rank - 1) % self.transport.size, self.elements, self.given)


class Broadcast(Collective):
    """From the group's first rank."""

    cut = False

    def sizes(self) -> tuple[int, int | None]:
        return self.elements, None

    def call(self) -> None:
        self.transport.broadcast(self.given)

    def mine(self) -> Tensor:
        own = super().mine()
        return own if self.transport.rank == 0 else own.fill_(-1)

    def truth(self) -> Tensor:
        return copied(0, self.elements, self.given)


KINDS: dict[str, type[Collective]] = {
    "all_reduce": AllReduce,
    "all_gather": AllGather,
    "reduce_scatter": ReduceScatter,
    "all_to_all": AllToAll,
    "send_recv": SendRecv,
    "broadcast": Broadcast,
}
