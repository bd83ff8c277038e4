"""The 90% interval: quantiles of the errors on rows that were left out, wider with the distance from the rows.

Errors are log(measured / predicted) of predictions by a calibration on the other groups, so they hold what a new group
adds. Few of them are widened as a small sample of a normal distribution would be (Student's t), towards what is
assumed where none was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

UNMEASURED = 0.45  # deviation of the logarithm that an uncalibrated model is given
PER_DECADE = 0.5  # share that a decade of distance adds to the width
LEVELS = (0.05, 0.95)


@dataclass(frozen=True)
class Spread:
    """Quantiles of log(measured / predicted)."""

    below: float = -1.645 * UNMEASURED
    above: float = 1.645 * UNMEASURED
    per_decade: float = PER_DECADE

    def logs(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is added to the logarithm of a prediction (n,), below and above. distance: decades."""
        wider = 1 + self.per_decade * distance
        return self.below * wider, self.above * wider

    def to_table(self) -> dict[str, Any]:
        return {"below": self.below, "above": self.above, "per_decade": self.per_decade}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Spread:
        return cls(**{name: float(value) for name, value in table.items()})


def spread_of(errors: np.ndarray, prior: float = 0.1, weight: float = 3.0) -> Spread:
    """From errors on rows that were left out (n,).

    prior: deviation that counts like `weight` errors, so that two rows that happen to agree do not promise certainty.
    """
    from scipy.stats import t

    n = len(errors)
    deviation = float(np.sqrt((np.sum(np.square(errors)) + weight * prior**2) / (n + weight)))
    reach = float(t.ppf(LEVELS[1], n + weight)) * deviation
    if n < 20:
        return Spread(-reach, reach)
    low, high = np.quantile(errors, LEVELS)
    return Spread(min(float(low), -0.01), max(float(high), 0.01))
