"""The report of a fit: a frozen object, as JSON-ready dict and as text.

A parameter that the table does not identify has value None and the reason: its last number is in
`at_optimum`, for programs that predict.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import forecast_text
from .fit import Fit, PriorChoice, Sensitivity
from .forecast import Calibration, LawScore
from .identify import Profile
from .isoflop import Frontier
from .next_run import NextRun
from .optimum import Optimum
from .predictions import Holdout, Prediction
from .search import Convergence
from .text import number, span, table

MOST_RESAMPLES = 100  # that a report carries


@dataclass(frozen=True)
class Estimate:
    """One parameter. value: None where refused; se, low, high: bootstrap by run; profile: interval by profile."""

    name: str
    meaning: str
    value: float | None
    at_optimum: float
    se: float | None
    low: float | None
    high: float | None
    profile: tuple[float | None, float | None] | None
    identified: bool
    reason: str
    held: bool


@dataclass(frozen=True)
class FitReport:
    """Everything that `scalade fit` prints. `fit` is the fitted law itself and is not in `to_dict`."""

    law: str
    equation: str
    source: str
    table: str
    rows: int
    runs: int
    left_out: dict[str, int]
    objective: str
    delta: float | None
    objective_value: float
    parameters: tuple[Estimate, ...]
    convergence: Convergence
    bootstrap_draws: int
    bootstrap_converged: float | None
    level: float
    seed: int
    residual_rmse_log: float
    sensitivity: tuple[Sensitivity, ...] = ()
    optima: tuple[Optimum, ...] = ()
    convention: str = ""
    holdout: Holdout | None = None
    calibration: Calibration | None = None
    laws: tuple[LawScore, ...] = ()
    forecasts: tuple[Prediction, ...] = ()
    frontiers: tuple[Frontier, ...] = ()
    next_runs: tuple[NextRun, ...] = ()
    prior: PriorChoice | None = None
    notes: tuple[str, ...] = ()
    response: str = ""  # column of what is predicted
    columns: dict[str, str] = field(default_factory=dict)  # role -> column
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # role -> least and greatest fitted
    resamples: tuple[tuple[float, ...], ...] = ()  # some of the bootstrap, in the order of the parameters
    fit: Fit | None = field(default=None, repr=False, compare=False)

    @property
    def exit_code(self) -> int:
        """1 where the fit did not converge, for its numbers are of no minimum; else 0."""
        return 0 if self.convergence.converged else 1

    def to_dict(self) -> dict:
        """JSON-ready: numbers, strings, lists, None for what is missing or not finite."""
        return _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "fit"})

    def to_text(self) -> str:
        return "\n".join(_text(self)) + "\n"


def estimates(f: Fit) -> tuple[Estimate, ...]:
    """Parameters of a fit with what is known of each."""
    draws = None if f.draws is None else f.natural_draws()
    return tuple(_estimate(f, j, None if draws is None else draws[:, j]) for j in range(len(f.law.parameters)))


def _estimate(f: Fit, j: int, draws: np.ndarray | None) -> Estimate:
    """Of parameter j; draws: its resamples (B,)."""
    p = f.law.parameters[j]
    held, value = p.name in f.fix, f.natural[p.name]
    curve = next((one for one in f.profiles if one.name == p.name), None)
    spread = _Spread() if draws is None or held else _spread(draws, f.level)
    reason = "" if held else _why_not_identified(f, j, curve)
    return Estimate(
        p.name,
        p.meaning,
        None if reason else value,
        value,
        spread.se,
        spread.low,
        spread.high,
        None if curve is None or curve.withheld else (curve.low, curve.high),
        not reason,
        reason,
        held,
    )


def _why_not_identified(f: Fit, j: int, curve: Profile | None) -> str:
    """ "" where parameter j is identified, or nothing is known of it."""
    if f.law.names[j] not in f.law.bent:
        return "" if curve is None else curve.reason
    refused = {one.name for one in f.profiles if not one.identified}
    moving = sorted(refused & _moves_with(f, j))
    return f"it moves with {moving[0]}, which is not identified" if moving else ""


def some_resamples(f: Fit) -> tuple[tuple[float, ...], ...]:
    """Natural parameters of at most MOST_RESAMPLES of the draws, for programs that predict from the report."""
    if f.draws is None:
        return ()
    rows = f.natural_draws()[:MOST_RESAMPLES]
    return tuple(tuple(map(float, row)) for row in rows if np.isfinite(row).all())


class _Spread(NamedTuple):
    """Standard error and interval of the resamples; None where there are none."""

    se: float | None = None
    low: float | None = None
    high: float | None = None


def _spread(draws: np.ndarray, level: float) -> _Spread:
    tail = 50 * (1 - level)
    with np.errstate(all="ignore"):
        low, high = np.percentile(draws, [tail, 100 - tail])
        return _Spread(float(np.std(draws, ddof=1)), float(low), float(high))


def _moves_with(f: Fit, j: int) -> set[str]:
    """The parameters whose fitted coordinate changes natural parameter j; for those that no profile is made of."""
    step = 1e-6 * np.maximum(np.abs(f.theta), 1.0)
    moved = f.law.natural(f.theta + np.diag(step), f.inputs.centre)[:, j] - f.natural[f.law.names[j]]
    return {n for n, d, h in zip(f.law.names, moved, step, strict=True) if abs(d / h) > 1e-6}


def _plain(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(map(_plain, value))
    return _plain_number(value)


def _plain_number(value):
    """Python's own number, None where it is not finite; anything else as it is."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(r: FitReport) -> Iterator[str]:
    yield from _method(r)
    yield from (f"\n{note}" for note in r.notes if note.startswith("WARNING"))
    yield from _not_converged(r)
    yield from _parameters(r)
    yield from _prior(r)
    if r.bootstrap_converged is not None:
        yield (
            f"  bootstrap: {r.bootstrap_draws} resamples of {r.runs} runs, {r.bootstrap_converged:.1%} converged, "
            f"seed {r.seed}"
        )
    yield from _sensitivity(r)
    yield from forecast_text.optima(r.optima, r.convention, r.level)
    for f in r.frontiers:
        yield from forecast_text.frontier(f, f"{r.level:.0%}")
    yield from forecast_text.laws(r.laws, r.calibration)
    yield from forecast_text.forecasts(r.forecasts, r.laws, r.level)
    yield from forecast_text.holdout(r.holdout, r.law, r.level, stacked=bool(r.laws))
    yield from forecast_text.next_runs(r.next_runs)
    yield from (f"\nnote: {note}" for note in r.notes if not note.startswith("WARNING"))
    yield from _not_converged(r)


def _method(r: FitReport) -> Iterator[str]:
    """The law, the rows it was fitted to, and how."""
    yield f"{r.law}: {r.equation}"
    yield f"  {r.source}"
    left_out = "".join(f"; {n} left out ({why})" for why, n in r.left_out.items() if n)
    yield f"  {r.rows} rows of {r.runs} runs from {r.table}{left_out}"
    how = r.objective if r.delta is None else f"{r.objective} (delta {r.delta:g})"
    of = "residuals" if r.objective == "raw_squares" else "log residuals"
    yield f"  objective: {how} on {of} = {r.objective_value:.8g}; rms log residual {r.residual_rmse_log:.4g}"


def _sensitivity(r: FitReport) -> Iterator[str]:
    if not r.sensitivity:
        return
    yield "\nsensitivity"
    names = [e.name for e in r.parameters if not e.held]
    yield from table(
        ["", "rows", *names],
        [[f"{s.what}: {s.setting}", str(s.n), *(number(s.parameters[n]) for n in names)] for s in r.sensitivity],
    )


def _parameters(r: FitReport) -> Iterator[str]:
    c, pct = r.convergence, f"{r.level:.0%}"
    yield ""
    body = list(map(_estimate_cells, r.parameters))
    yield from table(["parameter", "value", "se", f"{pct} by run", f"{pct} profile"], body)
    yield from (f"  {e.name}: no point estimate, {e.reason}" for e in r.parameters if not e.identified)
    yield ""
    yield (
        f"  {'converged' if c.converged else 'NOT CONVERGED'}: {c.at_optimum} of {c.starts} starts at the optimum, "
        f"gradient {c.gradient:.1e}, condition {c.condition:.2g} (natural parameters: {c.condition_natural:.2g})"
    )


def _estimate_cells(e: Estimate) -> list[str]:
    value = number(e.value) if e.held or e.identified else "not identified"
    by_run = "-" if e.low is None else span((e.low, e.high))
    return [e.name, f"held {value}" if e.held else value, number(e.se, 3), by_run, span(e.profile)]


def _prior(r: FitReport) -> Iterator[str]:
    if not r.prior:
        return
    yield f"\nprior: strength {r.prior.strength:g}, {r.prior.how}"
    yield f"  {r.prior.reason}"
    yield from table(
        ["", "centre", "scale", "without the prior"],
        [
            [n, *(("-", "-") if n not in r.prior.terms else map(number, r.prior.terms[n])), number(v)]
            for n, v in r.prior.without.items()
        ],
    )
    yield f"  objective without the prior: {r.prior.without_value:.8g}"
    if r.prior.tried:
        yield "  left-out score by strength: " + ", ".join(f"{s:g}: {v:.0f}" for s, v in r.prior.tried)


def _not_converged(r: FitReport) -> Iterator[str]:
    if not r.convergence.converged:
        yield (
            f"\nNOT CONVERGED: {r.convergence.why_not}; the numbers are of the lowest point found, which may not be "
            "the minimum. Hold a parameter that is not identified (--fix), take a law with fewer, or more rows"
        )
