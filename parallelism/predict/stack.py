"""A stack: how the program that trains does its work, as far as time and memory depend on it.

Two programs that run the same layout of the same model differ in how many kernels a layer is, in what they keep in
memory and in what they overlap. Ours are named like the engines; the others are those of published tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...results.wording import did_you_mean


@dataclass(frozen=True)
class Stack:
    """Counts are of one layer; bytes are of one parameter."""

    name: str
    kernels_forward: float = 18  # launches of a layer
    kernels_backward: float = 31
    compiled: bool = False  # elementwise work fused, launches hidden (torch.compile, CUDA graphs)
    flash: bool = True  # attention that keeps no scores in memory
    master_bytes: float = 4  # fp32 weights that the optimizer updates
    gradient_bytes: float = 4
    compute_bytes: float = 2  # copy of the weights that the products read; 0 under fp32
    optimizer_bytes: float = 8  # state
    overlaps_dp: bool = True  # gradients are reduced while the backward pass goes on
    overlaps_tp: float = 0  # share of tensor-parallel communication that hides behind products
    overlaps_pp: bool = False  # messages between stages hide behind computation
    source: str = ""  # of these figures


STACKS = {
    stack.name: stack
    for stack in (
        Stack("torch", source="parallelism/torch_engine.py"),
        Stack("deepspeed", overlaps_dp=False, source="parallelism/deepspeed/"),
        Stack("megatron", overlaps_dp=False, source="parallelism/megatron/"),
        Stack("nanotron", gradient_bytes=4, overlaps_dp=False, source="huggingface/nanotron 2024"),
        Stack("megatron-2021", flash=False, overlaps_dp=False, source="arXiv 2104.04473"),
        Stack("megatron-2022", flash=False, overlaps_dp=False, source="arXiv 2205.05198"),
        Stack("nemo", kernels_forward=14, kernels_backward=24, source="NVIDIA/NeMo 2.x, Megatron-Core"),
        Stack("torchtitan", source="pytorch/torchtitan 2024-12"),
        Stack("maxtext", compiled=True, source="AI-Hypercomputer/maxtext, google/paxml: one program compiled by XLA"),
        Stack("llama3", source="arXiv 2407.21783 section 3.3"),
    )
}


def named_stack(name: str) -> Stack:
    """Raises ValueError where there is no stack of that name."""
    if name not in STACKS:
        raise ValueError(f"no stack {name!r}: {did_you_mean(name, STACKS)}")
    return STACKS[name]
