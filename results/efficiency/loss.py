"""Time to a target loss, from the table `steps`: steps to the loss times the seconds of a step.

A step's seconds are the run's step_time_s (its outer steps amortised; the mean where steps differ in tokens), also for
the warm-up steps, so that compilation does not count. The loss is the mean of the last `window` steps: one lucky batch
reaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum

import numpy as np

from ..table.step_columns import Steps
from ..table.work import mean_step_s

WINDOW = 10
COLUMNS = ("step", "loss")  # of `steps`
NEAR = 1e-9  # relative: means this close to the target are summed exactly


def steps_to_loss(steps: Steps, target: float, window: int = WINDOW) -> int | None:
    """Steps done when the mean loss of the last `window` steps is first at most `target`; None: never.

    steps: the columns of one run, any order. A window that holds a loss that is not finite reaches nothing.
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
    """What sorts the steps: as they are written, nothing."""
    return slice(None) if (step[1:] >= step[:-1]).all() else np.argsort(step, kind="stable")


def time_to_loss_s(
    row: Mapping, steps: Steps | None, target: float, window: int = WINDOW
) -> tuple[float | None, str | None]:
    """(seconds, None), or (None, why not). steps: the run's; None: it has none."""
    if not steps or not len(steps["loss"]):
        return None, "no rows in steps"
    reached = steps_to_loss(steps, target, window)
    if reached is None:
        known = steps["loss"][np.isfinite(steps["loss"])]
        lowest = f", lowest loss of a step {known.min():.4g}" if len(known) else ""
        return None, f"loss {target:g} not reached in {len(steps['loss'])} steps{lowest}"
    return reached * mean_step_s(row), None
