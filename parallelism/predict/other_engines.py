"""Messages of a rank under DeepSpeed's ZeRO and under Megatron-Core, as messages.py has the torch engine's.

P: parameters, e: bytes of an element, s: bytes of a microbatch in the residual stream, m: microbatches.

    ZeRO 0      all-reduce 4 P
    ZeRO 1      all-reduce 4 P, all-gather e P
    ZeRO 2      all-reduce 4 P each microbatch, all-gather e P
    ZeRO 3      reduce-scatter 4 P each microbatch; all-gather e P each microbatch, of norms once a step (they persist)
    Megatron    all-reduce 4 P, with the distributed optimizer reduce-scatter 4 P and all-gather e P;
                tensor parallel, a block: all-reduce s four times; with sequence parallel gathers s six times (the
                backward pass gathers its input again) and scatters it four times
                pipeline: a microbatch's s over each border of stages, each way

What DeepSpeed keeps gathered between passes is bounded (stage3_max_live_parameters, 1e9 elements): of larger models
ZeRO 3 gathers twice a microbatch. Of both engines products of dimensions are sums of their parts.
"""

from __future__ import annotations

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..diloco.config import Outer
from ..layout import Layout
from .messages import FP32, Messages, TorchRank

LIVE = 10**9  # elements that ZeRO 3 keeps gathered


def known(layout: Layout, outer: Outer) -> bool:
    """Whether these are the messages of such a layout."""
    if outer.algorithm != "none" or layout.offloads or layout.recompute != "none" or layout.hpz > 1:
        return False
    if layout.engine == "deepspeed":
        return layout.tp * layout.pp == 1
    return layout.engine == "megatron" and (layout.dp_replicate == 1 or layout.dp_shard == 1)


def other_messages(shape: ModelShape, recipe: Recipe, layout: Layout, place: int = 0) -> Messages:
    """Of one rank in a step. place: in the pipeline. The layout is one that `known` knows.

    Small all-reduces of DeepSpeed (norms, overflow: some bytes each) are left out.
    """
    rank = TorchRank(shape, recipe, layout, Outer(), place, 0)
    elements = sum(each.rows * each.rest for each in rank.parameters())
    if layout.engine == "deepspeed":
        return _deepspeed(rank, elements)
    return _megatron(rank, elements)


def all_other_messages(shape: ModelShape, recipe: Recipe, layout: Layout) -> Messages:
    """Summed over all ranks."""
    found = Messages()
    for place in range(layout.pp):
        found.add_all(other_messages(shape, recipe, layout, place), layout.ranks / layout.pp)
    return found


def _deepspeed(rank: TorchRank, elements: int) -> Messages:
    found, layout = Messages(), rank.layout
    whole, compute, micro = FP32 * elements, rank.element * elements, layout.microbatches
    stage = layout.zero_stage if layout.dp_shard > 1 else 0
    if stage == 0:
        if layout.dp_replicate > 1:
            found.add("all_reduce", "dp_replicate", whole)
    elif stage < 3:
        found.add("all_reduce", "dp_shard", whole, micro if stage == 2 else 1)
        found.add("all_gather", "dp_shard", compute)
    else:
        norms = rank.element * sum(each.rows for each in rank.parameters() if each.rest == 1)
        found.add("all_gather", "dp_shard", compute - norms, micro * (2 if elements > LIVE else 1))
        found.add("all_gather", "dp_shard", norms)
        found.add("reduce_scatter", "dp_shard", whole, micro)
    return found


def _megatron(rank: TorchRank, elements: int) -> Messages:
    found, layout = Messages(), rank.layout
    if layout.tp > 1:
        found.add_all(_megatron_tensor(rank), layout.microbatches)
        norms = sum(each.rows for each in rank.parameters() if each.partial)
        if norms:
            found.add("all_reduce", "tp", FP32 * norms)
    if layout.pp > 1:
        rank._sends(found)
    if layout.dp_shard > 1:
        found.add("reduce_scatter", "dp_shard", FP32 * elements)
        found.add("all_gather", "dp_shard", rank.element * elements)
    elif layout.dp_replicate > 1:
        found.add("all_reduce", "dp_replicate", FP32 * elements)
    if layout.dp_shard > 1 or layout.tp * layout.pp > 1:
        found.add("all_reduce", rank.inside, FP32)
    return found


def _megatron_tensor(rank: TorchRank) -> Messages:
    """Of a microbatch."""
    found = Messages()
    if rank.layout.sp:
        found.add("all_gather", "tp", rank.stream, 6 * rank.blocks + rank.first + 2 * rank.last)
        found.add("reduce_scatter", "tp", rank.stream, 4 * rank.blocks + rank.first + rank.last)
    else:
        found.add("all_reduce", "tp", rank.stream, 4 * rank.blocks + rank.first + rank.last)
    if rank.last:
        found.add("all_reduce", "tp", FP32 * rank.sequences * rank.positions, 3)  # of the loss
    return found
