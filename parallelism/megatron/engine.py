"""The megatron engine: tensor, sequence, pipeline and data parallelism and the distributed optimizer of Megatron-Core.

Its model, its schedules, its gradient buffers and its optimizer do the step; what is ours is the same start values,
the same batches and the same learning rates. Where no CUDA device exists, `cpu` makes it run on the CPU.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore  # torch.distributed has it, undeclared

from ...bench.checkpoint_files import Outgoing, Saved
from ...bench.device import mark
from ...bench.engine import Evaluation, LocalParameter, StepOutput
from ...bench.host_waits import counted_as
from ...bench.init import fill
from ...bench.loss import counted_sum
from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...bench.weights import Weights, gathered, handed_out
from ..layout import Layout
from ..mesh import Mesh
from ..state_file import read_state, write_state

with warnings.catch_warnings():  # that Transformer Engine and Apex are not there
    warnings.simplefilter("ignore")
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from . import cpu
    from .groups import announce, build_groups, forget
    from .model import build_chunks, configuration
    from .weights import LocalWeight, local_weights

logging.getLogger("megatron.core").setLevel(logging.ERROR)


class MegatronEngine:
    """One rank's part of a training step (bench.engine.Engine)."""

    def __init__(self, shape: ModelShape, recipe: Recipe, layout: Layout, mesh: Mesh, device: torch.device) -> None:
        self.shape, self.recipe, self.layout, self.mesh, self.device = shape, recipe, layout, mesh, device
        self.waits_on_host = device.type != "cuda"  # all of Megatron-Core's waits are in Python
        self.distributed_optimizer = layout.dp_shard > 1
        if device.type != "cuda":
            cpu.install()
        self.made_world = not dist.is_initialized()  # Megatron-Core has no way to do without
        if self.made_world:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        self.groups = build_groups(mesh, shape.tied)
        announce(self.groups, layout.virtual_stages)
        self.tp_rank = self.groups.tp.rank()
        model_parallel_cuda_manual_seed(recipe.seed, tp_rank=self.tp_rank, ep_rank=0, etp_rank=self.tp_rank)
        self._build()
        first, last = self.rows()
        self.micro_rows = (last - first) // layout.microbatches
        # Every rank that reads these tokens reports an equal share, so that a plain sum over ranks is the mean.
        self.share = 1.0 / (layout.dp * layout.tp)
        self._fill(self._start_values())

    def _build(self) -> None:
        layout, recipe, groups = self.layout, self.recipe, self.groups
        config = configuration(self.shape, recipe, layout, self.device)
        models = build_chunks(self.shape, layout, config, groups, self.device)
        self.held: list[LocalWeight] = [
            weight for model in models for weight in local_weights(model, self.shape, layout.tp, self.tp_rank)
        ]
        reduction = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=layout.dp > 1,
            use_distributed_optimizer=self.distributed_optimizer,
            num_distributed_optimizer_instances=layout.dp_replicate if self.distributed_optimizer else 1,
        )
        self.chunks = [
            DistributedDataParallel(config, reduction, model, disable_bucketing=number > 0, pg_collection=groups)
            for number, model in enumerate(models)
        ]
        if layout.dp > 1:
            quiet = [chunk.no_sync for chunk in self.chunks]
            config.no_sync_func = quiet if len(quiet) > 1 else quiet[0]
        config.finalize_model_grads_func = finalize_model_grads
        adam = recipe.optimizer == "adamw"
        chosen = OptimizerConfig(
            optimizer="adam" if adam else "sgd",
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            adam_beta1=recipe.beta1 if adam else 0.9,
            adam_beta2=recipe.beta2,
            adam_eps=recipe.eps,
            sgd_momentum=recipe.beta1,
            clip_grad=recipe.clip_norm,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=self.distributed_optimizer,
        )
        self.optimizer = get_megatron_optimizer(
            chosen, self.chunks, use_gloo_process_groups=False, pg_collection=groups
        )
        (self.inner,) = self.optimizer.chained_optimizers
        if layout.pp > 1:
            self._count_norm_as_bubble()
        for group in self.optimizer.param_groups:  # what Megatron's scheduler does; norms have wd_mult 0
            group["weight_decay"] = recipe.weight_decay * group["wd_mult"]
        self.forward_backward = get_forward_backward_func(layout.pp, config.virtual_pipeline_model_parallel_size)
        self.between = P2PCommunicator(pp_group=groups.pp, config=config)

    def _count_norm_as_bubble(self) -> None:
        """The gradient norm is the first sum over all stages: the early ones wait for the first stage there."""
        norm = self.optimizer.get_grad_norm

        def counted():
            with counted_as("bubble"):
                return norm()

        self.optimizer.get_grad_norm = counted

    # A parameter's fp32 values are the parameter itself, an fp32 copy of it, or this rank's flat part of either.

    def _part_of(self, h: LocalWeight) -> slice | None:
        """Where this rank's part of the flat parameter is; None: the distributed optimizer has none of it here."""
        if not self.distributed_optimizer:
            return slice(0, h.parameter.numel())
        if h.parameter not in self.inner.model_param_gbuf_map:
            return None
        part = self.inner._get_model_param_range_map(h.parameter)["param"]
        return slice(part.start, part.end)

    def _masters(self) -> Iterator[tuple[LocalWeight, slice, Tensor]]:
        """(parameter, which part of it flat, its fp32 values there: flat under the distributed optimizer)."""
        for h in self.held:
            part = self._part_of(h)
            if part is None:
                continue
            if self.recipe.precision == "bf16":
                yield h, part, h.fp32_copy
            elif self.distributed_optimizer:
                yield h, part, h.parameter.detach().view(-1)[part]
            else:
                yield h, part, h.parameter.detach()

    def _start_values(self) -> Iterator[tuple[LocalWeight, Tensor]]:
        for h in self.held:
            local = torch.empty(h.parameter.shape, device=self.device)
            for piece in h.pieces:
                block = torch.empty(piece.shape, device=self.device)
                fill(
                    block,
                    piece.name,
                    piece.whole,
                    piece.offset,
                    self.recipe.seed,
                    self.shape.layers,
                    self.recipe.init_std,
                )
                piece.put(block, local)
            yield h, local

    @torch.no_grad()
    def _fill(self, values: Iterator[tuple[LocalWeight, Tensor]]) -> None:
        """Give every parameter of this rank, and its fp32 copy, these values."""
        masters = {h.parameter: (part, master) for h, part, master in self._masters()}
        for h, local in values:
            h.parameter.copy_(local)
            if h.parameter in masters:
                part, master = masters[h.parameter]
                master.copy_(local.view(-1)[part].view(master.shape))

    def rows(self) -> tuple[int, int]:
        return self.mesh.rows(self.recipe.global_batch)

    def _forward(self, batches: Iterator[tuple[Tensor, ...]], chunk: DistributedDataParallel):
        """Losses of a microbatch, (b, s), and what makes of them (what is optimised, which the schedule divides by the
        microbatches in place; what is reported): the mean, in an evaluation the sum over the rows that count."""
        inputs, targets, *counted = next(batches)

        def loss(losses_bs: Tensor) -> tuple[Tensor, Tensor]:
            losses = losses_bs.float()
            one = counted_sum(losses, *counted) if counted else losses.mean()
            return one, one.detach().clone()

        return chunk(inputs, None, None, labels=targets), loss

    def _run(self, tokens: Tensor, counted: Tensor | None = None) -> Tensor:
        """All microbatches through all stages; what each reports, (microbatches,). With `counted`: forward only."""
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        batch = (inputs, targets) if counted is None else (inputs, targets, counted)
        pieces = list(zip(*(each.split(self.micro_rows) for each in batch), strict=True))
        losses = self.forward_backward(
            forward_step_func=self._forward,
            data_iterator=[iter(pieces) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=len(pieces),
            seq_length=self.shape.seq_len,
            micro_batch_size=self.micro_rows,
            forward_only=counted is not None,
            p2p_communicator=self.between,
            pg_collection=self.groups,
        )
        if not losses:  # no last stage here
            return torch.zeros(1, device=self.device)
        return torch.stack(losses)

    def train_step(self, tokens: Tensor, lr: float) -> StepOutput:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self._run(tokens).mean() * self.share
        update_began = mark(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        _, grad_norm, _ = self.optimizer.step()  # clips; the norm is that before
        norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=self.device)
        return StepOutput(loss, norm, update_began=update_began)

    def evaluations(self) -> dict[str, Evaluation]:
        return {"model": self.eval_loss}

    @torch.no_grad()
    def eval_loss(self, tokens: Tensor, counted: Tensor) -> Tensor:
        return self._run(tokens, counted).sum() / self.layout.tp

    def local_parameters(self) -> Iterator[LocalParameter]:
        copies = self.layout.dp_replicate if self.distributed_optimizer else self.layout.dp
        for h, _, master in self._masters():
            ends = 2 if self.layout.pp > 1 and self.shape.tied and h.name == "embedding.weight" else 1
            yield LocalParameter(h.name, master, h.layer, copies * ends * (1 if h.split else self.layout.tp))

    def parameters_written(self) -> None:
        """The model follows its fp32 copies, and every rank the parts that others own."""
        if self.distributed_optimizer or self.recipe.precision == "bf16":
            self.inner._copy_main_params_to_model_params()
        if self.distributed_optimizer:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)

    @torch.no_grad()
    def weights(self) -> Weights:
        masters = {h.parameter: (part, master) for h, part, master in self._masters()}
        mine = {}
        for h in self.held:
            local = torch.zeros(h.parameter.shape, device=self.device)
            if h.parameter in masters:
                part, master = masters[h.parameter]
                local.view(-1)[part] = master.view(-1)
            if self.distributed_optimizer:
                dist.all_reduce(local, group=self.groups.intra_dp_cp)
            for piece in h.pieces:
                whole = piece.take(local)
                if h.split and self.layout.tp > 1:
                    whole = torch.zeros(piece.whole, device=self.device)
                    piece.of(whole).copy_(piece.take(local))
                    dist.all_reduce(whole, group=self.groups.tp)
                if self.mesh.holds_first_of_stage and not h.duplicate:
                    mine[piece.name] = whole.to("cpu", copy=True)
        return gathered(mine, self.mesh.group("pp")) if self.mesh.holds_first_of_stage else {}

    @torch.no_grad()
    def set_weights(self, weights: Weights | None) -> None:
        local = {h.parameter: torch.empty(h.parameter.shape, device=self.device) for h in self.held}
        places: dict[str, list] = {}
        for h in self.held:
            for piece in h.pieces:
                places.setdefault(piece.name, []).append((piece, local[h.parameter]))
        for name, whole in handed_out(weights, self.shape, self.mesh.inside, self.device):
            for piece, into in places.get(name, ()):
                piece.put(piece.of(whole), into)
        self._fill((h, local[h.parameter]) for h in self.held)

    def optimizer_state(self) -> Iterator[Tensor]:
        """All its tensors, so that a caller can keep them elsewhere between steps."""
        values = chain.from_iterable(state.values() for state in self.inner.optimizer.state.values())
        return (value for value in values if isinstance(value, Tensor))

    def talks(self) -> dict[str, tuple[int, ...]]:
        return self.mesh.ranks()

    # Checkpoints: each rank's fp32 values and optimizer state as they lie here, loadable under the same layout only.

    def _file(self) -> str:
        rank = dist.get_rank(self.mesh.inside) if self.mesh.inside is not None else 0
        return f"megatron-rank{rank}.safetensors"

    def save(self, out: Outgoing) -> None:
        groups = self.inner.optimizer.param_groups
        content = {
            "layout": json.dumps(asdict(self.layout)),
            "steps": [group.get("step") for group in groups],  # Transformer Engine's Adam counts there
            "values": [[p.detach() for p in group["params"]] for group in groups],
            "state": [[dict(self.inner.optimizer.state[p]) for p in group["params"]] for group in groups],
        }
        write_state(out, self._file(), content)

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        content: dict[str, Any] = {"layout": None}
        if saved.has(self._file()):
            content = read_state(saved, self._file(), self.device)
        if content["layout"] != json.dumps(asdict(self.layout)):
            raise ValueError("it is of another layout: megatron's checkpoints are loaded under their own only")
        parts = zip(content["steps"], content["values"], content["state"], strict=True)
        for group, (step, values, states) in zip(self.inner.optimizer.param_groups, parts, strict=True):
            if step is not None:
                group["step"] = step
            for parameter, value, state in zip(group["params"], values, states, strict=True):
                if value.shape != parameter.shape:
                    raise ValueError(f"{self._file()} has {list(value.shape)} for {list(parameter.shape)}")
                parameter.copy_(value)
                self.inner.optimizer.state[parameter] = state

    def close(self) -> None:
        self.chunks, self.held, self.optimizer, self.inner = [], [], None, None
        forget()
        if self.made_world and dist.is_initialized():
            dist.destroy_process_group()
