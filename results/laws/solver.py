"""One minimiser for every law: batched damped Gauss-Newton on Huber, L1 or squared log residuals.

    minimise  sum_i w_i rho(log y_i - m(theta, x_i))          for B problems at once

B runs over starts and over bootstrap resamples (as weights). `descent.py` minimises one smooth objective; L1 is the
limit of a few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .base import Inputs, Law
from .descent import Descent, Predictor
from .objective import LOGS, Constraint, Objective, Penalty, constrain, penalise

__all__ = [
    "LOGS",
    "Constraint",
    "InUnits",
    "Objective",
    "Penalty",
    "Problem",
    "Solution",
    "constrain",
    "minimise",
    "penalise",
]


class InUnits:
    """A law seen in the units of the response: what `raw_squares` minimises in."""

    def __init__(self, law: Law):
        self.law, self.box, self.vanishing = law, law.box, law.vanishing

    def log_predict(self, theta, inputs, derivatives=True):
        m, J = self.law.log_predict(theta, inputs, derivatives)
        y = np.exp(m)
        return y, None if J is None else J * y[:, None]


@dataclass(frozen=True)
class Solution:
    """theta (B, p), objective (B,), gradient (B,): its largest component over sum w |psi J|, where residuals below
    `ROUNDING` are none; converged (B,)."""

    theta: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray

    @property
    def best(self) -> int:
        return int(np.argmin(np.where(np.isfinite(self.objective), self.objective, np.inf)))


@dataclass(frozen=True)
class Problem:
    """A law, a table and an objective, to be minimised from any starting points. log_y (n,)."""

    law: Law
    inputs: Inputs
    log_y: np.ndarray
    objective: Objective = LOGS
    constraint: Constraint | None = None
    penalty: Penalty | None = None

    @property
    def predictor(self) -> Predictor:
        """The law, in the units that residuals are taken in."""
        return InUnits(self.law) if self.objective.kind == "raw_squares" else self.law

    @property
    def response(self) -> np.ndarray:
        """The response (n,) in the units that residuals are taken in."""
        return np.exp(self.log_y) if self.objective.kind == "raw_squares" else self.log_y

    def solve(
        self,
        start: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        iterations: int = 200,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        """Minimise from every row of `start` (B, p) under `weights` (B, n) or (n,).

        The penalty is part of the objective returned. progress, if given, is called with the number of problems
        finished so far.
        """
        start = np.atleast_2d(start)
        w = np.ones((1, self.inputs.n)) if weights is None else np.atleast_2d(np.asarray(weights, float))
        chunk = max(8, 24_000 // max(self.inputs.n, 1))  # keeps the working arrays in the cache
        parts = []
        for i in range(0, len(start), chunk):
            constraint = self.constraint
            if constraint is not None and constraint.offset.ndim == 2:
                constraint = replace(constraint, offset=constraint.offset[i : i + chunk])
            part = replace(self, constraint=constraint)
            parts.append(part._solve(start[i : i + chunk], w if len(w) == 1 else w[i : i + chunk], iterations))
            if progress:
                progress(min(i + chunk, len(start)))
        return Solution(*(np.concatenate(p) for p in zip(*parts, strict=True)))

    def _solve(
        self, theta: np.ndarray, w: np.ndarray, iterations: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """theta, objective, gradient and converged of one chunk of the batch, through the objective's stages."""
        predictor, y, penalty = self.predictor, self.response, self.penalty
        for delta, scale in self.objective.stages():
            scaled = None if penalty is None else replace(penalty, weight=penalty.weight / scale)
            descent = Descent(predictor, self.inputs, y, w, delta, self.constraint, scaled)
            theta, f, gradient, converged = descent.run(theta, iterations)
            f = f * scale
        if self.objective.kind == "l1":  # the sum itself, not its smoothed limit
            f = (w * np.abs(y - predictor.log_predict(theta, self.inputs, derivatives=False)[0])).sum(1)
            f = f if penalty is None else f + penalty.at(theta)
        return theta, f, gradient, converged


def minimise(
    law: Law,
    inputs: Inputs,
    log_y: np.ndarray,
    start: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    objective: Objective = LOGS,
    constraint: Constraint | None = None,
    iterations: int = 200,
) -> Solution:
    """`Problem.solve` in one call."""
    problem = Problem(law, inputs, log_y, objective, constraint)
    return problem.solve(start, weights=weights, iterations=iterations)
