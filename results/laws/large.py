"""Large tables in bounded memory: a sample finds the minimum, all rows polish it, sums over rows resample it.

The law's starts are solved on a sample of the rows. From its optimum damped Gauss-Newton goes on over all rows, whose
gradient and curvature are summed block by block. A resample is one Newton step from the sums of score and J'J over
up to `GROUPS` groups of runs, drawn with replacement (the one-step bootstrap; Davison and Hinkley 1997, section 7.2):
with this many rows the step is as good as a refit. Profiles and sensitivity are of the sample, the profile's
threshold that of all rows and its interval moved to their optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .base import Inputs, Law
from .descent import bounds_of
from .identify import Profile, spread
from .objective import huber_sum
from .resample import Progress
from .solver import Problem
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


class _Block(NamedTuple):
    """Some rows of a large table: residuals (m,) and slopes (m, p)."""

    rows: slice
    residuals: np.ndarray
    slopes: np.ndarray


def _parts(problem: Problem) -> Iterator[tuple[slice, Inputs]]:
    inputs = problem.inputs
    for i in range(0, inputs.n, BLOCK):
        at = slice(i, min(i + BLOCK, inputs.n))
        yield at, Inputs(at.stop - i, {k: v[at] for k, v in inputs.x.items()}, inputs.centre)


def _blocks(problem: Problem, theta: np.ndarray) -> Iterator[_Block]:
    predictor, y = problem.predictor, problem.response
    for at, part in _parts(problem):
        m, J = predictor.log_predict(theta[None], part)
        yield _Block(at, y[at] - m[0], J[0].T)


def _residuals(problem: Problem, theta: np.ndarray) -> Iterator[np.ndarray]:
    """The residuals (m,) of block after block."""
    predictor, y = problem.predictor, problem.response
    for at, part in _parts(problem):
        yield y[at] - predictor.log_predict(theta[None], part, derivatives=False)[0][0]


class _Sums(NamedTuple):
    """Over all rows: the objective, its gradient (q,), curvature of the majoriser and its own (q, q), sum |psi J|."""

    f: float
    g: np.ndarray
    G: np.ndarray
    H: np.ndarray
    gauge: np.ndarray


@dataclass
class _Polish:
    """Damped Gauss-Newton over all rows, one problem; eta (q,) are the coordinates of theta that move."""

    problem: Problem
    start: np.ndarray

    def __post_init__(self) -> None:
        problem, con = self.problem, self.problem.constraint
        self.free = np.arange(len(self.start)) if con is None else con.free
        self.basis = np.eye(len(self.start)) if con is None else con.basis
        self.bounds = bounds_of(problem.law, problem.inputs.centre, self.free)
        self.eta = np.clip(self.start[self.free], self.bounds.low, self.bounds.high)
        self.delta, self.damping = problem.objective.bound, 1e-4

    def theta(self, eta: np.ndarray) -> np.ndarray:
        con = self.problem.constraint
        return eta if con is None else con.offset + con.basis @ eta

    def sums(self) -> _Sums:
        delta, q = self.delta, len(self.eta)
        f, g, gauge = 0.0, np.zeros(q), np.zeros(q)
        G, H = np.zeros((q, q)), np.zeros((q, q))
        for _, r, slopes in _blocks(self.problem, self.theta(self.eta)):
            J, a, psi = slopes @ self.basis, np.abs(r), np.clip(r, -delta, delta)
            f += float(huber_sum(r[None], 1.0, delta)[0])
            g = g - psi @ J
            G = G + (J * np.minimum(1.0, delta / np.maximum(a, 1e-300))[:, None]).T @ J
            H = H + (J * (a < delta)[:, None]).T @ J
            gauge = gauge + np.abs(psi) @ np.abs(J)
        return _Sums(f, g, G, H, gauge)

    def step(self, s: _Sums, edge: np.ndarray) -> bool:
        """Move to a lower point; False where none is found, or none worth a step."""
        scale = np.where(edge, 0.0, 1.0 / np.sqrt(np.maximum(np.diag(s.G), 1e-300)))
        for _ in range(12):
            M = (s.H + self.damping * s.G) * scale[:, None] * scale + np.diag(1e-12 + edge)
            least, most = (end[0] for end in self.bounds.reach(self.eta[None]))
            step = np.clip(scale * np.linalg.solve(M, -s.g * scale), least, most)
            if -float(step @ s.g) <= 1e-12 * max(s.f, 1e-24):
                return False
            trial = self.bounds.moved(self.eta, step)
            if (
                sum(float(huber_sum(r[None], 1.0, self.delta)[0]) for r in _residuals(self.problem, self.theta(trial)))
                < s.f
            ):
                self.eta, self.damping = trial, max(self.damping * 0.2, 1e-10)
                return True
            self.damping *= 8.0
        return False


def polish(
    problem: Problem, theta: np.ndarray, tick: Callable[[int], None] | None = None, steps: int = 60
) -> tuple[np.ndarray, float, float]:
    """The minimum (p,) over all rows from a point near it, the objective there, the gradient left (`Solution`)."""
    at = _Polish(problem, theta)
    gradient, f = np.inf, np.inf
    for k in range(steps):
        if tick:
            tick(k)
        s = at.sums()
        f, edge = s.f, at.bounds.pushed(at.eta, s.g)
        gradient = float(np.where(edge, 0.0, np.abs(s.g) / np.maximum(s.gauge, 1e-300)).max())
        if not at.step(s, edge):
            break
    theta = at.theta(at.eta)
    return theta, _value(problem, theta, f), gradient


def _value(problem: Problem, theta: np.ndarray, f: float) -> float:
    if problem.objective.kind != "l1":
        return f
    return sum(float(np.abs(r).sum()) for r in _residuals(problem, theta))


def resample(
    problem: Problem, theta: np.ndarray, cluster: np.ndarray, draws: int, seed: int, progress: Progress | None = None
) -> np.ndarray:
    """theta of the resamples (draws, p): one Newton step each from the sums of groups of runs."""
    rng = np.random.default_rng(seed)
    runs, con, delta = int(cluster.max()) + 1, problem.constraint, problem.objective.bound
    group = rng.permutation(runs) % GROUPS if runs > GROUPS else np.arange(runs)
    basis = np.eye(len(theta)) if con is None else con.basis
    k, q = int(group.max()) + 1, basis.shape[1]
    score, square = np.zeros((k, q)), np.zeros((k, q * q))
    residuals = np.empty(problem.inputs.n)
    for at, r, slopes in _blocks(problem, theta):
        J, g = slopes @ basis, group[cluster[at]]
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


def moved(
    law: Law, curves: tuple[Profile, ...], here: dict[str, float], there: dict[str, float]
) -> tuple[Profile, ...]:
    """Profiles of a sample's fit (natural values `here`) around the fit of all rows (`there`)."""
    log = {p.name: p.log for p in law.parameters}

    def shift(name: str, v: float) -> float:
        return v * (there[name] / here[name]) if log[name] else v + there[name] - here[name]

    return tuple(
        replace(
            p,
            low=None if p.low is None else shift(p.name, p.low),
            high=None if p.high is None else shift(p.name, p.high),
            values=tuple(shift(p.name, v) for v in p.values),
        )
        for p in curves
    )
