"""The stages of `fit_file` that look ahead: optima, approaches 1 and 2, forecast, held-out rows, the run to add next.

Each takes what was fitted and returns the report with its part filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .base import Law, get_law
from .forecast import Forecast, forecast
from .isoflop import Frontier, FrontierSettings, envelope, isoflop
from .next_run import candidate_grid, next_runs
from .optimum import Optimum, identified_optimum, optimum
from .predictions import OTHER_UNITS, Prediction, predictions
from .predictions import holdout as held_out
from .report import FitReport
from .resample import Progress
from .source import Fitted, compute_of
from .table import Rows, column

STACKS = (  # laws of the same columns that a forecast is stacked from; any other law stands alone
    ("chinchilla", "skaling", "kaplan", "overtraining"),
    ("diloco_joint", "diloco_joint_constant", "diloco_exponent", "diloco_additive"),
    ("routed", "routed_saturating"),
    ("power", "power_constant"),
)
NOTHING = "the law says no more than a constant"


def look_ahead(report: FitReport, fitted: Fitted, runs: list[dict[str, float]], progress: Progress | None) -> FitReport:
    """The report with the forecast of `runs`, of the optima and of the held-out rows, and the run to add next."""
    cast = None
    if fitted.noise:
        if _asks_ahead(fitted, runs):
            report = _with_notes(report, f"no forecast: {NOTHING}")
    elif _needs_forecast(fitted, runs):
        cast = _forecast(fitted, progress)
        report = _forecasts(report, cast, fitted.rows, runs)
    if fitted.options.rows.holdout is not None:
        source = fitted.source
        test = source.rows_of(source.frame[source.keep & source.held])
        report = replace(report, holdout=held_out(fitted.fit, cast, test))
    budget = fitted.options.forecast.budget_device_hours
    if budget is not None and not fitted.noise:
        report = _next(report, fitted, cast, budget)
    return report


def _asks_ahead(fitted: Fitted, runs: list[dict[str, float]]) -> bool:
    """Whether anything asked for is answered by a forecast."""
    options = fitted.options
    rows_or_budget = options.rows.holdout is not None or options.forecast.budget_device_hours is not None
    return bool(runs or options.compute.target_flops or options.forecast.compare) or rows_or_budget


def _needs_forecast(fitted: Fitted, runs: list[dict[str, float]]) -> bool:
    """A stack is made where it is asked for, and for what is asked, unless it was refused (compare=()) or the law
    reads whole curves."""
    options = fitted.options.forecast
    if options.compare or options.budget_device_hours is not None:
        return True
    return options.compare is None and not fitted.source.law.needs_run and _asks_ahead(fitted, runs)


def _with_notes(report: FitReport, *notes: str) -> FitReport:
    return replace(report, notes=report.notes + notes)


def _forecast(fitted: Fitted, progress: Progress | None) -> Forecast:
    """The stack of the laws, fitted to the rows (of a large table to its sample)."""
    options, f = fitted.options, fitted.fit
    some = fitted.rows if f.sample is None else f.sample.rows
    draws = 0 if options.forecast.budget_device_hours is None else options.intervals.bootstrap
    stack = _stack_of(fitted.source.law, options.forecast.compare)
    return forecast(stack, some, compute_of(fitted, some), draws=draws, progress=progress, **fitted.settings)


def _stack_of(law: Law, compare: Sequence[str] | None) -> list[str]:
    """The laws of a forecast, the user's first. Raises ValueError where they read other columns than it does."""
    if law.needs_run:
        raise ValueError(f"forecast: law {law.name!r} reads whole curves; there is a plain holdout only (compare=())")
    compare = _usual_stack(law) if compare is None else compare
    for other in map(get_law, compare):
        if set(other.roles) != set(law.roles) or other.response != law.response:
            raise ValueError(
                f"compare: laws are stacked over the same columns; {law.name!r} predicts {law.response} from "
                f"{', '.join(law.roles)}, {other.name!r} {other.response} from {', '.join(other.roles)}"
            )
    return list(dict.fromkeys([law.name, *compare]))


def _usual_stack(law: Law) -> tuple[str, ...]:
    alone = STACKS[0] if law.roles == ("params", "tokens") and law.response == "loss" else ()
    return next((stack for stack in STACKS if law.name in stack), alone)


def _forecasts(report: FitReport, cast: Forecast, data: Rows, runs: list[dict[str, float]]) -> FitReport:
    """The runs asked for, and the loss at every optimum: one predictor for both."""
    best = _known(report)
    at_best = predictions(cast, data, [run for _, run in best], [flops for flops, _ in best])
    by_flops = {p.target_flops: p for p in at_best}
    report = replace(
        report,
        laws=cast.scores,
        calibration=cast.calibration,
        forecasts=at_best + predictions(cast, data, runs),
        optima=tuple(_with_loss(o, by_flops.get(o.flops)) for o in report.optima),
    )
    return _with_notes(report, cast.why_not) if cast.why_not else report


def _with_loss(best: Optimum, p: Prediction | None) -> Optimum:
    if p is None:
        return best
    return replace(best, loss=p.point, loss_interval=None if p.low is None or p.high is None else (p.low, p.high))


def _known(report: FitReport) -> list[tuple[float, dict[str, float]]]:
    """(FLOPs, role -> N* or D*) of every optimum that the table identifies."""
    return [
        (o.flops, {"params": o.params, "tokens": o.tokens})
        for o in report.optima
        if o.params is not None and o.tokens is not None
    ]


def with_optima(report: FitReport, fitted: Fitted) -> FitReport:
    """The report with the compute optimum of every budget."""
    f, data, options = fitted.fit, fitted.rows, fitted.options.compute
    k, targets = options.flops_per_nd, options.target_flops
    if not targets:
        return report
    _check_units(targets, fitted)
    optima = tuple(identified_optimum(f, float(c), k) for c in targets)
    report = replace(report, optima=optima, convention=f"C = {k:g} N D")
    if options.flops is None:
        return report
    measured = float(np.median(compute_of(fitted, data) / (data.columns["params"] * data.columns["tokens"])))
    if abs(measured / k - 1) <= 1e-3 or optima[-1].params is None:
        return report
    other = optimum(f, float(targets[-1]), measured)
    return _with_notes(
        report,
        f"under the FLOPs of column {options.flops!r} (C = {measured:.3g} N D) N* at {targets[-1]:.3g} "
        f"is {other.params:.4g}, not {optima[-1].params:.4g}",
    )


def _check_units(targets: Sequence[float], fitted: Fitted) -> None:
    """Raises ValueError where a budget is so far below the table's runs that it is in other units."""
    if not {"params", "tokens"} <= set(fitted.rows.columns):
        return
    least = float(fitted.nd.min())
    low = next((c for c in targets if c * OTHER_UNITS**2 < least), None)
    if low is not None:
        raise ValueError(
            f"target_flops: {low:g} is {least / low:.3g} times below the smallest run of the table, {least:.3g} "
            "FLOPs: give FLOPs"
        )


def frontiers(fitted: Fitted) -> tuple[Frontier, ...]:
    """The line N* = G C^a of each approach that was asked for."""
    return tuple(_frontier(method, fitted) for method in fitted.options.compute.approach)


def _frontier(method: str, fitted: Fitted) -> Frontier:
    data, options, f = fitted.rows, fitted.options.compute, fitted.fit
    if method not in ("isoflop", "envelope"):
        raise ValueError(f"approach: unknown {method!r}; there is isoflop, envelope")
    if "params" not in data.columns or ("tokens" not in data.columns and options.flops is None):
        raise ValueError(f"approach {method}: needs a params column and tokens or flops")
    params, compute = data.columns["params"], compute_of(fitted, data)
    settings = FrontierSettings(
        level=f.level, seed=f.seed, targets=options.target_flops, flops_per_nd=options.flops_per_nd
    )
    if method == "isoflop":
        return isoflop(params, compute, data.y, nearest=options.nearest, **settings)
    if fitted.options.rows.run is None:
        raise ValueError("approach envelope: name the column that tells runs apart (run)")
    return envelope(data.columns["run"], params, compute, data.y, **settings)


def _next(report: FitReport, fitted: Fitted, cast: Forecast | None, budget: float) -> FitReport:
    """The report with the runs that may be added within the budget of device-hours, best first."""
    f, data, k = fitted.fit, fitted.rows, fitted.options.compute.flops_per_nd
    if cast is None or f.law.roles != ("params", "tokens"):
        raise ValueError(f"budget_device_hours: law {f.law.name!r} does not read params and tokens")
    rate = _flops_per_device_hour(fitted)
    best = [run for _, run in _known(report)]
    if best:
        target = {role: np.array([run[role] for run in best]) for role in ("params", "tokens")}
    else:
        far = optimum(f, 10 * float(fitted.nd.max()), k)
        target = {"params": np.array([far.params]), "tokens": np.array([far.tokens])}
        report = _with_notes(
            report, "target of the next run: the optimum at ten times the largest compute of the table"
        )
    some = candidate_grid(data.columns["params"], data.columns["tokens"])
    candidates = next_runs(cast, target, some, k * some["params"] * some["tokens"] / rate, budget)
    return replace(report, next_runs=candidates)


def _flops_per_device_hour(fitted: Fitted) -> float:
    options = fitted.options.forecast
    rate = options.flops_per_device_hour
    if rate is None:
        rate = _rate_of_column(fitted, options.device_hours)
    if not rate > 0:
        raise ValueError(f"flops_per_device_hour must be positive, got {rate:g}")
    return rate


def _rate_of_column(fitted: Fitted, name: str | None) -> float:
    """FLOPs per device-hour, the median over the rows of the table."""
    if name is None:
        raise ValueError("budget_device_hours needs a cost: name a device_hours column or give flops_per_device_hour")
    spent = column(fitted.source.train, name, "device_hours").loc[fitted.rows.index].to_numpy(float)
    fine = np.isfinite(spent) & (spent > 0)
    if not fine.any():
        raise ValueError(f"device_hours: column {name!r} has no positive value")
    return float(np.median(fitted.nd[fine] / spent[fine]))
