"""The layout: how the work of one training step is split over ranks, and which splits are possible.

A layout never changes what is computed (but for DiLoCo's outer step, which has its own part: `outer`).
What no engine could do is stated here (`impossible`); what one engine cannot do, in its own capabilities file. Neither
needs torch: a study is checked and pruned before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

from ..bench.mistakes import Finder
from ..bench.recipe import Recipe
from ..bench.shape import ModelShape

ENGINES = ("torch", "deepspeed", "megatron")
SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
LOOPED = SCHEDULES[2:]  # several stages a rank
V_SHAPED = ("ZBVZeroBubble", "DualPipeV")  # exactly two stages a rank, the second in reverse order
ZERO_BUBBLE = ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
CP_METHODS = ("allgather", "ulysses")
RECOMPUTE = ("none", "selective", "full")
ZERO_STAGES = (1, 2, 3)
OFFLOAD = ("none", "cpu", "nvme")


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism; their product is the number of ranks of one replica.

    Mesh order, outermost (slowest link) first: replicas, pp, dp_replicate, dp_shard, cp, tp.
    """

    engine: str = "torch"
    dp_replicate: int = 1  # copies: DDP, ZeRO 0; with dp_shard: HSDP
    dp_shard: int = 1  # ways the state is sharded: FSDP2, ZeRO, Megatron's distributed optimizer
    zero_stage: int = 3  # what dp_shard shards: 1 optimizer state, 2 gradients too, 3 parameters too; torch: 3
    reshard_after_forward: bool = True  # torch only. True: ZeRO-3; False: ZeRO-2 behaviour
    hpz: int = 1  # deepspeed only: ranks that share a second copy of the parameters (ZeRO++); 1: none
    offload_optimizer: str = "none"  # deepspeed only: where optimizer state and update are
    offload_parameters: str = "none"  # deepspeed only, zero_stage 3: where parameters wait
    tp: int = 1  # tensor parallel: heads, MLP and vocabulary split
    sp: bool = True  # sequence parallel norms; means nothing at tp = 1
    loss_parallel: bool = True  # cross-entropy on logits sharded over the vocabulary
    pp: int = 1  # pipeline parallel: layers split
    pp_schedule: str = "1F1B"
    virtual_stages: int = 1  # stages a rank; looped schedules require 2 or more
    microbatches: int = 1  # of the local batch: gradient accumulation, or what flows through the pipeline
    cp: int = 1  # context parallel: sequence split
    cp_method: str = "allgather"  # of keys and values; ulysses: heads for sequence
    ep: int = 1  # expert parallel
    recompute: str = "none"  # of activations in the backward pass
    compile: bool = False  # torch.compile, block by block

    def __post_init__(self) -> None:
        find = Finder("layout")
        for name, allowed in (
            ("engine", ENGINES),
            ("pp_schedule", SCHEDULES),
            ("cp_method", CP_METHODS),
            ("recompute", RECOMPUTE),
            ("zero_stage", ZERO_STAGES),
            ("offload_optimizer", OFFLOAD),
            ("offload_parameters", OFFLOAD),
        ):
            if getattr(self, name) not in allowed:
                hint = " (0 is dp_replicate)" if name == "zero_stage" else ""
                choices = ", ".join(map(str, allowed))
                find.add(name, f"{name} = {getattr(self, name)!r}: allowed are {choices}{hint}")
        for name in ("dp_replicate", "dp_shard", "hpz", "tp", "pp", "virtual_stages", "microbatches", "cp", "ep"):
            if getattr(self, name) < 1:
                find.add(name, f"{name} = {getattr(self, name)}: must be at least 1")
        find.done()

    @property
    def ranks(self) -> int:
        """Ranks of one replica."""
        return prod((self.pp, self.dp_replicate, self.dp_shard, self.cp, self.tp))

    @property
    def dp(self) -> int:
        """Ways the batch is split."""
        return self.dp_replicate * self.dp_shard

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 holds the parameters. dp_replicate alone is DDP; beside tp, pp or cp it is HSDP's outer
        dimension, whose shard dimension may be one."""
        return self.dp_shard * self.cp > 1 or (self.dp_replicate > 1 and self.tp * self.pp > 1)

    @property
    def cuts(self) -> Layout:
        """The layout of the fewest ranks that cuts every parameter as this one does: whole parameters are no cut."""
        return Layout(engine=self.engine, dp_shard=self.dp_shard * self.cp if self.sharded else 1, tp=self.tp)

    @property
    def offloads(self) -> bool:
        return (self.offload_optimizer, self.offload_parameters) != ("none", "none")

    @property
    def stages(self) -> int:
        return self.pp * self.virtual_stages

    def name(self) -> str:
        """Short and stable, for tables: `dp2`, `fsdp2.tp2`, `pp2-1F1B.m4`, `deepspeed.zero2-4`; `single` for one
        rank."""
        engine = [] if self.engine == "torch" else [self.engine]
        return ".".join([*engine, *(self._degrees() or ["single"]), *self._settings()])

    def _degrees(self) -> list[str]:
        """Of its name: the degrees above one."""
        shard = "fsdp" if self.engine == "torch" else f"zero{self.zero_stage}-"
        suffixes = self._suffixes()
        parts = []
        for key, label in (("dp_replicate", "dp"), ("dp_shard", shard), ("cp", "cp"), ("tp", "tp"), ("ep", "ep")):
            degree = getattr(self, key)
            if degree > 1 or (key == "dp_shard" and self.offloads):
                parts.append(f"{label}{degree}{suffixes.get(key, '')}")
        if self.pp > 1:
            stages = f"v{self.virtual_stages}" if self.virtual_stages > 1 else ""
            parts.append(f"pp{self.pp}{stages}-{self.pp_schedule}")
        return parts

    def _suffixes(self) -> dict[str, str]:
        """Of the degrees in its name: settings of each that are not at their default."""
        return {
            "dp_shard": ("" if self.reshard_after_forward else "z2") + (f"h{self.hpz}" if self.hpz > 1 else ""),
            "cp": "" if self.cp_method == "allgather" else "u",
            "tp": ("" if self.sp else "nosp") + ("" if self.loss_parallel else "nolp"),
        }

    def _settings(self) -> list[str]:
        """Of its name: settings that are not at their default."""
        parts = [f"m{self.microbatches}"] if self.microbatches > 1 else []
        for label, place in (("opt", self.offload_optimizer), ("par", self.offload_parameters)):
            if place != "none":
                parts.append(f"{label}-{place}")
        if self.recompute != "none":
            parts.append(f"rc-{self.recompute}")
        if self.compile:
            parts.append("compile")
        return parts


def stage_layers(layers: int, stages: int) -> list[range]:
    """Blocks of each pipeline stage: as even as can be, the first stages one more."""
    base, more = divmod(layers, stages)
    ends = [base * (stage + 1) + min(stage + 1, more) for stage in range(stages)]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def stages_of_rank(rank: int, layout: Layout) -> list[int]:
    """Stages that a rank of the pipeline holds: every pp-th, or for V-shaped schedules one from each end."""
    if layout.pp > 1 and layout.pp_schedule in V_SHAPED:
        return [rank, layout.stages - 1 - rank]
    return list(range(rank, layout.stages, layout.pp))


def canonical(layout: Layout) -> Layout:
    """The same split with every setting that means nothing in it at its default, so that it is one case, once."""
    meaningless = {
        "sp": layout.tp == 1,
        "loss_parallel": layout.tp == 1,
        "pp_schedule": layout.pp == 1,
        "cp_method": layout.cp == 1,
        "reshard_after_forward": not layout.sharded,
        "zero_stage": layout.dp_shard == 1 and not layout.offloads,
        "hpz": layout.dp_shard == 1,
    }
    defaults = {field.name: field.default for field in fields(Layout)}
    reset: dict[str, Any] = {name: defaults[name] for name, is_idle in meaningless.items() if is_idle}
    return replace(layout, **reset)


def impossible(layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
    """Why no engine can compute this training step under this layout, or None.

    `replicas`: DiLoCo replicas that share the global batch.
    """
    batch, dp, micro = recipe.global_batch, layout.dp * replicas, layout.microbatches
    looped = layout.pp_schedule in LOOPED
    checks = [
        (
            batch % (dp * micro) == 0,
            f"global_batch {batch} is not a multiple of replicas x dp_replicate x dp_shard x "
            f"microbatches = {dp * micro}",
        ),
        (shape.heads % layout.tp == 0, f"heads {shape.heads} is not a multiple of tp {layout.tp}"),
        (shape.kv_heads % layout.tp == 0, f"kv_heads {shape.kv_heads} is not a multiple of tp {layout.tp}"),
        (shape.ffn % layout.tp == 0, f"ffn {shape.ffn} is not a multiple of tp {layout.tp}"),
        (layout.ep == 1, "ep > 1 needs a mixture of experts, which this model is not"),
        (
            shape.layers >= layout.stages,
            f"layers {shape.layers} are fewer than the {layout.stages} pipeline stages (pp x virtual_stages)",
        ),
        (layout.tp == 1 or shape.vocab % layout.tp == 0, f"vocab {shape.vocab} is not a multiple of tp {layout.tp}"),
        (
            layout.tp == 1 or not layout.sp or shape.seq_len % (layout.tp * layout.cp) == 0,
            f"seq_len {shape.seq_len} is not a multiple of tp x cp = {layout.tp * layout.cp} (sequence parallel)",
        ),
        (
            layout.cp == 1 or shape.seq_len % (2 * layout.cp) == 0,
            f"seq_len {shape.seq_len} is not a multiple of 2 cp = {2 * layout.cp}",
        ),
        (layout.pp > 1 or layout.virtual_stages == 1, f"virtual_stages {layout.virtual_stages} needs pp > 1"),
        (
            layout.pp == 1 or looped == (layout.virtual_stages > 1),
            f"{layout.pp_schedule} requires virtual_stages {'of 2 or more' if looped else '= 1'}, "
            f"found {layout.virtual_stages}",
        ),
    ]
    return next((reason for ok, reason in checks if not ok), None)
