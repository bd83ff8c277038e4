"""Routed models:  log10 L = a log10 N + b log10 E + c log10 N log10 E + d, with E experts.

Clark et al. 2022 (arXiv 2202.01169). N is the dense parameter count. `routed_saturating` is the paper's equation 1,
with experts that saturate, 1/E^ = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max in the place of E: E^ is E_start at
one expert and approaches E_max.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, expm1, log, logsumexp
from .powers import SumOfPowers, log_of


@register
class Routed(SumOfPowers):
    name = "routed"
    equation = "log10 L = a log10 N + b log10 E + c log10 N log10 E + d"
    source = "Clark et al. 2022, arXiv 2202.01169"
    roles = ("params", "experts")
    parameters = (
        Parameter("a", "slope in N"),
        Parameter("b", "slope in E"),
        Parameter("c", "interaction"),
        Parameter("d", "offset"),
    )
    terms = (
        {
            "d": math.log(10.0),
            "a": log_of("params"),
            "b": log_of("experts"),
            "c": lambda c: np.log(c["params"]) * np.log10(c["experts"]),
        },
    )


LN10 = math.log(10.0)


@register
class RoutedSaturating(Law):
    name = "routed_saturating"
    equation = (
        "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d, "
        "1/E^ = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max"
    )
    source = "Clark et al. 2022, arXiv 2202.01169, equation 1"
    roles = ("params", "experts")
    parameters = Routed.parameters + (
        Parameter("E_start", "effective experts of one expert", low=0.1, high=1e3, log=True),
        Parameter("E_max", "most effective experts", low=1.0, high=1e7, log=True),
    )

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        size, experts = np.log10(np.asarray(columns["params"], float)), np.asarray(columns["experts"], float)
        if (experts < 1).any():
            raise ValueError(f"experts: at least 1 (a dense model), got {experts.min():g}")
        centre = {"params": float(size.mean())} if centre is None else centre
        return Inputs(len(size), {"params": size - centre["params"], "others": experts - 1}, centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(6)
        T[1, 2] = T[3, 0] = -centre["params"]
        return T, np.zeros(6)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        least = p["E_start"] - log(-expm1(p["E_start"] - p["E_max"]))  # -log(1/E_start - 1/E_max)
        log_experts = -logsumexp(-log(exp(least) + x["others"]), -p["E_max"])
        inner = (p["a"] + p["c"] * (log_experts / LN10)) * x["params"] + p["b"] * (log_experts / LN10)
        return (inner + p["d"]) * LN10

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        starts = []
        for start, most in grid((1.0, 2.0, 5.0), (50.0, 300.0, 3000.0)):
            others = inputs.x["others"] + 1 / (1 / start - 1 / most)
            log_experts = -np.log10(1 / others + 1 / most)
            size = inputs.x["params"]
            line = np.stack([size, log_experts, size * log_experts, np.ones(inputs.n)], 1)
            starts.append([*np.linalg.lstsq(line, log_y / LN10, rcond=None)[0], np.log(start), np.log(most)])
        return np.array(starts)
