"""Time that a pipeline takes for all microbatches of a step, and the part of it in which a rank waits for others."""

from __future__ import annotations

import numpy as np

from .configs import Configs


def makespan(configs: Configs, stage: np.ndarray, slowest: np.ndarray, send: np.ndarray) -> np.ndarray:
    """Seconds from the first forward to the last backward pass of a step.

    stage: forward and backward pass of one microbatch on a middle rank, all its virtual stages; slowest: the same of
    the rank that takes longest; send: one message between stages.
    """
    pp, m, v = (np.asarray(each, float) for each in (configs.pp, configs.microbatches, configs.virtual_stages))
    filling = (pp - 1) / v * (stage + 2 * v * send)
    return m * slowest + np.where(pp > 1, filling, 0.0)
