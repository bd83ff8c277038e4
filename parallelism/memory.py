"""Predicted peak memory of one rank, from shape, recipe, layout and outer step; no torch, no measurement.

    peak = state + copies + max(activations + logits, optimizer's temporaries)

State, bytes per parameter a rank owns (ZeRO, arXiv 1910.02054 section 3): weights 4, gradients 4, AdamW 8 (SGD with
momentum 4, without 0; Muon 4 for the blocks' matrices, 8 for the rest). Under bf16 the masters and gradients are fp32
too, so that bf16 with AdamW costs 18 = 16 + 2 with the compute copy (Korthikanti et al., arXiv 2205.05198, count the
same 18). A rank owns 1/tp of each matrix of its layers, and 1/(dp_shard cp) of that.

Activations of one layer per token (Korthikanti et al. eq. 1, 2 and 4, w width, t = tp, a bytes per element):

    theirs        s b w (10 + 24/t + 5 heads s/(w t)),    with sequence parallel   s b w / t (34 + 5 heads s/w)
    ours          s b a (4 w + (w + (w + 2 kv) + mlp)/t), with sequence parallel   all of it / t

Ours leaves out their two dropout masks (2 of the 34 bytes) and their scores (5 heads s/w: attention is never
materialised by SDPA), and counts grouped-query attention (kv = kv_heads head_dim) and the MLP as they are: GELU keeps
2 ffn, SwiGLU 4 ffn. With 2 bytes, GELU, ffn = 4 w and kv = w it is their 34 less 2. QK-norm adds its inputs, w + kv.
Where RMSNorm is not one kernel (CPU), it also keeps its fp32 steps: 4 bytes more per element it normalises, bf16 6.
Megatron-Core's own attention, where there is no GPU for a better one, does keep the scores: fp32 probabilities and a
mask of a byte, heads s/t of each, in bf16 the probabilities again; not where `selective` recomputes them. With that
it keeps from 10% less to 17% more than is predicted here (copies that its fused matrices leave behind).
Recompute: `full` keeps each layer's input (their 2 s b w) and one layer's activations while it is recomputed;
`selective` keeps what matrices and attention put out and recomputes norms, rotation and the MLP's nonlinearity.

Microbatches alive on pipeline rank r of p, in layers (their section 4.2.3 and appendix B; zero bubble: Qi et al.,
arXiv 2401.10241 and 2405.15362): GPipe all, 1F1B p - r, interleaved with v stages a rank
p v + p - 1 - 2 r stages, i.e. L (1 + (p - 1)/(p v)) layers on rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bench.recipe import Recipe
from ..bench.shape import MLPS, ModelShape
from .diloco.config import Outer
from .diloco.plan import state_bytes
from .layout import LOOPED, V_SHAPED, Layout, stage_layers, stages_of_rank

BYTES = {"fp32": 4, "bf16": 2}  # of a computed element
FP32 = 4
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on the rank that needs most."""

    weights: int  # fp32, this rank's part
    gradients: int
    optimizer: int
    outer: int  # DiLoCo: outer parameters and momentum, messages, compression's residuals
    copies: int  # whole layers gathered by FSDP, bf16 copies of weights
    activations: int
    logits: int
    temporaries: int  # of the update; activations are gone by then

    @property
    def state(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.outer

    @property
    def total(self) -> int:
        return self.state + self.copies + max(self.activations + self.logits, self.temporaries)


def predict(
    shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer | None = None, fused_norm: bool = True
) -> Memory:
    """Memory of the pipeline rank that needs most, in bytes: what torch's allocator holds, without the interpreter
    and its libraries. The layout must be one that `refuse` lets pass. fused_norm: RMSNorm is one kernel (CUDA)."""
    ends = {0, layout.pp - 1}  # most microbatches alive, the odd layer and the embedding; or the logits
    return max((_rank(shape, recipe, layout, outer or Outer(), fused_norm, r) for r in ends), key=lambda m: m.total)


def _rank(shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer, fused_norm: bool, rank: int) -> Memory:
    split = [len(part) for part in stage_layers(shape.layers, layout.stages)]
    stages = stages_of_rank(rank, layout)
    layers = sum(split[stage] for stage in stages)
    first, last = 0 in stages, layout.stages - 1 in stages
    element, shards = BYTES[recipe.precision], layout.dp_shard * layout.cp

    norms = 2 * shape.width + (2 * shape.head_dim if shape.qk_norm else 0)
    layer_params = (shape.params_layer - norms) / layout.tp + norms
    table = shape.vocab * shape.width / layout.tp
    ends = [first, last].count(True)
    tables = (min(ends, 1) if shape.tied else ends) * table
    final_norm = shape.width if last else 0
    whole = layers * layer_params + tables + final_norm  # parameters before FSDP's sharding
    owned = whole / shards
    folded = outer.replicas / outer.placed_replicas  # replicas that take turns on this rank

    per_owned, temporaries = _update(shape, recipe, owned, hidden=layers * (layer_params - norms))
    gathered = whole
    if shards > 1 and layout.reshard_after_forward:
        # The layer at work and the one fetched ahead; embedding and head stay gathered.
        gathered = min(layers, 2) * layer_params + tables + final_norm
    copies = gathered * element if shards > 1 or element < FP32 else 0
    weights, gradients = owned, owned
    if shards > 1 and layout.zero_stage < 3:  # parameters stay whole: in fp32 they are the weights, else the copy
        weights, copies = (whole, 0) if element == FP32 else (owned, whole * element)
        gradients = whole if layout.zero_stage == 1 else owned

    activations, logits = _activations(shape, recipe, layout, outer, fused_norm, rank, split)
    return Memory(
        weights=int(FP32 * weights * folded),
        gradients=int(FP32 * gradients),
        optimizer=int(FP32 * per_owned * owned * folded),
        outer=state_bytes(outer, int(owned)),
        copies=int(copies),
        activations=activations,
        logits=logits,
        temporaries=int(FP32 * temporaries),
    )


def _update(shape: ModelShape, recipe: Recipe, owned: float, hidden: float) -> tuple[float, float]:
    """(elements of state for each owned parameter, elements of temporaries). hidden: in the blocks' matrices."""
    if recipe.optimizer == "sgd":
        return (1.0 if recipe.beta1 else 0.0), 0.0
    if recipe.optimizer == "muon":  # one momentum of each matrix in the blocks; AdamW of the rest
        # Of the largest matrix: the fp32 update, twice in bf16, and two bf16 products of its short side.
        short, long = sorted((shape.width, shape.ffn))
        return 2.0 - hidden / owned, max(owned - hidden, 2 * short * long + short * short)
    return 2.0, owned if recipe.optimizer == "adamw" else 0.0


def layer_elements(shape: ModelShape, recompute: str = "none") -> tuple[float, float]:
    """Elements one layer keeps per token for its backward pass: (each tp rank's unless sp, split over tp)."""
    kv = shape.kv_heads * shape.head_dim
    if recompute == "full":
        return shape.width, 0.0
    matrices = MLPS[shape.mlp] - 1  # that put out ffn
    if recompute == "selective":  # block input and both row-parallel outputs; q, k, v, context, MLP's hidden
        return 3 * shape.width, shape.width + 2 * kv + shape.width + matrices * shape.ffn
    split = shape.width + 2 * kv + shape.width + 2 * matrices * shape.ffn
    return 4 * shape.width, split + (shape.width + kv if shape.qk_norm else 0)


def _activations(
    shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer, fused_norm: bool, rank: int, split: list[int]
) -> tuple[int, int]:
    """Bytes of (activations, logits) on pipeline rank `rank`; split: layers of each stage."""
    element, stages = BYTES[recipe.precision], stages_of_rank(rank, layout)
    sequences = recipe.global_batch / (layout.dp * outer.replicas * layout.microbatches)
    tokens = sequences * shape.seq_len / layout.cp  # of one microbatch
    spread = layout.tp if layout.sp else 1
    norm_extra = 0 if fused_norm else {"fp32": FP32, "bf16": 2 * FP32 - element}[recipe.precision]

    scores = FP32 + 1 + (element if element < FP32 else 0) if layout.engine == "megatron" and not fused_norm else 0

    def layer_bytes(recompute: str) -> float:
        common, over_tp = layer_elements(shape, recompute)
        kept = tokens * element * (common / spread + over_tp / layout.tp)
        if recompute == "none":
            kept += tokens * scores * shape.heads * shape.seq_len / layout.tp
            heads = (shape.width + shape.kv_heads * shape.head_dim) / layout.tp if shape.qk_norm else 0
            kept += tokens * norm_extra * (2 * shape.width / spread + heads)
        return kept

    alive = _stages_alive(layout, rank)  # stage activations alive at once, over all stages of the rank
    deepest = max(split[stage] for stage in stages)
    total = alive * deepest * layer_bytes(layout.recompute)
    if layout.recompute != "none":
        total += layer_bytes("none")
    logits = 0.0
    if layout.stages - 1 in stages:
        total += tokens * (2 * element + norm_extra) * shape.width / spread  # final norm: what goes in and comes out
        vocab = tokens * shape.vocab / (layout.tp if layout.loss_parallel else 1)
        # Alive from forward to backward: logits and the fp32 log-softmax; in the backward pass also its gradient,
        # and with bf16 the fp32 copy of the logits.
        kept = layout.microbatches if layout.pp_schedule in ("GPipe", "LoopedBFS") and layout.pp > 1 else 1
        logits = vocab * (kept * (element + FP32) + FP32 + (FP32 if element < FP32 else 0))
    return int(total), int(logits)


def _stages_alive(layout: Layout, rank: int) -> int:
    """Forward passes of one stage whose activations are held at once, at most."""
    pp, v, micro = layout.pp, layout.virtual_stages, layout.microbatches
    if pp == 1:
        return 1
    if layout.pp_schedule in ("GPipe", "LoopedBFS"):
        return micro * v
    if layout.pp_schedule == "1F1B":
        return min(micro, pp - rank)
    if layout.pp_schedule in V_SHAPED:
        return min(micro * v, 2 * pp + (layout.pp_schedule == "DualPipeV"))
    assert layout.pp_schedule in LOOPED
    late = rank if layout.pp_schedule == "InterleavedZeroBubble" else 0  # weight gradients put off
    return min(micro * v, pp * v + pp - 1 - 2 * rank + late)
