"""An outer algorithm: after every inner step it decides whether anything is due, and if so sends and applies it.

To add one: a file with its equation, a class with `due` and `exchange`, its name in config.py and in engine.py.
All ranks call the same methods after the same steps; messages go in one order, fragment by fragment, bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...bench.engine import LocalParameter
from .bucket import Bucket, below
from .channel import Received
from .config import Outer
from .link import Link
from .plan import fragment_count, fragment_of, plan


@dataclass
class Exchange:
    """What one call of `exchange` did. Norms are this rank's share and have to be summed over its replica."""

    sent_bytes: int = 0
    hidden_s: float = 0.0  # seconds of transfers that ran beside inner steps
    received_any: bool = False  # true on all ranks of a replica, or on none
    present: int | None = None  # replicas whose pseudo-gradients are in it; None: all
    go_on_after: int = 0  # the outer parameters are those after this inner step: this replica was left out (quorum)
    total_square: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)

    def note(self, received: Received, hidden_s: float) -> None:
        self.sent_bytes += received.sent_bytes
        self.hidden_s += hidden_s
        self.total_square.append(received.total_square)
        self.squares.append(received.squares)


class Algorithm:
    """Base: lays out fragments and buckets. What is due every H steps is the common case."""

    copy_per_replica = False  # each replica has outer parameters of its own

    def __init__(self, outer: Outer, replicas: Sequence[Sequence[LocalParameter]], link: Link, layers: int) -> None:
        """replicas: of each local replica, its parameters in one order; layers: of the whole model."""
        self.outer, self.link = outer, link
        count = fragment_count(outer, layers)
        fragments = [fragment_of(outer, p.layer, p.name, layers) for p in replicas[0]]
        planned = plan(outer, [p.data.numel() for p in replicas[0]], fragments, count)
        self.fragments = [
            [Bucket(outer, bucket, replicas, link, self.copy_per_replica) for bucket in buckets] for buckets in planned
        ]

    def due(self, step: int) -> bool:
        """Whether `exchange` is to be called after this inner step (1, 2, ...)."""
        return step % self.outer.interval == 0

    def exchange(self, step: int) -> Exchange:
        """Send, receive and apply what is due."""
        raise NotImplementedError

    def buckets(self) -> Iterator[Bucket]:
        for fragment in self.fragments:
            yield from fragment

    def outer_parameters(self, replica: int) -> list[tuple[Tensor, Tensor]]:
        """(inner parameter, outer value) pairs of a local replica."""
        return [
            pair for b in self.buckets() for pair in zip(b.replicas[replica], b.outer_of(replica).views, strict=True)
        ]

    def state(self) -> dict[str, Tensor]:
        """Copies of everything the next outer steps depend on, but the replicas' own parameters. Collective."""
        return {f"{i}.{name}": value for i, b in enumerate(self.buckets()) for name, value in b.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for i, bucket in enumerate(self.buckets()):
            bucket.load_state(below(str(i), state))


class Synchronous(Algorithm):
    """Every H steps: exchange, descend, hand the outer parameters to the replicas. DiLoCo and LocalSGD differ only in
    the outer optimizer, which is the bucket's."""

    @torch.no_grad()
    def exchange(self, step: int) -> Exchange:
        exchange = Exchange(received_any=True)
        for bucket in self.buckets():  # the first travels while the next is prepared
            exchange.sent_bytes += bucket.send()
        for bucket in self.buckets():
            bucket.channel.advance()
        for bucket in self.buckets():
            received, _ = bucket.receive()  # nothing is hidden: the step waits
            exchange.note(received, 0.0)
            bucket.copies[0].descend(received.total)
            bucket.give_to_replicas()
        return exchange
