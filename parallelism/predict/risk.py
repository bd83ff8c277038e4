"""How likely a run is slow for a reason that no model of its work knows, and what that adds to its expected time.

On many nodes a run is now and then two to thirty times slower than a run of the same kind, most often where pipeline
stages are in different nodes. The share of such runs among rows that were left out is fitted (logistic regression over
the regime of interval.py, held towards a small share), and as a slow run takes at least twice as long,

    E[log time] >= log time + P(slow) log 2

is what a layout is compared by. It changes little but the order of layouts that are as good as each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .interval import LINES, MANY

SLOW = float(np.log(2.0))
USUAL = (-4.0, 0.1, 1.0)  # log odds before any rows
HELD = (0.25, 2.0, 1.0)  # reciprocal variances of what rows may change of it


@dataclass(frozen=True)
class Risk:
    """Log odds of a slow run as a line over the regime; none known: no risk."""

    odds: tuple[float, ...] = ()

    def logs(self, regime: np.ndarray) -> np.ndarray:
        """What is added to the logarithm of the step time (n,). regime: (n, LINES)."""
        if not self.odds:
            return np.zeros(len(regime))
        return SLOW / (1 + np.exp(-regime @ np.array(self.odds)))

    def to_table(self) -> dict[str, Any]:
        return {"odds": list(self.odds)}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Risk:
        return cls(tuple(map(float, table.get("odds", ()))))


def risk_of(errors: np.ndarray, regime: np.ndarray) -> Risk:
    """From errors log(measured / predicted) on rows that were left out (n,) and their regime (n, LINES)."""
    if len(errors) < MANY:
        return Risk()
    slow = (errors > SLOW).astype(float)
    usual, held = np.array(USUAL), np.array(HELD)
    odds = usual.copy()
    for _ in range(30):
        share = 1 / (1 + np.exp(-regime @ odds))
        slope = regime.T @ (slow - share) - held * (odds - usual)
        curve = regime.T @ (regime * (share * (1 - share))[:, None]) + np.diag(held)
        odds = odds + np.clip(np.linalg.solve(curve, slope), -1, 1)
    assert len(odds) == LINES
    return Risk(tuple(map(float, odds)))
