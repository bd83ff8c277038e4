"""Time to a target loss, from the table `steps`: steps to the loss times the seconds of a step.

The seconds of a step are the run's step_time_s (outer steps amortised; the mean where steps differ in tokens), also for
the warm-up steps, so that compilation does not count. The loss is the mean of the last `window` steps, so that one
lucky batch does not reach the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum

import numpy as np

from ..table.step_columns import Steps
from ..table.work import mean_step_s

WINDOW = 10
COLUMNS = ("step", "loss")  # of `steps`
NEAR = 1e-9  # relative: means this close to the target are summed exactly


@dataclass(frozen=True)
class NotReached:
    """Why a run has no time to a target loss."""

    why: str


def steps_to_loss(steps: Steps, target: float, window: int = WINDOW) -> int | None:
    """Steps done when the mean loss of the last `window` steps is first at most `target`; None: never.

    steps: the columns of one run, in any order. A window with a loss that is not finite is skipped.
    """
    loss = steps["loss"][_order(steps["step"])]
    if len(loss) < window:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(loss, window)
    means = windows.mean(axis=1)
    near = means <= target + NEAR * max(abs(target), 1.0)  # never true of NaN
    for at in np.flatnonzero(near & np.isfinite(means)):
        if fsum(windows[at]) / window <= target:
            return int(at) + window
    return None


def _order(step: np.ndarray) -> np.ndarray | slice:
    """An index that sorts the steps."""
    return slice(None) if (step[1:] >= step[:-1]).all() else np.argsort(step, kind="stable")


def time_to_loss_s(row: Mapping, steps: Steps | None, target: float, window: int = WINDOW) -> float | NotReached:
    """Seconds to the target. steps: those of the run; None: it has none."""
    if not steps or not len(steps["loss"]):
        return NotReached("no rows in steps")
    reached = steps_to_loss(steps, target, window)
    if reached is None:
        known = steps["loss"][np.isfinite(steps["loss"])]
        lowest = f", lowest loss of a step {known.min():.4g}" if len(known) else ""
        return NotReached(f"loss {target:g} not reached in {len(steps['loss'])} steps{lowest}")
    return reached * mean_step_s(row)
