"""A stack: how the program that trains does its work, as far as time and memory depend on it.

Two programs that run the same layout of the same model differ in how many kernels a layer is, in what they keep in
memory and in what they overlap. Ours are named like the engines; the others are those of published tables.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...results.wording import did_you_mean


@dataclass(frozen=True)
class MemoryTuning:
    """What the allocator holds over what the program keeps: factors on the parts, and a constant.

    The allocator reuses a free block only for what fits it, so that what it reserves exceeds what is allocated
    ("fragmentation"); of the parts most that come and go in unequal sizes.
    """

    constant_bytes: float = 0.0  # workspaces of the libraries
    state: float = 1.0  # on weights, gradients, optimizer's state and copies
    activations: float = 1.0
    logits: float = 1.0
    gathered: float = 1.0  # on buffers of gathered activations
    stream: float = 1.0  # on what is kept whole in the residual stream by programs whose mode is not known

    def vector(self) -> tuple[float, ...]:
        return tuple(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True)
class Keeps:
    """What a program keeps in memory, beyond what its layout says. Bytes are of bf16."""

    fused_norm: bool = True  # RMSNorm is one kernel; else its fp32 steps are kept too
    fused_swiglu: bool = False  # gate and up, and their product: three times ffn; else four times
    score_bytes: float = 5  # of an attention score, where attention is not flash: probabilities, mask, what is dropped
    cpu_score_bytes: float = 0  # the same on a CPU, where the program has no flash attention; 0: it has
    selective: str = "norms"  # what `selective` recomputes: norms, rotation, nonlinearity; attention; alternate layers
    fp8_copies: float = 0  # bytes of a parameter: its fp8 values, kept beside the bf16 ones
    mask_bytes: float = 0  # dropout masks, for each element of the residual stream
    logits_forward: float = 6  # bytes of a logit from its forward pass to its backward pass
    logits_backward: float = 8  # more of them while the backward pass is at work
    gradient_copy: float = 0  # bytes of a parameter: gradients in bf16 before they are accumulated in fp32
    accumulates_whole: bool = False  # sharded gradients are whole until the last microbatch reduces them
    buckets: bool = False  # flat buffers of up to 500 M elements for messages
    gathers: float = 0  # buffers of a gathered microbatch's residual stream, where tp > 1
    stages_by_cost: bool = False  # pipeline stages of equal FLOPs, the head counted; else of as many layers
    mode_unknown: bool = False  # whether sequence parallel was on is not said: the faster of both was kept
    reports: str = "worst"  # rank whose memory the program reports: worst, first
    counter: str = "allocated"  # what it reports: allocated, reserved
    tuning: MemoryTuning | None = None  # None: the machine's share of fragmentation on everything


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
    keeps: Keeps = Keeps()
    zero_prefetch: bool = True  # the gathers of ZeRO 3 run ahead of the passes
    tp_calls: float = 8  # tensor-parallel collectives of a layer, forward and backward
    call_s: float = 30e-6  # host time of each
    blocked_s: float = 0.0  # more, for each rank of the group, where other stages are in other nodes
    reduced_bytes: float = 0.0  # of a gradient in the messages between replicas; 0: as they are held
    accumulate_bytes: float = 0.0  # moved for a parameter and microbatch, to add its gradient to the others'
    loss_bytes: tuple[float, float] = (6.0, 12.0)  # moved for a logit of bf16, forward and backward pass
    microbatch_s: float = 0.0  # host time of a microbatch besides its launches
    source: str = ""  # of these figures


NANOTRON = Keeps(
    logits_forward=4,
    logits_backward=4,
    gradient_copy=2,
    gathers=4,
    stages_by_cost=True,
    mode_unknown=True,
    reports="first",
    counter="reserved",
    tuning=MemoryTuning(0.19 * 2**30, 1.03, 1.18, 1.3, 0.92, 0.7),
)
"""bf16 parameters; fp32 masters and a whole fp32 buffer in which gradients are accumulated; ZeRO-1 shards masters and
Adam's state. src/nanotron: optim/gradient_accumulator.py, optim/zero.py, models/base.py (`build_model`: stages),
helpers.py (`max_memory_reserved`). The factors are fitted to its 1B and 3B models (docs/predict.md, "Memory")."""

MEGATRON = Keeps(mask_bytes=2, selective="attention")

STACKS = {
    stack.name: stack
    for stack in (
        Stack("torch", keeps=Keeps(accumulates_whole=True), source="parallelism/torch_engine.py"),
        Stack("deepspeed", overlaps_dp=False, keeps=Keeps(buckets=True), source="parallelism/deepspeed/"),
        Stack(
            "megatron",
            overlaps_dp=False,
            keeps=Keeps(cpu_score_bytes=7, selective="attention"),
            source="parallelism/megatron/",
        ),
        Stack(
            "nanotron",
            overlaps_dp=False,
            overlaps_tp=0.5,
            keeps=NANOTRON,
            tp_calls=12,
            call_s=0.35e-3,
            blocked_s=0.2e-3,
            microbatch_s=1e-3,
            accumulate_bytes=14.0,
            loss_bytes=(38.0, 14.0),
            source="huggingface/nanotron 2024: layers split by computed cost, gathers again in the backward pass, "
            "metadata before each message, gradients added up in fp32 apart from the products, loss in fp32 by nine "
            "kernels; times: starting values from the 1B runs of its playbook",
        ),
        Stack(
            "megatron-2021",
            flash=False,
            overlaps_dp=False,
            accumulate_bytes=6,
            reduced_bytes=2,
            keeps=MEGATRON,
            source="arXiv 2104.04473, Megatron-LM 2.5: gradients in fp16, added up by a kernel of their own",
        ),
        Stack(
            "megatron-2022",
            flash=False,
            overlaps_dp=False,
            overlaps_tp=0.5,
            accumulate_bytes=2,
            reduced_bytes=2,
            keeps=MEGATRON,
            source="arXiv 2205.05198, Megatron-LM 3.0: products that add gradients up, all-reduces of the backward "
            "pass beside the weights' gradient",
        ),
        Stack(
            "nemo",
            kernels_forward=14,
            kernels_backward=24,
            overlaps_tp=0.8,
            overlaps_pp=True,
            accumulate_bytes=6,
            keeps=Keeps(fused_swiglu=True, selective="attention", fp8_copies=2),
            source="NVIDIA/NeMo 2.x, Megatron-Core: tp_comm_overlap, overlap_p2p_comm, gradients added up in fp32",
        ),
        Stack(
            "torchtitan",
            keeps=Keeps(accumulates_whole=True, selective="alternate", logits_backward=6, counter="reserved"),
            source="pytorch/torchtitan 2024-12",
        ),
        Stack("maxtext", compiled=True, source="AI-Hypercomputer/maxtext, google/paxml: one program compiled by XLA"),
        Stack("llama3", source="arXiv 2407.21783 section 3.3"),
    )
}


def named_stack(name: str) -> Stack:
    """Raises ValueError where there is no stack of that name."""
    if name not in STACKS:
        raise ValueError(f"no stack {name!r}: {did_you_mean(name, STACKS)}")
    return STACKS[name]
