"""Activations that a rank keeps for the backward pass: of its layers, of the final norm, of the logits.

One layer keeps per token (Korthikanti et al., arXiv 2205.05198, eq. 1, 2 and 4; w width, t = tp, a bytes an element):

    theirs        s b w (10 + 24/t + 5 heads s/(w t)),    with sequence parallel   s b w / t (34 + 5 heads s/w)
    ours          s b a (4 w + (w + (w + 2 kv) + mlp)/t), with sequence parallel   all of it / t

Ours leaves out their two dropout masks (2 of the 34 bytes) and their scores (5 heads s/w: attention is never
materialised by SDPA), and counts grouped-query attention (kv = kv_heads head_dim) and the MLP as they are: GELU keeps
2 ffn, SwiGLU 4 ffn. With 2 bytes, GELU, ffn = 4 w and kv = w it is their 34 less 2. QK-norm adds its inputs, w + kv.
Where RMSNorm is not one kernel (CPU), it also keeps its fp32 steps: 4 bytes more per element it normalises, bf16 6.
Megatron-Core's own attention, where there is no GPU for a better one, does keep the scores: fp32 probabilities and a
mask of a byte, heads s/t of each, in bf16 the probabilities again; not where `selective` recomputes them. With that
it keeps from 10% less to 17% more than is predicted here (copies that its fused matrices leave behind).
Context parallel by gathering keeps all tokens' keys and values, and a mask of this rank's tokens by all.
Recompute: `full` keeps each layer's input (their 2 s b w) and one layer's activations while it is recomputed;
`selective` keeps what matrices and attention put out and recomputes norms, rotation and the MLP's nonlinearity; in
Megatron it recomputes attention's scores alone (theirs: 34 s b w / t), in torchtitan of 2024 every second layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import Configs
from .stack import Stack
from .stages import BFS, GPIPE, Held

NONE, SELECTIVE, FULL = 0, 1, 2  # codes of recompute
FP32 = 4
MANY_RANKS = 512  # 64 nodes: the most of the playbook's sweep


@dataclass(frozen=True)
class Activations:
    """Bytes, (r, n)."""

    layers: np.ndarray
    stream: np.ndarray  # of it, what whole residual streams add where it is not known whether they were whole
    gathered: np.ndarray  # buffers of gathered microbatches
    logits: np.ndarray


class Activation:
    """The model at work on one set of configurations. cpu: kernels are a CPU's."""

    def __init__(self, configs: Configs, stack: Stack, cpu: bool) -> None:
        self.c, self.stack, self.keeps = configs, stack, stack.keeps
        self.element = np.asarray(configs.element)
        self.wide = self.element == FP32
        self.tp = np.asarray(configs.tp)
        self.whole = np.asarray(configs.sp) == 0  # the residual stream is whole on every tensor-parallel rank
        self.spread = np.where(self.whole, 1, self.tp)
        fused = self.keeps.fused_norm and not cpu
        self.norm_extra = np.where(self.wide, FP32, 2 * FP32 - 2) * (0 if fused else 1)
        self.scores = self._score_bytes(cpu)

    def _score_bytes(self, cpu: bool) -> np.ndarray:
        if cpu and self.keeps.cpu_score_bytes:
            return np.where(self.wide, FP32 + 1, self.keeps.cpu_score_bytes)
        return np.where(self.wide, FP32 + 1, self.keeps.score_bytes) * (0 if self.stack.flash else 1)

    def of(self, held: Held) -> Activations:
        c = self.c
        tokens = np.asarray(c.tokens)
        mode = np.asarray(c.recompute)
        none, full = self.layer_bytes(NONE), self.layer_bytes(FULL)
        selective = self._selective(none, full)
        kept = np.select([mode == FULL, mode == SELECTIVE], [full, selective], none)
        scores_alone = (mode == SELECTIVE) & (self.keeps.selective == "attention")
        again = np.where(mode == NONE, 0, np.where(scores_alone, none - kept, none))  # of the layer at work
        layers = held.alive * held.deepest * kept + again
        layers = layers + held.loss * tokens * (2 * self.element + self.norm_extra) * c.width / self.spread
        mask = np.where((np.asarray(c.cp) > 1) & self._gathers_keys(), c.seq_len * c.seq_len / c.cp, 0)
        gathered = np.where(self.tp > 1, self.keeps.gathers * tokens * c.width * self.element, 0)
        stream = held.alive * held.deepest * self._unknown_stream()
        return Activations(layers + mask, stream, gathered + 0 * held.alive, self._logits(held))

    def layer_bytes(self, recompute: int) -> np.ndarray:
        """Of one layer and microbatch."""
        c, tokens = self.c, np.asarray(self.c.tokens)
        common, split = layer_elements(c, recompute, self.keeps.fused_swiglu)
        keys = np.where(self._gathers_keys() & (recompute != FULL), 2 * c.kv_width * (np.asarray(c.cp) - 1), 0)
        kept = tokens * self.element * (common / self.spread + (split + keys) / self.tp)
        kept = kept + tokens * self.keeps.mask_bytes * c.width / self.spread * (recompute != FULL)
        if recompute == NONE:
            kept = kept + tokens * self.scores * c.heads * c.seq_len / self.tp
            heads = np.asarray(c.qk_norm) * (c.width + c.kv_width) / self.tp
            kept = kept + tokens * self.norm_extra * (2 * c.width / self.spread + heads)
        return kept

    def _selective(self, none: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Of one layer: what is kept where `selective` recomputes what this program recomputes."""
        if self.keeps.selective == "alternate":
            return (none + full) / 2
        if self.keeps.selective == "attention":
            c = self.c
            return none - np.asarray(c.tokens) * self.scores * c.heads * c.seq_len / self.tp
        return self.layer_bytes(SELECTIVE)

    def _gathers_keys(self) -> np.ndarray:
        return np.asarray(self.c.cp_method) == 0

    def _unknown_stream(self) -> np.ndarray:
        """Of one layer and microbatch: what a whole residual stream adds where it was probably whole.

        A sweep that keeps the faster of both modes keeps all-reduce (whole) where its messages are large or there are
        many microbatches to hide a pipeline's, and sequence parallel where pipeline messages, whole too, cross nodes
        (tp 32; two stages, which send the most at a time) and on its largest number of nodes.
        """
        if not self.keeps.mode_unknown:
            return np.zeros(())
        c, m, pp = self.c, np.asarray(self.c.microbatches), np.asarray(self.c.pp)
        alone = (pp == 1) & ((self.tp <= 16) | (m > 2))
        deep = (self.tp <= 16) & (pp > 2)
        large = (self.tp <= 8) & (np.asarray(c.sequences) >= 2 * self.tp)
        whole = (self.tp > 1) & (alone | deep | large) & (np.asarray(c.ranks) < MANY_RANKS) & ~self.whole
        return np.where(whole, np.asarray(c.tokens) * 2 * self.element * c.width * (1 - 1 / self.tp), 0)

    def _logits(self, held: Held) -> np.ndarray:
        """From forward to backward pass: logits and the fp32 log-softmax; in the backward pass also its gradient, and
        with bf16 the fp32 copy of the logits."""
        c = self.c
        vocab = np.asarray(c.tokens) * c.vocab / np.where(np.asarray(c.loss_parallel) > 0, self.tp, 1)
        all_at_once = (np.asarray(c.pp) > 1) & np.isin(np.asarray(c.pp_schedule), [GPIPE, BFS])
        times = np.where(all_at_once, c.microbatches, 1)
        forward = np.where(self.wide, 2 * FP32, self.keeps.logits_forward)
        backward = np.where(self.wide, FP32, self.keeps.logits_backward)
        return held.loss * vocab * (times * forward + backward)


def layer_elements(c: Configs, recompute: int, fused_swiglu: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Elements that one layer keeps per token: (each tp rank's unless sp, split over tp).

    recompute: 0 none, 1 selective: block input and both row-parallel outputs; q, k, v, context, the MLP's hidden;
    2 full: the block's input.
    """
    width, kv, up = np.asarray(c.width), c.kv_width, np.asarray(c.matrices) - 1  # matrices that put out ffn
    if recompute == FULL:
        return width, np.zeros_like(width)
    if recompute == SELECTIVE:
        return 3 * width, 2 * width + 2 * kv + up * c.ffn
    hidden = (up + 1 if fused_swiglu else 2 * up) * c.ffn
    return 4 * width, 2 * width + 2 * kv + hidden + np.asarray(c.qk_norm) * (width + kv)
