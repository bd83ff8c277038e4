"""Every layout of a model on so many devices, in blocks of columns.

First the splits: all ways to write the number of devices as pp x dp_replicate x dp_shard x cp x tp; those that no
setting could mend are refused at once. Then, for each split that is left, every number of microbatches that divides its
batch, and every setting that means something in it and that the engine knows: schedules with 2 to 8 stages a rank,
recomputation, sequence-parallel norms, what ZeRO shards, how context is exchanged.

Left out, and said: virtual stages beyond 8, cp beyond 4 that leaves a rank fewer than 256 tokens of a sequence,
offloading, torch.compile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

import numpy as np

from ...bench.shape import MLPS
from ..engines import refuse
from ..layout import LOOPED, RECOMPUTE, SCHEDULES, V_SHAPED, ZERO_BUBBLE, Layout
from ..predict.configs import WORDS, Configs
from .question import ALWAYS_CP, FEWEST_TOKENS, MOST_VIRTUAL, Question
from .rules import DEGREES, INTERLEAVED, ONE_F_ONE_B, Columns, first_broken, rules_of, sharded

BLOCK = 60_000  # layouts that are held at once
SPLIT = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
CHOICES: tuple[str, ...] = ("pp_schedule", "virtual_stages", "recompute", "sp", "loss_parallel", "zero_stage")
CHOICES += ("reshard_after_forward", "cp_method")
VARIED = (*SPLIT, "microbatches", *CHOICES)
LEFT_OUT = (
    f"more than {MOST_VIRTUAL} virtual stages, cp > {ALWAYS_CP} with fewer than {FEWEST_TOKENS} tokens a rank, "
    "offloading, compile, hpz, loss_parallel = false, replicas without --sites"
)


@dataclass
class Refusals:
    """How many layouts were refused, by the rule that they break; its reason is that of one of them."""

    by_rule: Counter[int] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)
    splits: int = 0  # of which this many were splits, with all their settings

    def add(self, columns: Columns, question: Question, broken: np.ndarray) -> None:
        """Count the layouts (n,) by the rule that they break (-1: none)."""
        for place in map(int, np.unique(broken[broken >= 0])):
            rows = np.flatnonzero(broken == place)
            self.by_rule[place] += len(rows)
            if place not in self.reasons:
                layout = layout_of(columns, int(rows[0]), question.engine)
                reason = refuse(layout, question.shape, question.recipe)
                assert reason is not None, layout
                self.reasons[place] = reason

    @property
    def total(self) -> int:
        return sum(self.by_rule.values())

    def counts(self) -> list[tuple[str, int]]:
        """(reason of one, number of all), the most first."""
        return [(self.reasons[place], count) for place, count in self.by_rule.most_common()]


def divisors(n: int) -> np.ndarray:
    """Ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return np.array(sorted({*small, *(n // d for d in small)}))


def splits(devices: int) -> Columns:
    """All ways to write `devices` as a product of the five degrees, the order of the mesh."""
    rows = np.array([[1, devices]])
    for _ in range(len(SPLIT) - 1):  # the last factor is split once more
        pieces = [
            np.column_stack([np.repeat(row[None, :-1], len(ds), 0), ds, row[-1] // ds])
            for row in rows
            for ds in [divisors(int(row[-1]))]
        ]
        rows = np.concatenate(pieces)
    return dict(zip(SPLIT, rows[:, 1:].T, strict=True))


def possible_splits(question: Question, refusals: Refusals) -> Columns:
    """The splits that some setting makes a layout; the others are counted."""
    all_splits = splits(question.devices)
    whole = _at_defaults(all_splits, question)
    short = question.shape.seq_len // whole["cp"] < FEWEST_TOKENS
    kept = (whole["cp"] <= ALWAYS_CP) | ~short
    whole, all_splits = take(whole, kept), take(all_splits, kept)
    broken = first_broken(whole, question, DEGREES)
    refusals.add(whole, question, broken)
    refusals.splits += int((broken >= 0).sum())
    return take(all_splits, broken < 0)


def _at_defaults(columns: Columns, question: Question) -> Columns:
    """These splits with one microbatch and settings that break no rule on degrees."""
    n = len(columns["tp"])
    defaults = {name: _code(name, getattr(Layout(), name)) for name in VARIED if name not in columns}
    return columns | {name: np.full(n, value) for name, value in defaults.items()}


def _code(name: str, value: Any) -> int:
    return WORDS[name].index(value) if name in WORDS else int(value)


def blocks(question: Question, refusals: Refusals) -> Iterator[Columns]:
    """All possible layouts, at most some BLOCK at a time."""
    there = possible_splits(question, refusals)
    for kind, rows in _kinds(there):
        settings = _settings(question, kind)
        wide = _with_microbatches(take(there, rows), question.global_batch)
        most = max(1, BLOCK // len(settings["sp"]))
        for begin in range(0, len(wide["tp"]), most):
            part = _joined(take(wide, slice(begin, begin + most)), settings)
            part = take(part, part["pp"] * part["virtual_stages"] <= question.shape.layers)
            broken = first_broken(part, question, rules_of(question.engine))
            refusals.add(part, question, broken)
            if (broken < 0).any():
                yield take(part, broken < 0)


@dataclass(frozen=True)
class _Kind:
    """What decides which settings mean something in a split."""

    pp: bool
    tp: bool
    cp: bool
    shards: bool  # dp_shard > 1
    sharded: bool


def _kinds(c: Columns) -> Iterator[tuple[_Kind, np.ndarray]]:
    traits = np.column_stack([c["pp"] > 1, c["tp"] > 1, c["cp"] > 1, c["dp_shard"] > 1, sharded(c)])
    for row in np.unique(traits, axis=0):
        yield _Kind(*map(bool, row)), np.flatnonzero((traits == row).all(1))


def _settings(question: Question, kind: _Kind) -> Columns:
    """Every combination of the settings that mean something, as columns."""
    engine = question.engine
    recompute = [RECOMPUTE.index(word) for word in question.recompute]
    norms = ([0] if engine == "deepspeed" else [1, 0]) if kind.tp else [1]
    loss = [0] if engine == "deepspeed" and kind.tp else [1]
    zero = {"torch": [3], "deepspeed": [1, 2, 3], "megatron": [1]}[engine] if kind.shards else [3]
    reshard = [1, 0] if engine == "torch" and kind.sharded else [1]
    methods = [0, 1] if kind.cp else [0]
    rows = [
        (*schedule, *rest)
        for schedule in _schedules(engine, kind.pp)
        for rest in product(recompute, norms, loss, zero, reshard, methods)
        if _mixes(schedule[0], rest[0], rest[4], kind)
    ]
    return dict(zip(CHOICES, np.array(rows).reshape(-1, len(CHOICES)).T, strict=True))


def _mixes(schedule: int, recompute: int, reshard: int, kind: _Kind) -> bool:
    """Zero-bubble schedules neither recompute nor reshard: left out here, for they are half of all combinations."""
    word = SCHEDULES[schedule]
    return not (kind.pp and word in ZERO_BUBBLE and (recompute or (kind.sharded and reshard)))


def _schedules(engine: str, piped: bool) -> list[tuple[int, int]]:
    """(schedule, virtual stages) that the engine knows."""
    if not piped:
        return [(ONE_F_ONE_B, 1)]
    if engine == "deepspeed":
        return [(ONE_F_ONE_B, 1)]
    several = range(2, MOST_VIRTUAL + 1)
    if engine == "megatron":
        return [(ONE_F_ONE_B, 1), *((INTERLEAVED, v) for v in several)]
    rows = []
    for code, word in enumerate(SCHEDULES):
        stages = [2] if word in V_SHAPED else several if word in LOOPED else [1]
        rows += [(code, v) for v in stages]
    return rows


def _with_microbatches(columns: Columns, batch: int) -> Columns:
    """Each split once for every number of microbatches that divides its batch."""
    local = batch // (columns["dp_replicate"] * columns["dp_shard"])
    known = {int(each): divisors(int(each)) for each in np.unique(local)}
    counts = [known[int(each)] for each in local]
    rows = np.repeat(np.arange(len(local)), [len(each) for each in counts])
    return take(columns, rows) | {"microbatches": np.concatenate([*counts, np.zeros(0, int)])}


def _joined(columns: Columns, settings: Columns) -> Columns:
    """Each row of the one with each of the other."""
    n, k = len(columns["tp"]), len(settings["sp"])
    left = {name: np.repeat(values, k) for name, values in columns.items()}
    return left | {name: np.tile(values, n) for name, values in settings.items()}


def take(columns: Columns, rows: Any) -> Columns:
    return {name: values[rows] for name, values in columns.items()}


def joined(parts: list[Columns]) -> Columns:
    """One below the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def layout_of(columns: Columns, row: int, engine: str) -> Layout:
    """One row as a Layout."""
    types = {each.name: each.type for each in fields(Layout)}
    settings: dict[str, Any] = {"engine": engine}
    for name in VARIED:
        value = int(columns[name][row])
        settings[name] = WORDS[name][value] if name in WORDS else bool(value) if types[name] == "bool" else value
    return Layout(**settings)


def configs_of(columns: Columns, question: Question) -> Configs:
    """The columns as configurations to predict."""
    shape = question.shape
    words = {name: _code(name, getattr(question, name)) for name in ("precision", "optimizer")}
    return Configs(
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        width=shape.width,
        ffn=shape.ffn,
        vocab=shape.vocab,
        seq_len=shape.seq_len,
        global_batch=question.global_batch,
        matrices=MLPS[shape.mlp],
        qk_norm=int(shape.qk_norm),
        tied=int(shape.tied),
        **words,
        **{name: columns[name] for name in VARIED},
    )
