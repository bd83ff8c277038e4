"""Two blocks of runs, base first, then head: is their difference more than the machine's drift could make?

Noise of one run after another is taken as autoregressive, e_k = phi e_(k-1) + u_k, over both blocks as one series; the
difference is fitted with it (generalised least squares). phi is not known and few runs say little of it, so the
difference must hold for every phi that they do not rule out: those whose restricted log-likelihood (Patterson and
Thompson 1971) lies within SUPPORT of the best, the largest p and the widest interval among them (after Berger and Boos
1994). Where the runs climb or fall within their blocks a straight line in time is fitted beside the difference, too.

What this holds and what it costs is in docs/gate.md. A line too faint to be seen in either block, and a machine that
changed between them, are beyond any test: only runs that take turns answer these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

PHIS = (*np.arange(0.0, 0.9, 0.05).tolist(), 0.9, 0.925, 0.95, 0.975, 0.99)
SUPPORT = 1.0  # of log-likelihood
TREND = 0.1  # level of the test for a line within the blocks


@dataclass(frozen=True)
class Drift:
    """low, high: of the difference of head over base, in logarithms. widened: by how much drift widens its error."""

    p: float  # two-sided, of no difference
    low: float
    high: float
    widened: float
    trend: bool


def drift(x: np.ndarray, y: np.ndarray, alpha: float) -> Drift:
    """Of base's logarithms x and head's y, each in the order of its runs; at least five runs in all."""
    from scipy.stats import t

    series, sides = np.concatenate([x, y]), (len(x), len(y))
    within = sum(((side - side.mean()) ** 2).sum() for side in (x, y))
    shift = float(y.mean() - x.mean())
    if within <= 1e-24 * len(series):  # a count, the same in every run
        return Drift(float(abs(shift) <= 1e-12), shift, shift, 1.0, False)
    trend = len(series) > 5 and _slope_p(x, y) < TREND
    fits = [_fits(series, *sides, False)] + ([_fits(series, *sides, True)] if trend else [])
    p, ends, errors = 0.0, [], []
    for shifts, squared, free in fits:
        error = np.sqrt(squared)
        p = max(p, float((2 * t.sf(np.abs(shifts) / error, free)).max()))
        reach = t.isf(alpha / 2, free) * error
        ends += [*(shifts - reach), *(shifts + reach)]
        errors += error.tolist()
    plain = np.sqrt(within / (len(series) - 2) * (1 / len(x) + 1 / len(y)))
    return Drift(p, min(ends), max(ends), max(1.0, max(errors) / plain), trend)


def _fits(series: np.ndarray, base: int, head: int, trend: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Difference and squared error of each supported phi; degrees of freedom."""
    weights, residuals, factors, constants, free = _design(base, head, trend)
    squares = np.maximum(np.einsum("i,pij,j->p", series, residuals, series), 1e-300)
    likely = constants - free / 2 * np.log(squares)
    inside = likely >= likely.max() - SUPPORT
    return (weights @ series)[inside], (squares / free * factors)[inside], free


@lru_cache(maxsize=64)
def _design(base: int, head: int, trend: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """By phi: weights of the difference, residual form, its variance factor, the likelihood's constant; freedom."""
    runs = base + head
    columns = [np.ones(runs), np.r_[np.zeros(base), np.ones(head)]] + ([np.linspace(-1, 1, runs)] if trend else [])
    X = np.column_stack(columns)
    weights, residuals, factors, constants = [], [], [], []
    for phi in PHIS:
        R = phi ** np.abs(np.subtract.outer(np.arange(runs), np.arange(runs)))
        inverse = np.linalg.inv(R)
        normal = X.T @ inverse @ X
        hat = np.linalg.solve(normal, X.T @ inverse)
        weights.append(hat[1])
        residuals.append(inverse - inverse @ X @ hat)
        factors.append(np.linalg.inv(normal)[1, 1])
        constants.append(-(np.linalg.slogdet(R)[1] + np.linalg.slogdet(normal)[1]) / 2)
    return *(np.array(some) for some in (weights, residuals, factors, constants)), runs - X.shape[1]


def _slope_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of one slope within both blocks, each about its own mean."""
    from scipy.stats import t

    times = [np.arange(len(side)) - (len(side) - 1) / 2 for side in (x, y)]
    spread = sum((time**2).sum() for time in times)
    slope = sum((time * side).sum() for time, side in zip(times, (x, y), strict=True)) / spread
    left = sum(((side - side.mean() - slope * time) ** 2).sum() for time, side in zip(times, (x, y), strict=True))
    free = len(x) + len(y) - 3
    return float(2 * t.sf(abs(slope) / max(np.sqrt(left / free / spread), 1e-300), free))
