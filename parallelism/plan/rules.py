"""Which of many layouts are possible: the rules of `layout.impossible` and of the engines' capabilities over columns.

The scalar functions are the truth; tests hold these against them on random layouts. Here is no text: the reason of a
refusal is what the scalar function says of one of the refused layouts. A rule is True where it is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..layout import LOOPED, SCHEDULES, V_SHAPED, ZERO_BUBBLE
from .question import Question

Columns = dict[str, np.ndarray]  # fields of Layout, (n,) each; words are codes as in predict.configs
Rule = Callable[[Columns, Question], np.ndarray]

LOOPED_CODES = np.array([SCHEDULES.index(word) for word in LOOPED])
V_CODES = np.array([SCHEDULES.index(word) for word in V_SHAPED])
ZERO_BUBBLE_CODES = np.array([SCHEDULES.index(word) for word in ZERO_BUBBLE])
GPIPE, ONE_F_ONE_B, INTERLEAVED = (SCHEDULES.index(word) for word in ("GPipe", "1F1B", "Interleaved1F1B"))
DUAL_PIPE = SCHEDULES.index("DualPipeV")


def sharded(c: Columns) -> np.ndarray:
    """As Layout.sharded."""
    return (c["dp_shard"] * c["cp"] > 1) | ((c["dp_replicate"] > 1) & (c["tp"] * c["pp"] > 1))


def _dp(c: Columns) -> np.ndarray:
    return c["dp_replicate"] * c["dp_shard"]


def _looped(c: Columns) -> np.ndarray:
    return np.isin(c["pp_schedule"], LOOPED_CODES)


def _piped(c: Columns) -> np.ndarray:
    return c["pp"] > 1


# Of the degrees alone: what no other setting can mend.
DEGREES: tuple[Rule, ...] = (
    lambda c, q: q.global_batch % _dp(c) == 0,
    lambda c, q: q.shape.heads % c["tp"] == 0,
    lambda c, q: q.shape.kv_heads % c["tp"] == 0,
    lambda c, q: q.shape.ffn % c["tp"] == 0,
    lambda c, q: c["pp"] <= q.shape.layers,
    lambda c, q: (c["tp"] == 1) | (q.shape.vocab % c["tp"] == 0),
    lambda c, q: (c["cp"] == 1) | (q.shape.seq_len % (2 * c["cp"]) == 0),
)

SETTINGS: tuple[Rule, ...] = (
    lambda c, q: q.global_batch % (_dp(c) * c["microbatches"]) == 0,
    lambda c, q: q.shape.layers >= c["pp"] * c["virtual_stages"],
    lambda c, q: (c["tp"] == 1) | (c["sp"] == 0) | (q.shape.seq_len % (c["tp"] * c["cp"]) == 0),
    lambda c, q: _piped(c) | (c["virtual_stages"] == 1),
    lambda c, q: ~_piped(c) | (_looped(c) == (c["virtual_stages"] > 1)),
)

TORCH: tuple[Rule, ...] = (
    lambda c, q: np.full(c["tp"].shape, not q.optimizer.startswith("deepspeed")),
    lambda c, q: (c["dp_shard"] * c["cp"] * c["tp"] == 1) | (q.optimizer != "muon"),
    lambda c, q: c["zero_stage"] == 3,
    lambda c, q: (c["cp"] == 1) | (c["cp_method"] == 0) | (q.shape.kv_heads % (c["cp"] * c["tp"]) == 0),
    lambda c, q: ~_piped(c) | (not q.shape.tied),
    lambda c, q: ~_piped(c) | ~np.isin(c["pp_schedule"], V_CODES) | (c["virtual_stages"] == 2),
    lambda c, q: ~_piped(c) | (c["pp_schedule"] == GPIPE) | (c["microbatches"] >= c["pp"]),
    lambda c, q: ~_piped(c) | (c["pp_schedule"] != DUAL_PIPE) | (c["microbatches"] >= 2 * c["pp"]),
    lambda c, q: ~_piped(c) | ~_looped(c) | np.isin(c["pp_schedule"], V_CODES) | (c["microbatches"] % c["pp"] == 0),
    lambda c, q: (
        ~(_piped(c) & np.isin(c["pp_schedule"], ZERO_BUBBLE_CODES) & sharded(c) & (c["reshard_after_forward"] > 0))
    ),
    lambda c, q: ~(_piped(c) & np.isin(c["pp_schedule"], ZERO_BUBBLE_CODES) & (c["recompute"] > 0)),
)


def _stage(c: Columns) -> np.ndarray:
    """As deepspeed.config.stage_of, where nothing is offloaded."""
    return np.where(c["dp_shard"] > 1, c["zero_stage"], 0)


DEEPSPEED: tuple[Rule, ...] = (
    lambda c, q: np.full(c["tp"].shape, q.optimizer not in ("muon", "deepspeed-cpu-adam")),
    lambda c, q: c["cp"] == 1,
    lambda c, q: c["recompute"] != 1,
    lambda c, q: c["reshard_after_forward"] > 0,
    lambda c, q: (c["dp_replicate"] == 1) | (c["dp_shard"] == 1),
    lambda c, q: (c["tp"] == 1) | (c["sp"] == 0),
    lambda c, q: (c["tp"] == 1) | (c["loss_parallel"] == 0),
    lambda c, q: (c["tp"] == 1) | (c["pp"] == 1),
    lambda c, q: (c["tp"] == 1) | (_stage(c) > 0) | (q.precision == "fp32"),
    lambda c, q: ~_piped(c) | (c["pp_schedule"] == ONE_F_ONE_B),
    lambda c, q: ~_piped(c) | (_stage(c) < 2),
    lambda c, q: ~_piped(c) | (not q.shape.tied),
)

MEGATRON: tuple[Rule, ...] = (
    lambda c, q: np.full(c["tp"].shape, q.optimizer in ("adamw", "sgd")),
    lambda c, q: np.full(c["tp"].shape, q.optimizer != "sgd" or not q.recipe.weight_decay),
    lambda c, q: (c["dp_shard"] == 1) | (c["zero_stage"] == 1),
    lambda c, q: c["reshard_after_forward"] > 0,
    lambda c, q: c["loss_parallel"] > 0,
    lambda c, q: c["cp"] == 1,
    lambda c, q: ~_piped(c) | np.isin(c["pp_schedule"], (ONE_F_ONE_B, INTERLEAVED)),
    lambda c, q: ~_piped(c) | (c["virtual_stages"] == 1) | (c["microbatches"] % c["pp"] == 0),
)

ENGINE_RULES = {"torch": TORCH, "deepspeed": DEEPSPEED, "megatron": MEGATRON}


def first_broken(columns: Columns, question: Question, rules: tuple[Rule, ...]) -> np.ndarray:
    """(n,) place of the first rule that a layout breaks; -1: it keeps them all."""
    found = np.full(len(columns["tp"]), -1)
    for place, rule in enumerate(rules):
        found[(found < 0) & ~np.asarray(rule(columns, question))] = place
    return found


def rules_of(engine: str) -> tuple[Rule, ...]:
    """The rules on a whole layout, all that there are."""
    return DEGREES + SETTINGS + ENGINE_RULES[engine]
