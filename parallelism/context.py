"""Context parallelism: each rank holds part of every sequence; attention alone needs the rest.

The sequence is cut in 2 cp chunks and rank r holds chunks r and 2 cp - 1 - r, so that causal attention is the same
work on every rank (Llama 3, arXiv 2407.21783, section 3.3.2). Two ways to see the other ranks' keys and values:

allgather  all-gather K and V, attend this rank's queries to them (Llama 3)
ulysses    all-to-all: all tokens, a part of the heads (DeepSpeed-Ulysses, arXiv 2309.14509)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..bench.model import causal_attention
from .tensor import gather_sequence, scatter_sum_sequence


def positions_of(rank: int, cp: int, seq_len: int) -> Tensor:
    """Positions (seq_len / cp,) int64 that a rank holds, in its order."""
    chunks = torch.arange(seq_len).chunk(2 * cp)
    return torch.cat((chunks[rank], chunks[2 * cp - 1 - rank]))


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return gather_sequence(x, group)

    @staticmethod
    def backward(ctx, grad):
        return scatter_sum_sequence(grad, ctx.group), None


class _AllToAll(torch.autograd.Function):
    """(n, ...) -> (n, ...): part i goes to rank i, part i comes from rank i. Its own conjugate."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx, grad):
        return _AllToAll.apply(grad, ctx.group), None


class ContextParallel:
    """The `attend` seam over `group`, for sequences of seq_len tokens."""

    def __init__(self, group: dist.ProcessGroup, method: str, seq_len: int, device: torch.device) -> None:
        self.group, self.cp, self.method = group, group.size(), method
        rank = dist.get_rank(group)
        self.positions = positions_of(rank, self.cp, seq_len).to(device)
        held = torch.cat([positions_of(r, self.cp, seq_len) for r in range(self.cp)])
        self.natural = held.argsort().to(device)  # gathered order -> order of the text
        self.gathered = held.to(device)
        self.mask = self.positions[:, None] >= torch.arange(seq_len, device=device)  # (s/cp, s)

    def attend(self, q_bshd: Tensor, k_bshd: Tensor, v_bshd: Tensor) -> Tensor:
        return (
            self._allgather(q_bshd, k_bshd, v_bshd)
            if self.method == "allgather"
            else self._ulysses(q_bshd, k_bshd, v_bshd)
        )

    def _allgather(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv = _GatherSequence.apply(torch.cat((k, v), dim=2), self.group)[:, self.natural]
        k, v = kv.chunk(2, dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=grouped).transpose(1, 2)

    def _ulysses(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self._heads_for_tokens(x)[:, self.natural] for x in (q, k, v))
        context = causal_attention(q, k, v)[:, self.gathered]
        # (b, s, h/cp, d) -> parts by token owner -> (b, s/cp, h, d)
        parts = context.unflatten(1, (self.cp, -1)).movedim(1, 0)
        return _AllToAll.apply(parts, self.group).movedim(0, 2).flatten(2, 3)

    def _heads_for_tokens(self, x: Tensor) -> Tensor:
        """(b, s/cp, h, d) -> (b, s, h/cp, d), tokens in gathered order."""
        parts = x.unflatten(2, (self.cp, -1)).movedim(2, 0)
        return _AllToAll.apply(parts, self.group).movedim(0, 1).flatten(1, 2)
