"""Data parallelism: DDP, FSDP2 and HSDP around a model whose parameters may already be tensor-parallel.

DDP (arXiv 2006.15704) keeps whole parameters and all-reduces gradients; FSDP2 (arXiv 2304.11277, per-parameter
sharding) all-gathers each block's parameters when it is needed and reduce-scatters its gradients; HSDP adds an outer
replicated dimension. reshard_after_forward = False keeps the gathered parameters until backward (ZeRO-2 behaviour).
bf16: FSDP gathers in bf16 and reduces in fp32; the model itself casts, so DDP's gradients are fp32.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from ..bench.model import Decoder
from .layout import Layout
from .mesh import Mesh

if TYPE_CHECKING:  # both cost a second of import, which plain data parallelism need not pay
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, of which this rank holds a part."""
    return hasattr(tensor, "placements")


def _is_fsdp(module: nn.Module) -> TypeGuard[FSDPModule]:
    return hasattr(module, "reshard")


def replicate(model: Decoder, layout: Layout, mesh: Mesh) -> nn.Module:
    """The model, filled, wrapped in DDP where the layout is plain data parallel."""
    if layout.dp_replicate == 1 or layout.sharded:
        return model
    from .ddp import replicated

    return replicated(model, mesh.group("dp_replicate"), layout.compile)


def shard(model: Decoder, layout: Layout, mesh: Mesh, precision: str) -> None:
    """Shard the model's (meta) parameters by FSDP2, in place, where the layout says so."""
    if not layout.sharded:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    names = ("dp_replicate", "fsdp") if layout.dp_replicate > 1 else ("fsdp",)
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if precision == "bf16"
        else MixedPrecisionPolicy()
    )
    whole = mesh.parameters
    assert whole is not None
    data = whole if whole.mesh_dim_names == names else whole[names]
    for block in model.own_blocks():
        fully_shard(block, mesh=data, mp_policy=policy, reshard_after_forward=layout.reshard_after_forward)
    # The root's own parameters (embedding, head) are needed first and last: regathering them would only cost.
    fully_shard(model, mesh=data, mp_policy=policy, reshard_after_forward=False)


def synchronise_gradients(model: nn.Module, now: bool) -> contextlib.AbstractContextManager:
    """Around one microbatch: whether its backward pass also reduces the gradients over the ranks."""
    if _is_fsdp(model):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, nn.parallel.DistributedDataParallel) and not now:
        return model.no_sync()
    return contextlib.nullcontext()


def forget_gathered(model: nn.Module) -> None:
    """After a forward pass without a backward pass: FSDP would go on with the parameters it has gathered, even when
    the shards are changed meanwhile (DiLoCo puts the outer parameters in for an evaluation)."""
    for module in model.modules():
        if _is_fsdp(module):
            module.reshard()


def part_and_offset(parameter: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The local tensor and where it begins in the whole parameter."""
    if not is_distributed(parameter):
        return parameter.detach(), (0,) * parameter.ndim
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return parameter.to_local().detach(), offset
