"""Identifiability of parameters: profile of the objective, robust likelihood-ratio interval, refusal.

For each parameter the objective is minimised over the others along a grid. The 95% interval is where it
rises by less than q_95(chi2_1)/2 * E psi^2 / E psi' (the robust likelihood ratio of Heritier and Ronchetti
1994; for squares this is the usual variance). A profile that stays below that up to a bound, or for a
positive parameter over more than three decades, means the table does not say the value: the estimate is refused.
Where a run has more than one row the threshold grows by what the rows of a run share; with too few runs for that the
interval is withheld and only the refusal stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from .base import Parameter
from .resample import too_few
from .solver import Constraint, Objective, Problem, constrain

STEPS = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 12.0, 40.0])  # in standard errors, on either side
STEEP = 4.0  # sqrt(rise) beyond the crossing above which a straight line to there says nothing of where it lies
REFINE = 4  # times that such a gap is divided
DECADES = 3.0  # a positive parameter known to less than this ratio has no point estimate


@dataclass(frozen=True)
class Profile:
    """Interval of one parameter in natural units (None: open on that side) and the curve it was read from."""

    name: str
    low: float | None
    high: float | None
    identified: bool
    reason: str
    values: tuple[float, ...]  # natural units, ascending
    rise: tuple[float, ...]  # objective above the optimum, over the 95% threshold
    withheld: str = ""  # why low and high are not to be believed: too few runs


def spread(residuals: np.ndarray, objective: Objective, free: int) -> tuple[float, float]:
    """E psi^2 / E psi' with n/(n - p), and E psi'; psi' by a window where few rows are inside delta."""
    n = len(residuals)
    a = np.abs(residuals)
    scale = n / max(n - free, 1)
    if objective.kind.endswith("squares"):
        return float(np.mean(a**2)) * scale, 1.0
    delta = objective.delta if objective.kind == "huber" else 1e-6
    window = max(delta, 0.6 * float(np.median(a)) * max(n, 1) ** -0.2, 1e-12)
    inside = max(np.mean(a < window), 1.0 / n)
    slope = inside * delta / window
    tau = float(np.mean(np.minimum(a, delta) ** 2)) / slope * scale
    if objective.kind == "l1":
        return tau / delta, slope / delta
    return tau, slope


def asymptotic_covariance(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Covariance of theta (p, p), rows independent: (J'J)^-1 E psi^2 / (E psi')^2; the scale of the profile's grid."""
    m, slopes = problem.predictor.log_predict(theta[None], problem.inputs)
    J, basis = slopes[0].T, _basis(problem, theta)
    tau, slope = spread(problem.response - m[0], problem.objective, basis.shape[1])
    J = J @ basis
    norm = np.maximum(np.sqrt((J**2).sum(0)), 1e-300)  # a term near 0 is no reason to drop its direction
    inverse = np.linalg.pinv((J / norm).T @ (J / norm), rcond=1e-14) / norm / norm[:, None]
    return basis @ (inverse * tau / slope) @ basis.T


def _basis(problem: Problem, theta: np.ndarray) -> np.ndarray:
    return np.eye(len(theta)) if problem.constraint is None else problem.constraint.basis


def profiles(
    problem: Problem,
    theta: np.ndarray,
    best: float,
    fix: Mapping[str, float | str],
    level: float,
    cluster: np.ndarray | None = None,
    share: float = 1.0,
) -> tuple[tuple[Profile, ...], np.ndarray | None]:
    """A profile for every free parameter that is an affine function of theta, and the lowest point (p,) found on
    the way where it lies below `best`, else None. share: the rows' share of those whose intervals are wanted."""
    law, inputs, constraint = problem.law, problem.inputs, problem.constraint
    m = problem.predictor.log_predict(theta[None], inputs, derivatives=False)[0]
    free = len(theta) if constraint is None else len(constraint.free)
    tau, _ = spread(problem.response - m[0], problem.objective, free)
    threshold = max(0.5 * stats.chi2.ppf(level, 1) * tau * share, 1e-300)
    factor, withheld = np.ones(len(theta)), ""
    if cluster is not None and (runs := int(cluster.max()) + 1) < len(problem.log_y):
        withheld = too_few(runs, free) or ""
        factor = _by_run(problem, theta, cluster, level)
    scan = _Scan(problem, theta, best, fix)
    cov, (T, shift) = asymptotic_covariance(problem, theta), law.coordinates(inputs.centre)
    out = []
    for j, p in enumerate(law.parameters):
        if p.name in law.bent or p.name in fix:
            continue
        centre = float(T[j] @ theta + shift[j])
        grid = _grid(p, centre, float(np.sqrt(max(T[j] @ cov @ T[j], 0.0))))
        if len(grid.at) == 0:  # so far out that no step changes it
            value = float(p.link(np.float64(centre)))
            why = f"the fit drives it to {value:.3g} without end"
            out.append(Profile(p.name, None, None, False, why, (value,), (0.0,)))
            continue
        curve = scan.along(p.name, centre, grid.at, threshold * factor[j])
        out.append(replace(_read_off(p, curve, grid), withheld=withheld))
    return tuple(out), scan.lowest


class _Curve(NamedTuple):
    """The rise (k,) of the objective over its threshold, with a parameter held at (k,); the optimum is at `centre`."""

    at: np.ndarray
    rise: np.ndarray
    centre: float

    @property
    def middle(self) -> int:
        return int(np.flatnonzero(self.at == self.centre)[0])


@dataclass
class _Scan:
    """Minima with one parameter held along a grid; `lowest` is the lowest point below `best` that was met."""

    problem: Problem
    theta: np.ndarray
    best: float
    fix: Mapping[str, float | str]
    lowest: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.lowest_value = self.best

    def along(self, name: str, centre: float, grid: np.ndarray, threshold: float) -> _Curve:
        law, middle = self.problem.law, self.problem.inputs.centre
        held = constrain(law, middle, self.fix, {name: centre})
        # phi_j = c is R theta = c - shift; the pivot of this row carries the whole change
        unit = constrain(law, middle, self.fix, {name: centre + 1.0}).offset - held.offset
        curve = _Curve(np.array([centre]), np.zeros(1), centre)
        for _ in range(1 + REFINE):
            offset = held.offset + (grid - centre)[:, None] * unit
            objective = self._minima(Constraint(held.basis, offset, held.free), len(grid))
            # below 0: the caller moves there
            rise = np.append(curve.rise, np.maximum(objective - self.best, 0.0) / threshold)
            at = np.append(curve.at, grid)
            order = np.argsort(at)
            curve = _Curve(at[order], rise[order], centre)
            grid = _between(curve)
            if len(grid) == 0:
                break
        return curve

    def _minima(self, constraint: Constraint, count: int) -> np.ndarray:
        """The objective (count,) at the minima under a constraint with as many offsets."""
        s = replace(self.problem, constraint=constraint, penalty=None).solve(np.repeat(self.theta[None], count, 0))
        if s.objective[s.best] < self.lowest_value:
            self.lowest_value, self.lowest = float(s.objective[s.best]), s.theta[s.best]
        return s.objective


def _by_run(problem: Problem, theta: np.ndarray, cluster: np.ndarray, level: float) -> np.ndarray:
    """The factor (p,) on each threshold where rows of one run are correlated.

    A likelihood ratio of dependent rows is a chi2 times the ratio of the sandwich variance to the plain one (Kent
    1982; Liang and Zeger 1986), here summed by run, with (G/(G - q))^2, the jackknife's for an even leverage (Bell and
    McCaffrey 2002), and Student's t for few runs G and q parameters.
    """
    m, slopes = problem.predictor.log_predict(theta[None], problem.inputs)
    basis, objective = _basis(problem, theta), problem.objective
    J = slopes[0].T @ basis
    norm = np.maximum(np.sqrt((J**2).sum(0)), 1e-300)
    J = J / norm
    psi = np.clip(problem.response - m[0], -objective.bound, objective.bound)
    runs, (n, q) = int(cluster.max()) + 1, J.shape
    scores = np.zeros((runs, q))
    np.add.at(scores, cluster, J * psi[:, None])
    inverse = np.linalg.pinv(J.T @ J, rcond=1e-14)
    T = problem.law.coordinates(problem.inputs.centre)[0]
    a = (T @ basis / norm) @ inverse  # phi_j as a function of the scores
    by_run = np.einsum("jq,qr,jr->j", a, scores.T @ scores, a) * (runs / max(runs - q, 1)) ** 2
    by_row = np.einsum("jq,qr,jr->j", a, J.T @ J, a) * np.mean(psi**2) * n / max(n - q, 1)
    t = stats.t.ppf(0.5 + level / 2, max(runs - q, 1)) / stats.norm.ppf(0.5 + level / 2)
    return np.maximum(by_run / np.maximum(by_row, 1e-300), 1.0) * t**2


class _Grid(NamedTuple):
    """The values (k,) that a parameter is held at, in its fitted coordinate, and the ends of that grid."""

    at: np.ndarray
    low: float
    high: float


def _grid(p: Parameter, centre: float, se: float) -> _Grid:
    bounds = p.phi_bounds()
    width = 60.0 if p.log else max(10.0, 10 * abs(centre))
    lo, hi = max(bounds[0], centre - width), min(bounds[1], centre + width)
    step = float(np.clip(se, 1e-6 * max(abs(centre), 1e-2), width / 3))
    points = np.concatenate([centre - step * STEPS, centre + step * STEPS, [lo, hi]])
    if p.vanishes:
        value = np.exp(centre) * (1.0 + np.concatenate([-STEPS, STEPS]) * max(se, 1e-6))
        points = np.append(np.log(np.maximum(value, p.low)), [lo, hi])
    grid = np.unique(np.clip(points, lo, hi))
    return _Grid(grid[np.abs(grid - centre) > 1e-9 * max(abs(centre), 1e-3)], lo, hi)


def _between(curve: _Curve) -> np.ndarray:
    """The next values (k,) to hold the parameter at: in gaps of the curve that are too wide to read their crossing."""
    at, rise, centre = curve
    middle, out = curve.middle, []
    for side in (np.arange(middle, -1, -1), np.arange(middle, len(at))):
        above = np.flatnonzero(~(np.sqrt(rise[side]) < 1.0))
        if len(above) and above[0] > 0 and not np.sqrt(rise[side[above[0]]]) < STEEP:
            out.append(np.linspace(at[side[above[0] - 1]], at[side[above[0]]], 10)[1:-1])
    new = np.concatenate(out) if out else np.zeros(0)
    return new[np.abs(new - centre) > 1e-9 * max(abs(centre), 1e-3)]


def _crossing(at: np.ndarray, rise: np.ndarray) -> float | None:
    """The value at which sqrt(rise) first passes 1 outwards from the optimum, linear between grid points."""
    root = np.sqrt(rise)
    above = np.flatnonzero(~(root < 1.0))
    if len(above) == 0:
        return None
    k = int(above[0])
    if k == 0:
        return float(at[0])
    if not np.isfinite(root[k]):
        return float(at[k])
    return float(at[k - 1] + (at[k] - at[k - 1]) * (1.0 - root[k - 1]) / max(root[k] - root[k - 1], 1e-300))


def _read_off(p: Parameter, curve: _Curve, grid: _Grid) -> Profile:
    """The interval of a parameter, and whether the data identifies it."""
    at, rise, middle = curve.at, curve.rise, curve.middle
    on = np.exp(at) if p.vanishes else at  # a term that may be 0 is linear in its value
    low, high = _crossing(on[: middle + 1][::-1], rise[: middle + 1][::-1]), _crossing(on[middle:], rise[middle:])
    if p.vanishes:
        low, high = (None if v is None else float(np.log(v)) for v in (low, high))
    first, last = (None if v is None else float(p.link(np.float64(v))) for v in (low, high))
    reason = _why_refused(p, low, high, grid)
    if p.log and p.sign < 0:
        first, last = last, first
    values = tuple(map(float, p.link(at)))
    return Profile(p.name, first, last, not reason, reason, values, tuple(map(float, rise)))


def _why_refused(p: Parameter, low: float | None, high: float | None, grid: _Grid) -> str:
    """Why there is no point estimate, from the interval in the fitted coordinate; "" where there is one."""
    if low is not None and high is not None:
        decades = (high - low) / np.log(10)
        return f"its interval spans {decades:.1f} decades" if p.log and decades > DECADES else ""
    if p.vanishes and low is None and high is not None:
        return f"0 is in its 95% interval, which ends at {float(p.link(np.float64(high))):.3g}"
    side = "down to" if low is None else "up to"
    edge = p.link(np.float64(grid.low if low is None else grid.high))
    return f"the objective stays below its 95% threshold {side} {edge:.3g}"
