"""The compute-optimal N*, D* of a fitted law under C = k N D, with intervals from the resamples.

Closed form where the law has one, otherwise a search over log N. k is the FLOP convention (6 by default;
the ratio of a FLOPs column to N D where the table has one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fit import Fit

GRID = 241


@dataclass(frozen=True)
class Optimum:
    """At `flops`: N*, D*, loss, each with (low, high) or None; exponent: d log N* / d log C. All are None where the
    table does not identify what they are computed from; `note` says so."""

    flops: float
    params: float | None
    tokens: float | None
    loss: float | None
    exponent: float | None
    params_interval: tuple[float, float] | None
    tokens_interval: tuple[float, float] | None
    loss_interval: tuple[float, float] | None
    exponent_interval: tuple[float, float] | None
    note: str = ""


def optima(
    f: Fit, flops: float, flops_per_nd: float = 6.0, theta: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """N* (B,), D* (B,) for theta (B, p), by default the optimum.

    nan where there is none within six decades of the balanced N = D. Raises ValueError where the law
    does not read exactly params and tokens.
    """
    if f.law.roles != ("params", "tokens") or f.law.response != "loss":
        raise ValueError(f"law {f.law.name!r} has no compute optimum: it reads {', '.join(f.law.roles)}")
    theta = np.atleast_2d(f.theta if theta is None else theta)
    closed = f.law.optimum(f.law.natural(theta, f.inputs.centre), flops, flops_per_nd)
    if closed is not None:
        fine = np.isfinite(closed[0]) & (closed[0] > 0)
        return np.where(fine, closed[0], np.nan), np.where(fine, closed[1], np.nan)
    log_nd = np.log(flops / flops_per_nd)
    u = np.linspace(0.5 * log_nd - 14, 0.5 * log_nd + 14, GRID)
    pred = f.log_predict({"params": np.exp(u), "tokens": np.exp(log_nd - u)}, theta)
    # the lowest minimum with both sides higher: some laws fall without end far outside the sizes fitted
    low = (pred[:, 1:-1] < pred[:, :-2]) & (pred[:, 1:-1] < pred[:, 2:])
    k = 1 + np.argmin(np.where(low, pred[:, 1:-1], np.inf), 1)
    inside = low.any(1)
    b = np.arange(len(theta))
    left, mid, right = pred[b, k - 1], pred[b, k], pred[b, k + 1]
    with np.errstate(all="ignore"):  # the parabola through three points spaced evenly
        at = u[k] + 0.5 * (u[1] - u[0]) * (left - right) / (left - 2 * mid + right)
    N = np.where(inside, np.exp(at), np.nan)
    return N, np.exp(log_nd) / N


def optimum(f: Fit, flops: float, flops_per_nd: float = 6.0) -> Optimum:
    """The optimum at one budget. The loss interval is of the law, without the noise of a run."""

    def all_of(theta):
        N, D = optima(f, flops, flops_per_nd, theta)
        N2, _ = optima(f, flops * 1.1, flops_per_nd, theta)
        with np.errstate(all="ignore"):
            return N, D, np.log(N2 / N) / np.log(1.1)

    def loss(theta, N, D):
        columns = {"params": N, "tokens": D}
        pred = f.law.log_predict(theta, f.law.prepare(columns, f.inputs.centre), derivatives=False)[0]
        return np.exp(np.diagonal(pred)) if len(theta) == len(N) else np.exp(pred)

    N, D, a = all_of(f.theta[None])
    at = loss(f.theta[None], N, D)
    if f.draws is None:
        return Optimum(flops, float(N[0]), float(D[0]), float(at[0]), float(a[0]), None, None, None, None, f.no_draws)
    Nb, Db, ab = all_of(f.draws)
    lb = np.concatenate([loss(f.draws[i : i + 64], Nb[i : i + 64], Db[i : i + 64]) for i in range(0, len(Nb), 64)])
    tail = 50 * (1 - f.level)
    missing = float(np.mean(np.isnan(Nb)))
    note = f"{missing:.0%} of the resamples have no optimum" if missing else ""

    def interval(values: np.ndarray) -> tuple[float, float]:
        low, high = np.nanpercentile(values, [tail, 100 - tail])
        return float(low), float(high)

    return Optimum(
        flops,
        float(N[0]),
        float(D[0]),
        float(at[0]),
        float(a[0]),
        interval(Nb),
        interval(Db),
        interval(lb),
        interval(ab),
        note,
    )


def identified_optimum(f: Fit, flops: float, flops_per_nd: float = 6.0) -> Optimum:
    """`optimum`, refused where a parameter that it moves with is (`Fit.profiles`)."""
    best = optimum(f, flops, flops_per_nd)
    moved = [p for p in f.profiles if not p.identified and _moves(f, p.name, flops, flops_per_nd, best.params)]
    if not moved:
        return best
    *most, last = [p.name for p in moved]
    names = f"{', '.join(most)} and {last}" if most else last
    note = f"no optimum: it moves with {names}, which the table does not identify"
    return Optimum(flops, None, None, None, None, None, None, None, None, note)


def _moves(f: Fit, name: str, flops: float, k: float, params: float | None) -> bool:
    """Whether N* changes with one natural parameter, the others held; True where there is no N* at all."""
    T, _ = f.law.coordinates(f.inputs.centre)
    step = np.zeros(len(f.theta))
    step[f.law.names.index(name)] = 1e-3
    assert params is not None  # `optimum` gives a number, nan where there is none
    there = optima(f, flops, k, (f.theta + np.linalg.solve(T, step))[None])[0][0]
    return not abs(np.log(there / params)) < 1e-7
