"""Skaling:  L = E + (A / N^alpha + B / D^beta)^k.  Nests Chinchilla at k = 1; rejects additivity where k is not 1.

The compute optimum is Chinchilla's, for the power k is monotone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, logsumexp
from .chinchilla import balance


@register
class Skaling(Law):
    name = "skaling"
    equation = "L = E + (A / N^alpha + B / D^beta)^k"
    source = "nests Hoffmann et al. 2022 at k = 1"
    falls = ("params", "tokens")
    parameters = (
        Parameter("A", "scale of the parameter term", log=True),
        Parameter("alpha", "exponent of N", low=0.0, high=8.0),
        Parameter("B", "scale of the token term", log=True),
        Parameter("beta", "exponent of D", low=0.0, high=8.0),
        Parameter("E", "irreducible loss", low=1e-9, log=True),
        Parameter("k", "joint power; 1 is Chinchilla", low=0.02, high=20.0, log=True),
    )

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(6)
        T[0, 1], T[2, 3] = centre["params"], centre["tokens"]
        return T, np.zeros(6)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        joint = logsumexp(p["A"] - p["alpha"] * x["params"], p["B"] - p["beta"] * x["tokens"])
        return logsumexp(p["E"], exp(p["k"]) * joint)

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        low, mid = np.exp(log_y.min()), np.exp(log_y.mean())
        s = grid(
            (0.15, 0.4), (0.15, 0.4), (0.3, 0.6, 0.85), (0.4, 1.0, 2.0), (0.3, 0.7)
        )  # slope N, D; E; k; share of N
        out = np.empty((len(s), 6))
        log_E, k = np.log(s[:, 2] * low), s[:, 3]
        joint = np.log(mid - np.exp(log_E)) / k  # log of the bracket at the centre
        out[:, 0], out[:, 2] = joint + np.log(s[:, 4]), joint + np.log(1 - s[:, 4])
        out[:, 1], out[:, 3] = s[:, 0] / k, s[:, 1] / k
        out[:, 4], out[:, 5] = log_E, np.log(k)
        return out

    def optimum(self, natural: np.ndarray, flops: float, flops_per_nd: float) -> tuple[np.ndarray, np.ndarray]:
        A, alpha, B, beta = natural[:, :4].T
        with np.errstate(all="ignore"):
            return balance(np.log(A), alpha, np.log(B), beta, flops, flops_per_nd)
