"""Time to a target loss, from the table `steps`: steps to the loss times the seconds of a step.

A step's seconds are the run's step_time_s (its outer steps amortised; the mean where steps differ in tokens), also for
the warm-up steps, so that compilation does not count. The loss is the mean of the last `window` steps: one lucky batch
reaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, isfinite

from ..work import mean_step_s

WINDOW = 10


def steps_to_loss(steps: Sequence[Mapping], target: float, window: int = WINDOW) -> int | None:
    """Steps done when the mean loss of the last `window` steps is first at most `target`; None: never.

    steps: the rows of one run, any order. A window that holds a loss that is not finite reaches nothing.
    """
    losses = [row["loss"] for row in sorted(steps, key=lambda row: row["step"])]
    for end in range(window, len(losses) + 1):
        last = losses[end - window : end]
        if None not in last and fsum(last) / window <= target:  # never true of NaN
            return end
    return None


def time_to_loss_s(
    row: Mapping, steps: Sequence[Mapping], target: float, window: int = WINDOW
) -> tuple[float | None, str | None]:
    """(seconds, None), or (None, why not)."""
    if not steps:
        return None, "no rows in steps"
    reached = steps_to_loss(steps, target, window)
    if reached is None:
        known = [s["loss"] for s in steps if s["loss"] is not None and isfinite(s["loss"])]
        lowest = f", lowest loss of a step {min(known):.4g}" if known else ""
        return None, f"loss {target:g} not reached in {len(steps)} steps{lowest}"
    return reached * mean_step_s(row), None
