"""Time of one training step by part: what each rank computes, what it waits for, and the least it could be.

The parts have the names of the measured columns. Symbols as in `configs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .collective import Network
from .configs import Column, Configs
from .layer import Compute, PassTime, longest
from .machine import Machine
from .outer import outer_exposed_s
from .pace import split
from .schedule import Passes, PipelineTime, pipeline_time
from .stack import Stack
from .tuning import Tuning
from .waits import Waits

SYNCHRONISATION = 0.003  # share of a step that each doubling of the nodes adds
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
        self.waits, self.stages = Waits(configs, self.network, stack), split(configs, stack.keeps.stages_by_cost)
        self.zero = np.zeros(len(configs))

    def step(self) -> Step:
        c, m = self.configs, np.asarray(self.configs.microbatches, float)
        block, head = self.compute.block(), self.compute.head()
        alone = block.forward + block.backward
        # A block's messages and the calls that start them go on beside each other.
        tp, cp = self.waits.tensor(), self.waits.context()
        layer = longest(alone + tp + cp, self.waits.calls())
        tp = layer - alone - cp
        whole = self._pipeline(block, tp + cp, head)
        waited = m * np.minimum(self.stages.fullest, whole.busy / (m * layer))
        inner = Step(
            compute_time_s=whole.busy - waited * (tp + cp) + self.zero,
            comm_tp_s=waited * tp + self.zero,
            comm_cp_s=waited * cp + self.zero,
            comm_pp_s=whole.exposed_send + self.zero,
            comm_dp_s=self._data(block) + self.zero,
            bubble_time_s=whole.bubble + self.zero,
            optimizer_time_s=self._optimizer() + self.zero,
            outer_exposed_s=self.zero,
            data_time_s=self.zero,
            bound_time_s=self._bound() + self.zero,
        )
        inner = replace(inner, comm_dp_s=inner.comm_dp_s + self._synchronisation(inner.step_time_s))
        return replace(inner, outer_exposed_s=outer_exposed_s(c, self.network, self._held(), inner.step_time_s))

    def _pipeline(self, block: PassTime, waits: np.ndarray, head: PassTime) -> PipelineTime:
        """All microbatches, without what follows them."""
        overhead = self.stack.microbatch_s * self.tuning.microbatch
        send = self.waits.send()
        if self.stack.keeps.stages_by_cost:
            layer = block.forward + block.backward + waits
            return self.stages.pipeline_time(self.configs, layer, head.forward + head.backward, overhead, send)
        first = Passes(0.0, 0.0, 0.0)
        once = np.where(np.asarray(self.configs.pp) > 1, 0.0, overhead)
        head = PassTime(head.forward + once, head.backward)
        return pipeline_time(self.configs, _passes(block, waits), first, _passes(head), send, self.stack.overlaps_pp)

    def _data(self, block: PassTime) -> np.ndarray:
        """Of a step, exposed."""
        layers = self.stages.fullest
        return self.waits.data(self._held(), layers * (block.forward + block.backward), layers * block.backward)

    def _synchronisation(self, step: np.ndarray) -> np.ndarray:
        """Of ranks that wait for the slowest of many."""
        nodes = np.maximum(np.asarray(self.configs.all_ranks) / self.machine.node_ranks, 1.0)
        return step * SYNCHRONISATION * self.tuning.synchronisation * np.log2(nodes)

    def _held(self) -> np.ndarray:
        """Parameters of the fullest stage on a rank, before they are sharded over data."""
        c = self.configs
        table = c.vocab * c.width * np.where(np.asarray(c.pp) > 1, 1, 2 - c.tied)
        return (self.stages.fullest * c.params_layer + table) / c.tp

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
