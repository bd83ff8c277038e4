"""Predictions from a forecast: of runs that have no loss yet, of the optimum of a budget, of held-out rows.

One predictor answers all of them, the stack of `forecast.py`: its point, its calibrated interval, and how far beyond
the table the run lies. Where no interval could be calibrated there is none, and the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .base import Law, unknown
from .fit import Fit
from .forecast import Forecast
from .table import Rows

WORST = 20  # held-out rows that a report lists
FAR = 10.0  # times above the largest or below the smallest of a column that need a warning where no cut tested it
OTHER_UNITS = 1e3  # times below the smallest: no run of this table's kind


@dataclass(frozen=True)
class Prediction:
    """One run that has no loss yet.

    columns: role -> value; target_flops: the budget whose optimum this is, or None. low, high, width (high/low - 1):
    calibrated, None with the reason in `why_not`. beyond: the run's value over the table's largest, per role and of
    `extent` (compute where the law reads N and D). nearest: the fitted run that is nearest in logs, and its distance
    as a factor, the largest over the roles. note: what makes the interval doubtful here.
    """

    columns: dict[str, float]
    point: float
    low: float | None
    high: float | None
    width: float | None
    beyond: dict[str, float]
    nearest: dict[str, float]
    nearest_factor: float
    target_flops: float | None = None
    why_not: str = ""
    note: str = ""


@dataclass(frozen=True)
class Holdout:
    """Rows that chose nothing, and how the forecast did on them: the same stack and interval that is printed for runs
    without a loss.

    rmse_log, relative_error (mean, absolute), calibrated_coverage, calibrated_width (median of high/low - 1) and
    calibrated_score (mean interval score of Gneiting and Raftery 2007 in logs) are the stack's; law_* and plain_* are
    of the first law alone and its bootstrap.
    """

    rows: int
    rmse_log: float
    relative_error: float
    calibrated_coverage: float | None
    calibrated_width: float | None
    calibrated_score: float | None
    law_rmse_log: float
    law_relative_error: float
    plain_coverage: float | None
    plain_score: float | None
    worst: tuple[dict, ...]  # per row: columns, observed, predicted, relative error, interval


def points(law: Law, at: Sequence[Mapping[str, float]], names: Mapping[str, str], data: Rows) -> list[dict[str, float]]:
    """The runs asked for, role -> value. `at` may say roles or the table's columns (names: role -> column).

    Raises ValueError on a name that is neither, a role left out or given twice, and a value that is no positive
    number or so far below the table's that it is in other units.
    """
    if at and law.needs_run:
        raise ValueError(f"at: law {law.name!r} reads whole curves, not single runs")
    role_of = {column: role for role, column in names.items()} | {role: role for role in law.roles}
    return [_point(law, run, role_of, data) for run in at]


def _point(law: Law, asked: Mapping[str, float], role_of: Mapping[str, str], data: Rows) -> dict[str, float]:
    run = _by_role(law, asked, role_of)
    for role, least in _least(law, data).items():
        if run[role] * OTHER_UNITS < least:
            raise ValueError(
                f"at: {role}={run[role]:g} is {least / run[role]:.3g} times below the smallest of the table, "
                f"{least:.4g}: give it in the units of the table"
            )
    return run


def _by_role(law: Law, asked: Mapping[str, float], role_of: Mapping[str, str]) -> dict[str, float]:
    """Raises ValueError on an unknown name, a role left out or given twice, and a value that is no positive number."""
    run: dict[str, float] = {}
    reads = ", ".join(law.roles)
    for name, value in asked.items():
        if name not in role_of:
            raise ValueError(f"at: law {law.name!r} reads {reads}: " + unknown("role", name, role_of))
        role = role_of[name]
        if not _can_be(value, zero=role in law.zero_ok):
            raise ValueError(f"at: {name} must be a positive number, got {value:g}")
        if role in run:
            raise ValueError(f"at: {role} is given twice, the second time as {name}={value:g}")
        run[role] = float(value)
    missing = [role for role in law.roles if role not in run]
    if missing:
        raise ValueError(f"at: law {law.name!r} reads {reads}: {', '.join(missing)} is not given")
    return run


def _can_be(value: float, zero: bool) -> bool:
    return bool(np.isfinite(value) and (value > 0 or (zero and value == 0)))


def _least(law: Law, data: Rows) -> dict[str, float]:
    """The smallest value of each column that is above 0 everywhere."""
    return {r: float(data.columns[r].min()) for r in law.roles if r not in law.zero_ok}


def predictions(
    cast: Forecast, data: Rows, asked: Sequence[Mapping[str, float]], flops: Sequence[float | None] | None = None
) -> tuple[Prediction, ...]:
    """The forecast at each run asked for; flops: the budget that each is the optimum of, or None."""
    if not asked:
        return ()
    law = cast.fits[0].law
    columns = {r: np.array([run[r] for run in asked], float) for r in law.roles}
    point, low, high = cast.predict(columns)
    ratios = {r: columns[r] / data.columns[r].max() for r in law.roles if data.columns[r].max() > 0}
    ratios["extent"] = law.extent(columns) / law.extent(data.columns).max()
    least, budgets = _least(law, data), flops or [None] * len(asked)
    out = []
    for i, run in enumerate(asked):
        near, factor = _nearest(law, data, run)
        beyond = {r: float(v[i]) for r, v in ratios.items()}
        doubt = _doubt(cast, run, beyond, least)
        interval = _interval(cast, float(low[i]), float(high[i]))
        out.append(
            Prediction(dict(run), float(point[i]), *interval, beyond, near, factor, budgets[i], cast.why_not, doubt)
        )
    return tuple(out)


def _interval(cast: Forecast, low: float, high: float) -> tuple[float | None, float | None, float | None]:
    """(low, high, width), each None where the stack was not calibrated."""
    return (None, None, None) if cast.calibration is None else (low, high, high / low - 1)


def _nearest(law: Law, data: Rows, run: Mapping[str, float]) -> tuple[dict[str, float], float]:
    roles = [r for r in law.roles if r not in law.zero_ok]
    away = np.stack([np.abs(np.log(data.columns[r] / run[r])) for r in roles], 1)
    k = int(np.argmin((away**2).sum(1)))
    return {r: float(data.columns[r][k]) for r in law.roles}, float(np.exp(away[k].max()))


def _doubt(cast: Forecast, run: Mapping[str, float], beyond: Mapping[str, float], least: Mapping[str, float]) -> str:
    """The warning for a run that lies outside the table, with how far; "" for one inside."""
    tested = cast.calibration.reach if cast.calibration else 1.0
    far = max(tested**0.5, FAR)  # each of two columns takes its half of a reach in compute
    say = [f"{role} is {v:.3g} times the largest" for role, v in beyond.items() if role != "extent" and v > far]
    say += [f"{r} is {v / run[r]:.3g} times below the smallest" for r, v in least.items() if run[r] * FAR < v]
    if cast.calibration and beyond["extent"] > tested * 1.001:
        say.insert(0, f"{beyond['extent']:.3g} times the largest run; intervals were tested up to {tested:.3g} times")
    return "; ".join(say)


def score(log_y: np.ndarray, log_low: np.ndarray, log_high: np.ndarray, level: float) -> float:
    """Mean interval score in logs: width + 2/(1 - level) times what lies outside (Winkler 1972)."""
    outside = np.maximum(log_low - log_y, 0) + np.maximum(log_y - log_high, 0)
    return float(np.mean(log_high - log_low + 2 / (1 - level) * outside))


def _plain_coverage(f: Fit, draws: np.ndarray, test: Rows) -> tuple[float, float]:
    """Share of the rows inside the law's own interval, by its resamples (B, p), and the interval score."""
    log_y, tail = np.log(test.y), 50 * (1 - f.level)
    low, high = np.nanpercentile(f.log_predict(test.columns, draws), [tail, 100 - tail], axis=0)
    inside = float(np.mean((low <= log_y) & (log_y <= high)))
    return inside, score(log_y, low, high, f.level)


def holdout(f: Fit, cast: Forecast | None, test: Rows) -> Holdout:
    """The errors of the forecast (of the law alone without one) on held-out rows. Raises ValueError without rows."""
    if len(test.y) == 0:
        raise ValueError("holdout: every held-out row has nulls")
    log_y, law_point = np.log(test.y), f.predict(test.columns)
    predicted, interval = law_point, None
    if cast is not None:
        predicted, *ends = cast.predict(test.columns)
        interval = None if cast.calibration is None else ends
    calibrated, width = None, None
    if interval is not None:
        low, high = interval
        calibrated, width = _coverage(test.y, low, high, f.level), float(np.median(high / low - 1))
    plain = None if f.draws is None else _plain_coverage(f, f.draws, test)
    return Holdout(
        len(test.y),
        float(np.sqrt(np.mean((np.log(predicted) - log_y) ** 2))),
        float(np.abs(predicted / test.y - 1).mean()),
        None if calibrated is None else calibrated[0],
        width,
        None if calibrated is None else calibrated[1],
        float(np.sqrt(np.mean((np.log(law_point) - log_y) ** 2))),
        float(np.abs(law_point / test.y - 1).mean()),
        None if plain is None else plain[0],
        None if plain is None else plain[1],
        _worst(f.law, test, predicted, interval),
    )


def _coverage(y: np.ndarray, low: np.ndarray, high: np.ndarray, level: float) -> tuple[float, float]:
    """The share of y (n,) inside its interval, and the interval score."""
    return float(np.mean((low <= y) & (y <= high))), score(np.log(y), np.log(low), np.log(high), level)


def _worst(law: Law, test: Rows, predicted: np.ndarray, interval: list[np.ndarray] | None) -> tuple[dict, ...]:
    """The rows that are forecast worst, the worst first."""
    relative = np.abs(predicted / test.y - 1)
    return tuple(
        {
            **{r: test.columns[r][i] for r in law.roles},
            "observed": test.y[i],
            "predicted": predicted[i],
            "relative_error": relative[i],
            "low": None if interval is None else interval[0][i],
            "high": None if interval is None else interval[1][i],
        }
        for i in np.argsort(-relative)[:WORST]
    )
