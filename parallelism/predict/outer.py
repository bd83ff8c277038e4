"""Wall clock and compute utilisation of DiLoCo by the link between sites: Charles et al., arXiv 2503.09799, appendix A,
and the simulation of Streaming DiLoCo, arXiv 2501.18512, section 4 and table 4.

Wall clock. T = D / B steps of B tokens on R devices, which compute 6 N D / (R Q) in all, Q = 300 TFLOP/s each. An
all-reduce of N values over r ranks takes 2 N / W (1 - 1/r) + e (W: values/s, e: latency), so that training waits for

    data parallel over the outer link W1, e1:  T (2N/W1 (1 - 1/R) + e1)
    M >= 2 replicas, W0, e0 inside each:       T (2N/W0 (1 - M/R) + e0) + T/H (2N/W1 (1 - 1/R) + e1)

Compute utilisation: T H / (T H + what is exposed in H steps of T seconds). A step's backward pass takes 2/3 of it and
passes the L layers from last to first; a layer's message of c/L seconds leaves once its gradient is there, one after
the other. Layer l (0: the first) is ready l layers before the end of the backward pass. Of a fragment with the layers
p, p + P, ... (n of them; P = 1 for all of the model) the messages are late by

    max over k of (k + 1) c/L - (p + k P) 2/3 T/L = the greater of k = 0 and k = n - 1 (it is linear in k)

beyond the backward pass, less the `overlap` steps that follow before the result is applied. Two sites and bf16: c =
16 N / bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .collective import Group, Network
from .configs import Column, Configs

BACKWARD = 2 / 3  # of a step: twice the FLOPs of the forward pass
VALUE_BITS = 16  # bf16
FLOPS = 300e12  # Q: of one device, 2503.09799 appendix A
LINKS = {  # bits/s and seconds: the three networks of 2503.09799, appendix A
    "high": (400e9, 1e-4),
    "medium": (100e9, 1e-3),
    "low": (10e9, 1e-2),
}


@dataclass(frozen=True)
class Wire:
    """A link between ranks: bits/s and seconds."""

    bits_per_s: Column
    latency_s: Column


@dataclass(frozen=True)
class WallClock:
    """Seconds of a whole training run (n,)."""

    compute_s: np.ndarray
    inner_comm_s: np.ndarray  # every step
    outer_comm_s: np.ndarray  # every H steps

    @property
    def total_s(self) -> np.ndarray:
        return self.compute_s + self.inner_comm_s + self.outer_comm_s


def all_reduce_s(params: Column, ranks: Column, wire: Wire, bits: Column = VALUE_BITS) -> np.ndarray:
    """Seconds of an all-reduce of `params` values: 2N/W (1 - 1/R) + e; 0 for one rank."""
    n = np.asarray(ranks, float)
    moved = 2 * np.asarray(params, float) * bits / wire.bits_per_s * (1 - 1 / n)
    return np.where(n > 1, moved + wire.latency_s, 0.0)


def wall_clock(
    params: Column,
    tokens: Column,
    batch_tokens: Column,
    devices: Column,
    between: Wire,
    inside: Wire | None = None,
    replicas: Column = 1,
    sync_every: Column = 1,
) -> WallClock:
    """Seconds of a run, nothing overlapped: an upper bound of what waits cost.

    replicas: M; 1 is data parallel over the outer link. inside: the link inside a replica; default: `between`.
    """
    steps = np.asarray(tokens, float) / batch_tokens
    m, r = np.asarray(replicas, float), np.asarray(devices, float)
    inside = inside or between
    compute = 6.0 * np.asarray(params, float) * tokens / (r * FLOPS)
    crossing = all_reduce_s(params, r, between)
    within = all_reduce_s(params, r / m, inside)
    alone = m == 1
    return WallClock(
        compute, np.where(alone, steps * crossing, steps * within), np.where(alone, 0.0, steps / sync_every * crossing)
    )


def exposed_in_round(
    step_s: Column, message_s: Column, layers: Column, fragments: Column = 1, overlap: Column = 0
) -> np.ndarray:
    """Seconds of a round of H steps in which all wait for the outer messages.

    message_s: c, of the whole model; fragments: P, each of the layers p, p + P, ...; overlap: steps after the one in
    which a message leaves, until its result is applied
    """
    step, c, layers, pieces, slack = np.broadcast_arrays(step_s, message_s, layers, fragments, overlap)
    one, back = c / layers, BACKWARD * step / layers  # of a layer: its message, its backward pass
    late = np.zeros(step.shape)
    for p in range(int(np.max(pieces, initial=1))):
        n = np.ceil((layers - p) / pieces)
        lowest = one - p * back
        highest = n * one - (p + (n - 1) * pieces) * back
        waits = np.maximum(lowest, highest) - slack * step
        late = late + np.where((p < pieces) & (n > 0), np.maximum(waits, 0.0), 0.0)
    return late


def utilisation(
    step_s: Column,
    message_s: Column,
    layers: Column,
    sync_every: Column = 1,
    fragments: Column = 1,
    overlap: Column = 0,
) -> np.ndarray:
    """Share of the time in which a replica computes. step_s: of one step's computation; the rest as above."""
    busy = np.asarray(sync_every, float) * step_s
    return busy / (busy + exposed_in_round(step_s, message_s, layers, fragments, overlap))


def outer_exposed_s(configs: Configs, network: Network, held: Column, step_s: Column) -> np.ndarray:
    """Of the mean step of a configuration: what its outer messages add.

    held: parameters of a rank before they are sharded over data; step_s: a step without them. Our engine exchanges
    after the step and not in its backward pass, so that only the steps until the result is applied hide a message.
    """
    c = configs
    group = Group(np.asarray(c.placed_replicas), np.asarray(c.ranks))
    owned = np.asarray(held) / np.maximum(np.asarray(c.dp_shard) * c.cp, 1)
    whole = owned * c.outer_bytes * network.seconds_per_byte(group) / np.asarray(c.fragments)
    late = np.maximum(whole + network.latency(group) - np.asarray(c.overlap_steps) * step_s, 0.0)
    sends = (np.asarray(c.placed_replicas) > 1) & (np.asarray(c.outer_bytes) > 0)
    return np.where(sends, late * c.fragments / np.asarray(c.sync_every), 0.0)
