"""Which layouts the torch engine can compute, and why not the others. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bench.recipe import Recipe
from ..bench.shape import ModelShape
from .checks import Check, first_refusal
from .layout import LOOPED, V_SHAPED, ZERO_BUBBLE, Layout

if TYPE_CHECKING:
    from .torch_engine import TorchEngine

OPTIMIZERS = ("adamw", "sgd", "muon")
PATCHES = None  # what it replaces for the whole process


def available() -> str | None:
    """torch is what scalade itself needs."""
    return None


def engine_class() -> type[TorchEngine]:
    """The engine itself, imported now."""
    from .torch_engine import TorchEngine

    return TorchEngine


def refuse(layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
    """Why this engine cannot compute a layout that is not impossible, or None where it can."""
    checks = [
        (
            recipe.optimizer in OPTIMIZERS,
            f"optimizer {recipe.optimizer} is not torch's, which has {', '.join(OPTIMIZERS)}",
        ),
        (
            recipe.optimizer != "muon" or layout.dp_shard * layout.cp * layout.tp == 1,
            "muon orthogonalises whole matrices, and dp_shard, cp and tp > 1 cut them: use pp or dp_replicate",
        ),
        (
            not (layout.compile and layout.tp > 1),
            "torch.compile mixes up the parts of tensor-parallel parameters: set compile = false where tp > 1",
        ),
        (
            layout.zero_stage == 3,
            f"zero_stage {layout.zero_stage}: torch's FSDP2 always shards parameters; "
            "reshard_after_forward = false communicates as ZeRO-2",
        ),
        (layout.hpz == 1, "hpz is deepspeed's: with torch use dp_replicate x dp_shard (HSDP)"),
        (not layout.offloads, "offload_optimizer and offload_parameters are deepspeed's"),
        (
            layout.cp == 1 or layout.cp_method != "ulysses" or shape.kv_heads % (layout.cp * layout.tp) == 0,
            f"kv_heads {shape.kv_heads} is not a multiple of cp x tp = {layout.cp * layout.tp} (ulysses)",
        ),
    ]
    if layout.pp > 1:
        checks += _pipeline_checks(layout, shape)
    return first_refusal(checks)


def _pipeline_checks(layout: Layout, shape: ModelShape) -> list[Check]:
    schedule, micro, pp = layout.pp_schedule, layout.microbatches, layout.pp
    checks = [
        (not shape.tied, "a tied head cannot be split over pipeline stages: set model.tied = false"),
        (
            schedule not in V_SHAPED or layout.virtual_stages == 2,
            f"{schedule} requires virtual_stages = 2, found {layout.virtual_stages}",
        ),
        (schedule == "GPipe" or micro >= pp, f"{schedule} requires microbatches >= pp = {pp}, found {micro}"),
        (
            schedule != "DualPipeV" or micro >= 2 * pp,
            f"DualPipeV requires microbatches >= 2 pp = {2 * pp}, found {micro}",
        ),
        (
            schedule not in LOOPED or schedule in V_SHAPED or micro % pp == 0,
            f"{schedule} requires microbatches a multiple of pp = {pp}, found {micro}",
        ),
    ]
    return checks + _zero_bubble_checks(layout) if schedule in ZERO_BUBBLE else checks


def _zero_bubble_checks(layout: Layout) -> list[Check]:
    schedule = layout.pp_schedule
    return [
        # Measured: the losses drift by 0.02 to 0.2 with no error (docs/experiments.md).
        (
            not (layout.sharded and layout.reshard_after_forward),
            f"{schedule} with FSDP2 computes wrong gradients under reshard_after_forward: set it to false",
        ),
        (
            layout.recompute == "none",
            f"{schedule} splits the backward pass and cannot recompute activations: set recompute = 'none'",
        ),
        (not layout.compile, f"{schedule} splits the backward pass: set compile = false"),
    ]
