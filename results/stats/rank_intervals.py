"""Rank-based estimates and exact intervals from few runs. Assumes no distribution; the unit is the run.

ratio   Hodges-Lehmann: the median of all pairwise ratios a_i / b_j, with the interval that inverts the exact
        Mann-Whitney test (Hodges and Lehmann, Ann. Math. Stat. 34, 1963; Hollander, Wolfe and Chicken, ch. 4).
        It covers the true ratio at the stated level whatever the distribution, where a and b differ in scale only.
median  the sample median, with the interval between two order statistics (binomial; Conover, 1999, ch. 3).
Both intervals are conservative: `level` is what is asked, `achieved` what the counts give, never less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np

MIN_RUNS = 6  # with fewer than 6 runs the sample's extremes do not bracket the median 95 times in 100
TOO_FEW = "too few runs"
AT_ONCE = 2**18  # pairs of runs in memory, of resamples


@dataclass(frozen=True)
class Estimate:
    """A figure and how well it is known.

    low, high: the interval; null where there are fewer than MIN_RUNS runs on a side, or too few for the level.
    least, most: the range of what was measured (for a ratio: of all pairwise ratios).
    """

    value: float
    low: float | None
    high: float | None
    least: float
    most: float
    runs: int
    achieved: float | None = None  # exact coverage of (low, high) for continuous data

    @property
    def note(self) -> str | None:
        return None if self.low is not None else TOO_FEW

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high)."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def bounds(self, form: Callable[[float], str]) -> str:
        """The interval as text, `[low, high]`; without one the range, `[least .. most]`."""
        if self.interval is None:
            return f"[{form(self.least)} .. {form(self.most)}]"
        return "[" + ", ".join(map(form, self.interval)) + "]"

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity; factor > 0."""
        low, high = (None if x is None else x * factor for x in (self.low, self.high))
        return Estimate(
            self.value * factor, low, high, self.least * factor, self.most * factor, self.runs, self.achieved
        )

    def to_dict(self) -> dict:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "least": self.least,
            "most": self.most,
            "runs": self.runs,
            "achieved_level": self.achieved,
            "note": self.note,
        }


def ratio(above: Sequence[float], below: Sequence[float], level: float = 0.95) -> Estimate:
    """above / below, both positive and from independent runs.

    Raises
    ------
    ValueError: a side is empty or holds a value that is not positive
    """
    a, b = _positive(above), _positive(below)
    logs = np.sort((np.log(a)[:, None] - np.log(b)[None, :]).ravel())  # (runs above x runs below,)
    cut, achieved = mann_whitney_cut(len(a), len(b), level) if min(len(a), len(b)) >= MIN_RUNS else (None, None)
    low, high = (None, None) if cut is None else np.exp([logs[cut], logs[len(logs) - 1 - cut]]).tolist()
    value, least, most = np.exp([np.median(logs), logs[0], logs[-1]]).tolist()
    return Estimate(value, low, high, least, most, min(len(a), len(b)), achieved)


def median(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The median of the distribution that the runs come from. Raises ValueError as `ratio`."""
    x = np.sort(_positive(values))
    cut, achieved = order_statistic_cut(len(x), level) if len(x) >= MIN_RUNS else (None, None)
    low, high = (None, None) if cut is None else (float(x[cut]), float(x[len(x) - 1 - cut]))
    return Estimate(float(np.median(x)), low, high, float(x[0]), float(x[-1]), len(x), achieved)


def pseudo_median(logs: np.ndarray) -> np.ndarray:
    """One-sample Hodges-Lehmann: the median of the means of all pairs, (..., runs) -> (...)."""
    i, j = np.triu_indices(logs.shape[-1])
    return np.median((logs[..., i] + logs[..., j]) / 2, axis=-1)


def resampled_pseudo_medians(logs: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """pseudo_median(logs[picks]), exactly: logs (runs,), picks (draws, runs) places in it -> (draws,).

    The means of all pairs of runs are sorted once; in a resample each has a weight, how often the pair is drawn, and
    the middle of the weights is where the median is.
    """
    i, j = np.triu_indices(len(logs))
    means = (logs[i] + logs[j]) / 2
    order = np.argsort(means, kind="stable")
    means, i, j = means[order], i[order], j[order]
    middle = ((len(means) - 1) // 2, len(means) // 2)
    result = np.empty(len(picks))
    size = max(1, AT_ONCE // len(means))
    for start in range(0, len(picks), size):
        some = picks[start : start + size]
        places = some + len(logs) * np.arange(len(some))[:, None]
        drawn = np.bincount(places.ravel(), minlength=some.size).reshape(some.shape).astype(np.int32)
        weight = np.where(i == j, drawn[:, i] * (drawn[:, i] + 1) // 2, drawn[:, i] * drawn[:, j])
        upto = np.cumsum(weight, axis=1, dtype=np.int32)
        low, high = (means[(upto <= place).sum(axis=1)] for place in middle)
        result[start : start + size] = (low + high) / 2
    return result


@lru_cache(maxsize=512)
def mann_whitney_cut(m: int, n: int, level: float) -> tuple[int | None, float | None]:
    """(k, coverage): the k-th smallest and k-th largest (from 0) of the m n differences enclose the shift.

    k is the largest with coverage of at least `level`; (None, None) where even the extremes cover less.
    """
    counts = _mann_whitney_counts(m, n)
    total = comb(m + n, m)
    cut, below = None, 0
    for k, count in enumerate(counts[: (m * n + 1) // 2]):
        below += count  # ways in which at most k of the differences lie below the shift
        if 1 - 2 * below / total < level:
            break
        cut = (k, 1 - 2 * below / total)
    return cut or (None, None)


@lru_cache(maxsize=512)
def order_statistic_cut(n: int, level: float) -> tuple[int | None, float | None]:
    """(k, coverage): the k-th smallest and k-th largest (from 0) of n values enclose the median."""
    cut, below = None, 0
    for k in range(n // 2):
        below += comb(n, k)
        if 1 - 2 * below / 2**n < level:
            break
        cut = (k, 1 - 2 * below / 2**n)
    return cut or (None, None)


def _mann_whitney_counts(m: int, n: int) -> list[int]:
    """Orderings of m and n values by their U, 0 ... m n: the coefficients of the Gaussian binomial."""
    counts = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for u in range(m * n, n + i - 1, -1):  # times 1 - q^(n + i)
            counts[u] -= counts[u - n - i]
        for u in range(i, m * n + 1):  # over 1 - q^i
            counts[u] += counts[u - i]
    return counts


def _positive(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if len(x) == 0 or not (np.isfinite(x).all() and (x > 0).all()):
        raise ValueError(f"a rank-based estimate needs positive numbers, found {list(values)!r}")
    return x
