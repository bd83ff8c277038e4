"""Batched damped Gauss-Newton on one smooth objective: the inner loop of `solver.py`.

    minimise  sum_i w_i rho(y_i - m(theta, x_i))          for B problems at once

The Huber curvature counts only the rows inside delta, which may be none; the damping is therefore in the metric of the
reweighted normal equations J' W J, W = min(1, delta/|r|), the majoriser of the objective (Huber 1981), so a heavily
damped step is a small descent step and a lightly damped one is Newton's. Both are invariant under a linear change of
parameters; centring the logs only saves digits. Bounds: a coordinate at a bound that the gradient pushes outwards is
left out of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, overload

import numpy as np

from .base import Inputs
from .objective import Constraint, Penalty, huber_sum

ROUNDING = 1e-12  # residuals of a table that follows the law exactly are rounding errors, and so is their gradient
TRIALS = 20  # of one step, each with more damping


class Predictor(Protocol):
    """A law, or a law seen in the units of the response."""

    @property
    def vanishing(self) -> np.ndarray: ...

    def box(self, centre: dict) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def log_predict(
        self, theta: np.ndarray, inputs: Inputs, derivatives: Literal[True] = True
    ) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def log_predict(
        self, theta: np.ndarray, inputs: Inputs, derivatives: Literal[False]
    ) -> tuple[np.ndarray, None]: ...


class Bounds(NamedTuple):
    """Bounds (q,) of the coordinates that move; in_value (q,): those that are stepped in their value exp(eta)."""

    low: np.ndarray
    high: np.ndarray
    in_value: np.ndarray

    def reach(self, eta: np.ndarray) -> list[np.ndarray]:
        """The least and the largest step (B, q) that the bounds allow."""
        ends = [edge - eta for edge in (self.low, self.high)]
        with np.errstate(over="ignore"):
            for end in ends:
                end[:, self.in_value] = np.expm1(end[:, self.in_value])
        return ends

    def moved(self, eta: np.ndarray, step: np.ndarray) -> np.ndarray:
        """eta (B, q) after a step, inside the bounds.

        A term that may vanish is stepped in its value exp(eta), eta + log(1 + step): the law is linear in it. A step
        in its log has no end on the way to 0, and the damping that tames it stops all other parameters too.
        """
        trial = eta + step
        with np.errstate(all="ignore"):
            trial[..., self.in_value] = eta[..., self.in_value] + np.log1p(step[..., self.in_value])
        return np.clip(trial, self.low, self.high)

    def pushed(self, eta: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Which coordinates are at a bound that the gradient pushes outwards."""
        return ((eta <= self.low) & (g > 0)) | ((eta >= self.high) & (g < 0))


def bounds_of(predictor: Predictor, centre: dict, free: np.ndarray | slice) -> Bounds:
    """The bounds of the coordinates of theta that `free` selects."""
    low, high = predictor.box(centre)
    value = predictor.vanishing & np.isfinite(low)
    return Bounds(low[free], high[free], value[free])


class _Local(NamedTuple):
    """The objective around the points that still move: its value, gradient, curvatures, and the scale of a step."""

    f: np.ndarray
    g: np.ndarray
    G: np.ndarray  # of the majoriser
    H: np.ndarray
    edge: np.ndarray
    scale: np.ndarray
    gradient: np.ndarray


@dataclass
class Descent:
    """The descent of a batch. y (n,); weights (1, n) or (B, n); delta: Huber's, inf for squares."""

    predictor: Predictor
    inputs: Inputs
    y: np.ndarray
    weights: np.ndarray
    delta: float
    constraint: Constraint | None
    penalty: Penalty | None

    def run(self, start: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """theta (B, p), objective (B,), gradient (B,) and converged (B,) from every row of `start` (B, p)."""
        free = slice(None) if self.constraint is None else self.constraint.free
        self.bounds = bounds_of(self.predictor, self.inputs.centre, free)
        if self.constraint is not None:
            self.offset = np.broadcast_to(self.constraint.offset, start.shape)
        self.eta = np.clip(start[:, free], self.bounds.low, self.bounds.high)
        B, q = self.eta.shape
        self._prepare_penalty()
        rows, self.eye = np.arange(B), np.eye(q)
        self.f, self.gradient = np.full(B, np.inf), np.full(B, np.inf)
        self.damping, converged = np.full(B, 1e-2), np.zeros(B, bool)
        with np.errstate(all="ignore"):
            m, J = self.predictor.log_predict(self._theta(self.eta, rows), self.inputs)
            fine = np.isfinite(m).all(1) & np.isfinite(J).all((1, 2))  # outside the law's domain a start stays at inf
            rows, m, J = rows[fine], m[fine], J[fine]
            for _ in range(iterations):
                if len(rows) == 0:
                    break
                local = self._linearise(rows, m, J)
                self.gradient[rows], self.f[rows] = local.gradient, local.f
                here = self._step(rows, local)
                converged[rows[here]] = self.gradient[rows[here]] < 1e-4
                rows = rows[~here]
                m, J = self.predictor.log_predict(self._theta(self.eta[rows], rows), self.inputs)
        return self._theta(self.eta, np.arange(B)), self.f, self.gradient, converged

    def _prepare_penalty(self) -> None:
        if self.penalty is not None:
            R = self.penalty.R
            self.penalty_slope = R if self.constraint is None else R @ self.constraint.basis
            self.penalty_curve = self.penalty.weight * self.penalty_slope.T @ self.penalty_slope

    def _theta(self, eta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """theta (k, p) of the coordinates eta (k, q) of these rows of the batch."""
        return eta if self.constraint is None else self.offset[rows] + eta @ self.constraint.basis.T

    def _weights(self, rows: np.ndarray) -> np.ndarray:
        return self.weights if len(self.weights) == 1 else self.weights[rows]

    def _linearise(self, rows: np.ndarray, m: np.ndarray, J: np.ndarray) -> _Local:
        delta, wr, r = self.delta, self._weights(rows), self.y - m
        a = np.abs(r)
        psi = wr * np.clip(r, -delta, delta)
        f = huber_sum(r, wr, delta)
        if self.constraint is not None:
            J = np.einsum("jk,bji->bki", self.constraint.basis, J)
        g = -(J @ psi[:, :, None])[:, :, 0]
        G = (J * (wr * np.minimum(1.0, delta / np.maximum(a, 1e-300)))[:, None]) @ J.transpose(0, 2, 1)
        H = G if np.isinf(delta) else (J * (wr * (a < delta))[:, None]) @ J.transpose(0, 2, 1)
        gauge = (np.abs(J) * (wr * (np.minimum(a, delta) + ROUNDING))[:, None]).sum(2)
        if self.penalty is not None:
            theta, slope, curve = self._theta(self.eta[rows], rows), self.penalty_slope, self.penalty_curve
            push = self.penalty.weight * (theta @ self.penalty.R.T - self.penalty.target)
            f, g, G, H = f + self.penalty.at(theta), g + push @ slope, G + curve, H + curve
            gauge += np.abs(push) @ np.abs(slope)
        edge = self.bounds.pushed(self.eta[rows], g)
        gradient = np.where(edge, 0.0, np.abs(g) / np.maximum(gauge, 1e-300)).max(1)
        scale = 1.0 / np.sqrt(np.maximum(np.einsum("bkk->bk", G), 1e-300))
        return _Local(f, g, G, H, edge, np.where(edge, 0.0, scale), gradient)

    def _step(self, rows: np.ndarray, local: _Local) -> np.ndarray:
        """Move the rows; which of them (k,) stay: their step would promise nothing, or none brought a decrease.

        A failed step is tried again with more damping on the same derivatives.
        """
        todo, here = np.arange(len(rows)), np.zeros(len(rows), bool)
        s2 = local.scale[:, :, None] * local.scale[:, None]
        for _ in range(TRIALS):
            at = self.eta[rows[todo]]
            step = self._best_step(rows, todo, local, s2, at)
            trial = self.bounds.moved(at, step)
            gain = -(step * local.g[todo]).sum(1)  # promised decrease
            small = (gain >= 0) & (gain <= 1e-12 * np.maximum(local.f[todo], 1e-24))
            ft = self._objective(trial, rows[todo])
            better = (ft < local.f[todo]) & (gain > 0)
            ids = todo[better]
            self.eta[rows[ids]] = trial[better]
            self.damping[rows[ids]] = np.maximum(self.damping[rows[ids]] * 0.2, 1e-10)
            self.f[rows[ids]] = ft[better]
            here[todo[small]] = True
            todo = todo[~better & ~small]
            if len(todo) == 0:
                break
            self.damping[rows[todo]] = np.minimum(self.damping[rows[todo]] * 4.0, 1e8)
        here[todo] = True  # no decrease along a descent direction: rounding, or a wall
        return here

    def _best_step(
        self, rows: np.ndarray, todo: np.ndarray, local: _Local, s2: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        """The damped step (k, q) of the rows `todo` from `at`, inside the bounds."""
        damping, g, scale = self.damping[rows[todo], None, None], local.g[todo], local.scale[todo]
        M = (local.H[todo] + damping * local.G[todo]) * s2[todo]
        M += (1e-12 * (1 + damping) + local.edge[todo, :, None]) * self.eye
        z = np.linalg.solve(M, (-g * scale)[:, :, None])[:, :, 0]
        step = scale * z
        least, most = self.bounds.reach(at)
        hit = (step < least) | (step > most)
        if not hit.any():
            return step
        # the others' best step given that these stop at their bound
        z = np.where(hit, np.clip(step, least, most) / np.maximum(scale, 1e-300), 0.0)
        rest = -g * scale - (M @ z[:, :, None])[:, :, 0]
        M = np.where(hit[:, :, None] | hit[:, None, :], self.eye, M)
        z += np.linalg.solve(M, np.where(hit, 0.0, rest)[:, :, None])[:, :, 0]
        return np.clip(scale * z, least, most)

    def _objective(self, eta: np.ndarray, rows: np.ndarray) -> np.ndarray:
        m, _ = self.predictor.log_predict(self._theta(eta, rows), self.inputs, derivatives=False)
        f = huber_sum(self.y - m, self._weights(rows), self.delta)
        if self.penalty is not None:
            f += self.penalty.at(self._theta(eta, rows))
        return f
