"""Vocabulary:  L = L_unigram - E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / D^beta.

Tao et al. 2024 (arXiv 2407.13623), approach 3. N_nv: parameters outside of the embeddings; N_v: parameters of the
embeddings, vocabulary times width; D: tokens. The paper fits the normalised loss L - L_unigram, which is negative and
can be compared between vocabularies; here the loss itself is fitted, with the unigram model's loss as a column. The
paper holds alpha1 = beta: `--fix alpha1=beta`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import nnls

from ..base import Columns, Inputs, Law, Parameter, grid, register
from ..dual import Dual, exp, log

TERMS = (("A1", "alpha1", "params_nonvocab"), ("A2", "alpha2", "params_vocab"), ("B", "beta", "tokens"))


@register
class Vocabulary(Law):
    name = "vocabulary"
    equation = "L = L_unigram - E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / D^beta"
    source = "Tao et al. 2024, arXiv 2407.13623, approach 3"
    roles = ("params_nonvocab", "params_vocab", "tokens", "unigram_loss")
    parameters = (
        Parameter("A1", "scale of the non-vocabulary term", log=True),
        Parameter("alpha1", "exponent of N_nv", low=0.0, high=4.0),
        Parameter("A2", "scale of the vocabulary term", log=True),
        Parameter("alpha2", "exponent of N_v", low=0.0, high=4.0),
        Parameter("B", "scale of the token term", log=True),
        Parameter("beta", "exponent of D", low=0.0, high=4.0),
        Parameter("E", "gain over the unigram model at the limit", log=True),
    )

    def prepare(self, columns: Columns, centre: dict | None = None) -> Inputs:
        logs = {role: np.log(np.asarray(columns[role], float)) for role in self.roles[:3]}
        centre = {role: float(v.mean()) for role, v in logs.items()} if centre is None else centre
        unigram = np.asarray(columns["unigram_loss"], float)
        return Inputs(len(unigram), {r: v - centre[r] for r, v in logs.items()} | {"unigram_loss": unigram}, centre)

    def coordinates(self, centre: dict) -> tuple[np.ndarray, np.ndarray]:
        T = np.eye(7)
        for j, (_, _, role) in enumerate(TERMS):
            T[2 * j, 2 * j + 1] = centre[role]
        return T, np.zeros(7)

    def formula(self, p: dict[str, Dual], x: dict[Any, Any], centre: dict) -> Dual:
        terms = [exp(p[scale] - p[exponent] * x[role]) for scale, exponent, role in TERMS]
        return log(terms[0] + terms[1] + terms[2] - exp(p["E"]) + x["unigram_loss"])

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        below = np.exp(log_y) - inputs.x["unigram_loss"]
        starts = []
        for exponents in grid((0.2, 0.5, 0.9), (0.2, 0.6, 1.2), (0.2, 0.5, 0.9)):
            shapes = [np.exp(-e * inputs.x[role]) for e, (_, _, role) in zip(exponents, TERMS, strict=True)]
            scales = nnls(np.stack([*shapes, -np.ones(inputs.n)], 1), below)[0]
            floor = 0.02 * max(scales.max(), 1e-6)
            a1, a2, b, e = np.log(np.maximum(scales, floor))
            starts.append([a1, exponents[0], a2, exponents[1], b, exponents[2], e])
        return np.array(starts)
