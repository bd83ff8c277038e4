"""The loss: cross-entropy in fp32 over the vocabulary, and the z-loss that keeps the softmax's normaliser near 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_bsv: Tensor, targets_bs: Tensor, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean over tokens in nats: (what is optimised, what is reported).

    The first adds z_loss * mean(logsumexp(logits)^2) (PaLM, arXiv 2204.02311, section 5).
    """
    logits = logits_bsv.flatten(0, 1).float()
    loss = F.cross_entropy(logits, targets_bs.flatten())
    if not z_loss:
        return loss, loss.detach()
    return loss + z_loss * torch.logsumexp(logits, dim=-1).square().mean(), loss.detach()


def token_losses(logits_bsv: Tensor, targets_bs: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, (b, s) fp32."""
    losses = F.cross_entropy(logits_bsv.flatten(0, 1).float(), targets_bs.flatten(), reduction="none")
    return losses.view(targets_bs.shape)


def counted_sum(losses_bs: Tensor, counted_b: Tensor) -> Tensor:
    """Sum over the rows that count of each row's mean. What stands in the other rows is never seen, not even NaN."""
    return losses_bs.mean(dim=1).where(counted_b, 0.0).sum()
