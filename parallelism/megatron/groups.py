"""Megatron's process groups, made from the mesh, so that a replica of DiLoCo is a world of its own.

Megatron-Core takes its groups as a ProcessGroupCollection; a few places (the vocabulary-parallel loss, the attention's
buffer) still ask the globals of megatron.core.parallel_state, which are set to the same groups and taken back at the
end. They are not made by initialize_model_parallel, which splits the whole world.
"""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from ..mesh import DIMENSIONS, Mesh, group_of, ranks_along

INSIDE = DIMENSIONS[1:]  # of a replica
# Globals of parallel_state, by the group of the collection that they hold.
GLOBALS = {
    "_TENSOR_MODEL_PARALLEL_GROUP": "tp",
    "_PIPELINE_MODEL_PARALLEL_GROUP": "pp",
    "_MODEL_PARALLEL_GROUP": "mp",
    "_DATA_PARALLEL_GROUP": "dp",
    "_DATA_PARALLEL_GROUP_WITH_CP": "dp_cp",
    "_CONTEXT_PARALLEL_GROUP": "cp",
    "_TENSOR_AND_CONTEXT_PARALLEL_GROUP": "tp_cp",
    "_TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": "tp_dp_cp",
    "_EXPERT_MODEL_PARALLEL_GROUP": "ep",
    "_EXPERT_TENSOR_PARALLEL_GROUP": "expt_tp",
    "_EXPERT_DATA_PARALLEL_GROUP": "expt_dp",
}
VIRTUAL = "_VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE"


def build_groups(mesh: Mesh, tied: bool) -> ProcessGroupCollection:
    """All of them for this rank's replica. Collective over the world. tied: the head is the embedding."""
    tp, pp = _along(mesh, "tp"), _along(mesh, "pp")
    dp, mp, alone = _along(mesh, "dp_replicate", "dp_shard"), _along(mesh, "pp", "tp"), _along(mesh)
    # An instance of the distributed optimizer: the ranks among which its state is sharded. Several are HSDP's way.
    several = mesh.layout.dp_shard > 1 and mesh.layout.dp_replicate > 1
    instance = _along(mesh, "dp_shard") if several else dp
    return ProcessGroupCollection(
        tp=tp, pp=pp, mp=mp, dp=dp, dp_cp=dp, intra_dp_cp=instance, cp=alone, tp_cp=tp,
        tp_dp_cp=_along(mesh, "dp_replicate", "dp_shard", "tp"), embd=_ends(mesh) if tied else None, pos_embd=None,
        ep=alone, expt_tp=tp, tp_ep=tp, tp_ep_pp=mp, expt_dp=dp, intra_expt_dp=instance,
        inter_dist_opt=_along(mesh, "dp_replicate") if several else None,
        intra_dist_opt=_along(mesh, "pp", "dp_shard", "tp") if several else _along(mesh, *INSIDE),
    )  # fmt: skip


def _along(mesh: Mesh, *dimensions: str) -> dist.ProcessGroup:
    used = tuple(d for d in dimensions if mesh.sizes[d] > 1)
    if not used:
        return dist.new_group([dist.get_rank()], use_local_synchronization=True)
    if len(used) == 1:
        return mesh.groups[used[0]]
    if used == tuple(d for d in INSIDE if mesh.sizes[d] > 1):
        assert mesh.inside is not None
        return mesh.inside
    return group_of(ranks_along(used, mesh.sizes), dist.get_rank(), dist.get_world_size())


def _ends(mesh: Mesh) -> dist.ProcessGroup | None:
    """First and last stage of this rank's pipeline, which both hold the tied embedding; None between them."""
    if mesh.sizes["pp"] <= 2:
        return _along(mesh, "pp")
    mine = None
    for line in ranks_along(("pp",), mesh.sizes):  # collective: all ranks make all groups, in one order
        ends = (line[0], line[-1])
        group = dist.new_group(ends)
        mine = group if dist.get_rank() in ends else mine
    return mine


def announce(groups: ProcessGroupCollection, virtual_stages: int) -> None:
    """Set the globals of parallel_state.

    Raises
    ------
    RuntimeError: this Megatron-Core lacks one of them
    """
    for name in (*GLOBALS, VIRTUAL, "_GLOBAL_MEMORY_BUFFER"):
        if not hasattr(parallel_state, name):
            raise RuntimeError(f"megatron.core.parallel_state.{name} is gone: this Megatron-Core is not supported")
    for name, group in GLOBALS.items():
        setattr(parallel_state, name, getattr(groups, group))
    setattr(parallel_state, VIRTUAL, virtual_stages if virtual_stages > 1 else None)
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:
        parallel_state._set_global_memory_buffer()


def forget() -> None:
    parallel_state.destroy_model_parallel()
