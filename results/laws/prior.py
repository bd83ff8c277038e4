"""A weak prior for a law that few runs do not identify, its strength chosen by leaving out one fitted run at a time.

A law declares where its parameters lie when the table is silent (`Law.prior`: centre and scale, its reason in the
law's file). The fit then minimises  objective + strength tau/2 sum_j ((phi_j - centre_j)/scale_j)^2,  tau the
likelihood's unit E psi^2 / E psi' (`identify.spread`), so strength 1 is the prior as declared against independent
rows. The strength is the strongest within one paired standard error of the best leave-one-run-out objective
(Breiman et al. 1984): runs of the fit cannot tell such strengths apart, and a longer run than any of them will.
Held-out rows are never seen. Off unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np

from .base import Law, get_law
from .fit import Fit, FitSettings, PriorChoice, fit
from .identify import spread
from .resample import Progress
from .solver import LOGS, Objective
from .table import Rows

Fixed = Mapping[str, float | str] | None
STRENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)


def choose_strength(
    law: str | Law, tables: Sequence[Rows], *, objective: Objective = LOGS, fix: Fixed = None
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The strength that the fitted runs of these tables choose together, and the score of each strength.

    The score is the objective over the runs left out, in units of each table's tau. Raises ValueError under three runs.
    """
    law, by_table = get_law(law), []
    for rows in tables:
        if rows.clusters < 3:
            raise ValueError(
                f"prior: {rows.clusters} runs cannot choose its strength by leaving one out; give a number"
            )
        unit = _unit(fit(law, rows, objective=objective, fix=fix))
        by_table.append(_left_out(law, rows, unit, objective, fix) / unit)
    scores = np.concatenate(by_table, 1)
    worse = scores - scores[scores.sum(1).argmin()]
    error = worse.std(1, ddof=1) * np.sqrt(scores.shape[1])  # of a sum over runs
    strength = max(s for s, w, e in zip(STRENGTHS, worse.sum(1), error, strict=True) if w <= e)
    return strength, tuple(zip(STRENGTHS, map(float, scores.sum(1)), strict=True))


def fit_with_prior(
    law: str | Law,
    rows: Rows,
    strength: float | str = "auto",
    *,
    progress: Progress | None = None,
    **settings: Unpack[FitSettings],
) -> Fit:
    """`fit` under the law's prior at a strength, or at the one its own runs choose ("auto"); the rest as for `fit`.

    Raises ValueError for a law that declares no prior, or a strength that is neither "auto" nor a number >= 0.
    """
    law, objective, fix = get_law(law), settings.get("objective", LOGS), settings.get("fix")
    plain = fit(law, rows, objective=objective, fix=fix)
    terms = law.prior(plain.inputs, plain.log_y)
    if not terms:
        raise ValueError(f"prior: law {law.name!r} declares none, it is fitted as it is")
    tried: tuple[tuple[float, float], ...] = ()
    how = "given"
    if strength == "auto":
        strength, tried = choose_strength(law, [rows], objective=objective, fix=fix)
        how = f"the strongest within a standard error of the best over {rows.clusters} left-out runs"
    elif isinstance(strength, str) or not 0 <= strength < np.inf:
        raise ValueError(f"prior: 'auto' or a strength of 0 or more, got {strength!r}")
    settings["prior"] = float(strength) * _unit(plain)
    f = fit(law, rows, progress=progress, **settings)
    choice = PriorChoice(law.prior_reason, terms, float(strength), how, tried, plain.natural, plain.value)
    return replace(f, prior=choice, plain=plain)


def _unit(plain: Fit) -> float:
    r = plain.residuals
    if plain.objective.kind == "raw_squares":
        r = plain.rows.y - np.exp(plain.log_y - r)
    return spread(r, plain.objective, len(plain.theta) - len(plain.fix))[0]


def _left_out(law: Law, rows: Rows, unit: float, objective: Objective, fix: Fixed) -> np.ndarray:
    """Objective (strength, run) of each run under the fit to the others, followed from the strongest prior down."""
    out = np.empty((len(STRENGTHS), rows.clusters))
    for run in range(rows.clusters):
        train, test = rows.take(rows.cluster != run), rows.take(rows.cluster == run)
        start = None
        for k in np.argsort(STRENGTHS)[::-1]:
            f = fit(law, train, objective=objective, fix=fix, prior=STRENGTHS[k] * unit, start=start)
            start = f.theta
            out[k, run] = objective.of(np.log(test.y), f.log_predict(test.columns))
    return out
