"""The 90% interval: quantiles of the errors on rows that were left out, wider with the distance from the rows.

Errors are log(measured / predicted) of predictions by a calibration on the other groups, so they hold what a new group
adds. Few of them are widened as a small sample of a normal distribution would be (Student's t), towards what is
assumed where none was measured. From a hundred on, the quantiles depend on the doublings of the nodes and on whether
stages are in different nodes (quantile regression), as runs on many nodes are now and then many times slower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .configs import Configs

UNMEASURED = 0.45  # deviation of the logarithm that an uncalibrated model is given
PER_DECADE = 0.3  # share that a decade of distance adds to the width
LEVELS = (0.05, 0.95)
STEEPEST = 4.0  # share that a decade may add
SHARE = 0.9  # of the runs that an interval holds
FEW = 20  # rows that say nothing about distance
LEAST = 0.01  # width either way, in logarithms
MANY = 100  # rows from which on quantiles depend on the regime
LINES = 3  # numbers of a quantile: constant, a doubling of the nodes, stages in different nodes


def regime_of(configs: Configs, node_ranks: int) -> np.ndarray:
    """What a quantile depends on, (n, LINES)."""
    n = len(configs)
    nodes = np.maximum(np.asarray(configs.all_ranks) / node_ranks, 1.0)
    columns = (1.0, np.log2(nodes), (np.asarray(configs.pp) > 1) & (nodes > 1))
    return np.stack([np.broadcast_to(np.asarray(each, float), n) for each in columns], axis=1)


@dataclass(frozen=True)
class Spread:
    """Quantiles of log(measured / predicted), as lines over the regime."""

    below: tuple[float, ...] = (-1.645 * UNMEASURED, 0.0, 0.0)
    above: tuple[float, ...] = (1.645 * UNMEASURED, 0.0, 0.0)
    per_decade: tuple[float, float] = (PER_DECADE, PER_DECADE)  # of ranks; of all other axes

    def logs(self, regime: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is added to the logarithm of a prediction (n,), below and above.

        regime: (n, LINES); distance: (n, 2) decades outside of the rows, in ranks and otherwise.
        """
        wider = 1 + distance @ np.array(self.per_decade)
        below, above = regime @ np.array(self.below), regime @ np.array(self.above)
        return np.minimum(below, -LEAST) * wider, np.maximum(above, LEAST) * wider

    def widened(self, errors: np.ndarray, regime: np.ndarray, distance: np.ndarray) -> Spread:
        """Wide enough for errors (n,) on rows at a distance (n, 2) from those that were fitted; NaN: not left out."""
        known = np.isfinite(errors)
        axis = int(np.argmax(np.median(distance[known], axis=0))) if known.any() else 0
        away = known & (distance[:, axis] > 0.05)
        if np.count_nonzero(away) < FEW:
            return self
        below, above = self.logs(regime[away], np.zeros((np.count_nonzero(away), 2)))
        needed = np.where(errors[away] < 0, errors[away] / below, errors[away] / above)
        slope = (float(np.quantile(needed, SHARE)) - 1) / float(np.median(distance[away, axis]))
        slopes = list(self.per_decade)
        slopes[axis] = float(np.clip(slope, slopes[axis], STEEPEST))
        return replace(self, per_decade=(slopes[0], slopes[1]))

    def to_table(self) -> dict[str, Any]:
        return {"below": list(self.below), "above": list(self.above), "per_decade": list(self.per_decade)}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Spread:
        if not table:
            return cls()
        below, above, (ranks, others) = (tuple(map(float, table[name])) for name in ("below", "above", "per_decade"))
        return cls(below, above, (ranks, others))


def spread_of(errors: np.ndarray, regime: np.ndarray, prior: float = 0.04, weight: float = 3.0) -> Spread:
    """From errors on rows that were left out (n,) and their regime (n, LINES).

    prior: deviation that counts like `weight` errors, so that two rows that happen to agree do not promise certainty.
    """
    from scipy.stats import t

    n = len(errors)
    if n >= MANY:
        low, high = (_line(errors, regime, level) for level in LEVELS)
        return Spread(low, high)
    deviation = float(np.sqrt((np.sum(np.square(errors)) + weight * prior**2) / (n + weight)))
    reach = float(t.ppf(LEVELS[1], n + weight)) * deviation
    return Spread((-reach, 0.0, 0.0), (reach, 0.0, 0.0))


def _line(errors: np.ndarray, regime: np.ndarray, level: float) -> tuple[float, ...]:
    """The line below which this share of the errors is: least sum of the pinball losses, a linear programme."""
    from scipy.optimize import linprog

    n = len(errors)
    cost = np.concatenate([np.zeros(LINES), np.full(n, level), np.full(n, 1 - level)])
    equal = np.concatenate([regime, np.eye(n), -np.eye(n)], axis=1)
    bounds = [(None, None)] * LINES + [(0, None)] * (2 * n)
    found = linprog(cost, A_eq=equal, b_eq=errors, bounds=bounds, method="highs")
    return tuple(float(each) for each in found.x[:LINES])
