"""One bucket at work: the outer copy of some parameters, its outer optimizer, and its channel.

Pseudo-gradient of replica m (DiLoCo, arXiv 2311.08105, algorithm 1):  Delta_m = theta_outer - theta_m, so that a
*descent* step of the outer optimizer moves the outer parameters towards the replicas.

Outer optimizer: torch's SGD with Nesterov momentum,  b <- mu b + Delta,  theta <- theta - lr (Delta + mu b).
It is fed the sum over the M replicas with lr / M, which is the same and saves a pass: its buffer holds M b.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd  # the function: the class imports torch.compile's front end, seconds of a rank's start

from ...bench.engine import LocalParameter
from .channel import Channel, DenseChannel, PackedChannel, Received
from .config import Outer
from .link import Link
from .plan import BucketPlan
from .two_shot import TwoShotChannel


class OuterCopy:
    """Flat fp32 outer parameters of a bucket with the momentum that moves them."""

    def __init__(self, outer: Outer, plan: BucketPlan, parameters: Sequence[Tensor]) -> None:
        self.outer, self.share = outer, 1 / outer.replicas
        self.flat = torch.zeros(plan.numel, device=parameters[0].device)
        self.views = split(plan, self.flat, parameters)
        torch._foreach_copy_(self.views, list(parameters))
        self.momentum = torch.zeros_like(self.flat) if outer.momentum else None

    def descend(self, total: Tensor) -> None:
        """One outer step. total: sum over the replicas of their pseudo-gradients, flat."""
        if self.outer.lr is None:  # averaging: theta <- theta - mean(theta - theta_m) = mean theta_m
            self.flat.sub_(total, alpha=self.share)
            return
        sgd(
            [self.flat],
            [total],
            [self.momentum],
            fused=True,
            lr=self.outer.lr * self.share,
            momentum=self.outer.momentum or 0.0,
            nesterov=bool(self.outer.nesterov),
            dampening=0.0,
            weight_decay=0.0,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        return {"flat": self.flat.clone()} | ({} if self.momentum is None else {"momentum": self.momentum.clone()})

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.flat.copy_(state["flat"])
        if self.momentum is not None:
            self.momentum.copy_(state["momentum"])


class Bucket:
    """`replicas[r]`: the bucket's parameters of local replica r; `copies`: the outer parameters, one that all local
    replicas share, or (eager) one for each."""

    def __init__(
        self,
        outer: Outer,
        plan: BucketPlan,
        replicas: Sequence[Sequence[LocalParameter]],
        link: Link,
        copy_per_replica: bool = False,
    ) -> None:
        self.plan = plan
        self.replicas = [[parameters[i].data for i in plan.indices] for parameters in replicas]
        # Parts held by several ranks of a replica count once in its norms.
        weights = [1 / replicas[0][i].replicated for i in plan.indices]
        self._weights = None if set(weights) == {1.0} else torch.tensor(weights, device=self.replicas[0][0].device)
        self.copies = [
            OuterCopy(outer, plan, parameters)
            for parameters in (self.replicas if copy_per_replica else self.replicas[:1])
        ]
        self.channel = channel_of(outer)(outer, plan.numel, link, self.squared_norm, self.replicas[0][0].device)

    def outer_of(self, replica: int) -> OuterCopy:
        return self.copies[replica % len(self.copies)]

    def pseudo_gradient(self, replica: int, into: Tensor) -> None:
        """into <- theta_outer - theta_replica; padding is left as it is."""
        target = split(self.plan, into, self.replicas[replica])
        for out, outer, inner in zip(target, self.outer_of(replica).views, self.replicas[replica], strict=True):
            torch.sub(outer, inner, out=out)

    def squared_norm(self, part: Tensor, start: int = 0) -> Tensor:
        if self._weights is None:
            return part.dot(part)
        offsets = [offset - start for offset in self.plan.offsets]
        ends = [offset + p.numel() for offset, p in zip(offsets, self.replicas[0], strict=True)]
        parts = [part[max(0, first) : max(0, end)] for first, end in zip(offsets, ends, strict=True)]
        return torch.stack(torch._foreach_norm(parts)).square().dot(self._weights)

    def send(self) -> int:
        return self.channel.send(self.pseudo_gradient)

    def receive(self) -> tuple[Received, float]:
        return self.channel.receive()

    def give_to_replicas(self, keep: float = 0.0) -> None:
        """theta_m <- keep theta_m + (1 - keep) theta_outer."""
        for r, parameters in enumerate(self.replicas):
            if keep:
                torch._foreach_lerp_(parameters, self.outer_of(r).views, 1 - keep)
            else:
                torch._foreach_copy_(parameters, self.outer_of(r).views)

    def state(self) -> dict[str, Tensor]:
        state = {f"channel.{name}": value for name, value in self.channel.state().items()}
        for c, copy in enumerate(self.copies):
            state |= {f"copy.{c}.{name}": value for name, value in copy.state().items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.channel.load_state(below("channel", state))
        for c, copy in enumerate(self.copies):
            copy.load_state(below(f"copy.{c}", state))


def channel_of(outer: Outer) -> type[Channel]:
    """The kind of channel that this configuration sends through."""
    if outer.compression == "none":
        return DenseChannel
    return TwoShotChannel if outer.exchange == "twoshot" else PackedChannel


def split(plan: BucketPlan, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat buffer, one a parameter, in its shape."""
    return [flat[o : o + p.numel()].view(p.shape) for o, p in zip(plan.offsets, like, strict=True)]


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a flat state dictionary under `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(prefix + ".")}
