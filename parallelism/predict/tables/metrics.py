"""Figures of predictions against measured values: errors, order, regret, coverage, memory.

error        |predicted / measured - 1|: mean (MAPE) and median over rows
order        share of pairs of one group, whose measured times differ, that are predicted in the right order; every
             pair weighs the same; a tie of the prediction counts half
regret       measured time of the layout that the prediction chooses over that of the best one, less 1, by group;
             a tie of the prediction is chosen from evenly
coverage     share of rows whose measured time lies in the interval
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TimeFigures:
    """Of one prediction over some rows. Shares and relative errors, not percent; None: no row or group to tell."""

    n: int
    mape: float | None
    median: float | None
    bias: float | None  # median of predicted / measured, less 1
    pairs: int
    order: float | None
    groups: int  # of two rows and more
    regret_mean: float | None
    regret_max: float | None
    coverage: float | None


@dataclass(frozen=True)
class MemoryFigures:
    """Of peak memory, and of the calls on what runs out of it."""

    n: int
    mape: float | None
    bias: float | None
    failures: int  # rows that failed, out of memory as far as the table tells
    flagged: float | None  # share of them that is predicted not to fit
    good: int
    false: float | None  # share of the good rows that is predicted not to fit


def time_figures(
    measured: np.ndarray,
    predicted: np.ndarray,
    groups: Sequence[object],
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> TimeFigures:
    """Of n rows, seconds (n,) each; rows without a prediction (NaN) are left out. groups: (n,), of layouts."""
    there = np.isfinite(predicted) & np.isfinite(measured)
    x, y = measured[there], predicted[there]
    members = list(grouped([group for group, known in zip(groups, there, strict=True) if known]))
    errors = np.abs(y / x - 1)
    right, pairs = order(x, y, members)
    regrets = [regret(x[rows], y[rows]) for rows in members if len(rows) > 1]
    covered = None
    if low is not None and high is not None:
        covered = _mean((low[there] <= x) & (x <= high[there]))
    return TimeFigures(
        n=int(there.sum()),
        mape=_mean(errors),
        median=float(np.median(errors)) if len(errors) else None,
        bias=float(np.median(y / x) - 1) if len(errors) else None,
        pairs=pairs,
        order=right / pairs if pairs else None,
        groups=len(regrets),
        regret_mean=_mean(np.array(regrets)),
        regret_max=max(regrets) if regrets else None,
        coverage=covered,
    )


def grouped(groups: Sequence[object]) -> Iterator[np.ndarray]:
    """Rows of each group, in the order in which they come."""
    rows: dict[object, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    for each in rows.values():
        yield np.array(each)


def order(measured: np.ndarray, predicted: np.ndarray, members: Sequence[np.ndarray]) -> tuple[float, int]:
    """(pairs in the right order, pairs) over pairs within groups whose measured times differ."""
    right, pairs = 0.0, 0
    for rows in members:
        i, j = np.triu_indices(len(rows), 1)
        truth = np.sign(measured[rows][i] - measured[rows][j])
        guess = np.sign(predicted[rows][i] - predicted[rows][j])
        told = truth != 0
        right += float(np.sum(guess[told] == truth[told]) + 0.5 * np.sum(guess[told] == 0))
        pairs += int(told.sum())
    return right, pairs


def regret(measured: np.ndarray, predicted: np.ndarray) -> float:
    """Of one group."""
    chosen = measured[predicted == predicted.min()]
    return float(chosen.mean() / measured.min() - 1)


def memory_figures(measured: np.ndarray, predicted: np.ndarray, over: np.ndarray, status: np.ndarray) -> MemoryFigures:
    """Bytes (n,) each, NaN where nothing was measured; over: predicted not to fit; status: ok, oom, failed."""
    there = np.isfinite(measured) & np.isfinite(predicted)
    ratio = predicted[there] / measured[there]
    failures, good = status == "oom", (status == "ok") & there
    return MemoryFigures(
        n=int(there.sum()),
        mape=_mean(np.abs(ratio - 1)),
        bias=float(np.median(ratio) - 1) if len(ratio) else None,
        failures=int(failures.sum()),
        flagged=_mean(over[failures]),
        good=int(good.sum()),
        false=_mean(over[good]),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
