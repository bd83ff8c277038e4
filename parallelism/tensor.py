"""Tensor parallelism: matrices split over ranks, with sequence parallelism between them.

Megatron-LM (arXiv 1909.08053): wq, wk, wv, gate, up split by output (columns), wo and down by input (rows), the
embedding and the head by vocabulary. Sequence parallel (arXiv 2205.05198): between the matrices each rank holds s/tp
tokens; `enter` all-gathers them, `leave` reduce-scatters. Without it `enter` copies (backward: all-reduce) and
`leave` all-reduces. Parameters are DTensors, so that checkpoints and FSDP know their place; the arithmetic is on
their local tensors with explicit collectives, which saves the dispatch of DTensor on every operation.

Norm weights are replicated, yet with sequence parallelism each rank sees only its tokens' gradient (and QK-norm's
only its heads'): `partial_gradients` names them, the engine sums them once a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..bench.model import Decoder, Seams

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

COLUMNS = ("wq", "wk", "wv", "gate", "up", "head", "embedding")  # Shard(0) of (out, in)
ROWS = ("wo", "down")  # Shard(1)

all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def gather_sequence(x_bsw: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(b, s/n, ...) on each of n ranks -> (b, s, ...)."""
    n = group.size()
    out = x_bsw.new_empty(n * x_bsw.shape[0], *x_bsw.shape[1:])
    all_gather(out, x_bsw.contiguous(), group=group)
    return out.unflatten(0, (n, -1)).movedim(0, 1).flatten(1, 2)


def scatter_sum_sequence(x_bsw: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(b, s, ...) on each of n ranks -> its (b, s/n, ...) of the sum."""
    n = group.size()
    parts = x_bsw.unflatten(1, (n, -1)).movedim(1, 0).flatten(0, 1).contiguous()
    out = x_bsw.new_empty(x_bsw.shape[0], x_bsw.shape[1] // n, *x_bsw.shape[2:])
    reduce_scatter(out, parts, group=group)
    return out


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group)
    return x


class _Conjugate(torch.autograd.Function):
    """Applies one collective forward and its conjugate backward."""

    @staticmethod
    def forward(ctx, x, forward, backward, group):
        ctx.backward_of, ctx.group = backward, group
        return forward(x, group)

    @staticmethod
    def backward(ctx, grad):
        return ctx.backward_of(grad, ctx.group), None, None, None


def _same(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.view_as(x)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits split over the vocabulary, (t, v/n) on each rank; gives (losses, logsumexp), both (t,).

    Three all-reduces of t numbers: the maximum, the sum of exponentials, the target's logit (Megatron-LM).
    """

    @staticmethod
    def forward(ctx, logits, targets, group):
        first = dist.get_rank(group) * logits.shape[1]
        top = logits.amax(dim=1)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - top[:, None]
        here = (targets >= first) & (targets < first + logits.shape[1])
        index = torch.where(here, targets - first, 0)
        picked = shifted.gather(1, index[:, None])[:, 0] * here
        probability = shifted.exp_()
        both = torch.stack((probability.sum(dim=1), picked))
        dist.all_reduce(both, group=group)
        log_total = both[0].log()
        probability /= both[0][:, None]
        ctx.save_for_backward(probability, index, here)
        return log_total - both[1], log_total + top

    @staticmethod
    def backward(ctx, grad_loss, grad_lse):
        probability, index, here = ctx.saved_tensors
        grad = probability * (grad_loss + grad_lse)[:, None]
        grad.scatter_add_(1, index[:, None], (-grad_loss * here)[:, None])
        return grad, None, None


class TensorParallel:
    """Plugs tensor parallelism over `group` into a model's seams."""

    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool, loss_parallel: bool) -> None:
        self.group, self.sp, self.loss_parallel = group, sequence_parallel, loss_parallel
        self.rank, self.size = dist.get_rank(group), group.size()

    def seams(self) -> Seams:
        return Seams(enter=self.enter, leave=self.leave, look_up=self.look_up)

    def enter(self, x: Tensor) -> Tensor:
        forward, backward = (gather_sequence, scatter_sum_sequence) if self.sp else (_same, all_reduce)
        return _Conjugate.apply(x, forward, backward, self.group)

    def leave(self, x: Tensor) -> Tensor:
        forward, backward = (scatter_sum_sequence, gather_sequence) if self.sp else (all_reduce, _same)
        return _Conjugate.apply(x, forward, backward, self.group)

    def look_up(self, tokens_bs: Tensor, table_vw: Tensor) -> Tensor:
        """Rows of the tokens whose part of the vocabulary is here, zero for the others; `leave` adds them up."""
        index = tokens_bs - self.rank * table_vw.shape[0]
        here = (index >= 0) & (index < table_vw.shape[0])
        return F.embedding(index.where(here, 0), table_vw) * here[..., None]

    def cross_entropy(self, logits_bsv: Tensor, targets_bs: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
        """As bench.loss.cross_entropy, of logits (b, s, vocab/tp)."""
        losses, lse = self._losses(logits_bsv, targets_bs)
        loss = losses.mean()
        return loss + z_loss * lse.square().mean() if z_loss else loss, loss.detach()

    def token_losses(self, logits_bsv: Tensor, targets_bs: Tensor) -> Tensor:
        """As bench.loss.token_losses, of logits (b, s, vocab/tp)."""
        return self._losses(logits_bsv, targets_bs)[0].view(targets_bs.shape)

    def _losses(self, logits_bsv: Tensor, targets_bs: Tensor) -> tuple[Tensor, Tensor]:
        """(cross-entropy, logsumexp) of each token, both (b s,)."""
        logits, targets = logits_bsv.flatten(0, 1).float(), targets_bs.flatten()
        if self.loss_parallel:
            return _VocabParallelCrossEntropy.apply(logits, targets, self.group)
        whole = _Conjugate.apply(logits.T, _gather_rows, _own_rows, self.group).T
        return F.cross_entropy(whole, targets, reduction="none"), torch.logsumexp(whole, dim=1)

    def distribute(self, model: Decoder, mesh: DeviceMesh) -> None:
        """Replace the model's (meta) parameters by DTensors on the one-dimensional `mesh`."""
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        for path, module in model.named_modules():
            name = path.rsplit(".", 1)[-1]
            placement = Shard(0) if name in COLUMNS else Shard(1) if name in ROWS else Replicate()
            for key, parameter in list(module.named_parameters(recurse=False)):
                whole = parameter.detach()
                part = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
                module.register_parameter(key, nn.Parameter(part))

    def partial_gradients(self, model: Decoder) -> list[nn.Parameter]:
        """Replicated parameters whose gradient each rank has only a part of."""
        per_head = ("q_norm.weight", "k_norm.weight")
        return [
            parameter
            for name, parameter in model.named_parameters()
            if "norm" in name and (self.sp or name.endswith(per_head))
        ]


def _gather_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    all_gather(out, x.contiguous(), group=group)
    return out


def _own_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.chunk(group.size())[dist.get_rank(group)]
