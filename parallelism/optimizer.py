"""The update of the parameter parts this rank holds: gradient norm, clipping, AdamW, SGD or Muon.

All of it works on local tensors, whatever layout cut them, so one code serves every layout. The global gradient norm
is sum over ranks and parts of |g|^2 / (ranks that hold the same part): one all-reduce of one number.

The updates are torch.optim's functions, not its classes: those import torch.compile's front end, some seconds of every
rank's start.

Muon (Jordan 2024; arXiv 2502.16982, section 2): a matrix moves along its momentum with all singular values made about
one by five Newton-Schulz steps in bf16, so it needs the whole matrix (parallelism.layout refuses to cut it). Scaled by
0.2 sqrt(max(rows, columns)), the size of AdamW's update: learning rate and weight decay are those of AdamW, which
takes embedding, head and norms. As DiLoCo's inner optimizer it is MuLoCo (arXiv 2505.23725).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from ..bench.engine import LocalParameter
from ..bench.host_waits import counted_as
from ..bench.recipe import Recipe
from .mesh import Mesh
from .sharded import is_distributed

Part = tuple[nn.Parameter, LocalParameter]
STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",), "muon": ("momentum_buffer",)}
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # torch.optim.Muon's


def local_parts(parameters: Iterable[tuple[str, nn.Parameter]], mesh: Mesh) -> list[Part]:
    """Each parameter of this rank with the part of it that is here."""
    holders = mesh.layout.ranks // mesh.layout.pp
    parts = []
    for name, parameter in parameters:
        tensor: Tensor = parameter
        shards = 1
        if is_distributed(parameter):
            tensor = parameter.to_local()
            # FSDP over a tensor-parallel dimension is a strided shard, which does not call itself a shard.
            sizes = zip(parameter.device_mesh.shape, parameter.placements, strict=True)
            shards = prod(size for size, placement in sizes if not placement.is_replicate())
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
        parts.append((parameter, LocalParameter(name, tensor.detach(), layer, holders // shards)))
    return parts


def rule_of(part: LocalParameter, recipe: Recipe) -> str:
    """Which rule updates it: Muon moves the blocks' matrices only."""
    if recipe.optimizer == "muon" and (part.layer is None or part.data.ndim < 2):
        return "adamw"
    return recipe.optimizer


def _muon() -> Callable[..., None]:
    try:
        from torch.optim._muon import muon
    except ImportError as error:
        raise ValueError(f"recipe.optimizer = 'muon' needs torch 2.9 or later, this is {torch.__version__}") from error
    return muon


class Optimizer:
    """One of STATE's rules for each local part, all with decoupled weight decay (arXiv 1711.05101).

    Its state is made at once, so that the memory is known.
    """

    def __init__(self, parts: list[Part], recipe: Recipe, mesh: Mesh) -> None:
        self.parts, self.recipe = parts, recipe
        ranks, self.stages = mesh.layout.ranks, mesh.layout.pp
        self.group = mesh.group("inside") if ranks > 1 else None
        self.weights = torch.tensor([1.0 / part.replicated for _, part in parts], device=parts[0][1].data.device)
        self.whole_everywhere = all(part.replicated == ranks for _, part in parts)
        self.groups: dict[tuple[str, float], list[Tensor]] = {}  # by rule and weight decay
        self.state: dict[Tensor, dict[str, Tensor]] = {}  # by local part
        for _, part in parts:
            rule = rule_of(part, recipe)
            self.groups.setdefault((rule, recipe.weight_decay if part.data.ndim > 1 else 0.0), []).append(part.data)
            kept = () if rule == "sgd" and not recipe.beta1 else STATE[rule]
            self.state[part.data] = {name: torch.zeros_like(part.data) for name in kept}
            if rule == "adamw":
                self.state[part.data]["step"] = torch.zeros((), dtype=torch.float32, device=part.data.device)

    def step(self, lr: float) -> Tensor:
        """Clip and update from the parameters' gradients, and drop them. Returns the global norm before clipping."""
        grads = []
        for parameter, part in self.parts:
            grad = parameter.grad
            assert grad is not None, f"{part.name} got no gradient"
            part.data.grad = grad.to_local() if hasattr(grad, "to_local") else grad
            grads.append(part.data.grad)
        norm = self.grad_norm(grads)
        if self.recipe.clip_norm:
            torch._foreach_mul_(grads, (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for (rule, decay), tensors in self.groups.items():
            self._update(rule, tensors, decay, lr)
        for parameter, part in self.parts:
            parameter.grad = part.data.grad = None
        return norm

    def _update(self, rule: str, tensors: list[Tensor], weight_decay: float, lr: float) -> None:
        recipe, states = self.recipe, [self.state[tensor] for tensor in tensors]
        grads = [grad for tensor in tensors if (grad := tensor.grad) is not None]  # all of them have one
        if rule == "adamw":
            adamw(
                tensors,
                grads,
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=recipe.beta1,
                beta2=recipe.beta2,
                lr=lr,
                weight_decay=weight_decay,
                eps=recipe.eps,
                maximize=False,
            )
        elif rule == "muon":
            _muon()(
                tensors,
                grads,
                [state["momentum_buffer"] for state in states],
                lr=lr,
                weight_decay=weight_decay,
                momentum=recipe.beta1,
                nesterov=True,
                ns_coefficients=NEWTON_SCHULZ,
                ns_steps=5,
                eps=1e-7,
                adjust_lr_fn="match_rms_adamw",
                has_complex=False,
            )
        else:
            if weight_decay:  # torch's SGD would add it to the gradient; this takes it off the weights, as AdamW (SGDW)
                torch._foreach_mul_(tensors, 1 - lr * weight_decay)
            sgd(
                tensors,
                grads,
                [state.get("momentum_buffer") for state in states],
                fused=True,
                momentum=recipe.beta1,
                lr=lr,
                weight_decay=0.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Global L2 norm (0-dim fp32), the same on every rank of the replica."""
        squares = torch.stack(torch._foreach_norm(grads)).square()
        if self.whole_everywhere:
            return squares.sum().sqrt()
        total = squares.dot(self.weights)
        with counted_as("bubble" if self.stages > 1 else "comm"):  # of one number: all of it is waiting for the others
            dist.all_reduce(total, group=self.group)
        return total.sqrt()
