"""The optimizer DeepSpeed is handed: AdamW or SGD of torch, or one of its own AdamWs; decay is decoupled in all.

torch's AdamW compiles nothing. DeepSpeedCPUAdam (vectorised, for offloaded state) and FusedAdam (one kernel a step on
a GPU) are compiled at their first use, some minutes, and kept by torch in TORCH_EXTENSIONS_DIR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...bench.recipe import Recipe


def make_optimizer(
    named: Iterable[tuple[str, nn.Parameter, int]],
    recipe: Recipe,
    device: torch.device,
    before_update: Callable[[list[Tensor]], None] | None,
) -> torch.optim.Optimizer:
    """named: (name, parameter, dimensions of the whole parameter). before_update: is given the gradients (ZeRO 0)."""
    named = list(named)
    groups = [
        {
            "params": [p for _, p, dimensions in named if (dimensions > 1) == decays],
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    if recipe.optimizer == "sgd":
        optimizer = _sgd(groups, recipe)
    else:
        optimizer = _adamw(recipe, device)(
            groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, weight_decay=0.0
        )
    if before_update:
        optimizer.register_step_pre_hook(lambda own, args, kwargs: before_update(_gradients(own)))
    return optimizer


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]


def _adamw(recipe: Recipe, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    if recipe.optimizer == "adamw":
        return lambda *args, **more: torch.optim.AdamW(*args, fused=True, **more)
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if recipe.optimizer == "deepspeed-cpu-adam":
        return DeepSpeedCPUAdam  # AdamW by default
    if device.type == "cpu":
        raise ValueError("recipe.optimizer = 'deepspeed-fused-adam' is a CUDA kernel: this run is on CPU")
    return FusedAdam


def _sgd(groups: list[dict], recipe: Recipe) -> torch.optim.Optimizer:
    """torch's SGD would add the decay to the gradient: here it is taken off the weights, as AdamW does (SGDW)."""
    groups = [{"params": group["params"], "decay": group["weight_decay"]} for group in groups]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.beta1)

    @torch.no_grad()
    def decay(own: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        for group in own.param_groups:
            if group["decay"] and group["params"]:  # ZeRO 3 steps one group at a time
                torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decay"])

    optimizer.register_step_pre_hook(decay)
    return optimizer
