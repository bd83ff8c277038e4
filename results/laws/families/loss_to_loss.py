"""Loss to loss:  L = K (L_source - E_source)^kappa + E, a shifted power law from one loss to another.

Brandfonbrener et al. 2024 (arXiv 2411.12925): between the losses of models trained on two data sets and paired by
compute, and between a model's losses on two data sets. Where both losses fall as E_i + B_i C^-b_i, kappa = b/b_source
and K = B / B_source^kappa. E_source and E are the irreducible losses: hold those that are known from other fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, log


@register
class LossToLoss(Law):
    name = "loss_to_loss"
    equation = "L = K (L_source - E_source)^kappa + E"
    source = "Brandfonbrener et al. 2024, arXiv 2411.12925"
    roles = ("source_loss",)
    parameters = (
        Parameter("K", "scale", log=True),
        Parameter("kappa", "exponent", low=0.0, high=10.0),
        Parameter("E_source", "irreducible source loss", low=0.0),
        Parameter("E", "irreducible loss", low=0.0),
    )

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        source = np.asarray(columns["source_loss"], float)
        if centre is None:
            centre = {"log": float(np.log(source).mean()), "least": float(source.min())}
        return Inputs(len(source), {"source": source}, centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(4)
        T[0, 1] = -centre["log"]
        return T, np.zeros(4)

    def box(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        low, high = super().box(centre)
        low[1:3], high[1:3] = (0.0, 0.0), (10.0, centre["least"] * (1 - 1e-6))  # the power is of a positive number
        return low, high

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        excess = log(-(p["E_source"] - x["source"]))
        return log(exp(p["K"] + p["kappa"] * (excess - centre["log"])) + p["E"])

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        s = grid((0.0, 0.4, 0.8, 0.97), (0.5, 1.0, 1.6), (0.0, 0.5, 0.9))  # shares of the least losses; kappa
        E_source, kappa, E = s[:, 0] * inputs.centre["least"], s[:, 1], s[:, 2] * np.exp(log_y.min())
        excess = np.log(inputs.x["source"] - E_source[:, None]) - inputs.centre["log"]
        above = np.log(np.exp(log_y) - E[:, None])
        return np.stack([np.median(above - kappa[:, None] * excess, 1), kappa, E_source, E], 1)
