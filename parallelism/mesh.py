"""The mesh: the place of each rank, and which ranks communicate.

Order of the dimensions, outermost (slowest link) first: replicas, pp, dp_replicate, dp_shard, cp, tp. FSDP shards
parameters over dp_shard x cp together: to a parameter, ranks that hold other parts of a sequence are other data.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch.distributed as dist

from ..results.schema.columns import MESH_DIMS
from .layout import Layout

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DIMENSIONS = MESH_DIMS  # one list with the columns: comm_bytes_dim_<name>


@dataclass(frozen=True)
class Mesh:
    """This rank's place. `groups` holds a process group for each dimension of size > 1 and, where there are several
    DiLoCo replicas, `inside`: the ranks of this rank's replica (None, the whole world, otherwise)."""

    layout: Layout
    sizes: dict[str, int]
    at: dict[str, int]
    groups: dict[str, dist.ProcessGroup]
    parameters: DeviceMesh | None  # of FSDP and TP; None where parameters are plain tensors

    def group(self, dimension: str) -> dist.ProcessGroup | None:
        return self.groups.get(dimension)

    @property
    def inside(self) -> dist.ProcessGroup | None:
        """The ranks of this rank's replica, the whole world where there is one; None for one rank."""
        return (self.groups.get("inside") or dist.group.WORLD) if self.layout.ranks > 1 else None

    @property
    def holds_first_of_stage(self) -> bool:
        """Whether this is the first rank of its pipeline stage in its replica, which reports what all of them hold."""
        return not any(place for name, place in self.at.items() if name not in ("replicas", "pp"))

    def rows(self, replica_batch: int) -> tuple[int, int]:
        """The rows of its replica's batch that this rank reads: [first, last)."""
        each = replica_batch // self.layout.dp
        mine = self.at["dp_replicate"] * self.layout.dp_shard + self.at["dp_shard"]
        return mine * each, (mine + 1) * each

    def ranks(self) -> dict[str, tuple[int, ...]]:
        """By dimension, the ranks this rank talks to along it. FSDP's traffic counts as dp_shard's, or cp's alone."""
        talks = {name: tuple(dist.get_process_group_ranks(group)) for name, group in self.groups.items()}
        if self.layout.dp_shard > 1 and self.layout.cp > 1:
            assert self.parameters is not None
            talks["dp_shard"] = tuple(dist.get_process_group_ranks(self.parameters.get_group("fsdp")))
        return talks


def coordinates(rank: int, sizes: dict[str, int]) -> dict[str, int]:
    """Place of a rank by dimension; the last dimension varies fastest."""
    at = {}
    for dimension in reversed(DIMENSIONS):
        rank, at[dimension] = divmod(rank, sizes[dimension])
    return {dimension: at[dimension] for dimension in DIMENSIONS}


def ranks_along(dimensions: tuple[str, ...], sizes: dict[str, int]) -> list[list[int]]:
    """All sets of ranks that differ only in `dimensions`, each in rank order."""
    sets: dict[tuple, list[int]] = {}
    for rank, place in enumerate(itertools.product(*(range(sizes[d]) for d in DIMENSIONS))):
        fixed = tuple(i for d, i in zip(DIMENSIONS, place, strict=True) if d not in dimensions)
        sets.setdefault(fixed, []).append(rank)
    return list(sets.values())


def build_mesh(layout: Layout, replicas: int, device_type: str) -> Mesh:
    """Make the process groups; every rank of the world calls it. World size: replicas x layout.ranks."""
    sizes = {d: replicas if d == "replicas" else getattr(layout, d) for d in DIMENSIONS}
    world = dist.get_world_size() if dist.is_initialized() else 1
    assert prod(sizes.values()) == world, (sizes, world)
    rank = dist.get_rank() if dist.is_initialized() else 0
    wanted: dict[str, tuple[str, ...]] = {d: (d,) for d in DIMENSIONS if sizes[d] > 1}
    if replicas > 1:
        wanted["inside"] = DIMENSIONS[1:]
    groups = {name: group_of(ranks_along(dims, sizes), rank, world) for name, dims in wanted.items()}
    return Mesh(layout, sizes, coordinates(rank, sizes), groups, _parameter_mesh(layout, replicas, device_type))


def group_of(sets: list[list[int]], rank: int, world: int) -> dist.ProcessGroup:
    """The group of this rank's set; collective. sets: as ranks_along gives them."""
    if len(sets[0]) == world:
        whole = dist.group.WORLD
        assert whole is not None
        return whole
    made = [(ranks, dist.new_group(ranks)) for ranks in sets]  # collective: all ranks make all groups, in one order
    return next(group for ranks, group in made if rank in ranks)


def _parameter_dimensions(layout: Layout) -> list[str]:
    """Along which FSDP2 and tensor parallelism hold parameters."""
    names = []
    if layout.sharded:
        names = ["dp_replicate", "fsdp"] if layout.dp_replicate > 1 else ["fsdp"]
    return [*names, "tp"] if layout.tp > 1 else names


def _parameter_mesh(layout: Layout, replicas: int, device_type: str) -> DeviceMesh | None:
    """With dimensions out of (dp_replicate, fsdp, tp), this rank's slice of the whole."""
    names = _parameter_dimensions(layout)
    if layout.engine != "torch" or not names:
        return None
    from torch.distributed.device_mesh import init_device_mesh  # costs a second of import that DDP need not pay

    whole = {
        "replicas": replicas,
        "pp": layout.pp,
        "dp_replicate": layout.dp_replicate,
        "fsdp": layout.dp_shard * layout.cp,
        "tp": layout.tp,
    }
    kept = {name: size for name, size in whole.items() if size > 1 or name in names}
    mesh = init_device_mesh(device_type, tuple(kept.values()), mesh_dim_names=tuple(kept))
    return mesh[tuple(names)] if len(kept) > len(names) else mesh
