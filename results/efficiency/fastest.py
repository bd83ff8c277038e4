"""The fastest layout of each workload, and those that so many runs do not tell apart from it.

The layout with the highest median throughput is held against each other one by an exact rank-sum test over runs
(verdict.py), Holm's step-down over them all. Where a difference is not shown, no winner is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..columns import RUNS
from ..rank_intervals import Estimate, median
from ..verdict import best_p, holm, rank_sum_p, runs_needed
from .workload import CONDITIONS, DATA, MODEL, OUTER, RECIPE, Group

WORK = (*MODEL, *DATA, *RECIPE)  # runs that agree in these, and in tokens a step, train the same model the same way
SETTINGS = tuple(dict.fromkeys(("engine", *CONDITIONS, *(column.name for column in RUNS["Layout"]), *OUTER)))
NAMED = 4  # layouts that tie, by name


@dataclass(frozen=True)
class Fastest:
    """The groups of one workload: the fastest, and those that are not shown to be slower.

    ties: with runs as fast as one of the fastest's, fastest first. unproven: slower in every run, and too few runs to
    show it. needed: runs a layout that could; null: there are enough.
    """

    best: Group
    rate: Estimate
    ties: tuple[tuple[Group, Estimate], ...]
    unproven: tuple[Group, ...]
    needed: int | None
    others: int  # groups of this workload beside the fastest
    names: dict[int, str]  # of the groups, by id: different ones for different groups

    def line(self, name: Callable[[Group], str], level: float) -> str:
        """name: of the workload."""
        low, high, sign = _range(self.rate)
        runs = f"{self.rate.runs} run{'s' * (self.rate.runs != 1)}"
        span = f" [{low:,.0f}{sign}{high:,.0f}]" if self.rate.runs > 1 else ""
        said = f"{self.names[id(self.best)]}, {self.rate.value:,.0f} tokens/s{span}, {runs}"
        few = "" if self.needed is None else f"{self.needed} runs each could tell, at {level:.0%}"
        if self.ties:
            others = [f"{self.names[id(group)]} ({rate.value:,.0f})" for group, rate in self.ties[:NAMED]]
            more = f" and {len(self.ties) - NAMED} more" if len(self.ties) > NAMED else ""
            said = f"no single fastest: {said}, is not told apart from {', '.join(others)}{more}"
            said += f" ({few})" if few else ""
        elif self.unproven:
            said += f"; ahead in every run, which is too few to be sure ({few})"
        return f"{name(self.best)}: {said}"

    def to_dict(self) -> dict:
        return {
            "run_ids": [row["run_id"] for row in self.best.rows], "layout": self.best.label,
            "devices": self.best.devices, "tokens_per_s": self.rate.to_dict(),
            "not_told_apart": [_named(group) for group, _ in self.ties],
            "slower_but_not_shown": [_named(group) for group in self.unproven], "runs_needed": self.needed,
        }  # fmt: skip


def same_training(group: Group) -> tuple:
    """Equal for groups that train the same model the same way."""
    return (*(group[name] for name in WORK), group.level("strong"))


def fastest(groups: Sequence[Group], level: float) -> list[Fastest]:
    """One for each workload, in the order of the groups."""
    by_work: dict[tuple, list[Group]] = {}
    for group in groups:
        by_work.setdefault(same_training(group), []).append(group)
    return [_fastest(some, level) for some in by_work.values()]


def tokens_text(group: Group) -> str:
    """The work of a group, as a person reads it: `8 x 128 tokens a step`."""
    batch, length = group["global_batch"] or 0, group["model_seq_len"] or 0
    tokens = f"{batch} x {length}" if batch * length == group.work.tokens else f"{group.work}"
    return f"{tokens} tokens a step" + " on average" * group.work.varies


def _fastest(some: list[Group], level: float) -> Fastest:
    best, *rest = sorted(some, key=lambda group: -float(np.median(group.rates)))
    alpha, count = 1 - level, len(best.rates)
    p = holm([rank_sum_p(np.log(group.rates), np.log(best.rates)) for group in rest])
    open_ = [group for group, value in zip(rest, p, strict=True) if value > alpha]
    near = [group for group in open_ if max(group.rates) >= min(best.rates)]
    few = [group for group in open_ if best_p(len(group.rates), count) > alpha / len(rest)]
    return Fastest(
        best, median(best.rates, level), tuple((group, median(group.rates, level)) for group in near),
        tuple(group for group in open_ if max(group.rates) < min(best.rates)),
        runs_needed(alpha / len(rest)) if few else None, len(rest), _names(some),
    )  # fmt: skip


def _names(some: Sequence[Group]) -> dict[int, str]:
    """Layout and ranks of each group, with the settings that tell it from others of that name."""
    names = {}
    for group in some:
        twins = [other for other in some if other.where == group.where]
        tells = [name for name in SETTINGS if len({other[name] for other in twins}) > 1][:2]
        names[id(group)] = group.where + "".join(f", {name} {group[name]}" for name in tells)
    return names


def _range(rate: Estimate) -> tuple[float, float, str]:
    return (rate.low, rate.high, ", ") if rate.low is not None else (rate.least, rate.most, " .. ")


def _named(group: Group) -> dict:
    return {"layout": group.label, "devices": group.devices, "run_ids": [row["run_id"] for row in group.rows]}
