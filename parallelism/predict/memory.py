"""Peak memory of one rank by part, for all configurations at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import Configs
from .machine import Machine
from .stack import Stack


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on the rank that needs most, (n,) each."""

    weights: np.ndarray
    gradients: np.ndarray
    optimizer: np.ndarray
    outer: np.ndarray
    copies: np.ndarray
    activations: np.ndarray
    logits: np.ndarray
    temporaries: np.ndarray
    library: np.ndarray  # context, collective library, what the allocator cannot use

    @property
    def total(self) -> np.ndarray:
        state = self.weights + self.gradients + self.optimizer + self.outer + self.copies
        return state + np.maximum(self.activations + self.logits, self.temporaries) + self.library


def predict_memory(configs: Configs, machine: Machine, stack: Stack) -> MemoryParts:
    """Bytes by part."""
    c = configs
    layers = np.ceil(c.layers / c.pp)
    whole = layers * c.params_layer / c.tp + c.vocab * c.width / c.tp * np.where(np.asarray(c.pp) > 1, 1, 2 - c.tied)
    shards = c.dp_shard * c.cp
    zero = np.asarray(c.zero_stage)
    owned = whole / shards
    weights = owned * stack.master_bytes
    gradients = np.where(zero >= 2, owned, whole) * stack.gradient_bytes
    copies = np.where(zero >= 3, owned, whole) * stack.compute_bytes
    wide = np.asarray(c.element)
    stream = 8 * c.width / np.where(np.asarray(c.sp) > 0, c.tp, 1)
    split = (2 * c.width + 2 * c.kv_width + 2 * (c.matrices - 1) * c.ffn) / c.tp
    kept = c.tokens * wide * np.where(np.asarray(c.recompute) == 2, c.width, stream + split)
    alive = np.minimum(c.microbatches, c.pp)
    logits = c.tokens * c.vocab / c.tp * (wide + 8)
    state = (weights, gradients, owned * stack.optimizer_bytes, 0 * owned, copies)
    return MemoryParts(
        *state,
        activations=layers * kept * alive,
        logits=logits,
        temporaries=0 * owned,
        library=0 * owned + machine.reserved_bytes,
    )
