"""Downstream error from loss:  Err = epsilon - k exp(-gamma L).

Gadre et al. 2024 (arXiv 2403.08540), section 3.2: top-1 error, averaged over tasks, against the loss of the same
model. epsilon is the error that a high loss approaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, log


@register
class Downstream(Law):
    name = "downstream"
    equation = "Err = epsilon - k exp(-gamma L)"
    source = "Gadre et al. 2024, arXiv 2403.08540, section 3.2"
    roles = ("loss",)
    response = "error"
    parameters = (
        Parameter("epsilon", "error at high loss", log=True),
        Parameter("k", "scale of the gain", log=True),
        Parameter("gamma", "rate of the gain in the loss", low=0.0, high=50.0),
    )

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        loss = np.asarray(columns["loss"], float)
        centre = {"loss": float(loss.mean())} if centre is None else centre
        return Inputs(len(loss), {"loss": loss - centre["loss"]}, centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(3)
        T[1, 2] = centre["loss"]
        return T, np.zeros(3)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        return log(exp(p["epsilon"]) - exp(p["k"] - p["gamma"] * x["loss"]))

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        y, x = np.exp(log_y), inputs.x["loss"]
        line, starts = np.stack([np.ones(len(x)), -x], 1), []
        for epsilon in grid((1.01, 1.05, 1.2, 1.6))[:, 0] * y.max():
            k, gamma = np.linalg.lstsq(line, np.log(epsilon - y), rcond=None)[0]
            starts.append([np.log(epsilon), k, np.clip(gamma, 1e-3, 40.0)])
        return np.array(starts)
