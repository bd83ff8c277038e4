"""Large tables in bounded memory: a sample finds the minimum, all rows polish it, sums over rows resample it.

The law's starts are solved on a sample of the rows. From its optimum damped Gauss-Newton goes on over all rows, whose
gradient and curvature are summed block by block. A resample is one Newton step from the sums of score and J'J over
up to `GROUPS` groups of runs, drawn with replacement (the one-step bootstrap; Davison and Hinkley 1997, section 7.2):
with this many rows the step is as good as a refit. Profiles and sensitivity are of the sample, the profile's
threshold that of all rows and its interval moved to their optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from .base import Inputs, Law
from .identify import Profile, spread
from .resample import Progress
from .search import Problem
from .solver import InUnits, _moved, _reach, _rho
from .table import Rows

LARGE = 30_000  # rows; a table of more is sampled down to this
BLOCK = 50_000  # rows whose derivatives are held at a time
GROUPS = 4_000


def is_large(rows: Rows) -> bool:
    return len(rows.y) > 1.5 * LARGE


def sample_of(n: int, cluster: np.ndarray, seed: int) -> np.ndarray:
    """Mask (n,) of about `LARGE` rows: whole runs at random, or rows where there are fewer runs than a thousand."""
    rng = np.random.default_rng([seed, 17])
    k = int(cluster.max()) + 1
    if k < 1000:
        return rng.permutation(n) < LARGE
    return rng.permutation(k)[cluster] < max(1, round(k * LARGE / n))


def _blocks(
    problem: Problem, theta: np.ndarray, derivatives: bool = True
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(rows, residuals (m,), J (m, p) or None) of block after block."""
    law, log_y = problem.law, problem.log_y
    if problem.objective.kind == "raw_squares":
        law, log_y = InUnits(law), np.exp(log_y)
    inputs = problem.inputs
    for i in range(0, inputs.n, BLOCK):
        at = slice(i, min(i + BLOCK, inputs.n))
        part = Inputs(at.stop - i, {k: v[at] for k, v in inputs.x.items()}, inputs.centre)
        m, J = law.log_predict(theta[None], part, derivatives)
        yield at, log_y[at] - m[0], J[0].T if derivatives else None


def _delta(problem: Problem) -> float:
    kind = problem.objective.kind
    return np.inf if kind.endswith("squares") else 1e-6 if kind == "l1" else problem.objective.delta


def polish(
    problem: Problem, theta: np.ndarray, tick: Callable[[int], None] | None = None, steps: int = 60
) -> tuple[np.ndarray, float, float]:
    """The minimum (p,) over all rows from a point near it, the objective there, the gradient left (`Solution`)."""
    law, con, delta = problem.law, problem.constraint, _delta(problem)
    low, high = law.box(problem.inputs.centre)
    value = law.vanishing & np.isfinite(low)
    basis, free = (np.eye(len(theta)), np.arange(len(theta))) if con is None else (con.basis, con.free)
    expand = (lambda e: e) if con is None else (lambda e: con.offset + con.basis @ e)
    low, high, value, eta = low[free], high[free], value[free], np.clip(theta[free], low[free], high[free])
    damping, gradient, f = 1e-4, np.inf, np.inf
    for k in range(steps):
        if tick:
            tick(k)
        f, g, G, H, gauge = 0.0, 0.0, 0.0, 0.0, 0.0
        for _, r, J in _blocks(problem, expand(eta)):
            J, a, psi = J @ basis, np.abs(r), np.clip(r, -delta, delta)
            f += float(_rho(r[None], 1.0, delta)[0])
            g = g - psi @ J
            G = G + (J * np.minimum(1.0, delta / np.maximum(a, 1e-300))[:, None]).T @ J
            H = H + (J * (a < delta)[:, None]).T @ J
            gauge = gauge + np.abs(psi) @ np.abs(J)
        edge = ((eta <= low) & (g > 0)) | ((eta >= high) & (g < 0))
        gradient = float(np.where(edge, 0.0, np.abs(g) / np.maximum(gauge, 1e-300)).max())
        scale = np.where(edge, 0.0, 1.0 / np.sqrt(np.maximum(np.diag(G), 1e-300)))
        for _ in range(12):
            M = (H + damping * G) * scale[:, None] * scale + np.diag(1e-12 + edge)
            step = np.clip(scale * np.linalg.solve(M, -g * scale), *(b[0] for b in _reach(eta[None], low, high, value)))
            gain = -float(step @ g)
            trial = _moved(eta, step, low, high, value)
            if gain <= 1e-12 * max(f, 1e-24):
                return expand(eta), _value(problem, expand(eta), f), gradient
            if sum(float(_rho(r[None], 1.0, delta)[0]) for _, r, _ in _blocks(problem, expand(trial), False)) < f:
                eta, damping = trial, max(damping * 0.2, 1e-10)
                break
            damping *= 8.0
        else:
            break
    return expand(eta), _value(problem, expand(eta), f), gradient


def _value(problem: Problem, theta: np.ndarray, f: float) -> float:
    if problem.objective.kind != "l1":
        return f
    return sum(float(np.abs(r).sum()) for _, r, _ in _blocks(problem, theta, False))


def resample(
    problem: Problem, theta: np.ndarray, cluster: np.ndarray, draws: int, seed: int, progress: Progress | None = None
) -> np.ndarray:
    """theta of the resamples (draws, p): one Newton step each from the sums of groups of runs."""
    rng = np.random.default_rng(seed)
    runs, con, delta = int(cluster.max()) + 1, problem.constraint, _delta(problem)
    group = rng.permutation(runs) % GROUPS if runs > GROUPS else np.arange(runs)
    basis = np.eye(len(theta)) if con is None else con.basis
    k, q = int(group.max()) + 1, basis.shape[1]
    score, square = np.zeros((k, q)), np.zeros((k, q * q))
    residuals = np.empty(problem.inputs.n)
    for at, r, J in _blocks(problem, theta):
        J, g = J @ basis, group[cluster[at]]
        residuals[at] = r
        for j in range(q):
            score[:, j] += np.bincount(g, np.clip(r, -delta, delta) * J[:, j], k)
            for i in range(j, q):
                s = np.bincount(g, J[:, j] * J[:, i], k)
                square[:, j * q + i] += s
                square[:, i * q + j] += s if i > j else 0.0
    slope = spread(residuals, problem.objective, q)[1] * (1e-6 if problem.objective.kind == "l1" else 1.0)
    low, high = problem.law.box(problem.inputs.centre)
    out = np.empty((draws, len(theta)))
    for b in range(0, draws, 250):
        size = min(250, draws - b)
        if progress:
            progress("bootstrap", b / draws)
        w = rng.multinomial(k, np.full(k, 1.0 / k), size=size).astype(float)
        curve = (w @ square).reshape(size, q, q) * slope
        norm = np.sqrt(np.maximum(np.einsum("bqq->bq", curve), 1e-300))
        curve = curve / norm[:, :, None] / norm[:, None] + 1e-12 * np.eye(q)
        step = np.linalg.solve(curve, (w @ score / norm)[:, :, None])[:, :, 0] / norm
        out[b : b + size] = np.clip(theta + step @ basis.T, low, high)
    return out


def moved(law: Law, found: tuple[Profile, ...], here: dict[str, float], there: dict[str, float]) -> tuple[Profile, ...]:
    """Profiles of a sample's fit (natural values `here`) around the fit of all rows (`there`)."""
    log = {p.name: p.log for p in law.parameters}

    def shift(name, v):
        if v is None:
            return None
        return v * (there[name] / here[name]) if log[name] else v + there[name] - here[name]

    return tuple(
        replace(
            p, low=shift(p.name, p.low), high=shift(p.name, p.high), values=tuple(shift(p.name, v) for v in p.values)
        )
        for p in found
    )
