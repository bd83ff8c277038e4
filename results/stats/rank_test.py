"""Two samples of runs, one verdict: an exact rank test, the ratio with its interval, and what could have been seen.

Samples are logarithms of one number per run, so that a shift is a ratio:

    test      Mann-Whitney's rank sum, its null distribution counted exactly, ties included (Mann & Whitney 1947)
    ratio     exp of the Hodges-Lehmann shift, the median of all differences (Hodges & Lehmann 1963)
    interval  the shifts that the test does not reject: order statistics of these differences (Moses 1965)
    families  Holm's step-down (Holm 1979): the chance of any false verdict among all tests is at most alpha

The test holds its level where each run is as likely to be early as late: for interleaved runs whatever drifts
slowly, for independent runs whatever the order. Runs taken base first, then head, must also differ by more than the
drift that they do not rule out (drift.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .drift import drift

EXACT_RUNS = 80  # of both sides together; beyond, the normal approximation is right to three digits
RANK_EFFICIENCY = 3 / math.pi  # of the rank sum against Student's t, normal noise


@dataclass(frozen=True)
class Sample:
    """What two groups of runs say about one number. Ratios are head over base."""

    ratio: float
    low: float | None  # of the interval at the level 1 - alpha; null: too few runs to bound it
    high: float | None
    p: float  # two-sided
    best_p: float  # the smallest p that so many runs can give
    spread: float  # standard deviation of the logarithms within a side; of 0.02: 2% noise
    drift: str | None = None  # of blocks: what keeps a difference from being one; null: nothing does
    widened: float = 1.0  # of blocks: what drift does to the error of the difference


def compare_samples(base: Sequence[float], head: Sequence[float], alpha: float, blocks: bool = False) -> Sample:
    """Compare two samples of positive numbers, at least one each, in the order they were measured.

    blocks: the runs of the two sides did not alternate, so that drift looks like a difference
    """
    x, y = np.log(np.asarray(base, float)), np.log(np.asarray(head, float))
    low, high = shift_interval(x, y, alpha)
    p, why, widened = rank_sum_p(x, y), None, 1.0
    if blocks and len(x) + len(y) > 4:
        drifted = drift(x, y, alpha)
        if p <= alpha < drifted.p:
            why = "seen within the blocks" if drifted.trend else "not ruled out by so few runs"
        p, widened = max(p, drifted.p), drifted.widened
        low, high = (None, None) if low is None or high is None else (min(low, drifted.low), max(high, drifted.high))
    return Sample(
        ratio=_exp(np.median(np.subtract.outer(y, x))),
        low=None if low is None else _exp(low),
        high=None if high is None else _exp(high),
        p=p,
        best_p=best_p(len(x), len(y)),
        spread=_spread(x, y),
        drift=why,
        widened=widened,
    )


def rank_sum_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of the rank-sum test: exact given the ties, normal (tie-corrected) beyond EXACT_RUNS."""
    pooled = np.concatenate([x, y])
    _, group, sizes = np.unique(pooled, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    doubled = (2 * last - sizes + 1)[group]  # twice the mean rank: an integer
    observed = int(doubled[len(x) :].sum())
    if len(pooled) > EXACT_RUNS:
        from scipy.stats import mannwhitneyu

        return float(mannwhitneyu(x, y, method="asymptotic").pvalue) if len(sizes) > 1 else 1.0
    null = _sums(tuple(np.sort(doubled).tolist()), len(y))
    return float(min(1.0, 2 * min(null[: observed + 1].sum(), null[observed:].sum())))


@lru_cache(maxsize=512)
def _sums(ranks: tuple[int, ...], size: int) -> np.ndarray:
    """Probability of each sum of `size` of these ranks, every choice equally likely: (sum(ranks) + 1,)."""
    ways = np.zeros((size + 1, sum(ranks) + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    return ways[size] / ways[size].sum()


def best_p(base_runs: int, head_runs: int) -> float:
    """The smallest p the test can give: every head run beyond every base run."""
    return min(1.0, 2 / math.comb(base_runs + head_runs, head_runs))


def runs_needed(alpha: float) -> int:
    """Runs a side from which the test can reach p <= alpha."""
    return next(n for n in range(1, 1000) if best_p(n, n) <= alpha)


def shift_interval(x: np.ndarray, y: np.ndarray, alpha: float) -> tuple[float | None, float | None]:
    """Interval of the shift from x to y with coverage of at least 1 - alpha; (None, None): too few runs."""
    from scipy.stats import norm

    n, m = len(x), len(y)
    differences = np.sort(np.subtract.outer(y, x), axis=None)
    if n + m <= EXACT_RUNS:
        outside = int(np.searchsorted(_tail(n, m), alpha / 2, side="right"))
    else:
        outside = int(n * m / 2 - norm.isf(alpha / 2) * math.sqrt(n * m * (n + m + 1) / 12))
    if outside < 1:
        return None, None
    return float(differences[outside - 1]), float(differences[-outside])


@lru_cache(maxsize=512)
def _tail(n: int, m: int) -> np.ndarray:
    """P(U <= 0, 1, ...) of Mann-Whitney's U without ties: (n * m + 1,)."""
    null = _sums(tuple(range(2, 2 * (n + m) + 1, 2)), m)
    return np.cumsum(null[m * (m + 1) :: 2][: n * m + 1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: reject where one is <= alpha, and the family keeps alpha."""
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = [1.0] * len(order), 0.0
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, p_values[index] * (len(order) - place)))
        adjusted[index] = worst
    return adjusted


def smallest_seen(sample: Sample, base_runs: int, head_runs: int, alpha: float, power: float) -> float | None:
    """The smallest relative change that these runs, with their spread, would have shown with probability `power`.

    Student's two-sample formula at the rank test's efficiency and at the level that its steps leave of alpha; null
    where so few runs can show nothing.
    """
    from scipy.stats import t

    if sample.best_p > alpha:
        return None
    if base_runs + head_runs <= EXACT_RUNS:
        tail = _tail(base_runs, head_runs)
        alpha = 2 * tail[np.searchsorted(tail, alpha / 2, side="right") - 1]
    free = base_runs + head_runs - 2
    error = sample.widened * sample.spread * math.sqrt((1 / base_runs + 1 / head_runs) / RANK_EFFICIENCY)
    return _exp((t.isf(alpha / 2, free) + t.isf(1 - power, free)) * error) - 1


def _exp(logarithm: float) -> float:
    return math.exp(min(float(logarithm), 700.0))  # a float, also where a hostile row says 1e-300


def _spread(x: np.ndarray, y: np.ndarray) -> float:
    squares = ((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum()
    return math.sqrt(squares / max(1, len(x) + len(y) - 2))
