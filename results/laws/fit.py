"""Fit one law to one table: starts, optimum, proof of convergence, bootstrap, profiles.

`fit` returns a `Fit`, which predicts; `report.py` turns it into what a user reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

import numpy as np

from .base import Columns, Inputs, Law, get_law
from .identify import Profile, asymptotic_covariance, profiles
from .large import is_large, moved, polish, resample, sample_of
from .resample import Progress, bootstrap, too_few
from .search import FLAT, SAME, Convergence, at_best, joined, search, why_not
from .solver import LOGS, Constraint, Objective, Problem, Solution, constrain, penalise
from .table import Rows, enough


@dataclass(frozen=True)
class Sensitivity:
    """The same fit with one choice made otherwise."""

    what: str
    setting: str
    parameters: dict[str, float]
    n: int


@dataclass(frozen=True)
class PriorChoice:
    """The prior of a fit and the fit without it.

    terms: per parameter (centre, scale), scale of the log for a positive one. tried: per strength the score of
    `choose_strength`; empty where the user gave the strength. without: natural parameters of the plain
    minimum and value its objective.
    """

    reason: str
    terms: dict[str, tuple[float, float]]
    strength: float
    how: str
    tried: tuple[tuple[float, float], ...]
    without: dict[str, float]
    without_value: float


@dataclass(frozen=True)
class Fit:
    """A fitted law. theta (p,); draws (B, p) of the bootstrap or None, with the reason in `no_draws`."""

    law: Law
    rows: Rows
    inputs: Inputs
    objective: Objective
    theta: np.ndarray
    value: float
    convergence: Convergence
    fix: dict
    constraint: Constraint | None
    level: float
    seed: int
    draws: np.ndarray | None = None
    draws_converged: float | None = None
    no_draws: str = ""
    profiles: tuple[Profile, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    notes: tuple[str, ...] = field(default=())
    prior_weight: float = 0.0
    prior: PriorChoice | None = None
    plain: Fit | None = field(default=None, repr=False)  # the fit without its prior
    sample: Fit | None = field(default=None, repr=False)  # of a large table: the fit of the rows drawn to find it

    @property
    def log_y(self) -> np.ndarray:
        return np.log(self.rows.y)

    @property
    def problem(self) -> Problem:
        """The problem that the fit solves, without its prior."""
        return Problem(self.law, self.inputs, self.log_y, self.objective, self.constraint)

    @property
    def residuals(self) -> np.ndarray:
        """log y - log prediction (n,)."""
        return self.log_y - self.law.log_predict(self.theta[None], self.inputs, derivatives=False)[0][0]

    @property
    def natural(self) -> dict[str, float]:
        return dict(
            zip(self.law.names, map(float, self.law.natural(self.theta[None], self.inputs.centre)[0]), strict=True)
        )

    def natural_draws(self) -> np.ndarray:
        """(B, p) natural parameters of the resamples, which there must be."""
        assert self.draws is not None
        return self.law.natural(self.draws, self.inputs.centre)

    def covariance(self) -> np.ndarray:
        """Covariance of theta (p, p): of the resamples where there are any, else asymptotic."""
        if self.draws is not None:
            return np.atleast_2d(np.cov(self.draws.T))
        return asymptotic_covariance(self.problem, self.theta)

    def predict(self, columns: Columns) -> np.ndarray:
        """Predicted response (m,) at the rows of `columns` (role -> (m,))."""
        return np.exp(self.log_predict(columns))

    def log_predict(self, columns: Columns, theta: np.ndarray | None = None) -> np.ndarray:
        """log prediction (m,), or (B, m) for theta (B, p). Uses the centre of the fitted rows."""
        new = self.law.prepare(columns, self.inputs.centre)
        out = self.law.log_predict(np.atleast_2d(self.theta if theta is None else theta), new, derivatives=False)[0]
        return out[0] if theta is None else out


class Settings(TypedDict, total=False):
    """Keywords of a fit and of a forecast; `FitChoices` holds the defaults."""

    objective: Objective
    fix: Mapping[str, float | str] | None
    level: float
    seed: int


class FitSettings(Settings, total=False):
    """Keywords of a fit alone."""

    prior: float
    bootstrap_draws: int


@dataclass(frozen=True)
class FitChoices:
    """`FitSettings` with their defaults."""

    objective: Objective = LOGS
    fix: Mapping[str, float | str] | None = None
    level: float = 0.95
    seed: int = 0
    prior: float = 0.0
    bootstrap_draws: int = 0

    @property
    def held(self) -> dict[str, float | str]:
        return dict(self.fix or {})

    def keywords(self) -> FitSettings:
        return {
            "objective": self.objective,
            "fix": self.fix,
            "level": self.level,
            "seed": self.seed,
            "prior": self.prior,
            "bootstrap_draws": self.bootstrap_draws,
        }


def fit(
    law: str | Law,
    rows: Rows,
    *,
    start: np.ndarray | None = None,
    progress: Progress | None = None,
    **settings: Unpack[FitSettings],
) -> Fit:
    """Point fit from all the law's starts, and the cluster bootstrap if draws are asked for.

    start: (S, p) in theta, in place of the law's own. objective: on log residuals, Huber unless given. fix: parameters
    held at natural values, or tied to another by its name. level (0.95): of intervals. seed (0): of resamples. prior
    (0.0): weight of the law's own prior, see `prior.py`; `value` leaves it out. bootstrap_draws (0): resamples.
    Raises ValueError where the table is too small or the law cannot start on it.
    """
    law, chosen = get_law(law), FitChoices(**settings)
    enough(law, rows, len(law.parameters) - len(chosen.held) if chosen.fix else None)
    if start is None and not chosen.prior and not law.needs_run and is_large(rows):
        return _fit_large(law, rows, chosen, progress)
    problem = _posed(law, rows, chosen)
    s = _solved(problem, start, chosen.seed)
    out = Fit(
        law,
        rows,
        problem.inputs,
        chosen.objective,
        s.theta[s.best],
        _value(problem, s),
        _evidence(problem, s),
        chosen.held,
        problem.constraint,
        chosen.level,
        chosen.seed,
        prior_weight=chosen.prior,
    )
    return with_bootstrap(out, chosen.bootstrap_draws, progress) if chosen.bootstrap_draws else out


def _posed(law: Law, rows: Rows, chosen: FitChoices) -> Problem:
    inputs, log_y = law.prepare(rows.columns), np.log(rows.y)
    constraint = constrain(law, inputs.centre, chosen.held) if chosen.fix else None
    penalty = penalise(law, inputs.centre, law.prior(inputs, log_y), chosen.prior) if chosen.prior else None
    return Problem(law, inputs, log_y, chosen.objective, constraint, penalty)


def _solved(problem: Problem, start: np.ndarray | None, seed: int) -> Solution:
    """From the law's starts, or from `start` alone. Raises ValueError where the law is undefined at each of them."""
    law = problem.law
    starts = law.starts(problem.inputs, problem.log_y) if start is None else np.atleast_2d(start)
    s = search(problem, starts, seed) if start is None else problem.solve(starts)
    if not np.isfinite(s.objective).any():
        raise ValueError(f"law {law.name!r} is undefined on this table from each of its {len(starts)} starts")
    return s


def _fit_large(law: Law, rows: Rows, chosen: FitChoices, progress: Progress | None) -> Fit:
    """The fit of a table of more rows than are solved from many starts: searched on a sample, polished on all."""
    report = progress or (lambda stage, share: None)
    report("search on a sample", 0.0)
    sample = fit(
        law,
        rows.take(sample_of(len(rows.y), rows.cluster, chosen.seed)),
        objective=chosen.objective,
        fix=chosen.fix,
        level=chosen.level,
        seed=chosen.seed,
    )
    report("all rows", 0.0)
    problem = _posed(law, rows, chosen)
    near = law.theta(sample.natural, problem.inputs.centre)
    theta, value, gradient = polish(problem, near, lambda step: report("all rows", step / 60))
    reason = sample.convergence.why_not
    if not gradient < FLAT:
        reason = f"the gradient left over all {len(rows.y)} rows is {gradient:.1e} (below {FLAT:g} is flat)"
    note = (
        f"{len(rows.y)} rows: starts, profiles, sensitivity and forecasts are of a random {len(sample.rows.y)} of "
        "them, the estimate and its resamples (one Newton step each) of all"
    )
    f = replace(
        sample,
        rows=rows,
        inputs=problem.inputs,
        theta=theta,
        value=value,
        constraint=problem.constraint,
        convergence=replace(sample.convergence, gradient=gradient, why_not=reason, converged=not reason),
        notes=(note,),
        sample=sample,
    )
    return with_bootstrap(f, chosen.bootstrap_draws, progress) if chosen.bootstrap_draws else f


def _problem(f: Fit) -> Problem:
    """The problem that the fit solves, with its prior."""
    if not f.prior_weight:
        return f.problem
    penalty = penalise(f.law, f.inputs.centre, f.law.prior(f.inputs, f.log_y), f.prior_weight)
    return replace(f.problem, penalty=penalty)


def _value(problem: Problem, s: Solution) -> float:
    """The lowest objective, without the penalty."""
    k, penalty = s.best, problem.penalty
    return float(s.objective[k]) - (0.0 if penalty is None else float(penalty.at(s.theta[k : k + 1])[0]))


def _evidence(problem: Problem, s: Solution) -> Convergence:
    there = at_best(s)
    reason = why_not(s)
    return Convergence(
        len(s.objective),
        int(there.sum()),
        float(s.gradient[there].min()),
        *_conditions(problem.law, problem.inputs, s.theta[s.best], problem.constraint),
        reason,
        not reason,
    )


def with_bootstrap(f: Fit, draws: int, progress: Progress | None = None) -> Fit:
    """The fit with `draws` resamples of its runs, or the reason in `no_draws`."""
    free = len(f.theta) if f.constraint is None else len(f.constraint.free)
    reason = too_few(f.rows.clusters, free)
    if reason:
        return replace(f, no_draws=reason)
    problem = _problem(f)
    if f.sample is not None:
        stepped = resample(problem, f.theta, f.rows.cluster, draws, f.seed, progress)
        return replace(f, draws=stepped, draws_converged=1.0)
    refitted, converged = bootstrap(problem, f.theta, f.rows.cluster, draws, f.seed, progress)
    return replace(f, draws=refitted, draws_converged=converged)


def with_profiles(f: Fit) -> Fit:
    """The fit with a profile per parameter. Where a profile finds a lower point the fit moves there, resamples and all.

    The profiles are of the data without a prior, which would identify what the data does not.
    """
    if f.sample is not None:
        return _profiles_of_sample(f, f.sample)
    before = f.plain or f
    d, curves = _profiled(before)
    if d is before:
        return replace(f, profiles=curves)
    lowered = f"a profile found a lower point than every start ({before.value:.8g}): the estimate is moved there"
    if f.plain is not None:
        return replace(f, plain=d, profiles=curves, notes=f.notes + (lowered,))
    d = replace(d, profiles=curves, notes=f.notes + (lowered,), draws=None)
    return d if f.draws is None else with_bootstrap(d, len(f.draws))


def _profiled(d: Fit) -> tuple[Fit, tuple[Profile, ...]]:
    """The fit, moved to lower points that its profiles come by, and the profiles of the last but one at most."""
    runs = None if d.law.needs_run else d.rows.cluster  # a law of whole curves has few, and says so
    for _ in range(3):
        curves, low = profiles(d.problem, d.theta, d.value, d.fix, d.level, runs)
        lower = None if low is None else _lower(d, low)
        if lower is None:
            break
        d = lower
    return d, curves


def _profiles_of_sample(f: Fit, d: Fit) -> Fit:
    """The profiles of a large table's sample d, with the threshold that all its rows have, around the fit of all."""
    share = len(d.rows.y) / len(f.rows.y)
    curves, _ = profiles(d.problem, d.theta, d.value, d.fix, d.level, d.rows.cluster, share)
    return replace(f, profiles=moved(f.law, curves, d.natural, f.natural))


def _lower(f: Fit, theta: np.ndarray) -> Fit | None:
    """The fit moved to the minimum that a point (p,) leads to, or None where that is no lower."""
    problem = f.problem
    own, other = problem.solve(f.theta), problem.solve(theta)
    if not float(other.objective[0]) < f.value - SAME * abs(f.value) - 1e-14:
        return None
    more = search(problem, theta)
    s = joined(joined(own, other), more)
    c = _evidence(problem, s)
    return replace(f, theta=s.theta[s.best], value=_value(problem, s), convergence=c)


def _conditions(law: Law, inputs: Inputs, theta: np.ndarray, constraint: Constraint | None) -> tuple[float, float]:
    """Condition number of J'J as fitted, and in natural parameters."""
    J = law.log_predict(theta[None], inputs)[1][0].T
    T, shift = law.coordinates(inputs.centre)
    phi = T @ theta + shift
    with np.errstate(all="ignore"):  # an amplitude far out is inf
        ends = [[p.link(np.float64(v + d)) for p, v in zip(law.parameters, phi, strict=True)] for d in (1e-6, -1e-6)]
        slope = (np.array(ends[0]) - np.array(ends[1])) / 2e-6
        raw = J @ np.linalg.inv(T) / slope
    at = np.arange(len(theta)) if constraint is None else constraint.free
    at = at[~(law.vanishing & (theta <= law.box(inputs.centre)[0]))[at]]  # a term that is 0 has no slope
    J, raw = J[:, at], raw[:, at]
    return _condition(J), _condition(raw)


def _condition(J: np.ndarray) -> float:
    """Condition number of J'J."""
    if not np.isfinite(J).all():
        return float("inf")
    with np.errstate(over="ignore"):
        return float(np.linalg.cond(J) ** 2)
