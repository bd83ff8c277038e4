"""From groups of runs to series: a base, the points compared with it, their laws, and the runs that are refused.

Efficiency is one formula for all forms: with c = device-seconds per unit of work, E = c_base / c. The unit of work
is a token (throughput, step_time: strong T_b n_b / (T n), weak (X / n) / (X_b / n_b)) or reaching the target loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median as middle

from ..schema.rows import values_in
from ..stats import rank_intervals as ranks
from ..stats.rank_intervals import Estimate
from ..table.step_columns import Steps
from ..table.work import mean_step_s
from .breakdown import Breakdown, breakdown
from .loss import NotReached, time_to_loss_s
from .system_laws import LAWS, LawFit, LawRefused, fit_laws
from .workload import Bases, Group, difference, differing

MODES = ("strong", "weak")
FORMS = ("throughput", "step_time", "loss")


@dataclass(frozen=True)
class Options:
    """How series are formed; see `efficiency`."""

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
    """Runs that are not compared, and why; `columns`: those in which they differ from the base."""

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
    """A group beside its base. Each figure is computed when it is first read: a page shows some of thousands.

    The base itself has no speedup and no efficiency: they are 1 by definition.
    loss_s: seconds to the target loss of the runs of each group, by id, in the form `loss`.
    steps: of the runs whose waits are only in their steps (breakdown.py), by run_id.
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

    @property
    def speedup(self) -> Estimate | None:
        return None if self.is_base else self._speedup

    @property
    def efficiency(self) -> Estimate | None:
        return None if self.is_base else self._efficiency

    @cached_property
    def _speedup(self) -> Estimate:
        level = self.options.level
        match self.options.form:
            case "loss":
                return ranks.ratio(self.loss_s[id(self.base)], self.loss_s[id(self.group)], level)
            case "throughput":
                return self._efficiency.scaled(1 / self._share)
            case _:
                return ranks.ratio(_step_seconds(self.base), _step_seconds(self.group), level)

    @cached_property
    def _efficiency(self) -> Estimate:
        if self.options.form == "loss":
            return self._speedup.scaled(self._share)
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
        """Columns that differ because the user allowed it."""
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


def _step_seconds(group: Group) -> list[float]:
    return [mean_step_s(row) for row in group.rows]


@dataclass(frozen=True)
class Series:
    """One family of layouts of one engine against one base, by device count; the base comes first."""

    family: str
    engine: str | None
    points: tuple[Point, ...]
    options: Options

    @cached_property
    def laws(self) -> tuple[LawFit | LawRefused, ...]:
        """Of several layouts on as many devices the fastest is used; no laws of times to a loss."""
        if self.options.form == "loss":
            return ()
        by_count: dict[int, list[float]] = {}
        for point in self.points:
            rates = point.group.rates
            by_count[point.group.devices] = max(by_count.get(point.group.devices, rates), rates, key=middle)
        options, laws = self.options, [law for law in LAWS.values() if self.options.mode in law.modes]
        return tuple(fit_laws(laws, by_count, options.level, options.draws, options.seed))

    @property
    def fitted_laws(self) -> list[LawFit]:
        return [law for law in self.laws if isinstance(law, LawFit)]

    @property
    def base(self) -> Point:
        return self.points[0]

    def curve(self, devices: Sequence[int]) -> list[dict]:
        """Ideal and fitted throughput at these device counts."""
        base = self.base
        return [
            {"devices": n, "ideal_tokens_per_s": base.tokens_per_s.value * n / base.group.devices}
            | {f"{fit.law.name}_tokens_per_s": fit.throughput(n) for fit in self.fitted_laws}
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
    groups: Sequence[Group], steps: Mapping[str, Steps], options: Options, declared: Sequence[Group] | None = None
) -> tuple[list[Series], list[Refusal]]:
    """Every family of every base, and the runs that could not be compared.

    steps: by run_id the columns that the form reads (loss.py), or those of the breakdown.
    declared: the bases that the user named.
    """
    usable, loss_s, refused = _reaching_target(groups, steps, options)
    if declared is not None:
        ids = {id(group) for group in usable}
        declared = [group for group in declared if id(group) in ids]
    members, incomparable = _by_base(usable, options, declared)
    series = []
    for (place, family, _), rest in sorted(members.items(), key=lambda item: item[0]):
        base = usable[place]
        points = tuple(Point(group, base, options, loss_s, steps) for group in (base, *rest))
        series.append(Series(family, rest[0]["engine"] if rest else base["engine"], points, options))
    return series, refused + incomparable


def _reaching_target(
    groups: Sequence[Group], steps: Mapping[str, Steps], options: Options
) -> tuple[list[Group], dict[int, list[float]], list[Refusal]]:
    """The groups of which every run reaches the target loss, their seconds to it by id, and refusals of the others.

    Forms other than `loss` have no target.
    """
    loss_s: dict[int, list[float]] = {}
    refused: list[Refusal] = []
    if options.target_loss is None:
        return list(groups), loss_s, refused
    reaching: list[Group] = []
    for group in groups:
        times: list[float] = []
        missed: list[tuple[str, str]] = []
        for row in group.rows:
            time = time_to_loss_s(row, steps.get(row["run_id"]), options.target_loss, options.loss_window)
            if isinstance(time, NotReached):
                missed.append((row["run_id"], time.why))
            else:
                times.append(time)
        if missed:  # runs that reached it would be the lucky ones: the whole group is refused
            refused.append(Refusal(group.where, tuple(run for run, _ in missed), missed[0][1]))
        else:
            reaching.append(group)
            loss_s[id(group)] = times
    return reaching, loss_s, refused


_Members = dict[tuple[int, str, str], list[Group]]  # by place of the base, family, engine


def _by_base(
    groups: Sequence[Group], options: Options, declared: Sequence[Group] | None
) -> tuple[_Members, list[Refusal]]:
    """The groups to compare with each base, and those that differ from theirs.

    A group without a base that is the base of no other is a series of its own.
    """
    members: _Members = {}
    refused: list[Refusal] = []
    place_of = {id(group): place for place, group in enumerate(groups)}
    settled: set[int] = set()  # groups that are refused or in a series
    for group, base, names in _with_base(groups, options, declared):
        settled.add(id(group))
        if names:
            refused.append(_refusal(group, base, options.mode, names))
        else:
            settled.add(id(base))
            members.setdefault((place_of[id(base)], *_kind(group)), []).append(group)
    for place, group in enumerate(groups):
        if id(group) not in settled:
            members[place, *_kind(group)] = []
    return members, refused


def _kind(group: Group) -> tuple[str, str]:
    """Family and engine."""
    return group.family, group["engine"] or ""


def _with_base(
    groups: Sequence[Group], options: Options, declared: Sequence[Group] | None
) -> Iterator[tuple[Group, Group, Sequence[str]]]:
    """Each group that has a base, with it and the columns in which they differ and may not."""
    declared_ids = {id(group) for group in declared or ()}
    bases = Bases(groups, options.mode, options.allow, declared)
    for group in groups:
        if id(group) in declared_ids:
            continue
        base, names = bases.of(group)
        if base is not None:
            yield group, base, names


def _refusal(group: Group, base: Group, mode: str, names: Sequence[str]) -> Refusal:
    why = f"differs from {base.where} in {difference(group, base, mode, names)}"
    return Refusal(group.where, tuple(values_in(group.rows, "run_id")), why, base.where, tuple(names))
