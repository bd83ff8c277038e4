"""The model as the search asks it: seconds for many, and all parts with an interval for a few."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..predict import Configs, Machine, Stack, predict_step
from ..predict.calibration import Calibration
from ..predict.fit import calibration_of
from ..predict.interval import regime_of

PARTS = (
    "compute_time_s",
    "bubble_time_s",
    "comm_tp_s",
    "comm_cp_s",
    "comm_pp_s",
    "comm_dp_s",
    "optimizer_time_s",
    "outer_exposed_s",
    "data_time_s",
)
SAFE = 0.98  # of a lower bound, for what is shared out differently without a pipeline


@dataclass(frozen=True)
class Estimate:
    """Of n configurations: seconds of a step with their 90% interval, and the parts that they are the sum of."""

    seconds: np.ndarray
    low: np.ndarray
    high: np.ndarray
    parts: dict[str, np.ndarray]
    bound: np.ndarray


class Estimator:
    """A calibration at work."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    def seconds(self, configs: Configs) -> np.ndarray:
        """Of a step (n,); NaN where the calibration refuses."""
        return self.calibration.predict(configs).step_time_s

    def least(self, configs: Configs) -> np.ndarray:
        """No more than `seconds` (n,), and computed at once: the fullest stage's blocks for all microbatches, as if
        there were no pipeline around them: no bubble, no messages between stages, no head."""
        if self.calibration.residual is not None:
            return np.zeros(len(configs))  # what trees make of a step is not known before
        layers = -(-np.asarray(configs.layers) // np.asarray(configs.pp))
        alone = replace(configs, layers=layers, pp=1, virtual_stages=1, vocab=np.asarray(configs.tp), tied=1)
        step = predict_step(alone, self.calibration.machine, self.calibration.stack, self.calibration.tuning)
        risk = self.calibration.risk.logs(regime_of(configs, self.calibration.machine.node_ranks))
        return SAFE * step.step_time_s * np.exp(self.calibration.offsets.of(configs) + risk)

    def refused(self, configs: Configs) -> np.ndarray:
        """(n,) whether a configuration is outside of what the calibration covers."""
        return np.array([each is not None for each in self.calibration.coverage.refused(configs)], bool)

    def refusal(self, configs: Configs) -> str | None:
        """Why the first one that is refused is outside of what the calibration covers."""
        return next(filter(None, self.calibration.coverage.refused(configs)), None)

    def whole(self, configs: Configs) -> Estimate:
        found = self.calibration.predict(configs)
        parts = {name: getattr(found.parts, name) for name in PARTS}
        return Estimate(found.step_time_s, found.low_s, found.high_s, parts, found.parts.bound_time_s)


def estimator(machine: Machine, stack: Stack) -> Estimator:
    return Estimator(calibration_of(machine, stack.name))
