"""Time of one training step by part: what each rank computes, what it waits for, and the least it could be.

The parts have the names of the measured columns. Symbols as in `configs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .collective import ALL_REDUCE, OTHER, Group, Network
from .configs import Column, Configs
from .layer import Compute, PassTime
from .machine import Machine
from .outer import outer_exposed_s
from .schedule import Passes, pipeline_time
from .stack import Stack
from .tuning import Tuning

OPTIMIZER_BYTES = 46.0  # moved for each parameter held: AdamW, bf16 with fp32 master


@dataclass(frozen=True)
class Step:
    """Seconds of a step, (n,) each. The sum of the parts is step_time_s."""

    compute_time_s: np.ndarray  # forward and backward pass, without waits
    comm_tp_s: np.ndarray  # exposed, by dimension of the mesh
    comm_cp_s: np.ndarray
    comm_pp_s: np.ndarray
    comm_dp_s: np.ndarray
    bubble_time_s: np.ndarray
    optimizer_time_s: np.ndarray
    outer_exposed_s: np.ndarray
    data_time_s: np.ndarray
    bound_time_s: np.ndarray  # no step of this layout takes less: peak FLOP/s, no communication

    @property
    def exposed_comm_time_s(self) -> np.ndarray:
        return self.comm_tp_s + self.comm_cp_s + self.comm_pp_s + self.comm_dp_s

    @property
    def step_time_s(self) -> np.ndarray:
        own = self.compute_time_s + self.bubble_time_s + self.optimizer_time_s
        return own + self.exposed_comm_time_s + self.outer_exposed_s + self.data_time_s


def predict_step(configs: Configs, machine: Machine, stack: Stack, tuning: Tuning | None = None) -> Step:
    """Time of a step of each configuration.

    Raises
    ------
    ValueError: the machine has no peak for a precision that is asked for
    """
    return _StepModel(configs, machine, stack, tuning or Tuning()).step()


class _StepModel:
    """The model at work on one set of configurations."""

    def __init__(self, configs: Configs, machine: Machine, stack: Stack, tuning: Tuning) -> None:
        self.configs, self.machine, self.stack, self.tuning = configs, machine, stack, tuning
        self.compute, self.network = Compute(configs, machine, stack, tuning), Network(machine, tuning)
        self.zero = np.zeros(len(configs))

    def step(self) -> Step:
        c = self.configs
        block, head = self.compute.block(), self.compute.head()
        tp, cp = self._tensor(), self._context()
        layers = np.ceil(c.layers / c.pp)
        waits = tp + cp
        whole = pipeline_time(
            c, _passes(block, waits), Passes(0.0, 0.0, 0.0), _passes(head), self._send(), self.stack.overlaps_pp
        )
        waited = np.asarray(c.microbatches, float) * layers
        inner = Step(
            compute_time_s=whole.busy - waited * waits + self.zero,
            comm_tp_s=waited * tp + self.zero,
            comm_cp_s=waited * cp + self.zero,
            comm_pp_s=whole.exposed_send + self.zero,
            comm_dp_s=self._data(layers * block.backward) + self.zero,
            bubble_time_s=whole.bubble + self.zero,
            optimizer_time_s=self._optimizer() + self.zero,
            outer_exposed_s=self.zero,
            data_time_s=self.zero,
            bound_time_s=self._bound() + self.zero,
        )
        return replace(inner, outer_exposed_s=outer_exposed_s(c, self.network, self._held(), inner.step_time_s))

    def _tensor(self) -> np.ndarray:
        """Of one block: four gathers and four scatters of the residual stream (two all-reduces each way)."""
        c = self.configs
        nbytes = c.tokens * c.width * c.element
        once = self.network.collective(Group(c.tp, 1), nbytes, OTHER)
        nodes = Group(c.tp, 1).nodes(self.machine.node_ranks)
        return 8 * once * np.where(nodes > 1, self.tuning.crossing, 1.0) * (1 - self.stack.overlaps_tp)

    def _context(self) -> np.ndarray:
        """Of one block: keys and values gathered, their gradients scattered."""
        c = self.configs
        nbytes = 2 * c.sequences * c.seq_len * c.kv_width / c.tp * c.element
        return 3 * self.network.collective(Group(c.cp, c.tp), nbytes, OTHER)

    def _send(self) -> np.ndarray:
        """One message between two stages."""
        c = self.configs
        nbytes = c.tokens * c.width * c.element / np.where(np.asarray(c.sp) > 0, c.tp, 1)
        return np.where(np.asarray(c.pp) > 1, self.network.send(c.ranks // c.pp, nbytes), 0.0)

    def _data(self, backward: np.ndarray) -> np.ndarray:
        """Of a step: gradients reduced over the ranks that share a stage's parameters."""
        c = self.configs
        held = self._held()
        group = Group(c.dp_replicate * c.dp_shard, c.tp * c.cp)
        reduced = self.network.collective(group, held * self.stack.gradient_bytes, ALL_REDUCE)
        hidden = backward if self.stack.overlaps_dp and not self.machine.on_host else 0.0
        return np.maximum(reduced - hidden, 0.1 * reduced) + self._beginnings(group)

    def _beginnings(self, group: Group) -> np.ndarray:
        """Where the host computes, nothing hides the latency of FSDP's messages: two or three of a block."""
        c = self.configs
        sharded = (np.asarray(c.dp_shard) > 1) & (np.asarray(c.zero_stage) == 3)
        messages = np.ceil(c.layers / c.pp) * (2 + np.asarray(c.reshard_after_forward))
        return np.where(sharded & self.machine.on_host, messages * self.network.latency(group), 0.0)

    def _held(self) -> np.ndarray:
        """Parameters of the fullest stage on a rank, before they are sharded over data."""
        c = self.configs
        table = c.vocab * c.width * np.where(np.asarray(c.pp) > 1, 1, 2 - c.tied)
        return (np.ceil(c.layers / c.pp) * c.params_layer + table) / c.tp

    def _optimizer(self) -> np.ndarray:
        c = self.configs
        owned = self._held() / np.maximum(c.dp_shard * c.cp, 1)
        bandwidth = self.machine.memory_bandwidth * self.machine.optimizer
        update = owned * OPTIMIZER_BYTES / bandwidth * self.tuning.optimizer
        if not self.machine.on_host:
            return update
        calls = self.compute.calls
        return update + (np.ceil(c.layers / c.pp) * calls.update + calls.step) * self.compute.launch

    def _bound(self) -> np.ndarray:
        """FLOPs of the products and of causal attention at the whole peak, evenly spread."""
        c = self.configs
        matrices = c.layers * c.matrices_layer + c.vocab * c.width
        flops = 6 * matrices + 6 * c.layers * c.width * c.seq_len
        return flops * c.global_batch * c.seq_len / (self.compute.peak * c.all_ranks)


def _passes(time: PassTime, waits: Column = 0.0) -> Passes:
    """The passes of a pipeline: a backward pass takes as long by the input as by the weight. waits: for messages, in
    equal parts in the forward pass and in the backward pass by the input."""
    return Passes(time.forward + waits / 2, time.backward / 2 + waits / 2, time.backward / 2)


__all__ = ["PassTime", "Step", "predict_step"]
