"""Approaches 1 and 2 of Hoffmann et al. 2022: optimal N and D without assuming a loss law.

Approach 2, `isoflop`: for each budget a parabola of loss in ln N, its vertex N*, then log N* = a log C + const.
Biased where alpha and beta differ and the sweep is not centred: compare with the parametric fit.
Approach 1, `envelope`: the curve that is lowest at each budget, over training curves.
Intervals resample runs (within budgets for isoflop, across curves for the envelope): of every vertex, of the line
through them, and of N* and D* at a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

DRAWS, ENVELOPE_DRAWS = 1000, 400
WIDEST = 1.5  # largest over least FLOPs of what may be called one budget
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Vertex:
    """The minimum of one budget's parabola: N, D = C / (k N), loss, each with (low, high); sizes: how many it was
    fitted to; curvature: half the second derivative of the loss by ln N. missing: share of the resamples without a
    minimum inside the sizes trained; the intervals are of the others, None where those are too few."""

    flops: float
    params: float
    tokens: float
    loss: float
    sizes: int
    curvature: float
    params_interval: Interval
    tokens_interval: Interval
    loss_interval: Interval
    missing: float


@dataclass(frozen=True)
class FrontierOptimum:
    """N* and D* = C / (k N*) at a target budget, by the line through the points; beyond: C over the largest budget."""

    flops: float
    params: float
    tokens: float
    params_interval: Interval
    tokens_interval: Interval
    beyond: float


@dataclass(frozen=True)
class Frontier:
    """N* = coefficient C^exponent, its points, and the budgets that gave none with the reason.

    flops, params: (k,) points; D* = C / (flops_per_nd N*), hence D* ~ C^(1 - exponent). Intervals are None with too
    few budgets. vertices: of isoflop, one for each point.
    """

    method: str
    flops: tuple[float, ...]
    params: tuple[float, ...]
    exponent: float
    coefficient: float
    exponent_interval: Interval
    coefficient_interval: Interval
    left_out: tuple[str, ...]
    flops_per_nd: float = 6.0
    vertices: tuple[Vertex, ...] = ()
    targets: tuple[FrontierOptimum, ...] = ()

    def optimal_params(self, flops: float) -> float:
        return float(self.coefficient * flops**self.exponent)


def budgets(flops: np.ndarray, width: float = 0.15) -> np.ndarray:
    """Group code (n,) of rows whose FLOPs lie within `width` (relative) of the next: one isoFLOP line each."""
    order = np.argsort(flops)
    jump = np.diff(np.log(flops[order]), prepend=-np.inf) > np.log1p(width)
    out = np.empty(len(flops), int)
    out[order] = np.cumsum(jump) - 1
    return out


def _vertices(u: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ln N, loss and curvature (3, B) at the vertex of the weighted parabola of loss (m,) in u = ln N (m,), weights
    (B, m); nan where there is none."""
    x = u - u.mean()
    X = np.stack([np.ones_like(x), x, x**2], 1)
    gram = np.einsum("bm,mi,mj->bij", weights, X, X) + 1e-12 * np.eye(3)
    c0, c1, c2 = np.linalg.solve(gram, ((weights * loss) @ X)[:, :, None])[:, :, 0].T
    c2 = np.where(c2 > 0, c2, np.nan)
    at = u.mean() - c1 / (2 * c2)
    sizes = np.unique(u, return_inverse=True)[1]
    enough = (weights @ np.eye(sizes.max() + 1)[sizes] > 0).sum(1) >= 4
    fine = enough & (u.min() <= at) & (at <= u.max())
    return np.where(fine, np.stack([at, c0 - c1**2 / (4 * c2), c2]), np.nan)


def _why_none(u: np.ndarray, loss: np.ndarray) -> str:
    if len(np.unique(u)) < 4:
        return f"{len(np.unique(u))} model sizes, 4 needed"
    if np.polyfit(u - u.mean(), loss, 2)[0] <= 0:
        return "no minimum (the parabola opens downwards)"
    return "its minimum is outside the sizes trained"


def _line(log_c, log_n) -> tuple[float, float]:
    slope, intercept = np.polyfit(log_c, log_n, 1)
    return float(slope), float(intercept)


class FrontierSettings(TypedDict, total=False):
    """Keywords of both approaches; `FrontierChoices` holds the defaults."""

    level: float
    seed: int
    draws: int
    targets: Sequence[float]
    flops_per_nd: float


@dataclass(frozen=True)
class FrontierChoices:
    """`FrontierSettings` with their defaults."""

    level: float = 0.95
    seed: int = 0
    draws: int = DRAWS
    targets: Sequence[float] = ()
    flops_per_nd: float = 6.0


@dataclass
class _Points:
    """Points (log C, log N) of a frontier, the lines (slope, intercept) of the resamples, and what gave no point."""

    log_c: np.ndarray
    log_n: np.ndarray
    lines: list[tuple[float, float]]
    left_out: list[str]
    vertices: tuple[Vertex, ...] = ()


def isoflop(
    params: ArrayLike,
    flops: ArrayLike,
    loss: ArrayLike,
    *,
    nearest: int | None = None,
    **settings: Unpack[FrontierSettings],
) -> Frontier:
    """Approach 2 on final losses. params, flops, loss (n,); rows of a budget share FLOPs to within 15%.

    nearest: fit the parabola on this many sizes around the lowest loss only (a parabola is local). targets (()):
    budgets to give N* and D* at. level (0.95), draws (1000) and seed (0): of the resamples' intervals. flops_per_nd
    (6.0): k of C = k N D. Raises ValueError with fewer than two usable budgets.
    """
    chosen = FrontierChoices(**settings)
    params, flops, loss = (np.asarray(v, float) for v in (params, flops, loss))
    if nearest is not None and nearest < 4:
        raise ValueError(f"isoflop: a parabola needs 4 model sizes or more, nearest is {nearest}")
    group, rng = budgets(flops), np.random.default_rng(chosen.seed)
    by_budget: list[np.ndarray] = []  # per budget ln N (1 + draws,), the table's own first
    log_c, vertices, left_out = [], [], []
    for g in range(group.max() + 1):
        at = np.flatnonzero(group == g)
        if np.ptp(flops[at]) > (WIDEST - 1) * flops[at].min():
            span = f"{flops[at].min():.3g} to {flops[at].max():.3g}"
            left_out.append(f"C = {span}: {len(at)} rows in between, no one budget")
            continue
        at = _around_lowest(at, params, loss, nearest)
        u, c, m = np.log(params[at]), np.log(flops[at]).mean(), len(at)
        weights = np.vstack([np.ones((1, m)), rng.multinomial(m, np.full(m, 1 / m), size=chosen.draws)])
        v = _vertices(u, loss[at], weights)
        if np.isnan(v[0, 0]):
            left_out.append(f"C = {np.exp(c):.3g}: {_why_none(u, loss[at])}")
        else:
            log_c.append(c)
            by_budget.append(v[0])
            vertices.append(_vertex(float(np.exp(c)), v, len(np.unique(u)), chosen))
    if len(log_c) < 2:
        raise ValueError(
            "isoflop: fewer than two budgets with a minimum inside the sizes trained"
            + "".join(f"; {w}" for w in left_out[:3])
        )
    log_n, *resampled = np.array(by_budget).T
    points = _Points(np.array(log_c), log_n, [], left_out, tuple(vertices))
    if len(log_c) > 2:
        points.lines = _lines(points.log_c, resampled)
    return _frontier("isoflop", points, chosen)


def _lines(log_c: np.ndarray, resampled: list[np.ndarray]) -> list[tuple[float, float]]:
    """The line of every resample (k,) that has two points or more."""
    lines = []
    for log_n in resampled:
        fine = np.isfinite(log_n)
        if fine.sum() >= 2:
            lines.append(_line(log_c[fine], log_n[fine]))
    return lines


def _around_lowest(at: np.ndarray, params: np.ndarray, loss: np.ndarray, nearest: int | None) -> np.ndarray:
    """Of these rows the `nearest` ones in size to the one with the lowest loss; None: all."""
    if nearest is None or len(at) <= nearest:
        return at
    u = np.log(params[at])
    return at[np.argsort(np.abs(u - u[np.argmin(loss[at])]), kind="stable")[:nearest]]


def _vertex(flops: float, v: np.ndarray, sizes: int, chosen: FrontierChoices) -> Vertex:
    level, k = chosen.level, chosen.flops_per_nd
    (log_n, loss, curvature), drawn = v[:, 0], v[:, 1:]
    drawn = drawn[:, np.isfinite(drawn[0])]
    n = _interval(np.exp(drawn[0]), level)
    return Vertex(
        flops,
        float(np.exp(log_n)),
        float(flops / k / np.exp(log_n)),
        float(loss),
        sizes,
        float(curvature),
        n,
        None if n is None else (flops / k / n[1], flops / k / n[0]),
        _interval(drawn[1], level),
        1.0 - drawn.shape[1] / max(v.shape[1] - 1, 1),
    )


def _frontier(method: str, points: _Points, chosen: FrontierChoices) -> Frontier:
    """The line through the points, and its intervals from the lines of the resamples."""
    slope, intercept = _line(points.log_c, points.log_n)
    drawn, level, k = np.array(points.lines).reshape(-1, 2), chosen.level, chosen.flops_per_nd
    best = []
    for c in map(float, chosen.targets):
        N = float(np.exp(intercept + slope * np.log(c)))
        n = _interval(np.exp(drawn[:, 1] + drawn[:, 0] * np.log(c)), level)
        d = None if n is None else (c / k / n[1], c / k / n[0])
        best.append(FrontierOptimum(c, N, c / k / N, n, d, c / float(np.exp(points.log_c.max()))))
    return Frontier(
        method,
        tuple(map(float, np.exp(points.log_c))),
        tuple(map(float, np.exp(points.log_n))),
        slope,
        float(np.exp(intercept)),
        _interval(drawn[:, 0], level),
        _interval(np.exp(drawn[:, 1]), level),
        tuple(points.left_out),
        k,
        points.vertices,
        tuple(best),
    )


def envelope(
    run: ArrayLike,
    params: ArrayLike,
    flops: ArrayLike,
    loss: ArrayLike,
    *,
    points: int = 200,
    **settings: Unpack[FrontierSettings],
) -> Frontier:
    """Approach 1 on training curves: rows of (run, params, FLOPs so far, loss), several per run.

    Each curve is interpolated in logs; at `points` budgets between the second-smallest curve's start and
    the second-largest's end the lowest curve gives N*. The settings are those of `isoflop`, draws 400 by default.
    Raises ValueError with fewer than three curves.
    """
    settings.setdefault("draws", ENVELOPE_DRAWS)
    chosen = FrontierChoices(**settings)
    curves = _curves(np.asarray(run), *(np.asarray(v, float) for v in (params, flops, loss)))
    if len(curves) < 3:
        raise ValueError(f"envelope: {len(curves)} curves of two or more rows; it needs at least 3")
    starts, ends = sorted(c[1][0] for c in curves), sorted(c[1][-1] for c in curves)
    log_c = np.linspace(starts[1], ends[-2], points)
    table = np.stack([np.interp(log_c, c, y, left=np.inf, right=np.inf) for _, c, y in curves])
    sizes = np.array([u for u, _, _ in curves])
    # a budget counts only where curves on both sides of the best are there to lose
    best = np.argmin(table, 0)
    inner = np.isfinite(table.min(0)) & (sizes[best] > sizes.min()) & (sizes[best] < sizes.max())
    if inner.sum() < 2:
        raise ValueError("envelope: no budget where a size between the smallest and the largest is best")
    rng, lines = np.random.default_rng(chosen.seed), []
    for _ in range(chosen.draws):
        pick = np.unique(rng.integers(len(curves), size=len(curves)))
        b = pick[np.argmin(table[pick][:, inner], 0)]
        fine = np.isfinite(table[b, np.flatnonzero(inner)])
        if fine.sum() >= 2 and np.ptp(sizes[b[fine]]) > 0:
            lines.append(_line(log_c[inner][fine], sizes[b[fine]]))
    why = [f"{int((~inner).sum())} of {points} budgets at the edge of the sizes trained"]
    return _frontier("envelope", _Points(log_c[inner], sizes[best][inner], lines, why), chosen)


def _curves(
    run: np.ndarray, params: np.ndarray, flops: np.ndarray, loss: np.ndarray
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(log N, log C (m,), log loss (m,)) of every run of two rows or more."""
    curves = []
    for name in dict.fromkeys(run.tolist()):
        at = np.flatnonzero(run == name)
        at = at[np.argsort(flops[at])]
        if len(at) >= 2:
            curves.append((np.log(params[at[0]]), np.log(flops[at]), np.log(loss[at])))
    return curves


def _interval(drawn, level) -> Interval:
    if len(drawn) < 50:
        return None
    tail = 50 * (1 - level)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
