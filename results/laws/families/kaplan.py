"""Kaplan:  L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D.

Kaplan et al. 2020 (arXiv 2001.08361). No irreducible loss. The bracket is Chinchilla's
sum with exponents alpha_N/alpha_D and 1, hence the closed form of the compute optimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Inputs, Law, Parameter, grid, register
from ..dual import Dual, logsumexp
from .chinchilla import balance


@register
class Kaplan(Law):
    name = "kaplan"
    equation = "L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D"
    source = "Kaplan et al. 2020, arXiv 2001.08361"
    falls = ("params", "tokens")
    parameters = (
        Parameter("N_c", "critical parameters", log=True),
        Parameter("alpha_N", "exponent of N", low=1e-3, high=4.0),
        Parameter("D_c", "critical tokens", log=True),
        Parameter("alpha_D", "exponent of D", low=1e-3, high=4.0),
    )

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        return np.eye(4), np.array([centre["params"], 0.0, centre["tokens"], 0.0])

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        ratio = p["alpha_N"] / p["alpha_D"]
        return p["alpha_D"] * logsumexp(ratio * (p["N_c"] - x["params"]), p["D_c"] - x["tokens"])

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        s = grid((0.05, 0.1, 0.3), (0.05, 0.1, 0.3), (0.3, 0.7))  # alpha_N, alpha_D, share of the N term
        joint = log_y.mean() / s[:, 1]
        N_c = (joint + np.log(s[:, 2])) * s[:, 1] / s[:, 0]
        return np.stack([N_c, s[:, 0], joint + np.log(1 - s[:, 2]), s[:, 1]], 1)

    def optimum(self, natural: np.ndarray, flops: float, flops_per_nd: float) -> tuple[np.ndarray, np.ndarray]:
        N_c, alpha_N, D_c, alpha_D = natural.T
        ratio = alpha_N / alpha_D
        return balance(ratio * np.log(N_c), ratio, np.log(D_c), np.ones_like(ratio), flops, flops_per_nd)
