"""State of a rank: weights, gradients, the optimizer's state, copies of the weights, and what of it is on the host.

Bytes a parameter that a rank owns (ZeRO, Rajbhandari et al., arXiv 1910.02054, section 3): weights 4, gradients 4,
AdamW 8 (SGD with momentum 4, without 0; Muon 4 for the blocks' matrices, 8 for the rest). Under bf16 the masters and
gradients are fp32 too, so that bf16 with AdamW costs 18 = 16 + 2 with the compute copy (Korthikanti et al., arXiv
2205.05198, count the same 18), with the optimizer sharded over d ranks 6 + 12/d. A rank owns 1/tp of each matrix of its
layers, and 1/(dp_shard cp) of that.

ZeRO-3 and FSDP gather the layer at work and the one fetched ahead; embedding and head stay gathered. Gradients that are
accumulated over microbatches without a reduction are whole (`Keeps.accumulates_whole`: FSDP2 under
set_requires_gradient_sync(False)), and a pipeline's schedule keeps its parameters gathered as well. hpZ (ZeRO++, arXiv
2306.10209) keeps a second copy of the parameters, shared by `hpz` ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...bench.recipe import OPTIMIZERS
from .configs import Configs
from .stack import Stack
from .stages import Held

FP32 = 4
BUCKET = 500_000_000  # elements of a message's flat buffer, DeepSpeed's default and ours (parallelism/deepspeed/config)
ADAMW, SGD, MUON = (OPTIMIZERS.index(name) for name in ("adamw", "sgd", "muon"))


@dataclass(frozen=True)
class States:
    """Bytes, (r, n)."""

    weights: np.ndarray
    gradients: np.ndarray
    optimizer: np.ndarray
    outer: np.ndarray
    copies: np.ndarray
    temporaries: np.ndarray
    host: np.ndarray


class State:
    """The model at work on one set of configurations. cpu: device and host are one, so that nothing is moved away."""

    def __init__(self, configs: Configs, stack: Stack, cpu: bool) -> None:
        c = self.c = configs
        self.keeps, self.cpu = stack.keeps, cpu
        self.element = np.asarray(c.element)
        self.narrow = self.element < FP32
        self.shards = np.asarray(c.dp_shard) * c.cp
        self.sharded = self.shards > 1
        self.away_optimizer = (np.asarray(c.offload_optimizer) > 0) & (not cpu)
        self.away_parameters = (np.asarray(c.offload_parameters) > 0) & (not cpu)
        self.stage = np.where(self.sharded | self.away_optimizer | self.away_parameters, c.zero_stage, 0)
        self.norms = 2 * c.width + 2 * c.head_dim * np.asarray(c.qk_norm)
        self.layer = c.matrices_layer / np.asarray(c.tp) + self.norms  # parameters of one, on one tp rank

    def of(self, held: Held) -> States:
        c = self.c
        ends = held.tables(c.tied) * c.vocab * c.width / c.tp + held.head * c.width
        whole = held.layers * self.layer + ends
        owned = whole / self.shards
        folded = np.asarray(c.replicas) / c.placed_replicas  # replicas that take turns on this rank
        waiting = (np.asarray(c.outer_offload) > 0) & (
            not self.cpu
        )  # those that do not have their turn are on the host
        state = FP32 * self._optimizer(held, owned) * owned
        weights, copies = self._weights(held, whole, owned, ends)
        parts = {
            "weights": FP32 * weights * folded,
            "optimizer": state * np.where(waiting, 1, folded),
            "gradients": self._gradients(whole, owned),
            "copies": copies + self._extra_copies(whole, owned),
        }
        host = np.where(waiting, state * folded, 0)
        parts, moved = self._offloaded(parts, owned)
        return States(
            **parts,
            outer=np.asarray(c.outer_state) * owned,
            temporaries=FP32 * self._temporaries(held, owned) * np.where(self.away_optimizer, 0, 1),
            host=host + moved,
        )

    def _optimizer(self, held: Held, owned: np.ndarray) -> np.ndarray:
        """Elements of state for each owned parameter."""
        code = np.asarray(self.c.optimizer)
        hidden = held.layers * self.c.matrices_layer / np.asarray(self.c.tp)
        muon = 2 - hidden / np.maximum(owned, 1)  # one momentum of each matrix in the blocks; AdamW of the rest
        return np.select([code == SGD, code == MUON], [np.asarray(self.c.momentum) * 1.0 + 0 * owned, muon], 2.0)

    def _temporaries(self, held: Held, owned: np.ndarray) -> np.ndarray:
        """Elements that the update needs while it is at work."""
        c, code = self.c, np.asarray(self.c.optimizer)
        short, long = np.minimum(c.width, c.ffn), np.maximum(c.width, c.ffn)
        hidden = held.layers * c.matrices_layer / np.asarray(c.tp)
        # Muon, of the largest matrix: the fp32 update, twice in bf16, and two bf16 products of its short side.
        muon = np.maximum(owned - hidden, 2.0 * short * long + short * short)
        return np.select([code == ADAMW, code == MUON], [owned, muon], 0.0)

    def _weights(
        self, held: Held, whole: np.ndarray, owned: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(fp32 elements, bytes of copies)."""
        c = self.c
        two = np.minimum(held.layers, 2) * self.layer + ends
        reshards = self.sharded & (np.asarray(c.reshard_after_forward) > 0)
        if self.keeps.accumulates_whole:
            reshards = reshards & (np.asarray(c.pp) == 1)
        gathered = np.where(reshards, two, whole)
        copies = np.where(self.sharded | self.narrow, gathered * self.element, 0)
        # Parameters that stay whole: in fp32 they are the weights, else the copy.
        kept_whole = (self.stage > 0) & (self.stage < 3)
        copies = np.where(kept_whole, np.where(self.narrow, whole * self.element, 0), copies)
        return np.where(kept_whole & ~self.narrow, whole, owned), copies

    def _gradients(self, whole: np.ndarray, owned: np.ndarray) -> np.ndarray:
        gradients = np.where(self.stage >= 2, owned, whole)
        if self.keeps.accumulates_whole:
            late = self.sharded & (np.asarray(self.c.microbatches) > 1)
            gradients = np.where(late, whole, gradients)
        return FP32 * gradients + self.keeps.gradient_copy * whole * np.where(self.narrow, 1, 0)

    def _extra_copies(self, whole: np.ndarray, owned: np.ndarray) -> np.ndarray:
        """hpZ's second copy, the products' fp8 weights, DeepSpeed's flat buffers and its bf16 shard beside fp32's."""
        c = self.c
        hpz = np.asarray(c.hpz)
        copies = np.where(hpz > 1, whole / hpz * self.element, 0)
        copies = copies + np.where(np.asarray(c.precision) >= 2, whole * self.keeps.fp8_copies, 0)
        if self.keeps.buckets:
            copies = copies + np.where(self.stage > 0, np.minimum(whole, BUCKET) * FP32, 0)
            shard = (self.stage == 3) & self.narrow & ~self.away_parameters
            copies = copies + np.where(shard, owned * self.element, 0)
        return copies

    def _offloaded(self, parts: dict[str, np.ndarray], owned: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """(what stays on the device, bytes on the host).

        ZeRO-Offload (arXiv 2101.06840): the host updates fp32 weights, from gradients that are sent there; on NVMe the
        host has no more of them than two buffers. Under fp32 the parameters are beside their masters.
        """
        masters = np.where(self.narrow, parts["weights"], FP32 * owned)
        moved = np.where(self.away_optimizer, masters + parts["optimizer"] + FP32 * owned, 0)
        disk = np.asarray(self.c.offload_optimizer) == 2
        moved = np.where(disk, np.minimum(moved, 2 * FP32 * BUCKET), moved)
        emptied = np.where(self.narrow, self.away_optimizer, self.away_parameters)
        left = dict(parts)
        left["weights"] = np.where(emptied, 0, parts["weights"])
        left["optimizer"] = np.where(self.away_optimizer, 0, parts["optimizer"])
        waiting = np.where(np.asarray(self.c.offload_parameters) == 1, owned * self.element, 0)
        return left, moved + np.where(self.away_parameters, waiting, 0)
