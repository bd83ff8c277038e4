"""Which layouts Megatron-Core can compute here, and why not the others. Needs neither it nor torch.

Its distributed optimizer (optimizer state sharded over data parallel ranks) is dp_shard with zero_stage = 1.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..checks import Check, first_refusal
from ..installed import missing
from ..layout import Layout

if TYPE_CHECKING:
    from .engine import MegatronEngine

OLDEST = (0, 16)  # the first whose process groups are all handed in (ProcessGroupCollection)
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("1F1B", "Interleaved1F1B")
PATCHES = "functions of torch.cuda (on CPU)"  # what it replaces for the whole process


def available() -> str | None:
    """Why the engine cannot run in this environment, or None."""
    if reason := missing("megatron.core", "megatron"):
        return reason
    try:
        installed = version("megatron-core")
    except PackageNotFoundError:  # a checkout on the path
        return None
    oldest = ".".join(map(str, OLDEST))
    old = tuple(int(part) for part in installed.split(".")[:2]) < OLDEST
    return f"megatron-core {installed} is too old: pip install 'megatron-core>={oldest}'" if old else None


def engine_class() -> type[MegatronEngine]:
    """The engine itself, imported now."""
    from .engine import MegatronEngine

    return MegatronEngine


def refuse(layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
    """Why this engine cannot compute a layout that is not impossible, or None where it can."""
    checks = [
        *_optimizer_checks(layout, recipe),
        (not recipe.z_loss, "megatron's loss has no z-loss: set recipe.z_loss = 0"),
        (
            layout.dp_shard == 1 or layout.zero_stage == 1,
            f"zero_stage {layout.zero_stage}: megatron's distributed optimizer shards optimizer state: "
            "set zero_stage = 1",
        ),
        (layout.hpz == 1, "hpz is deepspeed's"),
        (not layout.offloads, "offload_optimizer and offload_parameters are deepspeed's"),
        (layout.reshard_after_forward, "reshard_after_forward is torch's: leave it out"),
        (layout.loss_parallel, "megatron's loss is always split over the vocabulary: leave loss_parallel out"),
        (not layout.compile, "compile is torch's: megatron brings fused kernels of its own"),
        (
            layout.cp == 1,
            "megatron's context parallel needs Transformer Engine's attention, which this engine does not "
            "drive: use cp with torch",
        ),
    ]
    return first_refusal([*checks, *_pipeline_checks(layout)] if layout.pp > 1 else checks)


def _optimizer_checks(layout: Layout, recipe: Recipe) -> list[Check]:
    return [
        (
            recipe.optimizer in OPTIMIZERS,
            f"optimizer {recipe.optimizer} is not megatron's here, which has {', '.join(OPTIMIZERS)}",
        ),
        (
            recipe.optimizer != "sgd" or not recipe.weight_decay,
            "megatron's SGD adds weight decay to the gradient, this recipe takes it off the weights: "
            "set recipe.weight_decay = 0",
        ),
        (
            recipe.optimizer != "sgd" or layout.dp_shard == 1,
            "megatron's distributed optimizer knows Adam only: with sgd use dp_replicate",
        ),
    ]


def _pipeline_checks(layout: Layout) -> list[Check]:
    schedule, looped = layout.pp_schedule, layout.virtual_stages > 1
    return [
        (schedule in SCHEDULES, f"{schedule} is not megatron's, which has {', '.join(SCHEDULES)}"),
        (
            not looped or layout.microbatches % layout.pp == 0,
            f"{schedule} requires microbatches a multiple of pp = {layout.pp}, found {layout.microbatches}",
        ),
    ]
