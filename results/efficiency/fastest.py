"""The fastest layout of each workload, and those that the runs do not tell apart from it.

The layout with the highest median throughput is compared with each other one by an exact rank-sum test over runs
(rank_test.py), with Holm's step-down over all of them. Where no difference is shown, no winner is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..schema.columns import RUNS
from ..stats.rank_intervals import Estimate, median
from ..stats.rank_test import best_p, holm, rank_sum_p, runs_needed
from ..table.column_codes import Coded, coded
from ..table.distinguishing import differing_in_parts
from ..wording import count_of
from .workload import CONDITIONS, DATA, MODEL, OUTER, RECIPE, Group

WORK = (*MODEL, *DATA, *RECIPE)  # runs that agree in these and in tokens a step train the same model the same way
SETTINGS = tuple(dict.fromkeys(("engine", *CONDITIONS, *(column.name for column in RUNS["Layout"]), *OUTER)))
NAMED = 4  # tied layouts listed by name


@dataclass(frozen=True)
class Fastest:
    """The groups of one workload: the fastest, and those that are not shown to be slower.

    Each figure is computed when it is first read: of thousands of workloads a page names some.
    """

    groups: tuple[Group, ...]
    level: float

    @cached_property
    def ranking(self) -> list[Group]:
        """By median throughput, fastest first."""
        return sorted(self.groups, key=lambda group: -float(np.median(group.rates)))

    @property
    def best(self) -> Group:
        return self.ranking[0]

    @property
    def others(self) -> int:
        """Groups of this workload beside the fastest."""
        return len(self.groups) - 1

    @cached_property
    def rate(self) -> Estimate:
        return median(self.best.rates, self.level)

    @cached_property
    def ties(self) -> tuple[tuple[Group, Estimate], ...]:
        """Those with a run as fast as a run of the fastest, fastest first."""
        near = [group for group in self._open if max(group.rates) >= min(self.best.rates)]
        return tuple((group, median(group.rates, self.level)) for group in near)

    @cached_property
    def unproven(self) -> tuple[Group, ...]:
        """Those that are slower in every run, but with too few runs to be sure."""
        return tuple(group for group in self._open if max(group.rates) < min(self.best.rates))

    @cached_property
    def needed(self) -> int | None:
        """Runs of each layout that could show a difference; None: there are enough."""
        alpha, count = 1 - self.level, len(self.best.rates)
        few = [group for group in self._open if best_p(len(group.rates), count) > alpha / self.others]
        return runs_needed(alpha / self.others) if few else None

    @cached_property
    def names(self) -> dict[int, str]:
        """By id of the group: layout and ranks, with the settings that distinguish it from others of that name."""
        settings = differing_in_parts(
            [group.rows[0] for group in self.groups], [group.where for group in self.groups], SETTINGS, most=2
        )
        return {
            id(group): group.where + "".join(f", {name} {group[name]}" for name in names)
            for group, names in zip(self.groups, settings, strict=True)
        }

    @cached_property
    def _open(self) -> list[Group]:
        """Those that are not shown to be slower than the best."""
        rest = self.ranking[1:]
        p = holm([rank_sum_p(np.log(group.rates), np.log(self.best.rates)) for group in rest])
        return [group for group, value in zip(rest, p, strict=True) if value > 1 - self.level]

    def line(self, name: Callable[[Group], str], level: float) -> str:
        """The outcome as one line; name: names the workload of a group."""
        span = f" {self.rate.bounds('{:,.0f}'.format)}" if self.rate.runs > 1 else ""
        runs = count_of(self.rate.runs, "run")
        best = f"{self.names[id(self.best)]}, {self.rate.value:,.0f} tokens/s{span}, {runs}"
        return f"{name(self.best)}: {self._verdict(best, level)}"

    def _verdict(self, best: str, level: float) -> str:
        """Whether the best layout is shown to be the fastest; best: its name and rate."""
        needed = "" if self.needed is None else f"{count_of(self.needed, 'run')} each could tell, at {level:.0%}"
        if self.ties:
            others = [f"{self.names[id(group)]} ({rate.value:,.0f})" for group, rate in self.ties[:NAMED]]
            more = f" and {len(self.ties) - NAMED} more" if len(self.ties) > NAMED else ""
            tied = f"no single fastest: {best}, is not told apart from {', '.join(others)}{more}"
            return tied + (f" ({needed})" if needed else "")
        if self.unproven:
            return f"{best}; ahead in every run, which is too few to be sure ({needed})"
        return best

    def to_dict(self) -> dict:
        return {
            "run_ids": [row["run_id"] for row in self.best.rows],
            "layout": self.best.label,
            "devices": self.best.devices,
            "tokens_per_s": self.rate.to_dict(),
            "not_told_apart": [_named(group) for group, _ in self.ties],
            "slower_but_not_shown": [_named(group) for group in self.unproven],
            "runs_needed": self.needed,
        }


def same_training(groups: Sequence[Group]) -> list[int]:
    """A number for each group, from 0 in their order: equal for groups that train the same model the same way."""
    levels = coded(group.level("strong") for group in groups)
    return Coded([group.rows[0] for group in groups]).joint(WORK, levels).tolist()


def fastest(groups: Sequence[Group], level: float) -> list[Fastest]:
    """One for each workload, in the order of the groups."""
    by_work: dict[int, list[Group]] = {}
    for group, work in zip(groups, same_training(groups), strict=True):
        by_work.setdefault(work, []).append(group)
    return [Fastest(tuple(members), level) for members in by_work.values()]


def tokens_text(group: Group) -> str:
    """The work of a group as text: `8 x 128 tokens a step`."""
    batch, length = group["global_batch"] or 0, group["model_seq_len"] or 0
    tokens = f"{batch} x {length}" if batch * length == group.work.tokens else f"{group.work}"
    return f"{tokens} tokens a step" + (" on average" if group.work.varies else "")


def _named(group: Group) -> dict:
    return {"layout": group.label, "devices": group.devices, "run_ids": [row["run_id"] for row in group.rows]}
