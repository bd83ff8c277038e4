"""Over-training:  L = E + (a M^h + b M^-h) C^-h,  M = D / N,  C = 6 N D.

Gadre et al. 2024 (arXiv 2403.08540). Equivalent to Chinchilla with one exponent 2h for N and D;
the loss-optimal M is constant, M* = (b / a)^(1 / 2h).
"""

from __future__ import annotations

import numpy as np

from ..base import Parameter, register
from .powers import SumOfPowers


def _log_m(c):
    return np.log(c["tokens"]) - np.log(c["params"])


def _log_c(c):
    return np.log(6.0) + np.log(c["tokens"]) + np.log(c["params"])


@register
class Overtraining(SumOfPowers):
    name = "overtraining"
    equation = "L = E + (a M^h + b M^-h) C^-h, M = D/N, C = 6ND"
    source = "Gadre et al. 2024, arXiv 2403.08540"
    falls = ("params", "tokens")
    parameters = (
        Parameter("a", "scale of the parameter term", log=True),
        Parameter("b", "scale of the token term", log=True),
        Parameter("h", "exponent of C", low=0.0, high=2.0, grid=(0.03, 0.06, 0.12, 0.25, 0.45)),
        Parameter("E", "irreducible loss", low=1e-9, log=True),
    )
    terms = (
        {"a": 1.0, "h": lambda c: _log_m(c) - _log_c(c)},
        {"b": 1.0, "h": lambda c: -_log_m(c) - _log_c(c)},
        {"E": 1.0},
    )

    def optimum(self, natural: np.ndarray, flops: float, flops_per_nd: float) -> tuple[np.ndarray, np.ndarray]:
        a, b, h = natural[:, :3].T
        log_m = np.log(b / a) / (2 * h)
        log_nd = np.log(flops / flops_per_nd)
        return np.exp((log_nd - log_m) / 2), np.exp((log_nd + log_m) / 2)
