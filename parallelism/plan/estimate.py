"""The model as the search asks it: seconds for many, and all parts with an interval for a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..predict import Configs, Machine, Stack, Step, predict_step

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


@dataclass(frozen=True)
class Estimate:
    """Of n configurations; an interval of None: none is stated."""

    seconds: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    refused: list[str | None]
    parts: dict[str, np.ndarray]
    bound: np.ndarray


class Estimator(Protocol):
    def seconds(self, configs: Configs) -> np.ndarray:
        """Of a step (n,)."""

    def whole(self, configs: Configs) -> Estimate: ...


class Physics:
    """The model with the profile's numbers alone."""

    def __init__(self, machine: Machine, stack: Stack) -> None:
        self.machine, self.stack = machine, stack

    def seconds(self, configs: Configs) -> np.ndarray:
        return self._step(configs).step_time_s

    def whole(self, configs: Configs) -> Estimate:
        step = self._step(configs)
        parts = {name: getattr(step, name) for name in PARTS}
        return Estimate(step.step_time_s, None, None, [None] * len(configs), parts, step.bound_time_s)

    def _step(self, configs: Configs) -> Step:
        return predict_step(configs, self.machine, self.stack)


def estimator(machine: Machine, stack: Stack) -> Estimator:
    return Physics(machine, stack)
