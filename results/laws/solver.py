"""One minimiser for every law: batched damped Gauss-Newton on Huber, L1 or squared log residuals.

    minimise  sum_i w_i rho(log y_i - m(theta, x_i))          for B problems at once

B runs over starts and over bootstrap resamples (as weights). The Huber curvature counts only the
rows inside delta, which may be none; the damping is therefore in the metric of the reweighted
normal equations J' W J, W = min(1, delta/|r|), the majoriser of the objective (Huber 1981),
so a heavily damped step is a small descent step and a lightly damped one is Newton's. Both are
invariant under a linear change of parameters; centring the logs only saves digits.
Bounds: a coordinate at a bound that the gradient pushes outwards is left out of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .base import Inputs, Law


@dataclass(frozen=True)
class Objective:
    """On log residuals r: `huber` (sum of r^2/2 inside delta, delta(|r| - delta/2) outside), `l1` (sum |r|),
    `squares` (sum r^2 / 2). `raw_squares` is the last on y itself, as papers that use curve_fit have it."""

    kind: str = "huber"
    delta: float = 1e-3

    def __post_init__(self):
        if self.kind not in ("huber", "l1", "squares", "raw_squares"):
            raise ValueError(f"unknown objective {self.kind!r}: there is huber, l1, squares, raw_squares")
        if not self.delta > 0:
            raise ValueError(f"delta must be positive, got {self.delta:g}")

    def of(self, log_y: np.ndarray, log_predicted: np.ndarray) -> float:
        """The objective at a prediction, both (n,) in logs."""
        r = np.exp(log_y) - np.exp(log_predicted) if self.kind == "raw_squares" else log_y - log_predicted
        if self.kind == "l1":
            return float(np.abs(r).sum())
        return float(_rho(r[None], 1.0, self.delta if self.kind == "huber" else np.inf)[0])

    def stages(self) -> tuple[tuple[float, float], ...]:
        """(delta, scale) to solve in turn: L1 is the limit of Huber / delta, reached from above."""
        if self.kind.endswith("squares"):
            return ((np.inf, 1.0),)
        if self.kind == "huber":
            return ((self.delta, 1.0),)
        return tuple((d, 1.0 / d) for d in (1e-3, 1e-4, 1e-5, 1e-6))


class InUnits:
    """A law seen in the units of the response: what `raw_squares` minimises in."""

    def __init__(self, law: Law):
        self.law, self.box, self.vanishing = law, law.box, law.vanishing

    def log_predict(self, theta, inputs, derivatives=True):
        m, J = self.law.log_predict(theta, inputs, derivatives)
        y = np.exp(m)
        return y, None if J is None else J * y[:, None]


ROUNDING = 1e-12  # residuals of a table that follows the law exactly are rounding errors, and so is their gradient
LOGS = Objective()  # the default: Huber, delta 1e-3, on log residuals


@dataclass(frozen=True)
class Constraint:
    """theta = offset + basis eta: parameters held fixed, or tied to one another.

    basis (p, q); offset (p,) or (B, p); `free` indexes the q coordinates of theta that eta copies.
    """

    basis: np.ndarray
    offset: np.ndarray
    free: np.ndarray


@dataclass(frozen=True)
class Penalty:
    """weight/2 |R theta - target|^2 beside the objective: a weak prior. R (k, p), target (k,), whitened."""

    R: np.ndarray
    target: np.ndarray
    weight: float

    def at(self, theta: np.ndarray) -> np.ndarray:
        """Its value (B,) at theta (B, p)."""
        return 0.5 * self.weight * ((theta @ self.R.T - self.target) ** 2).sum(1)


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


def constrain(law: Law, centre: dict, fix: dict[str, float | str], at: dict[str, float] | None = None) -> Constraint:
    """Hold parameters at natural values, or tie one to another by name; `at`: hold at fitted coordinates phi, whose
    natural value may be beyond a float's range. Raises ValueError on unknown names."""
    from .base import unknown

    names, (T, shift) = law.names, law.coordinates(centre)
    for name in list(fix) + [v for v in fix.values() if isinstance(v, str)]:
        if name not in names:
            raise ValueError(unknown(f"parameter of {law.name}", name, names))
        if name in law.bent:
            raise ValueError(f"parameter {name!r} of {law.name} cannot be held: it mixes fitted coordinates")
    rows, values, pivots = [], [], []
    for name, value in (fix | (at or {})).items():
        j = names.index(name)
        row, target = T[j].copy(), -shift[j]
        if name in (at or {}):
            target += value
        elif isinstance(value, str):
            k = names.index(value)
            row, target = row - T[k], target + shift[k]
        else:
            target += law.parameters[j].unlink(value)
        rows.append(row), values.append(target), pivots.append(j)
    R = np.array(rows)
    free = np.array([j for j in range(len(names)) if j not in pivots], int)
    basis, offset = np.zeros((len(names), len(free))), np.zeros(len(names))
    basis[free, np.arange(len(free))] = 1.0
    basis[pivots] = -np.linalg.solve(R[:, pivots], R[:, free])
    offset[pivots] = np.linalg.solve(R[:, pivots], np.array(values))
    return Constraint(basis, offset, free)


def penalise(law: Law, centre: dict, terms: dict[str, tuple[float, float]], weight: float) -> Penalty | None:
    """The penalty of a prior: terms name -> (natural centre, scale of its fitted coordinate)."""
    if weight == 0 or not terms:
        return None
    T, shift = law.coordinates(centre)
    at = [law.names.index(n) for n in terms]
    middle = np.array([law.parameters[j].unlink(c) for j, (c, _) in zip(at, terms.values(), strict=True)])
    scale = np.array([s for _, s in terms.values()])
    return Penalty(T[at] / scale[:, None], (middle - shift[at]) / scale, weight)


def _rho(r, w, delta):
    a = np.abs(r)
    q = np.minimum(a, delta)
    return (w * (q * (a - 0.5 * q))).sum(1)


def minimise(
    law: Law,
    inputs: Inputs,
    log_y: np.ndarray,
    start: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    objective: Objective = LOGS,
    constraint: Constraint | None = None,
    penalty: Penalty | None = None,
    iterations: int = 200,
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """Minimise from every row of `start` (B, p) under `weights` (B, n) or (n,). log_y is (n,).

    The penalty is part of the objective returned. progress, if given, is called with the number of problems
    finished so far.
    """
    B = len(start)
    if objective.kind == "raw_squares":
        law, log_y = InUnits(law), np.exp(log_y)
    w = np.ones((1, inputs.n)) if weights is None else np.atleast_2d(np.asarray(weights, float))
    chunk = max(8, 24_000 // max(inputs.n, 1))  # keeps the working arrays in the cache
    parts = []
    for i in range(0, B, chunk):
        wi = w if len(w) == 1 else w[i : i + chunk]
        con = constraint
        if con is not None and con.offset.ndim == 2:
            con = Constraint(con.basis, con.offset[i : i + chunk], con.free)
        theta = start[i : i + chunk]
        for delta, scale in objective.stages():
            pen = penalty and replace(penalty, weight=penalty.weight / scale)
            theta, f, g, ok = _minimise(law, inputs, log_y, theta, wi, delta, con, pen, iterations)
            f = f * scale
        if objective.kind == "l1":  # the sum itself, not its smoothed limit
            f = (wi * np.abs(log_y - law.log_predict(theta, inputs, derivatives=False)[0])).sum(1)
            f = f if penalty is None else f + penalty.at(theta)
        parts.append((theta, f, g, ok))
        if progress:
            progress(min(i + chunk, B))
    return Solution(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def _reach(eta, low, high, value):
    """The least and the largest step (B, q) that the bounds allow; `value` (q,) marks steps taken in the value."""
    ends = [edge - eta for edge in (low, high)]
    with np.errstate(over="ignore"):
        for end in ends:
            end[:, value] = np.expm1(end[:, value])
    return ends


def _moved(eta, step, low, high, value):
    """eta (B, q) after a step, inside the bounds.

    A term that may vanish is stepped in its value exp(eta), eta + log(1 + step): the law is linear in it. A step in
    its log has no end on the way to 0, and the damping that tames it stops all other parameters too.
    """
    trial = eta + step
    with np.errstate(all="ignore"):
        trial[..., value] = eta[..., value] + np.log1p(step[..., value])
    return np.clip(trial, low, high)


def _minimise(law, inputs, log_y, start, w, delta, con, pen, iterations):
    low, high = law.box(inputs.centre)
    value = law.vanishing & np.isfinite(low)
    if con is None:
        expand, eta = (lambda e, rows: e), np.clip(start, low, high)
    else:
        low, high, value = low[con.free], high[con.free], value[con.free]
        offset = np.broadcast_to(con.offset, start.shape)
        expand, eta = (lambda e, rows: offset[rows] + e @ con.basis.T), np.clip(start[:, con.free], low, high)
    B, q = eta.shape
    if pen is not None:
        slope = pen.R if con is None else pen.R @ con.basis
        curve = pen.weight * slope.T @ slope
    rows = np.arange(B)
    take = (lambda a, rows: a) if len(w) == 1 else (lambda a, rows: a[rows])
    f_all, g_all = np.full(B, np.inf), np.full(B, np.inf)
    damping, converged, eye = np.full(B, 1e-2), np.zeros(B, bool), np.eye(q)
    with np.errstate(all="ignore"):
        m, J = law.log_predict(expand(eta, rows), inputs)
        fine = np.isfinite(m).all(1) & np.isfinite(J).all((1, 2))  # a start outside the law's domain stays at inf
        rows, m, J = rows[fine], m[fine], J[fine]
        for _ in range(iterations):
            if len(rows) == 0:
                break
            wr, r = take(w, rows), log_y - m
            a = np.abs(r)
            psi = wr * np.clip(r, -delta, delta)
            f = _rho(r, wr, delta)
            if con is not None:
                J = np.einsum("jk,bji->bki", con.basis, J)
            g = -(J @ psi[:, :, None])[:, :, 0]
            G = (J * (wr * np.minimum(1.0, delta / np.maximum(a, 1e-300)))[:, None]) @ J.transpose(0, 2, 1)
            H = G if np.isinf(delta) else (J * (wr * (a < delta))[:, None]) @ J.transpose(0, 2, 1)
            gauge = (np.abs(J) * (wr * (np.minimum(a, delta) + ROUNDING))[:, None]).sum(2)
            if pen is not None:
                theta = expand(eta[rows], rows)
                push = pen.weight * (theta @ pen.R.T - pen.target)
                f, g, G, H = f + pen.at(theta), g + push @ slope, G + curve, H + curve
                gauge += np.abs(push) @ np.abs(slope)
            edge = ((eta[rows] <= low) & (g > 0)) | ((eta[rows] >= high) & (g < 0))
            g_all[rows] = np.where(edge, 0.0, np.abs(g) / np.maximum(gauge, 1e-300)).max(1)
            f_all[rows] = f
            scale = 1.0 / np.sqrt(np.maximum(np.einsum("bkk->bk", G), 1e-300))
            scale = np.where(edge, 0.0, scale)
            s2 = scale[:, :, None] * scale[:, None]
            # try the step; a failed one is tried again with more damping on the same derivatives
            todo, here = np.arange(len(rows)), np.zeros(len(rows), bool)
            for _ in range(20):
                M = (H[todo] + damping[rows[todo], None, None] * G[todo]) * s2[todo]
                M += (1e-12 * (1 + damping[rows[todo], None, None]) + edge[todo, :, None]) * eye
                z = np.linalg.solve(M, (-g[todo] * scale[todo])[:, :, None])[:, :, 0]
                at, step = eta[rows[todo]], scale[todo] * z
                least, most = _reach(at, low, high, value)
                hit = (step < least) | (step > most)
                if hit.any():  # the others' best step given that these stop at their bound
                    z = np.where(hit, np.clip(step, least, most) / np.maximum(scale[todo], 1e-300), 0.0)
                    rest = -g[todo] * scale[todo] - (M @ z[:, :, None])[:, :, 0]
                    M = np.where(hit[:, :, None] | hit[:, None, :], eye, M)
                    z += np.linalg.solve(M, np.where(hit, 0.0, rest)[:, :, None])[:, :, 0]
                    step = np.clip(scale[todo] * z, least, most)
                trial = _moved(at, step, low, high, value)
                gain = -(step * g[todo]).sum(1)  # promised decrease
                small = (gain >= 0) & (gain <= 1e-12 * np.maximum(f[todo], 1e-24))
                mt, _ = law.log_predict(expand(trial, rows[todo]), inputs, derivatives=False)
                ft = _rho(log_y - mt, take(w, rows)[todo] if len(w) > 1 else w, delta)
                if pen is not None:
                    ft += pen.at(expand(trial, rows[todo]))
                better = (ft < f[todo]) & (gain > 0)
                ids = todo[better]
                eta[rows[ids]] = trial[better]
                damping[rows[ids]] = np.maximum(damping[rows[ids]] * 0.2, 1e-10)
                f_all[rows[ids]] = ft[better]
                here[todo[small]] = True
                todo = todo[~better & ~small]
                if len(todo) == 0:
                    break
                damping[rows[todo]] = np.minimum(damping[rows[todo]] * 4.0, 1e8)
            here[todo] = True  # no decrease along a descent direction: rounding, or a wall
            converged[rows[here]] = g_all[rows[here]] < 1e-4
            rows = rows[~here]
            m, J = law.log_predict(expand(eta[rows], rows), inputs)
    return expand(eta, np.arange(B)), f_all, g_all, converged
