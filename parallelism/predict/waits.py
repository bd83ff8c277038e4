"""Seconds that ranks spend on messages, by dimension of the mesh, before and after what hides behind computation.

Tensor: four gathers and four scatters of the residual stream a block (two all-reduces each way are as much). Context:
keys and values gathered, their gradients scattered. Data: gradients all-reduced (DDP), scattered and the weights
gathered again once a step (ZeRO 1 and 2), or weights gathered in each pass of each microbatch (ZeRO 3, FSDP).
"""

from __future__ import annotations

import numpy as np

from .collective import ALL_REDUCE, OTHER, Group, Network
from .configs import Configs
from .layer import HIDDEN_COST
from .stack import Stack


class Waits:
    """Messages of one set of configurations."""

    def __init__(self, configs: Configs, network: Network, stack: Stack) -> None:
        self.configs, self.network, self.stack = configs, network, stack
        self.tuning, self.node_ranks = network.tuning, network.machine.node_ranks

    def tensor(self) -> np.ndarray:
        """Of one block, both passes: on the links."""
        c = self.configs
        group = Group(c.tp, 1)
        once = self.network.collective(group, c.tokens * c.width * c.element, OTHER)
        crossing = np.where(group.nodes(self.node_ranks) > 1, self.tuning.crossing, 1.0)
        again = np.where(np.asarray(c.recompute) == 2, 4, 0)  # those of the forward pass once more
        return (8 * (1 - self.stack.overlaps_tp) + again) * once * crossing

    def calls(self) -> np.ndarray:
        """Of one block, both passes: what the tensor-parallel calls cost the host.

        Over more nodes each call waits for as many; with other stages in other nodes, for each rank of the group.
        """
        c, stack, tuning = self.configs, self.stack, self.tuning
        nodes = Group(c.tp, 1).nodes(self.node_ranks)
        apart = Group(c.pp, np.maximum(np.asarray(c.ranks) // c.pp, 1)).nodes(self.node_ranks) > 1
        once = stack.call_s * tuning.calls * nodes
        once = once + np.where(apart, stack.blocked_s * tuning.blocked * c.tp, 0.0)
        counted = self.network.machine.on_host  # dispatch is in the time of the block
        return np.where((np.asarray(c.tp) > 1) & (not counted), stack.tp_calls * once, 0.0)

    def context(self) -> np.ndarray:
        """Of one block, both passes."""
        c = self.configs
        nbytes = 2 * c.sequences * c.seq_len * c.kv_width / c.tp * c.element
        return 3 * self.network.collective(Group(c.cp, c.tp), nbytes, OTHER)

    def send(self) -> np.ndarray:
        """One message between two stages."""
        c = self.configs
        nbytes = c.tokens * c.width * c.element / np.where(np.asarray(c.sp) > 0, c.tp, 1)
        return np.where(np.asarray(c.pp) > 1, self.network.send(c.ranks // c.pp, nbytes), 0.0)

    def data(self, held: np.ndarray, compute: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Of a step, exposed.

        held: parameters of the fullest stage on a rank; compute, backward: seconds of both passes, and of the
        backward pass, of one microbatch.
        """
        c, stack = self.configs, self.stack
        if self.network.machine.on_host:
            return self._on_host(held)
        zero = np.asarray(c.zero_stage)
        shards = Group(np.asarray(c.dp_shard) * c.cp, c.tp)
        replicas = Group(c.dp_replicate, np.asarray(c.tp) * c.cp * c.dp_shard)
        gradients, weights = (
            held * (stack.reduced_bytes or stack.gradient_bytes),
            held * np.maximum(stack.compute_bytes, 1),
        )
        scattered = self.network.collective(shards, gradients, OTHER)
        gathered = self.network.collective(shards, weights, OTHER)
        reduced = self.network.collective(replicas, gradients / np.maximum(shards.size, 1), ALL_REDUCE)
        once = np.where(zero < 3, scattered + gathered, 0.0) + reduced
        exposed = beyond(once, backward) if stack.overlaps_dp else once
        each = gathered * (1 + (np.asarray(c.reshard_after_forward) > 0)) + scattered
        sharded = beyond(each, compute) if stack.zero_prefetch else each
        return exposed + np.where(zero >= 3, c.microbatches * sharded, 0.0)

    def _on_host(self, held: np.ndarray) -> np.ndarray:
        """Of a step where the host computes: nothing hides, nor the latency of FSDP's two or three messages a block."""
        c = self.configs
        group = Group(np.asarray(c.dp_replicate) * c.dp_shard, np.asarray(c.tp) * c.cp)
        reduced = self.network.collective(group, held * self.stack.gradient_bytes, ALL_REDUCE)
        sharded = (np.asarray(c.dp_shard) > 1) & (np.asarray(c.zero_stage) == 3)
        messages = np.ceil(c.layers / np.asarray(c.pp)) * (2 + np.asarray(c.reshard_after_forward))
        return reduced + np.where(sharded, messages * self.network.latency(group), 0.0)


def beyond(message: np.ndarray, work: np.ndarray) -> np.ndarray:
    """What is seen of messages that go on during work."""
    return np.maximum(message - work, 0) + HIDDEN_COST * np.minimum(message, work)
