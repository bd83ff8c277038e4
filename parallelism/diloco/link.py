"""Which replicas exchange messages: those in this process, and those behind a process group.

Placement is hidden here. Distributed: one replica in this process, the others behind the group. Folded: all of them
here and no group, so nothing is sent; messages are still packed and unpacked, and the losses are the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


class Transfer:
    """One asynchronous collective; knows how long it took beside the computation."""

    def __init__(self, work: dist.Work | None) -> None:
        self._work = work
        self._launched = time.perf_counter()
        self._finished: float | None = None
        if work is not None:
            work.get_future().add_done_callback(self._note)

    def _note(self, _: object) -> None:
        self._finished = time.perf_counter()

    def wait(self) -> float:
        """Wait for the collective. Returns the seconds it ran before this call: the part hidden by computation."""
        if self._work is None:
            return 0.0
        asked = time.perf_counter()
        self._work.wait()
        return max(0.0, min(self._finished or asked, asked) - self._launched)


@dataclass(frozen=True)
class Link:
    """`group`: ranks of the same position in every replica, in replica order; None where all replicas are here."""

    replicas: int  # M
    local: int  # replicas in this process: M folded, 1 distributed
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        peers = dist.get_world_size(self.group) if self.group is not None else 1
        assert self.local * peers == self.replicas, (self.local, peers, self.replicas)

    @property
    def sends(self) -> bool:
        return self.group is not None

    @property
    def places(self) -> range:
        """This process's replicas among all, in their order."""
        return range(self.replicas) if self.group is None else range(self.group.rank(), self.group.rank() + 1)

    def all_reduce(self, total: Tensor) -> Transfer:
        """Sum over the group, in place."""
        if self.group is None:
            return Transfer(None)
        return Transfer(dist.all_reduce(total, group=self.group, async_op=True))

    def all_gather(self, messages: Tensor) -> tuple[Tensor, Transfer]:
        """(local, bytes) uint8 of each process -> (replicas, bytes), replica by replica."""
        if self.group is None:
            return messages, Transfer(None)
        everyone = torch.empty(self.replicas, messages.shape[1], dtype=torch.uint8, device=messages.device)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
        return everyone, Transfer(gather(everyone, messages, group=self.group, async_op=True))

    def all_to_all(self, messages: Tensor) -> tuple[Tensor, Transfer]:
        """(local, replicas, bytes) uint8, column j for place j -> (replicas, local, bytes), all that is for us."""
        if self.group is None:
            return messages, Transfer(None)
        ours = torch.empty_like(messages[0])
        return ours[:, None], Transfer(dist.all_to_all_single(ours, messages[0], group=self.group, async_op=True))
