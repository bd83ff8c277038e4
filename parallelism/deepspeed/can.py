"""Which layouts DeepSpeed can compute here, and why not the others. Needs neither it nor torch."""

from __future__ import annotations

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ..installed import missing
from ..layout import Layout


def available() -> str | None:
    """Why the engine cannot run in this environment, or None."""
    return missing("deepspeed", "deepspeed")


def refuse(layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
    """Why this engine cannot compute a layout that is not impossible, or None where it can."""
    return "layout.engine = 'deepspeed': not built yet"
