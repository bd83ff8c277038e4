"""Packed messages in two shots, so that M replicas cost no more on the link than two: reduce-scatter, then all-gather.

A bucket is cut into M pieces of whole blocks, and the process at place j of the group owns piece j (folded: this one
owns them all):

    1. all-to-all    C(Delta_m)_j to the owner of piece j;        S_j = sum_m C(Delta_m)_j in fp32, in replica order
    2. all-gather    C(S_j), with the fp32 norms |S_j|^2 and sum_m |C(Delta_m)_j|^2 behind it

A ring's all-reduce of packed messages in all but the second rounding: |total - S| <= the codec's bound for S. With
error feedback the owner, too, keeps what its rounding lost: of e_j = beta e_j + S_j it sends C(e_j).
Source: qgZ of ZeRO++, Wang et al., arXiv 2306.10209, section 3.3 (quantise, all-to-all, reduce in full precision); the
second compression with an error of its own: 1-bit Adam, Tang et al., arXiv 2102.02888, algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.codec import pack
from .channel import Fill, PackedChannel, Received
from .plan import NORM_BYTES, payload_bytes


class TwoShotChannel(PackedChannel):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.length = self.numel // self.outer.replicas  # of a piece
        self.owned = self.link.places
        keeps = len(self.owned) if self.residuals else 0
        self.owner_residuals = [torch.zeros(self.length, device=self.device) for _ in range(keeps)]
        self.first: Tensor | None = None  # (replicas, owned pieces, bytes): the first shot, under way
        self.sent_bytes, self.hidden_s = 0, 0.0  # of the second shot; of the first

    def _pack(self, vector: Tensor) -> Tensor:
        """(pieces, bytes)"""
        pieces = vector.view(-1, self.length)
        return torch.stack([pack(piece.view(self.shape), self.outer.compression) for piece in pieces])

    def _add(self, message: Tensor, total: Tensor, weight: float) -> None:
        for packed, piece in zip(message, total.view(-1, self.length), strict=True):
            super()._add(packed, piece, weight)

    def send(self, fill: Fill) -> int:
        mine = torch.stack(self._messages(fill))  # (local, pieces, bytes)
        self.first, self.transfer = self.link.all_to_all(mine)
        return mine.nbytes if self.link.sends else 0

    def messages(self) -> list[tuple[str, int]]:
        whole = payload_bytes(self.outer, self.numel)  # of all pieces
        return [("all_to_all", whole), ("all_gather", whole + NORM_BYTES * self.outer.replicas)]

    def advance(self) -> None:
        if self.first is None:
            return
        assert self.transfer is not None
        self.hidden_s = self.transfer.wait()
        messages, self.first = self.first, None
        second = []
        for i, place in enumerate(self.owned):
            begin = place * self.length
            total, part = (flat[begin : begin + self.length] for flat in (self.total, self.vector))
            total.zero_()
            squares = torch.zeros((), device=self.device)
            for message in messages[:, i : i + 1]:
                part.zero_()
                self._add(message, part, 1.0)
                squares += self.squared_norm(part, begin)
                total += part
            norms = torch.stack([self.squared_norm(total, begin), squares])
            packed = self._feed_back(total, self.owner_residuals[i] if self.owner_residuals else None)
            second.append(torch.cat([packed.flatten(), norms.view(torch.uint8)]))
        mine = torch.stack(second)
        self.sent_bytes = mine.nbytes if self.link.sends else 0
        self.everyone, self.transfer = self.link.all_gather(mine)

    def receive(self) -> tuple[Received, float]:
        self.advance()
        received, hidden_s = super().receive()
        hidden_s, self.hidden_s = hidden_s + self.hidden_s, 0.0
        return received, hidden_s

    def _finish(self) -> Received:
        self.total.zero_()
        self._add(self.everyone[:, :-NORM_BYTES], self.total, 1.0)
        total_square, squares = self.everyone[:, -NORM_BYTES:].clone().view(torch.float32).sum(0)
        return Received(self.total, total_square, squares, self.sent_bytes)

    def state(self) -> dict[str, Tensor]:
        state = super().state()  # first: a first shot under way is followed by the second, which changes the residuals
        return state | {f"owner_residual.{i}": error.clone() for i, error in enumerate(self.owner_residuals)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.first = None
        for i, error in enumerate(self.owner_residuals):
            error.copy_(state[f"owner_residual.{i}"])
