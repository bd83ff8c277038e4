"""Precision:  L = E + A / N_eff^alpha + B / D^beta,  N_eff = N prod_k (1 - e^(-P_k / gamma_k)).

Kumar et al. 2024 (arXiv 2411.04330). P_k: bits of the weights, and in `precision_full` also of the
activations and of the KV cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, expm1, log, logsumexp

CHINCHILLA = (
    Parameter("A", "scale of the parameter term", log=True),
    Parameter("alpha", "exponent of N_eff", low=0.0, high=4.0),
    Parameter("B", "scale of the token term", log=True),
    Parameter("beta", "exponent of D", low=0.0, high=4.0),
    Parameter("E", "irreducible loss", low=1e-9, log=True),
)


@register
class Precision(Law):
    name = "precision"
    equation = "L = E + A / N_eff^alpha + B / D^beta, N_eff = N (1 - exp(-P_w/gamma_w))"
    source = "Kumar et al. 2024, arXiv 2411.04330"
    falls = ("params", "tokens")
    roles: tuple[str, ...] = ("params", "tokens", "weight_bits")
    parameters: tuple[Parameter, ...] = CHINCHILLA + (
        Parameter("gamma_w", "sensitivity to weight bits", low=0.05, high=50.0, log=True),
    )

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        inputs = super().prepare(columns, centre)
        bits = {r: np.asarray(columns[r], float) for r in self.roles[2:]}
        return Inputs(inputs.n, inputs.x | bits, inputs.centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(len(self.parameters))
        T[0, 1], T[2, 3] = centre["params"], centre["tokens"]
        return T, np.zeros(len(T))

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        u = x["params"]
        for role, gamma in zip(self.roles[2:], self.names[5:], strict=True):
            u = u + log(-expm1(-(exp(-p[gamma]) * x[role])))
        return logsumexp(p["A"] - p["alpha"] * u, p["B"] - p["beta"] * x["tokens"], p["E"])

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        low, mid = np.exp(log_y.min()), np.exp(log_y.mean())
        s = grid((0.2, 0.5), (0.2, 0.5), (0.5, 0.85), (0.4, 0.7), (1.0, 3.0))
        E = s[:, 2] * low
        gammas = np.repeat(np.log(s[:, 4:]), len(self.roles) - 2, 1)
        return np.column_stack(
            [np.log((mid - E) * s[:, 3]), s[:, 0], np.log((mid - E) * (1 - s[:, 3])), s[:, 1], np.log(E), gammas]
        )


@register
class PrecisionFull(Precision):
    name = "precision_full"
    equation = "L = E + A / N_eff^alpha + B / D^beta, N_eff = N prod_{w,a,kv} (1 - exp(-P/gamma))"
    roles = ("params", "tokens", "weight_bits", "activation_bits", "kv_bits")
    parameters = Precision.parameters + (
        Parameter("gamma_a", "sensitivity to activation bits", low=0.05, high=50.0, log=True),
        Parameter("gamma_kv", "sensitivity to KV-cache bits", low=0.05, high=50.0, log=True),
    )
