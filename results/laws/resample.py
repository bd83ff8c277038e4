"""Cluster bootstrap: resample runs, not rows (Efron and Tibshirani 1993), all resamples in one batch.

A resample is a vector of weights, so nothing is copied and every refit starts at the optimum of the
whole table. Refused where there are too few runs for a percentile to mean anything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .solver import Problem

Progress = Callable[[str, float], None]
BLOCK = 512  # resamples whose weights are held at a time
ITERATIONS = 80  # ten do on a table that identifies the law; a resample that wanders longer counts as not converged


def too_few(clusters: int, parameters: int) -> str | None:
    """The reason for refusing intervals, or None."""
    need = max(6, parameters + 2)
    if clusters >= need:
        return None
    return f"too few runs for intervals: {clusters}, and {parameters} free parameters need {need}"


def resample_weights(cluster: np.ndarray, draws: int, rng: np.random.Generator, at_least: int = 1) -> np.ndarray:
    """Weights (draws, n): how often each row's run was drawn.

    Resamples with fewer than `at_least` distinct runs are redrawn.
    """
    k = int(cluster.max()) + 1
    counts = rng.multinomial(k, np.full(k, 1.0 / k), size=draws)
    for _ in range(100):
        thin = (counts > 0).sum(1) < at_least
        if not thin.any():
            break
        counts[thin] = rng.multinomial(k, np.full(k, 1.0 / k), size=int(thin.sum()))
    return counts[:, cluster].astype(float)


def bootstrap(
    problem: Problem, theta: np.ndarray, cluster: np.ndarray, draws: int, seed: int, progress: Progress | None = None
) -> tuple[np.ndarray, float]:
    """theta of every resample (draws, p) and the share that converged. cluster (n,) codes; theta (p,) the optimum."""
    rng = np.random.default_rng(seed)
    free = len(theta) if problem.constraint is None else len(problem.constraint.free)
    out, converged = [], 0
    for i in range(0, draws, BLOCK):
        size = min(BLOCK, draws - i)
        w = resample_weights(cluster, size, rng, at_least=free + 1)
        tick = (lambda done, i=i: progress("bootstrap", (i + done) / draws)) if progress else None
        s = problem.solve(np.repeat(theta[None], size, 0), weights=w, iterations=ITERATIONS, progress=tick)
        out.append(s.theta)
        converged += int(s.converged.sum())
    return np.concatenate(out), converged / draws
