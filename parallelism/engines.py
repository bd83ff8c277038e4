"""Which engine computes a case: the one place that knows them by name, and puts replicas around them.

What an engine says of itself is in its capabilities file (`Capabilities` below). Importing that file imports neither
torch nor the engine's package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..bench.recipe import Recipe
from ..bench.shape import ModelShape
from . import torch_capabilities
from .deepspeed import capabilities as deepspeed_capabilities
from .diloco.config import Outer
from .layout import Layout, impossible
from .megatron import capabilities as megatron_capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..bench.engine import Engine
    from .diloco.quorum import Meeting
    from .mesh import Mesh


class Capabilities(Protocol):
    """What the capabilities file of an engine has."""

    @property
    def PATCHES(self) -> str | None:
        """What of torch it replaces for the whole process, or None."""

    def available(self) -> str | None:
        """Why it cannot run in this environment, or None."""

    def refuse(self, layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
        """Why it cannot compute a layout that is not impossible, or None."""

    def engine_class(self) -> Callable[[ModelShape, Recipe, Layout, Mesh, torch.device], Engine]:
        """The engine itself, imported now."""


CAPABILITIES: dict[str, Capabilities] = {
    "torch": torch_capabilities,
    "deepspeed": deepspeed_capabilities,
    "megatron": megatron_capabilities,
}


def refuse(layout: Layout, shape: ModelShape, recipe: Recipe, replicas: int = 1) -> str | None:
    """Why this layout cannot compute this training step, or None where it can. Whatever is installed.

    `replicas`: DiLoCo replicas that share the global batch.
    """
    engine = CAPABILITIES[layout.engine]
    return impossible(layout, shape, recipe, replicas) or engine.refuse(layout, shape, recipe, replicas)


def unavailable(layout: Layout) -> str | None:
    """Why this layout's engine cannot run in this environment, or None."""
    return CAPABILITIES[layout.engine].available()


def patches(layout: Layout) -> str | None:
    """What of torch this layout's engine replaces in a process, or None."""
    return CAPABILITIES[layout.engine].PATCHES


def build_engine(
    shape: ModelShape,
    recipe: Recipe,
    layout: Layout,
    outer: Outer,
    device: torch.device,
    meeting: Meeting | None = None,
    borders: Layout | None = None,
) -> Engine:
    """The engine of this rank, filled with the start values; collective over the world.

    meeting: where the replicas exchange under a quorum; the world is then that of this rank's replica
    borders: one process takes its parameters apart as that layout cuts them (parallelism.diloco.borders)
    """
    from .mesh import build_mesh

    mesh = build_mesh(layout, 1 if meeting else outer.placed_replicas, device.type)

    def make(own: Recipe) -> Engine:
        return _build(shape, own, layout, mesh, device, borders)

    if outer.algorithm == "none":
        return make(recipe)
    from .diloco.engine import build_outer

    return build_outer(
        outer,
        recipe,
        shape.layers,
        make,
        replica_group=mesh.group("replicas"),
        replica_index=meeting.replica if meeting else mesh.at["replicas"],
        inner_group=mesh.inside,
        meeting=meeting,
    )


def _build(
    shape: ModelShape, recipe: Recipe, layout: Layout, mesh: Mesh, device: torch.device, borders: Layout | None
) -> Engine:
    if borders:
        from .diloco.borders import CutEngine

        assert layout.engine == "torch" and layout.ranks == 1
        return CutEngine(shape, recipe, layout, mesh, device, borders)
    make = CAPABILITIES[layout.engine].engine_class()
    return make(shape, recipe, layout, mesh, device)
