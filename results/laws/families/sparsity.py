"""Sparsity of mixtures of experts:  L = e + a / N^alpha + b / D^beta + c / (1-S)^lambda + d / ((1-S)^delta N^gamma).

Abnar et al. 2025 (arXiv 2501.12370), equation 6. N: all parameters; S: the share of the experts that a token does not
visit, (experts - active) / experts. Ten parameters: a small table identifies few of them.
"""

from __future__ import annotations

import numpy as np

from ..base import Parameter, register
from .powers import SumOfPowers, log_of


def _active(columns) -> np.ndarray:
    """-log(1 - S)."""
    sparsity = np.asarray(columns["sparsity"], float)
    if (sparsity >= 1).any():
        raise ValueError(f"sparsity: it must be below 1 (the share of idle experts), got {sparsity.max():g}")
    return -np.log1p(-sparsity)


@register
class Sparsity(SumOfPowers):
    name = "sparsity"
    equation = "L = e + a / N^alpha + b / D^beta + c / (1-S)^lambda + d / ((1-S)^delta N^gamma)"
    source = "Abnar et al. 2025, arXiv 2501.12370, equation 6"
    roles = ("params", "tokens", "sparsity")
    zero_ok = ("sparsity",)
    parameters = (
        Parameter("a", "scale of the parameter term", log=True),
        Parameter("alpha", "exponent of N", low=0.0, high=4.0, grid=(0.3, 0.6)),
        Parameter("b", "scale of the token term", log=True),
        Parameter("beta", "exponent of D", low=0.0, high=4.0, grid=(0.2, 0.4)),
        Parameter("c", "scale of the sparsity term", log=True),
        Parameter("lambda", "exponent of 1 - S", low=-4.0, high=4.0, grid=(-0.2, 0.2)),
        Parameter("d", "scale of the joint term", log=True),
        Parameter("delta", "exponent of 1 - S in the joint term", low=-4.0, high=4.0, grid=(-0.2, 0.2)),
        Parameter("gamma", "exponent of N in the joint term", low=0.0, high=4.0, grid=(0.1, 0.2)),
        Parameter("e", "irreducible loss", low=1e-9, log=True),
    )
    terms = (
        {"a": 1.0, "alpha": log_of("params", -1)},
        {"b": 1.0, "beta": log_of("tokens", -1)},
        {"c": 1.0, "lambda": _active},
        {"d": 1.0, "delta": _active, "gamma": log_of("params", -1)},
        {"e": 1.0},
    )
