"""Time of a collective: latency and transfer on the slowest level of the network that its group crosses.

    time = latency + factor (n - 1) / n bytes / bandwidth        factor: 2 all-reduce, 1 all others

Bus bandwidth and its factors as nccl-tests define them. Between nodes all ranks of a node that talk at the same time
share its ports: a group of n ranks with r of them in each node has the bandwidth of r ports, at most that of the level
inside. The latency between nodes grows with log2 of their number (a tree).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import Column
from .machine import Machine
from .tuning import Tuning

ALL_REDUCE, OTHER = 2.0, 1.0  # factors


@dataclass(frozen=True)
class Group:
    """Ranks that talk along one dimension of the mesh: `size` of them, each `stride` ranks from the next."""

    size: Column
    stride: Column

    def in_node(self, node_ranks: int) -> np.ndarray:
        """Ranks of the group in one node."""
        return np.clip(node_ranks // np.maximum(self.stride, 1), 1, self.size)

    def nodes(self, node_ranks: int) -> np.ndarray:
        """Nodes that the group crosses."""
        return np.ceil(self.size / self.in_node(node_ranks))


class Network:
    """Times of messages on a machine, all factors of the calibration applied."""

    def __init__(self, machine: Machine, tuning: Tuning) -> None:
        self.machine, self.tuning = machine, tuning

    def collective(self, group: Group, nbytes: Column, factor: float) -> np.ndarray:
        """Seconds of one collective of `nbytes` (the whole array: gathered, scattered or reduced); 0 for one rank."""
        n = np.asarray(group.size, float)
        slower = 1.0 if factor == ALL_REDUCE else self._ring(group)
        transfer = factor * slower * (n - 1) / n * nbytes * self.seconds_per_byte(group)
        return np.where(n > 1, self.latency(group) + transfer, 0.0)

    def _ring(self, group: Group) -> np.ndarray:
        """How many times slower than an all-reduce of the same bus bytes a gather or scatter is.

        Inside a node the profile's bandwidth is that of gathers. Between nodes a ring has as many hops as ranks, where
        an all-reduce has a tree and adds up in the switch.
        """
        nodes, between = group.nodes(self.machine.node_ranks), self.machine.links[-1]
        slower = between.ring * (1 + nodes / between.ring_nodes) * self.tuning.gathering
        return np.where(nodes > 1, slower, 1.0)

    def send(self, stride: Column, nbytes: Column) -> np.ndarray:
        """Seconds of a message between two ranks that are `stride` apart."""
        pair = Group(2, stride)
        return self.latency(pair) + nbytes * self.seconds_per_byte(pair)

    def latency(self, group: Group) -> np.ndarray:
        """Seconds of an empty collective."""
        nodes = group.nodes(self.machine.node_ranks)
        inside, between = self.machine.links[0], self.machine.links[-1]
        more = np.log2(np.maximum(nodes, 1)) * between.latency_s
        return (inside.latency_s + more) * self.tuning.latency

    def seconds_per_byte(self, group: Group) -> np.ndarray:
        """Reciprocal bus bandwidth."""
        machine = self.machine
        inside, between = machine.links[0], machine.links[-1]
        alone = self.tuning.inside / inside.bandwidth
        nodes, in_node = group.nodes(machine.node_ranks), group.in_node(machine.node_ranks)
        ports = np.maximum(in_node / between.shared_by, 1.0 / between.shared_by)
        bandwidth = ports * between.bandwidth * np.maximum(nodes, 1.0) ** -between.congestion
        doublings = np.log2(np.maximum(nodes, 2.0)) - 1, np.log2(np.maximum(in_node, 1.0))
        slower = self.tuning.congestion ** doublings[0] * self.tuning.sharing ** doublings[1]
        return np.where(nodes > 1, np.maximum(self.tuning.between * slower / bandwidth, alone), alone)
