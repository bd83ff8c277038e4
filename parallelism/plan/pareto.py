"""The Pareto front of time and memory: the layouts than which none is better in both."""

from __future__ import annotations

import numpy as np


def front(seconds: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Rows of the front (k,), ascending in time and so descending in memory; of equal ones the first."""
    order = np.lexsort((memory, seconds))
    least = np.minimum.accumulate(memory[order])
    before = np.concatenate([[np.inf], least[:-1]])
    return order[memory[order] < before]
