"""Multi-power law:  L = L0 + A S1^-alpha - B sum_k (eta_{k-1} - eta_k) [1 - (1 + C eta_k^-gamma S_k)^-beta].

S1 the sum of rates so far, S_k that since step k. Luo et al. 2025 (arXiv 2503.12811).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Inputs, Parameter, register
from ..dual import Dual, exp, expm1, log, log1p
from ..solver import constrain, minimise
from .annealing import CURVE, ScheduleLaw, curve_starts


@register
class MultiPower(ScheduleLaw):
    name = "multipower"
    equation = "L = L0 + A S1^-alpha - B sum_k (eta_{k-1} - eta_k)[1 - (1 + C eta_k^-gamma S_k)^-beta]"
    source = "Luo et al. 2025, arXiv 2503.12811"
    parameters = CURVE + (
        Parameter("B", "gain of a full drop per unit of rate", log=True),
        Parameter("C", "speed of the gain", log=True),
        Parameter("beta", "its exponent", low=0.02, high=20.0, log=True),
        Parameter("gamma", "its dependence on the rate", low=-2.0, high=4.0),
    )

    prior_reason = (
        "B near the gain of the same curves were it immediate; C, beta, gamma near (1, 1/2, 1/2): the start of the "
        "authors' own fit, which the optimiser left by about the scale"
    )

    def prior(self, inputs: Inputs, log_y: np.ndarray) -> dict[str, tuple[float, float]]:
        """Three curves do not say C, beta and gamma (alone or with B): a gain that is slow and large looks like one
        that is fast and small until much longer runs are predicted. The source fits B with an immediate gain
        first, then all from there and (1, 1/2, 1/2) by at most 200 steps of Adam of .05 (B, C) and .005 (beta, gamma).
        """
        at_once = {"C": 1e4, "beta": 5.0, "gamma": 0.0}
        at_minimum = minimise(
            self, inputs, log_y, self.starts(inputs, log_y)[::4], constraint=constrain(self, inputs.centre, at_once)
        )
        B = float(self.natural(at_minimum.theta[[at_minimum.best]], inputs.centre)[0, 3])
        return {"B": (B, 0.1), "C": (1.0, 0.7), "beta": (0.5, 0.3), "gamma": (0.5, 0.15)}

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(7)
        T[1, 2], T[4, 6] = centre["s1"], centre["lr"]
        return T, np.zeros(7)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        s = x["schedule"]
        speed = exp(p["C"] - p["gamma"] * x["log_lr"] + np.log(s.gap_s1))
        gain = s.total(-(expm1(-(exp(p["beta"]) * log1p(speed)))) * s.drop)
        return log(exp(p["L0"]) + exp(p["A"] - p["alpha"] * x["u"]) - exp(p["B"]) * gain)

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        out = curve_starts(inputs, log_y, (0.85, 0.95), (0.4, 0.7), (0.1,), (0.3, 3.0), (0.3, 0.8), (0.5,))
        peak = inputs.centre["peak"]
        out[:, 3] = np.log(out[:, 3] / peak)
        out[:, 4] = np.log(out[:, 4] / (1000 * peak))  # the gain is half spent after about a thousand steps
        out[:, 5] = np.log(out[:, 5])
        return out
