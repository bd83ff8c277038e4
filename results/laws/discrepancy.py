"""A law and its discrepancy:  log y = m(theta, x) + g(x) + noise, g a Gaussian process of the logs of the columns.

Residuals of a scaling law are no white noise: neighbours in (N, D) miss it on the same side, and the next budget will
miss it as the last one did. g takes that up (Kennedy and O'Hagan 2001; universal kriging, Cressie 1993): a forecast
leaves from where the largest runs are, its sd grows with the distance from them, and far away the law is what remains.
Noise and g may be larger in small runs, exp(growth/2 * log(extent_max/extent)). Kernel (Matern 3/2 or 5/2), length,
size of g and growth are those of the largest restricted likelihood (REML) on the rows that are fitted, from a grid;
theta is then fitted again under that covariance. No held-out row is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from .base import Law
from .fit import Fit
from .table import Rows

KINDS = (1.5, 2.5)  # of the Matern kernel
LENGTHS = (1.0, 2.5, 6.0, 15.0)  # in log units of a column
SIZES = (0.0, 0.5, 1.5, 5.0, 15.0, 50.0)  # sd of g over that of the noise
GROWTHS = (0.0, 0.15, 0.3, 0.5, 0.8)
MOST = 400  # rows in the covariance: the half with the largest extent, and others drawn evenly
STEPS = 12
RIDGE = 1e-8


@dataclass(frozen=True)
class Covariance:
    """The covariance chosen by REML: kernel, length in logs, sd of g over the noise's, growth towards small runs."""

    kind: float
    length: float
    size: float
    growth: float

    def widening(self, log_extent: np.ndarray, largest: float) -> np.ndarray:
        """Factor (m,) on both sds at these extents; 1 from the largest fitted one on."""
        return np.exp(0.5 * self.growth * np.maximum(largest - log_extent, 0.0))

    def of_g(self, a: np.ndarray, b: np.ndarray, wide_a: np.ndarray, wide_b: np.ndarray) -> np.ndarray:
        """Covariance (n, m) of g between points a (n, roles) and b (m, roles), in units of the noise's variance."""
        return self.size**2 * _matern(a, b, self.length, self.kind) * wide_a[:, None] * wide_b


@dataclass(frozen=True)
class Corrected:
    """A fitted law with its discrepancy. theta (p,) under the covariance; the rest is what `predict` needs."""

    fit: Fit
    theta: np.ndarray
    covariance: Covariance
    noise: float  # sd of a run about law and g, in logs, at the largest extent
    points: np.ndarray
    widening: np.ndarray
    largest: float
    lower: np.ndarray  # Cholesky factor (n, n) of the covariance over noise^2
    white_J: np.ndarray
    white_r: np.ndarray
    spread: np.ndarray  # covariance of theta over noise^2

    def predict(self, columns) -> tuple[np.ndarray, np.ndarray]:
        """log point (m,) and sd (m,) of a new run: theta, g and the run's own noise."""
        law = self.fit.law
        m, J = law.log_predict(self.theta[None], law.prepare(columns, self.fit.inputs.centre))
        wide = self.covariance.widening(np.log(law.extent(columns)), self.largest)
        between = self.covariance.of_g(self.points, _points(law, columns), self.widening, wide)
        white = solve_triangular(self.lower, between, lower=True, check_finite=False)
        slope = J[0] - self.white_J.T @ white
        own = (self.covariance.size**2 + 1) * wide**2 - (white**2).sum(0)
        variance = np.maximum(own, 0.0) + np.einsum("im,ij,jm->m", slope, self.spread, slope)
        return m[0] + white.T @ self.white_r, self.noise * np.sqrt(variance)


@dataclass(frozen=True)
class Spectra:
    """Shared by laws of the same columns: the rows of the covariance, and every kernel's eigenvalues and vectors."""

    rows: Rows
    points: np.ndarray
    log_extent: np.ndarray
    kernels: tuple[tuple[float, float, np.ndarray, np.ndarray], ...]  # kind, length, (n,), (n, n)


def spectra(law: Law, rows: Rows, seed: int = 0) -> Spectra:
    """The shared parts of the rows that `law` is fitted to (at most `MOST` of them)."""
    rows = rows.take(thinned(np.log(law.extent(rows.columns)), MOST, seed))
    points, kernels = _points(law, rows.columns), []
    for kind in KINDS:
        for length in LENGTHS:
            kernels.append((kind, length, *np.linalg.eigh(_matern(points, points, length, kind))))
    return Spectra(rows, points, np.log(law.extent(rows.columns)), tuple(kernels))


def corrected(f: Fit, shared: Spectra) -> Corrected:
    """The discrepancy of a fit. Raises ValueError where there are no more rows than parameters."""
    law, rows, points, log_extent = f.law, shared.rows, shared.points, shared.log_extent
    n, p = len(rows.y), _basis(f).shape[1]
    if n <= p:
        raise ValueError(f"{n} rows cannot tell what {law.name!r} with {p} parameters leaves over")
    inputs, log_y = law.prepare(rows.columns, f.inputs.centre), np.log(rows.y)
    m, J = law.log_predict(f.theta[None], inputs)
    chosen = _reml(shared.kernels, log_extent.max() - log_extent, J[0].T @ _basis(f), log_y - m[0])
    wide = chosen.widening(log_extent, log_extent.max())
    lower = cholesky(chosen.of_g(points, points, wide, wide) + np.diag(wide**2), lower=True)

    def white(v):
        return solve_triangular(lower, v, lower=True, check_finite=False)

    theta = _refit(f, inputs, log_y, white)
    m, J = law.log_predict(theta[None], inputs)
    J, r = white(J[0].T), white(log_y - m[0])
    noise = float(np.sqrt(r @ r / (n - p)))
    spread = _spread(J, _basis(f))
    return Corrected(f, theta, chosen, noise, points, wide, float(log_extent.max()), lower, J, r, spread)


def thinned(log_extent: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Which of the rows (n,) to keep: the half of `most` with the largest extent, the others drawn evenly."""
    keep = np.ones(len(log_extent), bool)
    if len(keep) > most:
        order = np.argsort(-log_extent, kind="stable")
        rest = order[most // 2 :]
        keep[np.random.default_rng(seed).choice(rest, len(rest) - (most - most // 2), replace=False)] = False
    return keep


def _points(law, columns) -> np.ndarray:
    """Coordinates (n, roles) of g: logs, or the value itself of a column that may be 0."""
    values = [np.asarray(columns[r], float) for r in law.roles]
    return np.stack([v if r in law.zero_ok else np.log(v) for r, v in zip(law.roles, values, strict=True)], 1)


def _matern(a, b, length, kind):
    d = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)) * (np.sqrt(2 * kind) / length)
    return (1 + d) * np.exp(-d) if kind == 1.5 else (1 + d + d * d / 3) * np.exp(-d)


def _reml(kernels, age, J, r) -> Covariance:
    """The covariance of the largest restricted likelihood of residuals r (n,) with the law's slopes J (n, p) taken out.

    One eigendecomposition for each kernel and length serves all sizes and growths.
    """
    (n, p), best, chosen = J.shape, -np.inf, None
    for kind, length, values, vectors in kernels:
        for growth in GROWTHS:
            wide = np.exp(0.5 * growth * age)
            turned = vectors.T @ (np.column_stack([J, r]) / wide[:, None])
            for size in SIZES:
                w = 1 + size**2 * np.maximum(values, 0.0)
                white = turned / np.sqrt(w)[:, None]
                scale = np.sqrt((white[:, :p] ** 2).sum(0)) + 1e-300
                X = white[:, :p] / scale
                gram = X.T @ X + RIDGE * np.eye(p)
                e = white[:, p] - X @ np.linalg.solve(gram, X.T @ white[:, p])
                likelihood = (
                    -0.5 * (n - p) * np.log(max(e @ e / (n - p), 1e-300))
                    - 0.5 * (np.log(w).sum() + np.linalg.slogdet(gram)[1])
                    - np.log(wide).sum()
                    - np.log(scale).sum()
                )
                if likelihood > best:
                    best, chosen = likelihood, Covariance(kind, length, size, growth)
    if chosen is None:
        raise ValueError("the law's residuals are not finite: it cannot be forecast with")
    return chosen


def _basis(f: Fit) -> np.ndarray:
    """Directions (p, q) in which theta may move: all, or those that held parameters leave."""
    return np.eye(len(f.theta)) if f.constraint is None else f.constraint.basis


def _spread(J, basis) -> np.ndarray:
    """Covariance (p, p) of theta over noise^2 from whitened slopes J (n, p)."""
    X = J @ basis
    scale = np.sqrt((X**2).sum(0))
    seen = scale > 1e-12 * scale.max()  # a direction that changes no prediction has no spread that shows
    X, basis = X[:, seen] / scale[seen], basis[:, seen] / scale[seen]
    return basis @ np.linalg.inv(X.T @ X + 1e-6 * np.eye(X.shape[1])) @ basis.T


def _refit(f: Fit, inputs, log_y, white) -> np.ndarray:
    """theta (p,) by damped Gauss-Newton on the whitened residuals, from the fit's own and inside the law's box."""
    law, theta, damping, basis = f.law, f.theta, 1e-3, _basis(f)
    low, high = law.box(f.inputs.centre)

    def value(t):
        with np.errstate(all="ignore"):
            r = log_y - law.log_predict(t[None], inputs, derivatives=False)[0][0]
            return float((white(np.nan_to_num(r, nan=1e150)) ** 2).sum())

    now = value(theta)
    for _ in range(STEPS):
        m, J = law.log_predict(theta[None], inputs)
        J, r = white(J[0].T @ basis), white(log_y - m[0])
        scale = np.sqrt((J**2).sum(0)) + 1e-300
        step = np.linalg.solve((J / scale).T @ (J / scale) + damping * np.eye(len(scale)), (J / scale).T @ r) / scale
        trial = np.clip(theta + basis @ step, low, high)
        then = value(trial)
        if then < now:
            done, theta, now, damping = now - then < 1e-6 * now, trial, then, 0.2 * damping
            if done:
                break
        else:
            damping = min(5 * damping, 1e6)
    return theta
