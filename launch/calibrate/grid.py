"""What `scalade calibrate` measures: shapes of products and attention, blocks, and the reference model's layouts.

The sizes are those of the models that a device of this kind trains: a CPU's are small. The reference model is none of
the sizes that ship, so that no study is judged on what the profile was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...parallelism.layout import Layout


@dataclass(frozen=True)
class Grid:
    """Shapes by kind of measurement."""

    precisions: tuple[str, ...]
    products: tuple[tuple[int, int, int], ...]  # (M, N, K); the last four also with all ranks at work
    attention: tuple[tuple[int, int, int, int], ...]  # (batch, heads, s, head_dim)
    blocks: tuple[tuple[dict[str, Any], int], ...]  # (shape, sequences); the first is all dispatch


@dataclass(frozen=True)
class Reference:
    """A model that is trained for some steps."""

    shape: dict[str, Any]
    global_batch: int


def _shape(layers: int, heads: int, width: int, ffn: int, seq_len: int, vocab: int = 256) -> dict[str, Any]:
    sizes = {"layers": layers, "heads": heads, "kv_heads": heads, "width": width, "ffn": ffn}
    return sizes | {"seq_len": seq_len, "vocab": vocab, "tied": False}


CPU = Grid(
    precisions=("fp32", "bf16"),
    products=(
        *((m, n, k) for m in (64, 512, 2048) for n, k in ((64, 64), (192, 64), (64, 192), (256, 256))),
        *((64, n, m) for m in (512, 2048) for n in (64, 192)),  # of a weight's gradient: long inner dimension
        (512, 1024, 512),
        (1024, 1024, 1024),
        (1024, 96, 96),
        (1024, 256, 96),
        (96, 256, 1024),
        (2048, 384, 128),
    ),
    attention=((4, 4, 64, 16), (8, 4, 128, 24), (2, 4, 256, 32)),
    blocks=((_shape(1, 2, 32, 64, 8), 1), (_shape(1, 4, 96, 256, 128), 4), (_shape(1, 4, 160, 448, 128), 8)),
)
CUDA = Grid(
    precisions=("fp32", "bf16"),
    products=(
        *((m, n, k) for m in (512, 2048, 8192) for n, k in ((1024, 1024), (4096, 1024), (1024, 4096), (4096, 4096))),
        *((n, k, 8192) for n, k in ((1024, 4096), (4096, 4096))),
        (8192, 8192, 8192),
        (4096, 11008, 4096),
        (4096, 1000, 1000),
        (8192, 4096, 4096),
    ),
    attention=((4, 16, 1024, 64), (2, 16, 4096, 128), (1, 32, 8192, 128)),
    blocks=(
        (_shape(1, 4, 128, 256, 64), 1),
        (_shape(1, 16, 2048, 5632, 2048), 2),
        (_shape(1, 32, 4096, 11008, 2048), 2),
    ),
)


def grid_for(cuda: bool) -> Grid:
    """Of a device."""
    return CUDA if cuda else CPU


def references(cuda: bool) -> tuple[Reference, ...]:
    """The models that are trained for some steps: two, that differ in depth and width."""
    if cuda:
        return Reference(_shape(8, 16, 1024, 2816, 1024, 32000), 8), Reference(
            _shape(4, 16, 2048, 5632, 2048, 32000), 8
        )
    return Reference(_shape(2, 4, 64, 176, 96), 8), Reference(_shape(4, 4, 112, 304, 96), 16)


def layouts_for(ranks: int) -> tuple[Layout, ...]:
    """Those that are tried with so many ranks, one of each dimension."""
    if ranks == 1:
        return Layout(), Layout(microbatches=4)
    found = [Layout(dp_replicate=ranks), Layout(dp_shard=ranks)]
    if ranks == 2:
        found += [Layout(tp=2), Layout(cp=2), Layout(pp=2, microbatches=4)]
    return tuple(found)
