"""Data-constrained:  L = E + A / N'^alpha + B / D'^beta, for data seen more than once.

D' = U_D + U_D R_D* (1 - e^(-R_D / R_D*)), R_D = D / U_D - 1, and N' alike with U_N = min(N, N_opt(U_D)),
the parameters that the unique tokens U_D would be optimal for under C = 6 N D.
Muennighoff et al. 2023 (arXiv 2305.16264). The paper holds A, alpha, B, beta, E at a fit
on single-epoch runs (`fix`) and fits R_D*, R_N* alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, expm1, log, log1p, logsumexp, minimum


@register
class DataConstrained(Law):
    name = "data_constrained"
    equation = "L = E + A/N'^alpha + B/D'^beta, X' = U_X (1 + R_X* (1 - exp(-R_X/R_X*))), R_X = X/U_X - 1"
    source = "Muennighoff et al. 2023, arXiv 2305.16264"
    falls = ("params", "tokens")
    roles = ("params", "tokens", "unique_tokens")
    parameters = (
        Parameter("A", "scale of the parameter term", log=True),
        Parameter("alpha", "exponent of N'", low=0.02, high=4.0),
        Parameter("B", "scale of the token term", log=True),
        Parameter("beta", "exponent of D'", low=0.02, high=4.0),
        Parameter("E", "irreducible loss", low=1e-9, log=True),
        Parameter("R_D*", "repetitions after which data is worth 1/e less", low=1e-3, high=1e12, log=True),
        Parameter("R_N*", "the same for excess parameters", low=1e-3, high=1e12, log=True),
    )

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        inputs = super().prepare(columns, centre)
        raw = {r: np.log(np.asarray(columns[r], float)) for r in self.roles}
        x = dict(
            inputs.x,
            unique=raw["unique_tokens"],
            N=raw["params"],
            repeats=np.maximum(np.expm1(raw["tokens"] - raw["unique_tokens"]), 0.0),
        )
        return Inputs(inputs.n, x, inputs.centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(7)
        T[0, 1], T[2, 3] = centre["params"], centre["tokens"]
        return T, np.zeros(7)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        u0, v0 = centre["params"], centre["tokens"]
        log_A, log_B = p["A"] + p["alpha"] * u0, p["B"] + p["beta"] * v0
        alpha, beta = p["alpha"], p["beta"]
        log_G = (log(alpha) + log_A - log(beta) - log_B) / (alpha + beta)
        unique_n = minimum(log_G + beta / alpha * (log_G + x["unique"]), x["N"])
        excess = _stretch(expm1(x["N"] - unique_n), p["R_N*"])
        repeated = _stretch(x["repeats"], p["R_D*"])
        return logsumexp(
            p["A"] - alpha * (unique_n - u0 + excess), p["B"] - beta * (x["unique"] - v0 + repeated), p["E"]
        )

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        low, mid = np.exp(log_y.min()), np.exp(log_y.mean())
        s = grid((0.25, 0.45), (0.25, 0.45), (0.5, 0.85), (0.4, 0.7), (3.0, 30.0), (1.0, 10.0))
        E = s[:, 2] * low
        return np.stack(
            [
                np.log((mid - E) * s[:, 3]),
                s[:, 0],
                np.log((mid - E) * (1 - s[:, 3])),
                s[:, 1],
                np.log(E),
                np.log(s[:, 4]),
                np.log(s[:, 5]),
            ],
            1,
        )


def _stretch(repeats, log_r):
    """log(1 + R* (1 - exp(-R / R*))); tends to log(1 + R) as R* grows without limit."""
    inverse = exp(-log_r)
    return log1p(-(exp(log_r) * expm1(-(inverse * repeats))))
