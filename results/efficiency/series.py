"""From groups of runs to series: a base, the points read against it, their laws, and what was refused.

Efficiency is one formula for all forms: with c = device-seconds per unit of work, E = c_base / c. The unit of work
is a token (throughput, step_time: strong T_b n_b / (T n), weak (X / n) / (X_b / n_b)) or the target loss reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median as middle

from ..stats import rank_intervals as ranks
from ..stats.rank_intervals import Estimate
from ..table.step_columns import Steps
from ..table.work import mean_step_s
from .breakdown import Breakdown, breakdown
from .loss import time_to_loss_s
from .system_laws import LAWS, LawFit, fit_laws
from .workload import Bases, Group, difference, differing

FORMS = ("throughput", "step_time", "loss")


@dataclass(frozen=True)
class Options:
    """What the user asked for; see `efficiency`."""

    mode: str
    form: str = "throughput"
    target_loss: float | None = None
    loss_window: int = 10
    allow: tuple[str, ...] = ()
    level: float = 0.95
    draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Refusal:
    """Runs that are not compared, and why; `columns`: those that differ from the base's."""

    what: str
    run_ids: tuple[str, ...]
    why: str
    base: str | None = None
    columns: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return {
            "what": self.what,
            "run_ids": list(self.run_ids),
            "why": self.why,
            "base": self.base,
            "columns": list(self.columns),
        }


@dataclass(frozen=True)
class Point:
    """A group beside its base, each figure formed when it is first asked for: a page shows some of thousands.

    The base itself has no speedup and no efficiency: they are 1 by definition.
    loss_s: seconds to the target loss of the runs of each group, by id, in the form `loss`.
    steps: of the runs whose waits only they tell (breakdown.py), by run_id.
    """

    group: Group
    base: Group
    options: Options
    loss_s: Mapping[int, Sequence[float]]
    steps: Mapping[str, Steps]

    @property
    def is_base(self) -> bool:
        return self.group is self.base

    @cached_property
    def tokens_per_s(self) -> Estimate:
        return ranks.median(self.group.rates, self.options.level)

    @cached_property
    def step_time_s(self) -> Estimate:
        return ranks.median([row["step_time_s"] for row in self.group.rows], self.options.level)

    @cached_property
    def time_to_loss_s(self) -> Estimate | None:
        seconds = self.loss_s.get(id(self.group))
        return ranks.median(seconds, self.options.level) if seconds else None

    @cached_property
    def speedup(self) -> Estimate | None:
        if self.is_base:
            return None
        if self.options.form == "loss":
            return ranks.ratio(self.loss_s[id(self.base)], self.loss_s[id(self.group)], self.options.level)
        if self.options.form == "throughput":
            return self.efficiency.scaled(1 / self._share)
        seconds = ([mean_step_s(row) for row in one.rows] for one in (self.base, self.group))
        return ranks.ratio(*seconds, self.options.level)

    @cached_property
    def efficiency(self) -> Estimate | None:
        if self.is_base:
            return None
        if self.options.form == "loss":
            return self.speedup.scaled(self._share)
        return ranks.ratio(self.group.rates, self.base.rates, self.options.level).scaled(self._share)

    @property
    def _share(self) -> float:
        return self.base.devices / self.group.devices

    @cached_property
    def ideal_tokens_per_s(self) -> float:
        return ranks.median(self.base.rates).value * self.group.devices / self.base.devices

    @cached_property
    def breakdown(self) -> Breakdown:
        return breakdown(self.group.rows, self.steps)

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """Columns that differ and that the user allowed."""
        names = differing(self.group, self.base, self.options.mode)
        return tuple(name for name in names if name in self.options.allow)

    def to_dict(self) -> dict:
        group = self.group
        optional = {"time_to_loss_s": self.time_to_loss_s, "speedup": self.speedup, "efficiency": self.efficiency}
        return {
            "is_base": self.is_base,
            "devices": group.devices,
            "layout": group.label,
            "engine": group["engine"],
            "case_ids": sorted({row["case_id"] for row in group.rows}),
            "run_ids": [row["run_id"] for row in group.rows],
            "not_ok_run_ids": [row["run_id"] for row in group.not_ok],
            "global_batch": group["global_batch"],
            "tokens_per_step": float(group.work.tokens),
            "tokens_per_s": self.tokens_per_s.to_dict(),
            "step_time_s": self.step_time_s.to_dict(),
            **{name: estimate and estimate.to_dict() for name, estimate in optional.items()},
            "ideal_tokens_per_s": self.ideal_tokens_per_s,
            "breakdown": self.breakdown.to_dict(),
            "allowed_to_differ": list(self.allowed),
        }


@dataclass(frozen=True)
class Series:
    """One family of layouts of one engine against one base, by device count; the base comes first."""

    family: str
    engine: str | None
    points: tuple[Point, ...]
    options: Options

    @cached_property
    def laws(self) -> tuple[LawFit, ...]:
        """Of several layouts on as many devices the fastest is taken; none of times to a loss."""
        if self.options.form == "loss":
            return ()
        by_count: dict[int, list[float]] = {}
        for point in self.points:
            rates = point.group.rates
            by_count[point.group.devices] = max(by_count.get(point.group.devices, rates), rates, key=middle)
        options, laws = self.options, [law for law in LAWS.values() if self.options.mode in law.modes]
        return tuple(fit_laws(laws, by_count, options.level, options.draws, options.seed))

    @property
    def base(self) -> Point:
        return self.points[0]

    def curve(self, devices: Sequence[int]) -> list[dict]:
        """Ideal and fitted throughput at these device counts."""
        base, fits = self.base, [fit for fit in self.laws if not fit.refused]
        return [
            {"devices": n, "ideal_tokens_per_s": base.tokens_per_s.value * n / base.group.devices}
            | {f"{fit.law.name}_tokens_per_s": fit.throughput(n) for fit in fits}
            for n in devices
        ]

    def to_dict(self) -> dict:
        measured = sorted({point.group.devices for point in self.points})
        grid, n = set(measured), 1
        while n <= 2 * measured[-1]:
            grid.add(n)
            n *= 2
        return {
            "family": self.family,
            "engine": self.engine,
            "points": [point.to_dict() for point in self.points],
            "laws": [fit.to_dict() for fit in self.laws],
            "curve": self.curve(sorted(grid)),
        }


def read_series(
    found: Sequence[Group], steps: Mapping[str, Steps], options: Options, declared: Sequence[Group] | None = None
) -> tuple[list[Series], list[Refusal]]:
    """Every family of every base, and what could not be compared.

    steps: by run_id the columns that the form reads (loss.py), or those of the breakdown.
    declared: the bases the user named.
    """
    members: dict[tuple[int, str, str], list[Group]] = {}  # by base, family, engine
    refused: list[Refusal] = []
    times: dict[int, list[float]] = {}
    usable = []
    for group in found:
        if options.form == "loss":
            told = [
                time_to_loss_s(row, steps.get(row["run_id"]), options.target_loss, options.loss_window)
                for row in group.rows
            ]
            missed = [(row["run_id"], why) for row, (_, why) in zip(group.rows, told, strict=True) if why]
            if missed:  # the runs that made it would be the lucky ones: the group is out
                refused.append(Refusal(group.where, tuple(run for run, _ in missed), missed[0][1]))
                continue
            times[id(group)] = [seconds for seconds, _ in told]
        usable.append(group)
    if declared is not None:
        kept = {id(group) for group in usable}
        declared = [group for group in declared if id(group) in kept]
    position = {id(group): i for i, group in enumerate(usable)}
    bases = {id(group) for group in declared or ()}
    base_for = Bases(usable, options.mode, options.allow, declared)
    for group in usable:
        if id(group) in bases:
            continue
        base, names = base_for.of(group)
        if base is not None and not names:
            members.setdefault((position[id(base)], group.family, group["engine"] or ""), []).append(group)
        elif base is not None:
            why = f"differs from {base.where} in {difference(group, base, options.mode, names)}"
            runs = tuple(row["run_id"] for row in group.rows)
            refused.append(Refusal(group.where, runs, why, base.where, tuple(names)))
    said = {id(usable[i]) for i, *_ in members} | {id(group) for rest in members.values() for group in rest}
    named = {run for one in refused for run in one.run_ids}
    for i, group in enumerate(usable):  # alone: no base, and nobody's
        if id(group) not in said and group.rows[0]["run_id"] not in named:
            members[i, group.family, group["engine"] or ""] = []
    series = [
        _series(usable[i], rest, family, steps, times, options)
        for (i, family, _), rest in sorted(members.items(), key=lambda item: item[0])
    ]
    return series, refused


def _series(base: Group, rest: list[Group], family: str, steps, times, options: Options) -> Series:
    points = tuple(Point(group, base, options, times, steps) for group in (base, *rest))
    return Series(family, rest[0]["engine"] if rest else base["engine"], points, options)
