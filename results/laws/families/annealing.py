"""Learning-rate annealing:  L = L0 + A S1^-alpha - C S2, over the steps of training curves.

S1 = sum eta_i, S2 = sum_i sum_{k<=i} (eta_{k-1} - eta_k) lambda^(i-k).
Tissue, Wang and Wang 2024 (arXiv 2408.11029). lambda is fitted through its horizon 1/(1 - lambda) in
steps; the inner sum over i is closed: (1 - lambda^(t-k+1)) horizon.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, expm1, log, log1p
from .schedule import read_schedule


class ScheduleLaw(Law):
    """A law over curves: reads (step, lr) per run."""

    roles = ("step", "lr")
    zero_ok = ("step", "lr")
    needs_run = True

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        s = read_schedule(
            np.asarray(columns["run"]), np.asarray(columns["step"], float), np.asarray(columns["lr"], float)
        )
        u, log_lr = np.log(s.s1), np.log(np.maximum(s.lr, 1e-12))
        if centre is None:
            peak = float(np.max(np.asarray(columns["lr"], float)))
            centre = {"s1": float(u.mean()), "lr": float(log_lr.mean()) if len(log_lr) else np.log(peak), "peak": peak}
        x = {"schedule": s, "u": u - centre["s1"], "log_lr": log_lr - centre["lr"]}
        return Inputs(len(u), x, centre)


CURVE = (
    Parameter("L0", "loss in the limit", low=1e-9, log=True),
    Parameter("A", "scale of the power of S1", log=True),
    Parameter("alpha", "exponent of S1", low=0.0, high=4.0),
)


def curve_starts(inputs, log_y, shares, alphas, *rest):
    """(L0, A, alpha) from shares of the lowest loss and exponents, crossed with the rest."""
    s = grid(shares, alphas, *rest)
    L0 = s[:, 0] * np.exp(log_y.min())
    return np.column_stack([np.log(L0), np.log(np.exp(log_y.mean()) - L0), s[:, 1:]])


@register
class Annealing(ScheduleLaw):
    name = "annealing"
    equation = "L = L0 + A S1^-alpha - C S2"
    source = "Tissue et al. 2024, arXiv 2408.11029"
    parameters = CURVE + (
        Parameter("C", "gain per unit of annealing", log=True),
        Parameter("horizon", "1/(1 - lambda), steps", low=2.0, high=1e7, log=True),
    )

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(5)
        T[1, 2] = centre["s1"]
        return T, np.zeros(5)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        s = x["schedule"]
        decay = log1p(-exp(-p["horizon"]))  # log lambda
        area = s.total(-(expm1(decay * s.gap_steps)) * s.drop)
        return log(exp(p["L0"]) + exp(p["A"] - p["alpha"] * x["u"]) - exp(p["C"] + p["horizon"]) * area)

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        out = curve_starts(inputs, log_y, (0.8, 0.95), (0.3, 0.6), (0.1, 0.5), (300.0, 3000.0))
        gain, horizon = out[:, 3].copy(), out[:, 4].copy()
        out[:, 3] = np.log(gain / inputs.centre["peak"] / horizon)  # a full drop is worth `gain` nats after a horizon
        out[:, 4] = np.log(horizon)
        return out
