"""The sum over the replicas of one bucket's pseudo-gradients, as it travels: dense fp32, or packed.

Dense messages are all-reduced. Packed ones are all-gathered and summed here in fp32, in the order of the replicas:
a reduction inside the collective would have to round every partial sum to the packed format (bf16 too); two_shot.py
rounds the sum once more and so sends less where there are many replicas.

Error feedback, SparseLoCo arXiv 2508.15706 algorithm 1: of e = beta e + Delta the replica sends C(e), keeps e - C(e).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.codec import pack, unpack_add
from .config import Outer
from .link import Link, Transfer
from .plan import payload_bytes

Fill = Callable[[int, Tensor], None]
"""Writes local replica r's pseudo-gradient into a flat fp32 buffer."""
SquaredNorm = Callable[..., Tensor]
"""squared_norm(part, start=0): share of the squared norm of flat[start : ...] that counts for this rank, 0-dim."""


@dataclass
class Received:
    """The sum over all replicas, and norms for their spread. Norms: this rank's share, 0-dim tensors."""

    total: Tensor  # flat fp32; valid until the channel sends again
    total_square: Tensor  # |total|^2
    squares: Tensor  # sum over the replicas of |Delta_m|^2
    sent_bytes: int = 0  # of a second message, sent on the arrival of the first


class Channel:
    """Base of both kinds. At most one message is under way."""

    def __init__(self, outer: Outer, numel: int, link: Link, squared_norm: SquaredNorm, device: torch.device) -> None:
        self.outer, self.numel, self.link, self.squared_norm = outer, numel, link, squared_norm
        self.device = device
        self.transfer: Transfer | None = None
        self.arrived: Received | None = None  # waited for, not yet applied: only between a checkpoint and its use

    def send(self, fill: Fill) -> int:
        """Start the exchange. Returns the bytes this rank passes to the link."""
        raise NotImplementedError

    def messages(self) -> list[tuple[str, int]]:
        """(collective, bytes as nccl-tests counts) of one exchange, where it is sent at all."""
        raise NotImplementedError

    def advance(self) -> None:
        """Where an exchange has a second message: wait for the first and send it. Of many buckets, call it on all
        before `receive` on any, so that their second messages travel together."""

    def receive(self) -> tuple[Received, float]:
        """The sum, and the seconds of the transfer that computation hid."""
        if self.arrived is not None:
            received, self.arrived = self.arrived, None
            return received, 0.0
        assert self.transfer is not None, "nothing was sent"
        hidden = self.transfer.wait()
        self.transfer = None
        return self._finish(), hidden

    def _finish(self) -> Received:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Copies of all that the next steps depend on; a message under way is waited for."""
        if self.transfer is not None:
            self.arrived, _ = self.receive()
        if self.arrived is None:
            return {}
        arrived = self.arrived
        return {
            "total": arrived.total.clone(),
            "total_square": arrived.total_square.clone(),
            "squares": arrived.squares.clone(),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.transfer = None
        arrived = "total" in state
        self.arrived = Received(state["total"], state["total_square"], state["squares"]) if arrived else None


class DenseChannel(Channel):
    """fp32, summed by the collective; the last element carries the squared norms."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.buffer = torch.zeros(self.numel + 1, device=self.device)
        self.scratch = torch.zeros(self.numel if self.link.local > 1 else 0, device=self.device)

    def send(self, fill: Fill) -> int:
        total = self.buffer[:-1]
        fill(0, total)
        self.buffer[-1] = self.squared_norm(total)
        for replica in range(1, self.link.local):
            fill(replica, self.scratch)
            total += self.scratch
            self.buffer[-1] += self.squared_norm(self.scratch)
        self.transfer = self.link.all_reduce(self.buffer)
        return self.buffer.nbytes if self.link.sends else 0

    def messages(self) -> list[tuple[str, int]]:
        return [("all_reduce", self.buffer.nbytes)]

    def _finish(self) -> Received:
        total = self.buffer[:-1]
        return Received(total, self.squared_norm(total), self.buffer[-1].clone())


class PackedChannel(Channel):
    """Any of the codecs, with or without error feedback."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.shape = (-1, self.outer.block_size or 1)
        self.keep = self.outer.kept_per_block if self.outer.compression == "topk" else 0
        self.vector = torch.zeros(self.numel, device=self.device)
        self.total = torch.zeros(self.numel, device=self.device)
        self.error_decay = self.outer.error_decay or 0.0
        feeds_back = self.error_decay > 0
        self.residuals = [torch.zeros_like(self.vector) for _ in range(self.link.local if feeds_back else 0)]
        self.everyone = torch.empty(0)  # (replicas, bytes) of the message on its way

    def _add(self, message: Tensor, total: Tensor, weight: float) -> None:
        unpack_add(message, self.outer.compression, total.view(self.shape), weight, self.keep)

    def _pack(self, vector: Tensor) -> Tensor:
        return pack(vector.view(self.shape), self.outer.compression, self.keep)

    def _feed_back(self, vector: Tensor, error: Tensor | None) -> Tensor:
        """The message for `vector`; with error feedback `error` is added to it first, and keeps what is not sent."""
        if error is None:
            return self._pack(vector)
        message = self._pack(error.mul_(self.error_decay).add_(vector))
        self._add(message, error, -1.0)
        return message

    def _messages(self, fill: Fill) -> list[Tensor]:
        """One of each local replica."""
        messages = []
        for replica in range(self.link.local):
            fill(replica, self.vector)
            messages.append(self._feed_back(self.vector, self.residuals[replica] if self.residuals else None))
        return messages

    def send(self, fill: Fill) -> int:
        mine = torch.stack(self._messages(fill))
        self.everyone, self.transfer = self.link.all_gather(mine)
        return mine.nbytes if self.link.sends else 0

    def messages(self) -> list[tuple[str, int]]:
        return [("all_gather", self.outer.replicas * payload_bytes(self.outer, self.numel))]

    def _finish(self) -> Received:
        self.total.zero_()
        squares = torch.zeros((), device=self.device)
        for message in self.everyone:
            self.vector.zero_()
            self._add(message, self.vector, 1.0)
            squares += self.squared_norm(self.vector)
            self.total += self.vector
        return Received(self.total, self.squared_norm(self.total), squares)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"residual.{r}": error.clone() for r, error in enumerate(self.residuals)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        for r, error in enumerate(self.residuals):
            error.copy_(state[f"residual.{r}"])
