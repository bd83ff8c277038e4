"""The model: a Llama-style decoder, with named seams where a layout puts its communication.

Architecture: pre-norm RMSNorm (arXiv 1910.07467), RoPE (2104.09864), grouped-query attention (2305.13245),
SwiGLU (2002.05202) or GELU, optional QK-norm (2302.05442), no biases. Layer numbers in parameter names are global,
so that a pipeline stage, which holds only some blocks, names them as the whole model does.

Shape suffixes: b batch, s sequence (this rank's part), h heads (this rank's), d head_dim, w width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shape import ModelShape

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def identity(x: Tensor) -> Tensor:
    return x


SHORT = 512  # positions below which torch's CPU attention takes up to three times as long in bf16 as in fp32


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: (b, s, h, d), k and v: (b, s, kv, d) -> (b, s, h, d)."""
    dtype, grouped = q.dtype, q.shape[2] != k.shape[2]
    if q.device.type == "cpu" and q.shape[1] < SHORT:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return context.transpose(1, 2).to(dtype)


@dataclass
class Seams:
    """Where a layout may communicate. The defaults are one process.

    enter: before the column-parallel matrices of attention, MLP and head; leave: after their row-parallel ones and
    the embedding's look-up; look_up: tokens, table -> rows; attend: q, k, v -> context.
    """

    enter: Callable[[Tensor], Tensor] = identity
    leave: Callable[[Tensor], Tensor] = identity
    look_up: Callable[[Tensor, Tensor], Tensor] = F.embedding
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = causal_attention


def local(parameter: Tensor) -> Tensor:
    """The part of a parameter this rank computes with (a DTensor's local tensor, differentiable)."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class Linear(nn.Module):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, local(self.weight).to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], local(self.weight).to(x.dtype), self.eps)


class _Rotate(torch.autograd.Function):
    """Half the passes over memory that autograd would make of the equation: its gradient is the turn backwards."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    x32, half = x.float(), x.shape[-1] // 2
    out = x32 * cos
    out[..., :half].addcmul_(x32[..., half:], sin, value=-way)
    out[..., half:].addcmul_(x32[..., :half], sin, value=way)
    return out.to(x.dtype)


def rotate(x_bshd: Tensor, cos_s1d: Tensor, sin_s1d: Tensor) -> Tensor:
    """RoPE on the two halves of each head (GPT-NeoX order), in fp32. cos: (s, 1, d), sin: (s, 1, d/2)."""
    return _Rotate.apply(x_bshd, cos_s1d, sin_s1d)


class Attention(nn.Module):
    def __init__(self, shape: ModelShape, seams: Seams) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.seams = seams
        kv_width = shape.kv_heads * shape.head_dim
        self.wq = Linear(shape.width, shape.width)
        self.wk = Linear(shape.width, kv_width)
        self.wv = Linear(shape.width, kv_width)
        self.wo = Linear(shape.width, shape.width)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps) if shape.qk_norm else None

    def forward(self, x_bsw: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.seams.enter(x_bsw)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        context = self.seams.attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.seams.leave(self.wo(context.flatten(-2)))


class MLP(nn.Module):
    def __init__(self, shape: ModelShape, seams: Seams) -> None:
        super().__init__()
        self.seams = seams
        self.gate = Linear(shape.width, shape.ffn) if shape.mlp == "swiglu" else None
        self.up = Linear(shape.width, shape.ffn)
        self.down = Linear(shape.ffn, shape.width)

    def forward(self, x_bsw: Tensor) -> Tensor:
        x = self.seams.enter(x_bsw)
        hidden = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        return self.seams.leave(self.down(hidden))


def _call(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return function(*args)


class Block(nn.Module):
    def __init__(self, shape: ModelShape, seams: Seams) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.width, shape.norm_eps)
        self.attention = Attention(shape, seams)
        self.mlp_norm = RMSNorm(shape.width, shape.norm_eps)
        self.mlp = MLP(shape, seams)
        self.run: Callable[..., Tensor] = _call  # activation recompute replaces this

    def compute(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))

    def forward(self, x_bsw: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.run(self.compute, x_bsw, cos, sin)


class Embedding(nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.vocab, shape.width))


class Decoder(nn.Module):
    """The whole model, or the part of it that one pipeline stage holds.

    layers: global numbers of the blocks held; first / last: whether embedding / final norm and head are held.
    """

    cos: Tensor  # the RoPE tables, from set_positions
    sin: Tensor

    def __init__(
        self,
        shape: ModelShape,
        precision: str = "fp32",
        seams: Seams | None = None,
        layers: Iterable[int] | None = None,
        first: bool = True,
        last: bool = True,
    ) -> None:
        super().__init__()
        self.shape, self.seams, self.dtype = shape, seams or Seams(), COMPUTE_DTYPES[precision]
        layers = range(shape.layers) if layers is None else layers
        self.embedding = Embedding(shape) if first or (last and shape.tied) else None
        self.blocks = nn.ModuleDict({str(layer): Block(shape, self.seams) for layer in layers})
        self.norm = RMSNorm(shape.width, shape.norm_eps) if last else None
        self.head = Linear(shape.width, shape.vocab) if last and not shape.tied else None
        self.first, self.last = first, last

    def own_blocks(self) -> list[Block]:
        """Those that are held here, in the order of their layers."""
        return [block for block in self.blocks.values() if isinstance(block, Block)]

    def set_positions(self, positions_s: Tensor) -> None:
        """Fill the RoPE tables for the positions (int64, on the device) of the tokens this rank attends with."""
        d = self.shape.head_dim
        frequency = self.shape.rope_theta ** (-torch.arange(0, d, 2, device=positions_s.device).double() / d)
        angle = positions_s.double()[:, None] * frequency
        self.cos, self.sin = angle.cos().float().repeat(1, 2)[:, None], angle.sin().float()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, s) tokens on the first stage, else (b, s, w) hidden -> hidden, or on the last stage logits
        (b, s, vocab) in the compute dtype."""
        if self.first:
            x = self.seams.leave(self.seams.look_up(x, self._table()).to(self.dtype))
        for block in self.blocks.values():
            x = block(x, self.cos, self.sin)
        if not self.last:
            return x
        norm, head = self.norm, self.head
        assert norm is not None
        x = self.seams.enter(norm(x))
        return F.linear(x, self._table().to(x.dtype)) if head is None else head(x)

    def _table(self) -> Tensor:
        """Of the embedding, which a tied head shares."""
        embedding = self.embedding
        assert embedding is not None
        return local(embedding.weight)
