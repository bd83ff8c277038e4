"""Block-wise quantisation to packed bytes, and dequantise-accumulate in fp32: bf16, int8, int4, fp4 (E3M0), top-k.

A message is uint8: the bytes sent are really this few. Inputs are (blocks, block) fp32, contiguous.

    int8, int4   s = max|x| / q, code = round(x / s), q = 127 or 7: |error| <= s / 2
    fp4 (E3M0)   one sign, three exponent bits, no mantissa: 0 or s 2^-6 ... s 2^0 with s = max|x|, the nearest in
                 value: |error| <= max(|x| / 3, s 2^-7). Streaming DiLoCo, arXiv 2501.18512, section 3.3
    topk         the k largest |x| of each block, as bf16 with their 16-bit positions. SparseLoCo, arXiv 2508.15706
    bf16         round to nearest even

Zero comes back as exactly zero. An infinity or NaN raises FloatingPointError: a scale would spread it over its block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTISED = {"int8": 127, "int4": 7, "fp4": 1}  # the scale is max|x| over this
CACHED_ELEMENTS = 1 << 16


def pack(x: Tensor, kind: str, keep: int = 0) -> Tensor:
    """(blocks, block) fp32 -> (bytes,) uint8. Scales come first, then codes; topk: values, then positions.

    keep: topk only, elements kept of each block. Two 4-bit codes share a byte, the even element in the low half.

    Raises
    ------
    FloatingPointError: an element is infinite or NaN, or is not representable (bf16 overflow)
    """
    head_bytes, body_bytes = _row_bytes(kind, x.shape[1], keep)
    message = torch.empty(x.shape[0] * (head_bytes + body_bytes), dtype=torch.uint8, device=x.device)
    head, body = _regions(message, x.shape[0], head_bytes)
    finite = torch.ones((), dtype=torch.bool, device=x.device)
    for rows in _chunks(x):
        if kind == "bf16":
            values = body[rows].view(torch.bfloat16).copy_(x[rows])
        elif kind == "topk":
            positions = x[rows].abs().topk(keep, dim=1, sorted=False).indices
            values = head[rows].view(torch.bfloat16).copy_(x[rows].gather(1, positions))
            body[rows].view(torch.int16).copy_(positions)  # the low 16 bits, unsigned
        else:
            values = torch.linalg.vector_norm(x[rows], float("inf"), dim=1, keepdim=True).div_(QUANTISED[kind])
            head[rows].view(torch.float32).copy_(values)
            _quantise(x[rows] / values.masked_fill(values == 0, 1), kind, body[rows])
        finite = finite & torch.isfinite(values).all()
    if not finite:
        raise FloatingPointError(f"cannot compress to {kind}: the values hold an infinity or NaN")
    return message


def unpack_add(message: Tensor, kind: str, out: Tensor, weight: float = 1.0, keep: int = 0) -> None:
    """out += weight * what `message` says. out: (blocks, block) fp32, of the shape given to `pack`."""
    head, body = _regions(message, out.shape[0], _row_bytes(kind, out.shape[1], keep)[0])
    pairs = _pair_table(kind).to(out.device) if kind in ("int4", "fp4") else out  # (256, 2); unused by the others
    for rows in _chunks(out):
        if kind == "bf16":
            out[rows].add_(body[rows].view(torch.bfloat16).float(), alpha=weight)
        elif kind == "topk":
            positions = body[rows].view(torch.int16).to(torch.int64).bitwise_and_(0xFFFF)
            out[rows].scatter_add_(1, positions, head[rows].view(torch.bfloat16).float().mul_(weight))
        else:
            if kind == "int8":
                values = body[rows].view(torch.int8).float()
            else:
                values = F.embedding(body[rows].to(torch.int32), pairs).flatten(1)
            out[rows].addcmul_(values, head[rows].view(torch.float32), value=weight)


def _row_bytes(kind: str, block: int, keep: int) -> tuple[int, int]:
    """Bytes of one block in the message's head and in its body."""
    if kind == "bf16":
        return 0, 2 * block
    if kind == "topk":
        return 2 * keep, 2 * keep
    return 4, block if kind == "int8" else block // 2


def _regions(message: Tensor, blocks: int, head_bytes: int) -> tuple[Tensor, Tensor]:
    head, body = message.split([blocks * head_bytes, message.numel() - blocks * head_bytes])
    return head.view(blocks, head_bytes), body.view(blocks, -1)


def _chunks(x: Tensor) -> Iterator[slice]:
    """Rows whose temporaries stay in a core's cache; a GPU takes all at once."""
    rows = max(1, CACHED_ELEMENTS // x.shape[1]) if x.device.type == "cpu" else len(x)
    return (slice(start, start + rows) for start in range(0, len(x), rows))


def _quantise(ratio: Tensor, kind: str, codes: Tensor) -> None:
    """Write the codes of x / s into a message. ratio: (rows, block), overwritten; codes: (rows, bytes) uint8."""
    if kind == "fp4":
        values = _e3m0_codes(ratio)
    else:
        values = ratio.round_().clamp_(-QUANTISED[kind], QUANTISED[kind]).to(torch.int8).view(torch.uint8)
    if kind != "int8":
        even, odd = values.view(len(values), -1, 2).unbind(2)
        values = (even & 15) | odd << 4
    codes.copy_(values)


def _e3m0_codes(ratio: Tensor) -> Tensor:
    """x / max|x| -> 4-bit codes in uint8: bit 3 the sign, bits 0-2 zero or exponent + 7."""
    bits = ratio.view(torch.int32)
    sign = (bits >> 28).bitwise_and_(8)
    tiny = ratio.abs() < 2.0**-7
    # Half a mantissa added to the bits carries into the exponent from 1.5 * 2^e on: the nearest power of two.
    codes = bits.bitwise_and_(0x7FFFFFFF).add_(0x400000).bitwise_right_shift_(23).sub_(127 - 7).clamp_(1, 7)
    return codes.masked_fill_(tiny, 0).bitwise_or_(sign).to(torch.uint8)


@lru_cache
def _pair_table(kind: str) -> Tensor:
    """(256, 2) fp32: the two values of each byte."""
    codes = torch.arange(16)
    if kind == "int4":
        values = torch.where(codes < 8, codes, codes - 16).float()
    else:
        magnitude = torch.where(codes % 8 > 0, torch.exp2((codes % 8 - 7).float()), 0.0)
        values = torch.where(codes < 8, magnitude, -magnitude)
    byte = torch.arange(256)
    return torch.stack([values[byte % 16], values[byte // 16]], dim=1)
