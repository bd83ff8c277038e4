"""Farseer:  L = e^(s N^q + S) + e^(B N^b + Q) D^(-e^(A N^a + E)).

Li et al. 2025 (arXiv 2506.10972). The exponent of D depends on N, so the law is not additive and
not free of units: N and D are counts, as in the paper. The optimum is found numerically.

Its nine parameters are nearly collinear as written. It is fitted in values and slopes at the mean
log N = u0 instead: log floor c1 and its slope -e^g1; log token term c2 (at mean log D = v0) and its
slope -gamma; exponent of D h0 and its slope -h0 e^g3; and the three curvatures q, b, a. With
u = log N - u0, v = log D - v0:
  log floor = c1 - e^g1 (e^(qu) - 1)/q,   h(u) = h0 exp(-e^g3 (e^(au) - 1)/a),
  log token = c2 - (gamma + h0 e^g3 v0)(e^(bu) - 1)/b - (h(u) - h0) v0 - h(u) v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base import Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, expm1, logsumexp


@register
class Farseer(Law):
    name = "farseer"
    equation = "L = e^(s N^q + S) + e^(B N^b + Q) D^(-e^(A N^a + E))"
    source = "Li et al. 2025, arXiv 2506.10972"
    falls = ("params", "tokens")
    bent = ("s", "S", "B", "Q", "A", "E")
    parameters = (
        Parameter("s", "scale of the floor"),
        Parameter("q", "its exponent", low=0.005, high=1.0),
        Parameter("S", "its offset"),
        Parameter("B", "scale of the token term"),
        Parameter("b", "its exponent", low=-1.0, high=-0.005),
        Parameter("Q", "its offset"),
        Parameter("A", "scale of the token exponent"),
        Parameter("a", "its exponent", low=0.005, high=1.0),
        Parameter("E", "its offset"),
    )

    def natural(self, theta: np.ndarray, centre: dict) -> np.ndarray:
        g1, q, c1, gamma, b, c2, g3, a, log_h0 = theta.T
        u0, v0, h0 = centre["params"], centre["tokens"], np.exp(log_h0)
        s, A = np.exp(g1) / q, np.exp(g3) / a
        B = -(gamma + h0 * np.exp(g3) * v0) / b
        return np.stack(
            [
                -s * np.exp(-q * u0),
                q,
                c1 + s,
                B * np.exp(-b * u0),
                b,
                c2 - B + h0 * v0,
                -A * np.exp(-a * u0),
                a,
                log_h0 + A,
            ],
            1,
        )

    def theta(self, natural: Mapping[str, float], centre: dict) -> np.ndarray:
        n, u0, v0 = natural, centre["params"], centre["tokens"]
        s, A = -n["s"] * np.exp(n["q"] * u0), -n["A"] * np.exp(n["a"] * u0)
        B, h0 = n["B"] * np.exp(n["b"] * u0), np.exp(n["E"] - A)
        return np.array(
            [
                np.log(s * n["q"]),
                n["q"],
                n["S"] - s,
                -B * n["b"] - h0 * A * n["a"] * v0,
                n["b"],
                n["Q"] + B - h0 * v0,
                np.log(A * n["a"]),
                n["a"],
                np.log(h0),
            ]
        )

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        u, v, v0 = x["params"], x["tokens"], centre["tokens"]
        h0, slope = exp(p["E"]), exp(p["A"])
        h = h0 * exp(-(slope * expm1(p["a"] * u) / p["a"]))
        floor = p["S"] - exp(p["s"]) * expm1(p["q"] * u) / p["q"]
        token = p["Q"] - (p["B"] + h0 * slope * v0) * expm1(p["b"] * u) / p["b"] - (h - h0) * v0 - h * v
        return logsumexp(floor, token)

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        mid = log_y.mean()
        # q, b, a; the floor's share and slope; exponent of D and its slope
        s = grid((0.15,), (-0.12,), (0.12,), (0.5, 0.8), (0.05, 0.15), (0.25, 0.45), (0.05, 0.15))
        return np.stack(
            [
                np.log(s[:, 4]),
                s[:, 0],
                mid + np.log(s[:, 3]),
                np.full(len(s), 0.1),
                s[:, 1],
                mid + np.log(1 - s[:, 3]),
                np.log(s[:, 6]),
                s[:, 2],
                np.log(s[:, 5]),
            ],
            1,
        )
