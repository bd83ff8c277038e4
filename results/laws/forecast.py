"""Predictions with intervals that hold when extrapolating: laws with their discrepancies, stacked and calibrated.

A bootstrap of one law knows neither that the law may be wrong nor that larger runs behave otherwise: at nominal 95%
it covers far less of the runs above the fitted compute. Here, inside the training rows only:
  1. every law carries a discrepancy (`discrepancy.py`), whose sd grows with the distance from the runs;
  2. cut the rows at several budgets; fit every law below the cut, predict above it;
  3. stack: weights on the simplex that minimise the squared log error above the cuts (Yao et al. 2018);
  4. scale the sd by what the errors above the cuts were in units of it, a cut counting once (`_scale`).
The coverage that is printed is rolling too: at each cut the scale is what the earlier cuts gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
from scipy import optimize, stats

from .base import Law, get_law
from .discrepancy import Corrected, corrected, spectra, thinned
from .fit import Fit, FitChoices, Settings, fit
from .resample import Progress
from .table import Rows

CUTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the rows, ordered by compute
AGE, PRIOR = 4, 4.0  # chosen on cuts inside the training rows: docs/laws.md
DRAWS = 200
MAX_STARTS, CUT_STARTS = 12, 4
MOST = 5000  # rows of a forecast's fits


@dataclass(frozen=True)
class LawScore:
    """A law's score above the cuts: root mean square log error, its weight in the stack; error: why it has none."""

    law: str
    rmse: float | None
    weight: float
    error: str = ""


@dataclass(frozen=True)
class Calibration:
    """Coverage above the rolling cuts at nominal `level`: of the plain bootstrap of the first law, of the stack
    before scaling, and of the calibrated stack (each cut by the earlier cuts' scale). `rows` predicted in all, up to
    `reach` times the largest compute below a cut."""

    level: float
    cuts: int
    rows: int
    plain: float | None
    stacked: float
    calibrated: float | None
    scale: float
    reach: float


@dataclass(frozen=True)
class Forecast:
    """Stacked laws and the scale of their intervals."""

    fits: tuple[Fit, ...]
    laws: tuple[Corrected, ...]
    weights: np.ndarray
    scores: tuple[LawScore, ...]
    calibration: Calibration | None
    level: float
    why_not: str = ""

    def predict(self, columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Point, low and high (m,) at the rows of `columns`; without a calibration normal intervals of the stack."""
        centre, sd = _stack([law.predict(columns) for law in self.laws], self.weights)
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
        """Scale of a run about the laws themselves, without their discrepancies, in log: what `draws` do not hold."""
        return float(sum(w * _noise(f) for f, w in zip(self.fits, self.weights, strict=True)))


@dataclass(frozen=True)
class _Cut:
    """The predictions above one cut from the `rows` below it: log y (m,), per law (log point, sd), whether the
    plain interval of the first law held; reach: the largest compute above over the largest below."""

    log_y: np.ndarray
    parts: list[tuple[np.ndarray, np.ndarray]]
    plain: np.ndarray | None
    rows: int
    reach: float

    def score(self, weights) -> np.ndarray:
        centre, sd = _stack(self.parts, weights)
        return np.abs(self.log_y - centre) / sd


def _z(level):
    return float(stats.norm.ppf(0.5 + level / 2))


def _noise(f: Fit) -> float:
    """From the 95% quantile of the residuals, for their tails are heavy."""
    free = len(f.theta) if f.constraint is None else len(f.constraint.free)
    n = len(f.residuals)
    return float(np.quantile(np.abs(f.residuals), 0.95)) / 1.96 * np.sqrt(n / max(n - free, 1))


def _stack(parts, weights) -> tuple[np.ndarray, np.ndarray]:
    """log point and sd (m,) of the mixture: the laws' own variances and the spread between them."""
    point, sd = (np.stack(v) for v in zip(*parts, strict=True))
    centre = weights @ point
    return centre, np.sqrt(weights @ (sd**2 + (point - centre) ** 2))


def _weights(cuts: list[_Cut]) -> np.ndarray:
    """Simplex weights (laws,) of least mean squared error, stacked; a cut's rows share a vote."""
    k = len(cuts[0].parts)
    if k == 1:
        return np.ones(1)
    e = np.concatenate([np.stack([(c.log_y - p) / np.sqrt(len(c.log_y)) for p, _ in c.parts]) for c in cuts], 1)
    gram = e @ e.T
    gram /= max(np.trace(gram) / k, 1e-300)
    w, _ = optimize.nnls(
        np.vstack([np.linalg.cholesky(gram + 1e-6 * np.eye(k)).T, 1e3 * np.ones(k)]), np.append(np.zeros(k), 1e3)
    )
    return w / w.sum()


def _scale(scores: list[np.ndarray], sizes: list[int], whole: int, level: float) -> float:
    """Factor on the sd for `level` above the next cut, from the errors above past ones in units of their sds.

    The errors above one cut move together, so a cut is one draw of N(0, factor^2) and not as many as it has rows: its
    own root mean square. A cut counts (its rows / all rows)^AGE, for a fit to few rows says little of a fit to many,
    and PRIOR draws of size 1 stand beside them: the sds are a model's, not arbitrary units. The factor is the root
    mean square of all times Student's t with as many degrees of freedom; never below the normal one.
    """
    squares = np.array([np.mean(s**2) for s in scores])
    counts = (np.array(sizes) / whole) ** AGE
    draws = PRIOR + counts.sum()
    pooled = np.sqrt((PRIOR + counts @ squares) / draws)
    return max(float(stats.t.ppf(0.5 + level / 2, draws) * pooled), _z(level))


def forecast(
    laws: Sequence[str | Law],
    rows: Rows,
    compute: np.ndarray,
    *,
    draws: int = 0,
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Forecast:
    """Fit every law to `rows`, stack and calibrate them. compute (n,) orders the rows for the cuts.

    The first law is the user's, with its parameters held as in `fix`: the plain coverage is its own. A law that cannot
    be fitted is left out with its error. draws: resamples of every law, for `Forecast.draws`. objective, level, seed:
    as for `fit`. Of more than `MOST` rows the half with the largest compute and an even draw from the rest are used.
    Raises ValueError where no law can be fitted.
    """
    stack, chosen = [get_law(name) for name in laws], FitChoices(**settings)
    if len(rows.y) > MOST:
        at = thinned(np.log(compute), MOST, chosen.seed)
        rows, compute = rows.take(at), compute[at]
    fits, full, failed = _fit_all(stack, rows, chosen, draws)
    cuts, edges = [], np.unique(np.quantile(compute, CUTS, method="lower"))
    for i, edge in enumerate(edges):
        if progress:
            progress("rolling hold-outs", i / len(edges))
        cut = _cut(fits, rows, compute, edge)
        if cut is not None:
            cuts.append(cut)
    level = chosen.level
    if len(cuts) < 2:
        alone = tuple(LawScore(f.law.name, None, float(k == 0)) for k, f in enumerate(fits))
        why = f"too few rows for rolling hold-outs ({len(cuts)} usable cuts, 2 needed)"
        return Forecast(tuple(fits), tuple(full), np.eye(len(fits))[0], alone + failed, None, level, why)
    weights = _weights(cuts)
    calibration = _calibrate(cuts, weights, len(rows.y), level)
    rmse = [np.sqrt(np.mean([np.mean((c.log_y - c.parts[m][0]) ** 2) for c in cuts])) for m in range(len(fits))]
    named = tuple(LawScore(f.law.name, float(r), float(w)) for f, r, w in zip(fits, rmse, weights, strict=True))
    return Forecast(tuple(fits), tuple(full), weights, named + failed, calibration, level)


def _fit_all(
    stack: list[Law], rows: Rows, chosen: FitChoices, draws: int
) -> tuple[list[Fit], list[Corrected], tuple[LawScore, ...]]:
    """The fits and their discrepancies, and the laws that cannot be fitted. Raises ValueError where none can be."""
    fits, full, errors, shared = [], [], {}, spectra(stack[0], rows, chosen.seed)
    for law in stack:
        settings = replace(chosen, fix=chosen.fix if law is stack[0] else None, bootstrap_draws=draws)
        try:
            f = _quick(law, rows, settings)
            full.append(corrected(f, shared))
            fits.append(f)
        except ValueError as error:
            errors[law.name] = str(error)
    if not fits:
        raise ValueError("; ".join(errors.values()))
    return fits, full, tuple(LawScore(name, None, 0.0, why) for name, why in errors.items())


def _cut(fits: list[Fit], rows: Rows, compute: np.ndarray, edge: float) -> _Cut | None:
    """Every law of `fits` fitted at or below `edge` and tested above it; None where either side is too small."""
    below, above = rows.take(compute <= edge), rows.take(compute > edge)
    if len(above.y) < 3 or below.clusters < max(8, max(len(f.law.parameters) for f in fits) + 3):
        return None
    parts, plain, shared = [], None, spectra(fits[0].law, below, fits[0].seed)
    try:
        for k, whole in enumerate(fits):
            settings = FitChoices(whole.objective, whole.fix, whole.level, whole.seed, 0.0, DRAWS if k == 0 else 0)
            f = _quick(whole.law, below, settings, whole)
            parts.append(corrected(f, shared).predict(above.columns))
            if f.draws is not None:
                tail = 50 * (1 - f.level)
                plain = np.nanpercentile(f.log_predict(above.columns, f.draws), [tail, 100 - tail], axis=0)
    except ValueError:
        return None
    if not np.isfinite(parts).all():
        return None
    log_y = np.log(above.y)
    inside = None if plain is None else (plain[0] <= log_y) & (log_y <= plain[1])
    return _Cut(log_y, parts, inside, len(below.y), float(compute.max() / edge))


def _calibrate(cuts: list[_Cut], weights: np.ndarray, whole: int, level: float) -> Calibration:
    """The scale of the cuts, and what it would have covered at each cut had only the earlier ones been seen."""
    scores, sizes = [c.score(weights) for c in cuts], [c.rows for c in cuts]
    rolled = []
    for k in range(1, len(cuts)):
        w = _weights(cuts[:k])
        rolled.append(cuts[k].score(w) <= _scale([c.score(w) for c in cuts[:k]], sizes[:k], sizes[k], level))
    plain = [c.plain for c in cuts if c.plain is not None]
    return Calibration(
        level,
        len(cuts),
        sum(len(c.log_y) for c in cuts),
        float(np.mean(np.concatenate(plain))) if plain else None,
        float(np.mean(np.concatenate(scores) <= _z(level))),
        float(np.mean(np.concatenate(rolled))),
        _scale(scores, sizes, whole, level),
        max(c.reach for c in cuts),
    )


def _quick(law: Law, rows: Rows, settings: FitChoices, like: Fit | None = None) -> Fit:
    """A fit from few starts; like: a fit to more rows, whose optimum is one of them."""
    inputs = law.prepare(rows.columns)
    starts = law.starts(inputs, np.log(rows.y))
    starts = starts[:: max(1, len(starts) // (MAX_STARTS if like is None else CUT_STARTS))]
    if like is not None:
        (T, shift), (T0, shift0) = law.coordinates(inputs.centre), law.coordinates(like.inputs.centre)
        starts = np.concatenate([np.linalg.solve(T, T0 @ like.theta + shift0 - shift)[None], starts])
    return fit(law, rows, start=starts, **settings.keywords())
