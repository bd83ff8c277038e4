"""DiLoCo against model size N and replicas M: the five forms of Charles et al. 2025 (arXiv 2503.09799).

Table 7 (A N^alpha per M), table 10 (A N^alpha M^beta), and the paper's parametric forms with a constant:
A N^alpha M^beta + C; A N^(alpha + beta M) + C; A N^alpha + B M^beta + C. Exponents keep the paper's sign.
The same forms fit the optimal learning rate and batch: name the response column.
"""

from __future__ import annotations

import numpy as np

from ..base import Parameter, register
from .powers import SumOfPowers, log_of

A = Parameter("A", "scale", log=True)
ALPHA = Parameter("alpha", "exponent of N", grid=(-0.4, -0.2, -0.1, -0.05))
BETA = Parameter("beta", "exponent of M", grid=(-0.05, 0.01, 0.05, 0.2))
C = Parameter("C", "irreducible loss", low=1e-9, log=True)
SOURCE = "Charles et al. 2025, arXiv 2503.09799, "


@register
class DilocoPower(SumOfPowers):
    name = "diloco"
    equation = "L = A N^alpha"
    source = SOURCE + "table 7"
    roles = ("params",)
    parameters = (A, ALPHA)
    terms = ({"A": 1.0, "alpha": log_of("params")},)


@register
class DilocoJoint(SumOfPowers):
    name = "diloco_joint"
    equation = "L = A N^alpha M^beta"
    source = SOURCE + "table 10"
    roles = ("params", "replicas")
    parameters = (A, ALPHA, BETA)
    terms = ({"A": 1.0, "alpha": log_of("params"), "beta": log_of("replicas")},)


@register
class DilocoJointConstant(SumOfPowers):
    name = "diloco_joint_constant"
    equation = "L = A N^alpha M^beta + C"
    source = SOURCE + "parametric forms"
    roles = ("params", "replicas")
    parameters = (A, ALPHA, BETA, C)
    terms = ({"A": 1.0, "alpha": log_of("params"), "beta": log_of("replicas")}, {"C": 1.0})


@register
class DilocoExponent(SumOfPowers):
    name = "diloco_exponent"
    equation = "L = A N^(alpha + beta M) + C"
    source = SOURCE + "parametric forms"
    roles = ("params", "replicas")
    parameters = (A, ALPHA, Parameter("beta", "change of the exponent per replica", grid=(-0.005, 0.0, 0.002)), C)
    terms = (
        {"A": 1.0, "alpha": log_of("params"), "beta": lambda c: np.asarray(c["replicas"], float) * np.log(c["params"])},
        {"C": 1.0},
    )


@register
class DilocoAdditive(SumOfPowers):
    name = "diloco_additive"
    equation = "L = A N^alpha + B M^beta + C"
    source = SOURCE + "parametric forms"
    roles = ("params", "replicas")
    parameters = (
        A,
        ALPHA,
        Parameter("B", "scale of the replica term", log=True),
        Parameter("beta", "exponent of M", low=1e-3, high=4.0, grid=(0.1, 0.3, 0.8)),
        C,
    )
    terms = ({"A": 1.0, "alpha": log_of("params")}, {"B": 1.0, "beta": log_of("replicas")}, {"C": 1.0})
