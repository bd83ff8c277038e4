"""Outer gradients that travel during the whole next round: delayed by one round, or eager.

After round t of H inner steps, Delta_m(t) = theta_m,outer - theta_m, and Delta(t) = 1/M sum_m Delta_m(t) arrives one
round later, hidden behind H inner steps:

    delayed   theta = OuterOpt(theta, Delta(t - 1));                     nothing in the first round
    eager     theta = OuterOpt(theta, Delta(t - 1) + (Delta_m(t) - Delta_m(t - 1)) / M)

Eager takes a replica's own new share at once and the others' a round late, so that the replicas' outer parameters
differ by their last shares and each replica has a copy of its own. With M = 1 eager is DiLoCo.
Source: Kale, Douillard, Donchev, arXiv 2502.12996: the current local outer gradient mixed with the delayed ones of
all other replicas. The paper runs both by Streaming DiLoCo's fragments; here the whole model travels at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...bench.engine import LocalParameter
from .algorithm import Algorithm, Exchange
from .config import Outer
from .link import Link


class Delayed(Algorithm):
    @torch.no_grad()
    def exchange(self, step: int) -> Exchange:
        first_round = step == self.outer.interval
        exchange = Exchange(received_any=not first_round)
        for bucket in self.buckets():
            bucket.channel.advance()
        for bucket in self.buckets():
            late = None
            if not first_round:
                received, hidden_s = bucket.receive()
                exchange.note(received, hidden_s)
                late = received.total.clone()  # the channel's buffer is about to be sent from again
            exchange.sent_bytes += bucket.send()
            if late is not None:
                bucket.copies[0].descend(late)
            bucket.give_to_replicas()
        return exchange


class Eager(Algorithm):
    copy_per_replica = True

    def __init__(self, outer: Outer, replicas: Sequence[Sequence[LocalParameter]], link: Link, layers: int) -> None:
        super().__init__(outer, replicas, link, layers)
        self.last = [[torch.zeros_like(copy.flat) for copy in bucket.copies] for bucket in self.buckets()]

    @torch.no_grad()
    def exchange(self, step: int) -> Exchange:
        first_round = step == self.outer.interval
        exchange = Exchange(received_any=not first_round)
        for bucket in self.buckets():
            bucket.channel.advance()
        for bucket, last in zip(self.buckets(), self.last, strict=True):
            late: Tensor | float = 0.0
            if not first_round:
                received, hidden_s = bucket.receive()
                exchange.note(received, hidden_s)
                late = received.total.clone()
            exchange.sent_bytes += bucket.send()
            for replica, copy in enumerate(bucket.copies):
                fresh = torch.zeros_like(copy.flat)
                bucket.pseudo_gradient(replica, fresh)
                # The exact difference, also under compression: what the others see replaces it a round later.
                copy.descend(fresh - last[replica] + late)
                last[replica] = fresh
            bucket.give_to_replicas()
        return exchange

    def state(self) -> dict[str, Tensor]:
        own = {f"last.{i}.{r}": v.clone() for i, last in enumerate(self.last) for r, v in enumerate(last)}
        return super().state() | own

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.last = [[state[f"last.{i}.{r}"].clone() for r in range(len(last))] for i, last in enumerate(self.last)]
