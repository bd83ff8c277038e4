"""Predictions with intervals that hold when extrapolating: several laws stacked, calibrated on rolling hold-outs.

A bootstrap of one law knows neither that the law may be wrong nor that larger runs behave otherwise: at
nominal 95% it covers far less of the runs above the fitted compute. Here, inside the training rows only:
  1. cut the rows at several budgets; fit every law below the cut, predict above it;
  2. stack: weights on the simplex that minimise the squared log error above the cuts (Yao et al. 2018);
  3. variance = resampling + spread between the laws + noise of a run;
  4. scale it by what the errors above the cuts were in units of it, a cut counting once (`_scale`).
The coverage that is printed is rolling too: at each cut the scale is what the earlier cuts gave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from .base import Law, get_law
from .fit import Fit, fit
from .resample import Progress
from .solver import LOGS, Objective
from .table import Rows

CUTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the rows, ordered by compute
DRAWS = 200
MAX_STARTS = 12


@dataclass(frozen=True)
class LawScore:
    """How a law did above the cuts: root mean square log error, its weight in the stack; error: why it has none."""

    law: str
    rmse: float | None
    weight: float
    error: str = ""


@dataclass(frozen=True)
class Calibration:
    """Coverage above the rolling cuts at nominal `level`: of the plain bootstrap of the first law, of the stack
    before scaling, and of the calibrated stack (each cut by the earlier cuts' scale). `rows` predicted in all."""

    level: float
    cuts: int
    rows: int
    plain: float
    stacked: float
    calibrated: float | None
    scale: float


@dataclass(frozen=True)
class Forecast:
    """Stacked laws and the scale of their intervals."""

    fits: tuple[Fit, ...]
    weights: np.ndarray
    scores: tuple[LawScore, ...]
    calibration: Calibration | None
    level: float
    why_not: str = ""

    def predict(self, columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Point, low and high (m,) at the rows of `columns`."""
        parts = [_predict(f, columns) for f in self.fits]
        centre, sd = _stack(parts, self.weights)
        half = (self.calibration.scale if self.calibration else _z(self.level)) * sd
        return np.exp(centre), np.exp(centre - half), np.exp(centre + half)

    def draws(self, columns, total: int = 1000) -> np.ndarray:
        """log predictions (about total, m) of the resamples of every law, as many of each as its weight."""
        out = []
        for f, w in zip(self.fits, self.weights, strict=True):
            k = round(w * total)
            if k and f.draws is not None:
                out.append(f.log_predict(columns, f.draws[np.arange(k) % len(f.draws)]))
        return np.concatenate(out)

    @property
    def noise(self) -> float:
        return float(sum(w * _noise(f) for f, w in zip(self.fits, self.weights, strict=True)))


def _z(level):
    return float(stats.norm.ppf(0.5 + level / 2))


def _noise(f: Fit) -> float:
    """Scale of a run about the law, in log: from the 95% quantile of the residuals, for their tails are heavy."""
    free = len(f.theta) if f.constraint is None else len(f.constraint.free)
    n = len(f.residuals)
    return float(np.quantile(np.abs(f.residuals), 0.95)) / 1.96 * np.sqrt(n / max(n - free, 1))


def _predict(f: Fit, columns) -> tuple[np.ndarray, np.ndarray, float]:
    """(log point, sd of resampling (m,), noise). Spread by quantiles: a few wild resamples are not the scale."""
    point = f.log_predict(columns)
    if f.draws is None:
        return point, np.zeros_like(point), _noise(f)
    d = f.log_predict(columns, f.draws)
    low, high = np.nanpercentile(d, [2.5, 97.5], axis=0)
    return point, (high - low) / (2 * 1.96), _noise(f)


def _stack(parts, weights) -> tuple[np.ndarray, np.ndarray]:
    point = np.stack([p for p, _, _ in parts])
    centre = weights @ point
    between = weights @ (point - centre) ** 2
    return centre, np.sqrt(
        weights @ np.stack([s**2 for _, s, _ in parts]) + between + weights @ np.array([n**2 for _, _, n in parts])
    )


def _weights(errors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Simplex weights (laws,) of least mean squared error, stacked; errors (laws, rows), a cut's rows share a vote."""
    k = len(errors)
    if k == 1:
        return np.ones(1)
    e = errors / np.sqrt(counts)
    gram = e @ e.T
    gram /= max(np.trace(gram) / k, 1e-300)
    w, _ = optimize.nnls(
        np.vstack([np.linalg.cholesky(gram + 1e-6 * np.eye(k)).T, 1e3 * np.ones(k)]), np.append(np.zeros(k), 1e3)
    )
    return w / w.sum()


def _scale(scores: list[np.ndarray], level: float) -> float:
    """Factor on the sd for `level` above the next cut; never below the normal one.

    The errors above one cut move together, so a cut is one draw and not as many as it has rows: the cuts' own
    `level` quantiles are read as |N(0, tau)|, and the next one lies within t_k tau of zero, k cuts.
    """
    each = np.array([np.quantile(s, level) for s in scores])
    return max(float(stats.t.ppf(0.5 + level / 2, len(each)) * np.sqrt(np.mean(each**2))), _z(level))


def forecast(
    laws: list[str | Law],
    rows: Rows,
    compute: np.ndarray,
    *,
    objective: Objective = LOGS,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 1000,
    progress: Progress | None = None,
) -> Forecast:
    """Fit every law to `rows`, stack and calibrate them. compute (n,) orders the rows for the cuts.

    The first law is the user's: the plain coverage is its own. A law that cannot be fitted is left out
    with its error. Raises ValueError where none can.
    """
    laws = [get_law(name) for name in laws]
    fits, errors = [], {}
    for law in laws:
        try:
            fits.append(_quick(law, rows, objective, level, seed, draws))
        except ValueError as error:
            errors[law.name] = str(error)
    if not fits:
        raise ValueError("; ".join(errors.values()))
    kept = [f.law for f in fits]
    cuts = []  # per cut: list over laws of (point, sd, noise), and log y
    plain = []
    edges = np.unique(np.quantile(compute, CUTS, method="lower"))
    for i, edge in enumerate(edges):
        if progress:
            progress("rolling hold-outs", i / len(edges))
        below, above = rows.take(compute <= edge), rows.take(compute > edge)
        if len(above.y) < 3 or below.clusters < max(8, max(len(law.parameters) for law in kept) + 3):
            continue
        try:
            local = [_quick(law, below, objective, level, seed, DRAWS) for law in kept]
        except ValueError:
            continue
        parts = [_predict(f, above.columns) for f in local]
        log_y = np.log(above.y)
        cuts.append((parts, log_y))
        first = local[0]
        d = first.log_predict(above.columns, first.draws if first.draws is not None else first.theta[None])
        tail = 50 * (1 - level)
        low, high = np.nanpercentile(d, [tail, 100 - tail], axis=0)
        plain.append((low <= log_y) & (log_y <= high))
    if len(cuts) < 2:
        scores = tuple(LawScore(f.law.name, None, 1.0 if k == 0 else 0.0) for k, f in enumerate(fits))
        return Forecast(
            tuple(fits),
            np.eye(len(fits))[0],
            scores + _failed(errors),
            None,
            level,
            f"too few rows for rolling hold-outs ({len(cuts)} usable cuts, 2 needed)",
        )

    def weigh(some):
        e = np.concatenate([np.stack([y - p for p, _, _ in parts]) for parts, y in some], 1)
        return _weights(e, np.concatenate([np.full(len(y), len(y)) for _, y in some]))

    def score(parts, y, w):
        centre, sd = _stack(parts, w)
        return np.abs(y - centre) / sd

    weights = weigh(cuts)
    scores = [score(parts, y, weights) for parts, y in cuts]
    scale = _scale(scores, level)
    rolled = []
    for k in range(1, len(cuts)):
        w = weigh(cuts[:k])
        s = _scale([score(*c, w) for c in cuts[:k]], level)
        rolled.append(score(*cuts[k], w) <= s)
    calibration = Calibration(
        level,
        len(cuts),
        sum(len(y) for _, y in cuts),
        float(np.mean(np.concatenate(plain))),
        float(np.mean(np.concatenate(scores) <= _z(level))),
        float(np.mean(np.concatenate(rolled))),
        scale,
    )
    rmse = [np.sqrt(np.mean([np.mean((y - parts[m][0]) ** 2) for parts, y in cuts])) for m in range(len(fits))]
    named = tuple(LawScore(f.law.name, float(r), float(w)) for f, r, w in zip(fits, rmse, weights, strict=True))
    return Forecast(tuple(fits), weights, named + _failed(errors), calibration, level)


def _failed(errors) -> tuple[LawScore, ...]:
    return tuple(LawScore(name, None, 0.0, why) for name, why in errors.items())


def _quick(law, rows, objective, level, seed, draws) -> Fit:
    starts = law.starts(law.prepare(rows.columns), np.log(rows.y))
    return fit(
        law,
        rows,
        objective=objective,
        bootstrap_draws=draws,
        level=level,
        seed=seed,
        start=starts[:: max(1, len(starts) // MAX_STARTS)],
    )
