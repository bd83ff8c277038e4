"""The model in the form that DeepSpeed takes: whole (cut by AutoTP or ZeRO 3), or as the stages of its pipeline."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...bench.model import Decoder, Linear
from ...bench.shape import ModelShape
from ..layout import Layout, stage_layers


class ReplicaGroups:
    """What DeepSpeed calls an mpu: it works inside this rank's DiLoCo replica, all of it data parallel."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.group

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self.group)

    def get_data_parallel_rank(self) -> int:
        return dist.get_rank(self.group)

    def get_data_parallel_world_size(self) -> int:
        return dist.get_world_size(self.group)

    def get_model_parallel_group(self) -> None:
        return None

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1


def whole_model(
    shape: ModelShape, precision: str, layout: Layout, config: dict, stage: int, group: dist.ProcessGroup | None
) -> Decoder:
    """With storage but without values; at ZeRO 3 already in pieces, so that the whole is never on one rank."""
    import deepspeed

    cut = stage == 3 and layout.tp == 1
    with deepspeed.zero.Init(data_parallel_group=group, config_dict_or_path=config, enabled=cut):
        model = Decoder(shape, precision)
    if stage == 3:  # it has no forward of its own that would fetch it
        assert model.embedding is not None
        deepspeed.zero.register_external_parameter(model, model.embedding.weight)
    if layout.tp > 1:
        _use_torch_linears(model)
    return model


def _use_torch_linears(model: nn.Module) -> None:
    """AutoTP cuts torch.nn.Linear alone."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Linear):
                linear = nn.Linear(child.weight.shape[1], child.weight.shape[0], bias=False, device="meta")
                linear.weight = child.weight
                setattr(module, name, linear)


def pipeline_module(
    shape: ModelShape, precision: str, layout: Layout, loss: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> nn.Module:
    """One layer for each stage, cut as every engine cuts them."""
    from deepspeed.pipe import LayerSpec, PipelineModule

    last = layout.stages - 1
    stages = [
        LayerSpec(Decoder, shape, precision, layers=layers, first=stage == 0, last=stage == last)
        for stage, layers in enumerate(stage_layers(shape.layers, layout.stages))
    ]
    return PipelineModule(stages, num_stages=layout.pp, loss_fn=loss, partition_method="uniform").to(device)


def recompute_blocks(model: Decoder) -> None:
    """Block by block. Reentrant: the other kind would free what ZeRO 3 has gathered for the backward pass."""
    from deepspeed import checkpointing

    for block in model.own_blocks():
        block.run = checkpointing.checkpoint
