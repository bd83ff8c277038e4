"""The torch engine: DDP, FSDP2, HSDP, tensor, sequence, pipeline and context parallelism, and their products.

Order in which a layout is applied: cut into stages, tensor parallel, compile, recompute, shard, fill with the
canonical start values, wrap in DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..bench.checkpoint_files import Outgoing, Saved
from ..bench.device import mark
from ..bench.engine import Evaluation, LocalParameter, StepOutput
from ..bench.init import fill
from ..bench.loss import counted_sum, cross_entropy, token_losses
from ..bench.model import Decoder, Seams
from ..bench.recipe import Recipe
from ..bench.shape import ModelShape
from ..bench.weights import Weights, gathered, handed_out
from .checkpoint import Checkpoint
from .layout import Layout, stage_layers, stages_of_rank
from .mesh import Mesh
from .optimizer import Optimizer, local_parts
from .sharded import forget_gathered, is_distributed, part_and_offset, replicate, shard, synchronise_gradients

if TYPE_CHECKING:
    from .context import ContextParallel
    from .pipeline import Pipeline
    from .tensor import TensorParallel


class TorchEngine:
    """One rank's part of a training step (bench.engine.Engine)."""

    def __init__(self, shape: ModelShape, recipe: Recipe, layout: Layout, mesh: Mesh, device: torch.device) -> None:
        self.shape, self.recipe, self.layout, self.mesh, self.device = shape, recipe, layout, mesh, device
        # Under torch.compile a context-parallel block waits inside its graph.
        self.waits_on_host = device.type == "cpu" and not (layout.compile and layout.cp > 1)
        self.tensor: TensorParallel | None = None
        self.context: ContextParallel | None = None
        self.pipeline: Pipeline | None = None
        seams = Seams()
        if layout.tp > 1:
            from .tensor import TensorParallel

            self.tensor = TensorParallel(mesh.groups["tp"], layout.sp, layout.loss_parallel)
            seams = self.tensor.seams()
        if layout.cp > 1:
            from .context import ContextParallel

            self.context = ContextParallel(mesh.groups["cp"], layout.cp_method, shape.seq_len, device)
            seams.attend = self.context.attend
        self.positions = self.context.positions if self.context else torch.arange(shape.seq_len, device=device)
        self.parts = [self._build(part, seams) for part in self._cut(seams)]
        self.partial: list[nn.Parameter] = []
        if self.tensor:
            self.partial = [p for part in self.parts for p in self.tensor.partial_gradients(_module(part))]
        self.optimizer = Optimizer(local_parts(self._named(), mesh), recipe, mesh)
        self.checkpoint = Checkpoint(self.optimizer, mesh.group("inside"))
        first, last = self.rows()
        self.micro_rows = (last - first) // layout.microbatches
        # Every rank that reads these tokens reports an equal share, so that a plain sum over ranks is the mean.
        self.share = 1.0 / (layout.dp * layout.cp * layout.tp)
        self.reported: list[Tensor] = []
        if layout.pp > 1:
            from .pipeline import Pipeline

            self.pipeline = Pipeline(
                self.parts, shape, layout, mesh, self.micro_rows, recipe.precision, self._loss, device
            )

    def _cut(self, seams: Seams) -> list[Decoder]:
        # Parameters that are to be cut exist on the meta device until they are; whole ones can be made at once.
        with torch.device(self.device if self.mesh.parameters is None else "meta"):
            if self.layout.pp == 1:
                return [Decoder(self.shape, self.recipe.precision, seams)]
            layers, last = stage_layers(self.shape.layers, self.layout.stages), self.layout.stages - 1
            return [
                Decoder(self.shape, self.recipe.precision, seams, layers[i], first=i == 0, last=i == last)
                for i in stages_of_rank(self.mesh.at["pp"], self.layout)
            ]

    def _build(self, model: Decoder, seams: Seams) -> nn.Module:
        if self.tensor:
            mesh = self.mesh.parameters
            assert mesh is not None
            self.tensor.distribute(model, mesh["tp"] if mesh.ndim > 1 else mesh)
        for block in model.own_blocks():
            if self.layout.recompute != "none":
                block.run = _recompute(self.layout.recompute)
            if self.layout.compile:
                block.compile()
        shard(model, self.layout, self.mesh, self.recipe.precision)
        if self.mesh.parameters is not None:
            model.to_empty(device=self.device)
        for name, parameter in model.named_parameters():
            part, offset = part_and_offset(parameter)
            fill(part, name, parameter.shape, offset, self.recipe.seed, self.shape.layers, self.recipe.init_std)
        model.set_positions(self.positions)
        return replicate(model, self.layout, self.mesh)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of one microbatch, divided so that the microbatches' gradients add up to the step's."""
        entropy = self.tensor.cross_entropy if self.tensor else cross_entropy
        optimised, reported = entropy(logits, targets, self.recipe.z_loss)
        self.reported.append(reported)
        return optimised / self.layout.microbatches

    def _inputs_targets(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, s + 1) -> this rank's positions of inputs and of the tokens that follow them."""
        if self.context is None:
            return tokens[:, :-1], tokens[:, 1:]
        return tokens[:, self.positions], tokens[:, self.positions + 1]

    def _share(self) -> Tensor:
        """This rank's share of the mean of what `_loss` was given since the last call."""
        losses, self.reported = self.reported, []
        if not losses:  # a pipeline rank without the last stage
            return torch.zeros((), device=self.device)
        return torch.stack(losses).mean() * self.share

    def rows(self) -> tuple[int, int]:
        return self.mesh.rows(self.recipe.global_batch)

    def train_step(self, tokens: Tensor, lr: float) -> StepOutput:
        inputs, targets = self._inputs_targets(tokens)
        if self.pipeline:
            self.pipeline.train(inputs, targets)
        else:
            last = self.layout.microbatches - 1
            pieces = zip(inputs.split(self.micro_rows), targets.split(self.micro_rows), strict=True)
            for i, (x, y) in enumerate(pieces):
                with synchronise_gradients(self.parts[0], now=i == last):
                    self._loss(self.parts[0](x), y).backward()
        if self.partial:
            _sum_gradients(self.partial, self.mesh.groups["tp"])
        update_began = mark(self.device)
        return StepOutput(self._share(), self.optimizer.step(lr), update_began=update_began)

    def evaluations(self) -> dict[str, Evaluation]:
        return {"model": self.eval_loss}

    @torch.no_grad()
    def eval_loss(self, tokens: Tensor, counted: Tensor) -> Tensor:
        pieces = [each.split(self.micro_rows) for each in (*self._inputs_targets(tokens), counted)]
        losses_of = self.tensor.token_losses if self.tensor else token_losses
        total = torch.zeros((), device=self.device)
        for x, y, counts in zip(*pieces, strict=True):
            logits = self.pipeline.forward(x) if self.pipeline else _module(self.parts[0])(x)
            if logits is not None:
                total += counted_sum(losses_of(logits, y), counts)
        self.parameters_written()
        # Context-parallel ranks hold equal parts of each row, tensor-parallel ranks all of it.
        return total / (self.layout.cp * self.layout.tp)

    def local_parameters(self) -> Iterator[LocalParameter]:
        return (part for _, part in self.optimizer.parts)

    def parameters_written(self) -> None:
        for part in self.parts:
            forget_gathered(part)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self.parts:
            yield from _module(part).named_parameters()

    @torch.no_grad()
    def weights(self) -> Weights:
        mine: Weights = {}
        for name, parameter in self._named():
            whole = parameter.full_tensor() if is_distributed(parameter) else parameter
            if self.mesh.holds_first_of_stage:
                mine[name] = whole.detach().to("cpu", torch.float32, copy=True)
        return gathered(mine, self.mesh.group("pp")) if self.mesh.holds_first_of_stage else {}

    @torch.no_grad()
    def set_weights(self, weights: Weights | None) -> None:
        mine = dict(self._named())
        for name, whole in handed_out(weights, self.shape, self.mesh.inside, self.device):
            if name in mine:
                part, offset = part_and_offset(mine[name])
                part.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))])
        self.parameters_written()

    def optimizer_state(self) -> Iterator[Tensor]:
        """All its tensors, so that a caller can keep them elsewhere between steps."""
        return (tensor for state in self.optimizer.state.values() for tensor in state.values())

    def talks(self) -> dict[str, tuple[int, ...]]:
        return self.mesh.ranks()

    def save(self, out: Outgoing) -> None:
        self.checkpoint.save(out)

    def load(self, saved: Saved) -> None:
        self.checkpoint.load(saved)

    def close(self) -> None:
        self.parts, self.pipeline = [], None
        del self.optimizer, self.checkpoint  # nothing is asked of a closed engine


def _module(part: nn.Module) -> Decoder:
    """The model inside DDP."""
    model = part.module if isinstance(part, nn.parallel.DistributedDataParallel) else part
    assert isinstance(model, Decoder)
    return model


def _sum_gradients(parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum the local gradients over the group, all in one collective."""
    grads = [_local_gradient(parameter) for parameter in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat, group=group)
    torch._foreach_copy_([grad.view(-1) for grad in grads], list(flat.split([grad.numel() for grad in grads])))


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    grad = parameter.grad
    assert grad is not None
    return grad.to_local() if is_distributed(grad) else grad


def _recompute(mode: str) -> Callable[..., Tensor]:
    """How a block is run so that its activations are recomputed in the backward pass (arXiv 1604.06174).

    full: all of them; selective: all but the results of matrix products and attention (arXiv 2205.05198).
    """
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        aten = torch.ops.aten
        kept = [
            aten.mm.default,
            aten.addmm.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
        ]
        options["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    return lambda function, *args: checkpoint(function, *args, **options)
