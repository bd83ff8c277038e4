"""Configurations to predict, as columns: each field a scalar or an array (n,), so that a search is one evaluation.

The fields are those of `ModelShape`, `Recipe`, `Layout` and `Outer` that time and memory depend on, with the same
names; a setting that is one of several words is its place in the tuple of those words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ...bench.recipe import OPTIMIZERS, Recipe
from ...bench.shape import MLPS, ModelShape
from ..diloco.config import Outer
from ..diloco.plan import fragment_count, payload_bytes, state_bytes, wire_bytes
from ..layout import CP_METHODS, OFFLOAD, RECOMPUTE, SCHEDULES, Layout

Column = np.ndarray | float | int  # of one setting: one for all configurations, or (n,)
PRECISIONS = ("fp32", "bf16", "fp8", "fp4")  # of the matrix products; all else is bf16 where they are fp8 or fp4
WORDS: Mapping[str, tuple[str, ...]] = {
    "precision": PRECISIONS,
    "optimizer": OPTIMIZERS,
    "pp_schedule": SCHEDULES,
    "cp_method": CP_METHODS,
    "recompute": RECOMPUTE,
    "offload_optimizer": OFFLOAD,
    "offload_parameters": OFFLOAD,
}
"""The settings that are words, and the words in the order of their codes."""


@dataclass(frozen=True)
class Configs:
    """n configurations. Counts are of one replica unless said."""

    layers: Column
    heads: Column
    kv_heads: Column
    width: Column
    ffn: Column
    vocab: Column
    seq_len: Column
    global_batch: Column  # sequences a step, over all replicas
    matrices: Column = 3  # of width x ffn in the MLP: 3 SwiGLU, 2 GELU
    qk_norm: Column = 0
    tied: Column = 0
    precision: Column = 1  # code; WORDS
    optimizer: Column = 0  # code
    momentum: Column = 1  # SGD alone: whether it keeps one
    dp_replicate: Column = 1
    dp_shard: Column = 1
    zero_stage: Column = 3
    reshard_after_forward: Column = 1
    hpz: Column = 1
    offload_optimizer: Column = 0  # code
    offload_parameters: Column = 0  # code
    tp: Column = 1
    sp: Column = 1
    loss_parallel: Column = 1
    pp: Column = 1
    pp_schedule: Column = 1  # code; 1: 1F1B
    virtual_stages: Column = 1
    microbatches: Column = 1
    cp: Column = 1
    cp_method: Column = 0  # code
    recompute: Column = 0  # code
    compile: Column = 0
    replicas: Column = 1  # of DiLoCo
    placed_replicas: Column = 1  # replicas that have ranks of their own; fewer than `replicas`: folded
    sync_every: Column = 1  # H; 1 where there is no outer step
    outer_bytes: Column = 0  # bytes one rank sends for each of its parameters in a round of H steps
    outer_state: Column = 0  # bytes one rank keeps for its outer steps, for each of its parameters
    outer_offload: Column = 0  # folded replicas wait in host memory
    overlap_steps: Column = 0  # inner steps behind which an outer message may hide
    fragments: Column = 1  # parts of the model that are synchronised at different times
    nodes: Column = 0  # 0: as few as hold all ranks

    def __len__(self) -> int:
        return max((np.size(getattr(self, each.name)) for each in fields(self)), default=1)

    # What follows from the settings.

    @property
    def head_dim(self) -> Column:
        return self.width // self.heads

    @property
    def kv_width(self) -> Column:
        return self.kv_heads * self.head_dim

    @property
    def dp(self) -> Column:
        return self.dp_replicate * self.dp_shard

    @property
    def ranks(self) -> Column:
        """Ranks of one replica."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def all_ranks(self) -> Column:
        return self.ranks * self.placed_replicas

    @property
    def stages(self) -> Column:
        return self.pp * self.virtual_stages

    @property
    def sequences(self) -> Column:
        """Sequences of one microbatch on one rank."""
        return self.global_batch / (self.dp * self.replicas * self.microbatches)

    @property
    def tokens(self) -> Column:
        """Tokens of one microbatch on one rank: its part of the sequences where cp > 1."""
        return self.sequences * self.seq_len / self.cp

    @property
    def params_layer(self) -> Column:
        """Parameters of one block, its matrices and norms."""
        norms = 2 * self.width + 2 * self.head_dim * self.qk_norm
        return self.matrices_layer + norms

    @property
    def matrices_layer(self) -> Column:
        """Parameters in the matrices of one block."""
        return 2 * self.width * self.width + 2 * self.width * self.kv_width + self.matrices * self.width * self.ffn

    @property
    def params_total(self) -> Column:
        return self.layers * self.params_layer + self.width + self.vocab * self.width * (2 - self.tied)

    @property
    def element(self) -> Column:
        """Bytes of an element of activations and of the weights' compute copy."""
        return np.where(np.asarray(self.precision) == 0, 4, 2)

    def take(self, rows: Any) -> Configs:
        """The configurations of these rows (a mask or indices)."""
        n = len(self)
        some = {
            each.name: np.broadcast_to(value, n)[rows]
            for each in fields(self)
            if np.ndim(value := getattr(self, each.name))
        }
        return replace(self, **some)


def code(setting: str, word: str) -> int:
    """The code of a word. Raises ValueError where there is no such word."""
    try:
        return WORDS[setting].index(word)
    except ValueError:
        raise ValueError(f"{setting} = {word!r}: allowed are {', '.join(WORDS[setting])}") from None


def from_cases(cases: Iterable[tuple[ModelShape, Recipe, Layout, Outer]]) -> Configs:
    """The cases of a study as columns, in their order."""
    rows = [_row(*case) for case in cases]
    return Configs(**{name: np.array([row[name] for row in rows]) for name in rows[0]}) if rows else _NONE


def _row(shape: ModelShape, recipe: Recipe, layout: Layout, outer: Outer) -> dict[str, float]:
    own = {"layers", "heads", "kv_heads", "width", "ffn", "vocab", "seq_len", "qk_norm", "tied"}
    row: dict[str, float] = {name: getattr(shape, name) for name in own}
    row |= {"global_batch": recipe.global_batch, "matrices": MLPS[shape.mlp]}
    row |= {name: code(name, getattr(recipe, name)) for name in ("precision", "optimizer")}
    row["momentum"] = float(recipe.beta1 > 0)
    for each in fields(Layout):
        value = getattr(layout, each.name)
        if each.name in _NAMES:
            row[each.name] = code(each.name, value) if each.name in WORDS else float(value)
    return row | _outer_row(outer, shape.layers)


def _outer_row(outer: Outer, layers: int) -> dict[str, float]:
    row: dict[str, float] = {"replicas": outer.replicas, "placed_replicas": outer.placed_replicas}
    row |= {"sync_every": 1, "overlap_steps": 0, "outer_bytes": 0, "fragments": 1}
    row |= {"outer_state": state_bytes(outer, _MANY) / _MANY, "outer_offload": float(outer.offload)}
    if outer.algorithm == "none":
        return row
    late = outer.algorithm in ("delayed", "eager")  # what is sent is applied a whole round later
    message = payload_bytes(outer, _MANY) + (payload_bytes(outer, _MANY) // outer.replicas if _two_shot(outer) else 0)
    return row | {
        "sync_every": outer.interval,
        "overlap_steps": outer.interval if late else outer.overlap_steps or 0,
        "outer_bytes": wire_bytes(outer, message) / _MANY if outer.placed_replicas > 1 else 0,
        "fragments": fragment_count(outer, layers),
    }


def _two_shot(outer: Outer) -> bool:
    """A part of the sum comes back beside each replica's message."""
    return outer.exchange == "twoshot"


_MANY = 2**24  # parameters of a message whose bytes are counted: a multiple of every block
_NAMES = {each.name for each in fields(Configs)}
_NONE = Configs(*(np.zeros(0) for _ in range(8)))
