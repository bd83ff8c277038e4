"""The deepspeed engine: ZeRO 0 to 3 with hpZ and offloading, AutoTP, and its pipeline, around bench.model.Decoder.

DeepSpeed accumulates, reduces, clips and updates; the model, its start values, the loss and the learning rate are
those of every engine. At ZeRO 0 it has no global norm to give: the engine takes it, and clips by it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...bench.checkpoint_files import Outgoing, Saved
from ...bench.device import mark
from ...bench.engine import Evaluation, LocalParameter, StepOutput
from ...bench.init import fill
from ...bench.loss import counted_sum, cross_entropy, token_losses
from ...bench.model import Decoder
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...bench.weights import Weights, gathered, handed_out, shapes_of
from ..layout import Layout
from ..mesh import Mesh
from ..state_file import read_state, write_state
from . import package
from .config import configuration, stage_of
from .masters import Masters
from .optimizers import make_optimizer
from .parts import ReplicaGroups, pipeline_module, recompute_blocks, whole_model


class DeepSpeedEngine:
    """One rank's part of a training step (bench.engine.Engine)."""

    def __init__(self, shape: ModelShape, recipe: Recipe, layout: Layout, mesh: Mesh, device: torch.device) -> None:
        self.shape, self.recipe, self.layout, self.mesh, self.device = shape, recipe, layout, mesh, device
        self.waits_on_host = device.type == "cpu"
        self.stage = stage_of(layout)
        self.reported: list[Tensor] = []
        self.norm = torch.zeros((), device=device)
        deepspeed = package.load(device)
        self.swapped = None
        if "nvme" in (layout.offload_optimizer, layout.offload_parameters):
            package.require_nvme()
            self.swapped = tempfile.mkdtemp(prefix="scalade-nvme-")
        config = configuration(shape, recipe, layout, self.swapped, pin=device.type == "cuda")
        replicas = ReplicaGroups(mesh.groups["inside"]) if mesh.sizes["replicas"] > 1 else None
        with package.quiet():
            model = self._model(config, replicas)
            sizes = shapes_of(shape)
            named = [(_canonical(name), p) for name, p in model.named_parameters()]
            optimizer = make_optimizer(
                ((name, p, len(sizes[name])) for name, p in named),
                recipe,
                device,
                self._clip if self.stage == 0 else None,
            )
            self.engine, wrapped, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config, mpu=replicas, dist_init_required=False
            )
            if layout.recompute != "none":
                deepspeed.checkpointing.configure(None)
        parameters = {_canonical(name): p for name, p in self.engine.module.named_parameters()}  # AutoTP makes new ones
        self.masters = Masters(wrapped, self.stage, parameters, sizes, mesh.group("tp"))
        self.replicated = [self._replicated(name) for name in parameters]
        self._fill(sizes)
        first, last = self.rows()
        self.micro_rows = (last - first) // layout.microbatches
        # Every rank that reads these tokens reports an equal share, so that a plain sum over ranks is the mean.
        self.share = 1.0 / (layout.dp * layout.tp)

    def _model(self, config: dict, replicas: ReplicaGroups | None) -> torch.nn.Module:
        shape, layout, precision = self.shape, self.layout, self.recipe.precision
        if layout.pp > 1:
            model = pipeline_module(shape, precision, layout, self._loss, self.device)
        else:
            model = whole_model(shape, precision, layout, config, self.stage, replicas.group if replicas else None)
        (decoder,) = (part for part in model.modules() if isinstance(part, Decoder))
        if layout.recompute != "none":
            recompute_blocks(decoder)
        decoder.set_positions(torch.arange(shape.seq_len, device=self.device))
        return model

    def _fill(self, sizes: Mapping[str, Sequence[int]]) -> None:
        """The start weights, into the masters and from them into the parameters."""
        recipe = self.recipe
        for name in self.masters.parameters:
            start = torch.empty(sizes[name])
            fill(start, name, sizes[name], (0,) * len(sizes[name]), recipe.seed, self.shape.layers, recipe.init_std)
            self.masters.put(name, start.to(self.device))
        self.masters.refresh()

    def _replicated(self, name: str) -> int:
        """Ranks of the replica that hold the same piece of a parameter."""
        copies = self.layout.dp_replicate if self.stage == 0 else 1
        return copies * (self.layout.tp if self.masters.cut_dimension(name) is None else 1)

    def _clip(self, gradients: list[Tensor]) -> None:
        """ZeRO 0: take the global norm, and clip by it."""
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        if self.layout.tp * self.layout.pp == 1:
            total = squares.sum()
        else:
            total = squares.dot(self._weights_of_squares(gradients))
            dist.all_reduce(total, group=self.mesh.inside)
        self.norm = total.sqrt()
        if self.recipe.clip_norm:
            torch._foreach_mul_(gradients, (self.recipe.clip_norm / (self.norm + 1e-6)).clamp(max=1.0))

    def _weights_of_squares(self, gradients: list[Tensor]) -> Tensor:
        """One over the ranks that hold the same gradient, in the optimizer's order."""
        ranks = dict(zip(self.masters.parameters.values(), self.replicated, strict=True))
        order = [p for group in self.masters.optimizer.param_groups for p in group["params"]]
        return torch.tensor([1.0 / ranks[p] for p in order], device=gradients[0].device)

    def _loss(self, logits: Tensor, targets: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Loss of one microbatch, which DeepSpeed divides by their number; in an evaluation, whose targets come with
        the rows that count, the sum over these."""
        if isinstance(targets, tuple):
            self.reported.append(counted_sum(token_losses(logits, targets[0]), targets[1]))
            return self.reported[-1]
        optimised, reported = cross_entropy(logits, targets, self.recipe.z_loss)
        self.reported.append(reported)
        return optimised

    def _reported(self) -> Tensor:
        """What `_loss` was given since the last call, (microbatches,)."""
        losses, self.reported = self.reported, []
        if not losses:  # a pipeline rank without the last stage
            return torch.zeros(1, device=self.device)
        return torch.stack(losses)

    def _pieces(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        return zip(inputs.split(self.micro_rows), targets.split(self.micro_rows), strict=True)

    def rows(self) -> tuple[int, int]:
        return self.mesh.rows(self.recipe.global_batch)

    def train_step(self, tokens: Tensor, lr: float) -> StepOutput:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        update_began = None
        if self.layout.pp > 1:
            self.engine.train_batch(self._pieces(tokens))
        else:
            for x, y in self._pieces(tokens):
                self.engine.backward(self._loss(self.engine(x), y))
                update_began = mark(self.device)
                self.engine.step()
        norm = self.norm if self.stage == 0 else self.engine.get_global_grad_norm()
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.device)
        return StepOutput(self._reported().mean() * self.share, norm, update_began=update_began)

    def evaluations(self) -> dict[str, Evaluation]:
        return {"model": self.eval_loss}

    @torch.no_grad()
    def eval_loss(self, tokens: Tensor, counted: Tensor) -> Tensor:
        counts = counted.split(self.micro_rows)
        pieces = ((x, (y, c)) for (x, y), c in zip(self._pieces(tokens), counts, strict=True))
        if self.layout.pp > 1:
            self.engine.eval_batch(pieces, reduce_output=None, bcast_loss=False, num_micro_batches=len(counts))
        else:
            for x, y in pieces:
                self._loss(self.engine.module(x), y)
        return self._reported().sum() / self.layout.tp

    def local_parameters(self) -> Iterator[LocalParameter]:
        replicated = dict(zip(self.masters.parameters, self.replicated, strict=True))
        for name, data in self.masters.local():
            layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
            yield LocalParameter(name, data, layer, replicated[name])

    def parameters_written(self) -> None:
        self.masters.refresh()

    def weights(self) -> Weights:
        first = self.mesh.holds_first_of_stage
        mine: Weights = {}
        for name in self.masters.parameters:
            whole = self.masters.whole(name)
            if first:
                mine[name] = whole.detach().to("cpu", torch.float32, copy=True)
        return gathered(mine, self.mesh.group("pp")) if first else {}

    def set_weights(self, weights: Weights | None) -> None:
        for name, whole in handed_out(weights, self.shape, self.mesh.inside, self.device):
            if name in self.masters.parameters:
                self.masters.put(name, whole)
        self.masters.refresh()

    def optimizer_state(self) -> Iterator[Tensor]:
        """All its tensors, so that a caller can keep them elsewhere between steps."""
        return self.masters.optimizer_state()

    def talks(self) -> dict[str, tuple[int, ...]]:
        return self.mesh.ranks()

    # Checkpoints: each rank's part in a file of its own, for the same layout alone. DeepSpeed's own are pickles.

    def _file(self) -> str:
        rank = dist.get_rank(self.mesh.inside) if self.mesh.inside else 0
        return f"deepspeed-rank{rank}.safetensors"

    def save(self, out: Outgoing) -> None:
        write_state(out, self._file(), {"layout": self.layout.name(), "state": self.masters.state()})

    def load(self, saved: Saved) -> None:
        content: dict[str, Any] = {"layout": "of other ranks"}
        if saved.has(self._file()):
            content = read_state(saved, self._file())
        if content["layout"] != self.layout.name():
            raise ValueError(f"it was written under layout {content['layout']}, this is {self.layout.name()}")
        self.masters.load_state(content["state"])

    def close(self) -> None:
        with package.quiet():
            self.engine.destroy()
        del self.engine, self.masters  # nothing is asked of a closed engine
        package.forget()
        if self.swapped:
            shutil.rmtree(self.swapped, ignore_errors=True)


def _canonical(name: str) -> str:
    """A pipeline's modules are numbered by their stage."""
    return name.split(".", 1)[1] if name[0].isdigit() else name
