"""Chinchilla:  L = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3, approach 3. Compute optimum for C = k N D:
N* = G (C/k)^(beta/(alpha+beta)), D* = (C/k)^(alpha/(alpha+beta)) / G, G = (alpha A / (beta B))^(1/(alpha+beta)).
"""

from __future__ import annotations

import numpy as np

from ..base import Parameter, register
from .powers import SumOfPowers, log_of

EXPONENTS = (0.2, 0.35, 0.55, 0.9)


def balance(log_A, alpha, log_B, beta, flops, flops_per_nd):
    """N*, D* that minimise A N^-alpha + B D^-beta under C = k N D; all arrays (B,)."""
    log_G = (np.log(alpha) + log_A - np.log(beta) - log_B) / (alpha + beta)
    log_nd = np.log(flops / flops_per_nd)
    log_N = log_G + beta / (alpha + beta) * log_nd
    return np.exp(log_N), np.exp(log_nd - log_N)


@register
class Chinchilla(SumOfPowers):
    name = "chinchilla"
    equation = "L = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, section 3.3"
    falls = ("params", "tokens")
    parameters = (
        Parameter("A", "scale of the parameter term", log=True),
        Parameter("alpha", "exponent of N", low=0.0, high=4.0, grid=EXPONENTS),
        Parameter("B", "scale of the token term", log=True),
        Parameter("beta", "exponent of D", low=0.0, high=4.0, grid=EXPONENTS),
        Parameter("E", "irreducible loss", low=1e-9, log=True),
    )
    terms = ({"A": 1.0, "alpha": log_of("params", -1)}, {"B": 1.0, "beta": log_of("tokens", -1)}, {"E": 1.0})

    def optimum(self, natural: np.ndarray, flops: float, flops_per_nd: float) -> tuple[np.ndarray, np.ndarray]:
        A, alpha, B, beta = natural[:, :4].T
        with np.errstate(all="ignore"):
            return balance(np.log(A), alpha, np.log(B), beta, flops, flops_per_nd)
