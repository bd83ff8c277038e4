"""Which layouts DeepSpeed can compute here, and why not the others. Needs neither it nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..checks import Check, first_refusal
from ..installed import missing
from ..layout import Layout
from .config import stage_of

if TYPE_CHECKING:
    from .engine import DeepSpeedEngine

OPTIMIZERS = ("adamw", "sgd", "deepspeed-cpu-adam", "deepspeed-fused-adam")
PATCHES = "torch.nn.functional.linear (ZeRO stage 3)"  # what it replaces for the whole process


def available() -> str | None:
    """Why the engine cannot run in this environment, or None."""
    return missing("deepspeed", "deepspeed")


def engine_class() -> type[DeepSpeedEngine]:
    """The engine itself, imported now."""
    from .engine import DeepSpeedEngine

    return DeepSpeedEngine


def refuse(layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
    """Why this engine cannot compute a layout that is not impossible, or None where it can."""
    checks = [*_own_checks(layout, recipe), *_hpz_and_offload_checks(layout)]
    if replicas > 1:
        checks.append(_replica_check(layout))
    checks += _adam_checks(layout, recipe)
    if layout.tp > 1:
        checks += _tensor_checks(layout, recipe)
    if layout.pp > 1:
        checks += _pipeline_checks(layout, shape)
    return first_refusal(checks)


def _own_checks(layout: Layout, recipe: Recipe) -> list[Check]:
    """What this engine has at all."""
    return [
        (
            recipe.optimizer in OPTIMIZERS,
            f"optimizer {recipe.optimizer} is not deepspeed's, which has {', '.join(OPTIMIZERS)}",
        ),
        (layout.cp == 1, "deepspeed's engine here has no context parallelism: cp requires layout.engine = 'torch'"),
        (not layout.compile, "torch.compile is not tried with deepspeed: set compile = false"),
        (layout.recompute != "selective", "deepspeed recomputes whole blocks: set recompute = 'full' or 'none'"),
        (layout.reshard_after_forward, "reshard_after_forward is torch's: deepspeed requires zero_stage"),
        (
            layout.dp_replicate == 1 or layout.dp_shard == 1,
            "deepspeed shards over all data-parallel ranks: use dp_shard alone; with zero_stage = 3, "
            "hpz keeps a second "
            "copy of the parameters near",
        ),
    ]


def _hpz_and_offload_checks(layout: Layout) -> list[Check]:
    stage, tp = stage_of(layout), layout.tp > 1
    return [
        (
            layout.dp_replicate == 1 or not layout.offloads,
            "deepspeed offloads what ZeRO shards: use dp_shard in place of dp_replicate",
        ),
        (
            layout.hpz == 1 or stage == 3,
            f"hpz is a second copy of sharded parameters: it requires zero_stage = 3, found {layout.zero_stage}",
        ),
        (layout.dp_shard % layout.hpz == 0, f"hpz {layout.hpz} does not divide dp_shard {layout.dp_shard}"),
        (
            layout.hpz == 1 or not (tp or layout.offload_parameters != "none"),
            "hpz is not tried with tp or offload_parameters",
        ),
        (
            layout.offload_parameters == "none" or stage == 3,
            f"offload_parameters requires zero_stage = 3, found {layout.zero_stage}",
        ),
        (
            layout.offload_optimizer != "nvme" or stage == 3,
            f"offload_optimizer = 'nvme' requires zero_stage = 3, found {layout.zero_stage}",
        ),
        (not (layout.offloads and tp), "offloading is not tried with tp"),
    ]


def _replica_check(layout: Layout) -> Check:
    return (
        layout.tp == layout.pp == layout.hpz == 1 and not layout.offloads,
        "with deepspeed, DiLoCo's replicas take dp_replicate or dp_shard inside: not tp, pp, hpz or offloading",
    )


def _adam_checks(layout: Layout, recipe: Recipe) -> list[Check]:
    """DeepSpeed's own Adams update in one place each."""
    return [
        (
            recipe.optimizer != "deepspeed-cpu-adam" or layout.offload_optimizer != "none",
            "deepspeed-cpu-adam updates what is on the host: it requires offload_optimizer = 'cpu' or 'nvme'",
        ),
        (
            recipe.optimizer != "deepspeed-fused-adam" or layout.offload_optimizer == "none",
            "deepspeed-fused-adam updates what is on the GPU: it requires offload_optimizer = 'none'",
        ),
    ]


def _tensor_checks(layout: Layout, recipe: Recipe) -> list[Check]:
    return [
        (not layout.sp, "deepspeed's AutoTP has no sequence-parallel norms: set sp = false where tp > 1"),
        (not layout.loss_parallel, "deepspeed's AutoTP keeps the head whole: set loss_parallel = false where tp > 1"),
        (layout.pp == 1, "deepspeed's AutoTP does not go with its pipeline: tp or pp, not both"),
        # AutoTP's own layers multiply in the parameters' type.
        (
            recipe.precision == "fp32" or stage_of(layout) > 0,
            "deepspeed's AutoTP does not cast its fp32 matrices: bf16 with tp requires dp_shard > 1",
        ),
    ]


def _pipeline_checks(layout: Layout, shape: ModelShape) -> list[Check]:
    stage = stage_of(layout)
    return [
        (layout.pp_schedule == "1F1B", f"deepspeed's pipeline is 1F1B, found {layout.pp_schedule}"),
        (stage < 2, f"deepspeed's pipeline goes with ZeRO 0 and 1: set zero_stage = 1, found {stage}"),
        (not layout.offloads, "offloading is not tried with deepspeed's pipeline"),
        (not shape.tied, "a tied head cannot be split over pipeline stages: set model.tied = false"),
    ]
