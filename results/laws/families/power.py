"""Power laws of one column:  y = a x^c,  y = a x^c + E,  and with breaks.

x is any positive column (compute, tokens, device-hours, joules). The broken law is Caballero et al. 2022
(arXiv 2210.14891) with one break: y = a + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base import Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, logsumexp
from .powers import SumOfPowers, log_of


@register
class Power(SumOfPowers):
    name = "power"
    equation = "y = a x^c"
    source = "a straight line in logs"
    roles = ("x",)
    parameters = (Parameter("a", "value at x = 1", log=True), Parameter("c", "exponent"))
    terms = ({"a": 1.0, "c": log_of("x")},)


@register
class PowerConstant(SumOfPowers):
    name = "power_constant"
    equation = "y = E + a x^c"
    source = "Henighan et al. 2020, arXiv 2010.14701"
    roles = ("x",)
    parameters = (
        Parameter("a", "scale", log=True),
        Parameter("c", "exponent", low=-6.0, high=6.0, grid=(-1.0, -0.5, -0.25, -0.1, -0.05, 0.3)),
        Parameter("E", "what remains", low=1e-9, log=True),
    )
    terms = ({"a": 1.0, "c": log_of("x")}, {"E": 1.0})


@register
class BrokenPower(Law):
    name = "broken_power"
    equation = "y = a + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f)"
    source = "Caballero et al. 2022, arXiv 2210.14891, one break"
    roles = ("x",)
    parameters = (
        Parameter("a", "limit", low=1e-9, log=True),
        Parameter("b", "scale", log=True),
        Parameter("c0", "exponent before the break", low=-4.0, high=6.0),
        Parameter("c1", "change of exponent at the break", low=-6.0, high=6.0),
        Parameter("d", "where it breaks", log=True),
        Parameter("f", "width of the break", low=0.01, high=5.0, log=True),
    )

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(6)
        T[1, 2] = centre["x"]
        shift = np.zeros(6)
        shift[4] = centre["x"]
        return T, shift

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        width = exp(p["f"])
        soft = width * logsumexp(_zero(p["d"]), (x["x"] - p["d"]) / width)
        return logsumexp(p["a"], p["b"] - p["c0"] * x["x"] - p["c1"] * soft)

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        u = inputs.x["x"]
        s = grid(
            np.quantile(u, (0.25, 0.5, 0.75)), (0.0, 0.3), (-0.3, 0.3, 0.8), (0.1, 0.5), (0.05, 0.5)
        )  # d, c0, c1, f, a
        a = s[:, 4] * np.exp(log_y.min())
        b = np.exp(log_y.mean()) - a
        return np.stack([np.log(a), np.log(b), s[:, 1], s[:, 2], s[:, 0], np.log(s[:, 3])], 1)


def _zero(like):
    return like * 0.0
