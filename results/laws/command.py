"""`scalade fit`: one function from a file and column names to a report. The command line only parses and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..where import where as where_rows
from .base import get_law
from .fit import Fit, fit, with_profiles, with_sensitivity
from .forecast import Forecast, forecast
from .isoflop import envelope, isoflop
from .next_run import candidate_grid, next_runs
from .optimum import optimum
from .prior import fit_with_prior
from .report import FitReport, Holdout, estimates
from .resample import Progress
from .solver import Objective
from .table import Rows, column, read_table, rows

STACK = ("chinchilla", "skaling", "kaplan", "overtraining")  # the laws of (N, D) a forecast is stacked from


def fit_file(
    path: str | Path | pd.DataFrame,
    *,
    law: str = "chinchilla",
    params: str | None = None,
    tokens: str | None = None,
    loss: str | None = None,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    holdout: str | None = None,
    run: str | None = None,
    objective: str = "huber",
    delta: float = 1e-3,
    fix: Mapping[str, float | str] | None = None,
    prior: float | str | None = None,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    flops: str | None = None,
    flops_per_nd: float = 6.0,
    target_flops: Sequence[float] = (),
    alternatives: Mapping[str, str] | None = None,
    compare: Sequence[str] | None = None,
    approach: Sequence[str] = (),
    budget_device_hours: float | None = None,
    device_hours: str | None = None,
    flops_per_device_hour: float | None = None,
    profile: bool = True,
    sensitivity: bool = True,
    progress: Progress | None = None,
) -> FitReport:
    """Fit `law` to the table at `path` (CSV or Parquet), or to the frame itself.

    params, tokens, loss: column names of the usual roles; columns: role -> column for any other law (and
    "loss", or the law's own response, for its response). where, holdout: row expressions; held-out rows
    are taken away before anything is centred, fitted, weighted or scaled. run: the column telling runs
    apart (default: each row a run). prior: strength of the law's own weak prior, or "auto" (`prior.py`); by
    default none. flops: a FLOPs column, for cuts, for approaches 1 and 2 and as a second convention.
    target_flops: budgets for the compute optimum. alternatives: role -> other column, for the sensitivity table.
    compare: laws to stack and calibrate with (default: those of N and D when
    there is a holdout or a device-hour budget; () for none). approach: "isoflop", "envelope".
    budget_device_hours: rank runs to add; cost from `device_hours` (column) or `flops_per_device_hour`.
    progress(stage, fraction) is called while work is long. Raises ValueError with one line for a user's mistake.
    """
    the_law, given_frame = get_law(law), isinstance(path, pd.DataFrame)
    frame = path if given_frame else read_table(path)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level:g}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 or more resamples, got {bootstrap}")
    names = dict(columns or {}) | {r: c for r, c in (("params", params), ("tokens", tokens)) if c}
    if loss and "loss" in the_law.roles:  # the law reads the loss and predicts something else
        names.setdefault("loss", loss)
        loss = None
    response = names.pop(the_law.response, None) or names.pop("y", None) or loss or the_law.response
    keep = pd.Series(True, index=frame.index) if where is None else where_rows(frame, where)
    held = pd.Series(False, index=frame.index) if holdout is None else where_rows(frame, holdout)
    if not keep.any():
        raise ValueError(f"where {where!r}: no row is left")
    if holdout is not None and not (keep & held).any():
        raise ValueError(f"holdout {holdout!r}: matches no row" + (" that where keeps" if where else ""))
    train_frame = frame[keep & ~held]
    given = rows(the_law, train_frame, names, response, run)
    settings = Objective(objective, delta)

    asked = dict(objective=settings, fix=dict(fix or {}), bootstrap_draws=bootstrap, level=level, seed=seed)
    if prior is None:
        f = fit(the_law, given, progress=progress, **asked)
    else:
        f = fit_with_prior(the_law, given, prior, progress=progress, **asked)
    notes = [f.no_draws] if f.no_draws else []
    if given.copies:
        notes.append(
            f"{given.copies} rows are exact copies of others" + ("" if run else "; copies were resampled as one run")
        )
    if run is None and f.draws is not None:
        notes.append("no run column: every row was resampled as a run of its own")
    if f.draws_converged is not None and f.draws_converged < 0.95:
        notes.append(
            f"{1 - f.draws_converged:.0%} of the resamples did not converge: the table hardly identifies this law, "
            "and its intervals are rough"
        )
    if profile:
        f = with_profiles(f)
        notes += f.notes
    if prior is not None and profile:
        off = [p.name for p in f.profiles if not (p.low or -np.inf) <= f.natural[p.name] <= (p.high or np.inf)]
        if off:
            notes.append(f"profiles are of the data without the prior, which moves {', '.join(off)} outside them")
    if the_law.needs_run and profile:
        notes.append(
            "profiles take the rows of a curve as independent; they are not, so read them as lower bounds of the width"
        )
    if sensitivity:
        everything = None if where is None else _rows_if_usable(the_law, frame[~held], names, response, run)
        others = {
            f"{role} = {other}": rows(the_law, train_frame, names | {role: other}, response, run)
            for role, other in (alternatives or {}).items()
        }
        f = with_sensitivity(f, everything, others, progress)

    report = FitReport(
        law=the_law.name,
        equation=the_law.equation,
        source=the_law.source,
        table=path.attrs.get("table", "frame") if given_frame else Path(path).name,
        rows=len(given.y),
        runs=given.clusters,
        left_out={"where": int((~keep).sum()), "held out": int((keep & held).sum()), "null": given.missing},
        objective=settings.kind,
        delta=settings.delta if settings.kind == "huber" else None,
        objective_value=f.value,
        parameters=estimates(f),
        convergence=f.convergence,
        bootstrap_draws=0 if f.draws is None else len(f.draws),
        bootstrap_converged=f.draws_converged,
        level=level,
        seed=seed,
        residual_rmse_log=float(np.sqrt(np.mean(f.residuals**2))),
        sensitivity=f.sensitivity,
        prior=f.prior,
        notes=tuple(notes),
        fit=f,
    )
    report = _optima(report, f, train_frame, given, flops, flops_per_nd, target_flops)
    report = _frontiers(report, approach, train_frame, given, names, response, run, flops, flops_per_nd, level, seed)
    of_nd = set(the_law.roles) == {"params", "tokens"} and the_law.response == "loss"
    if compare is None:
        compare = STACK if of_nd and (holdout is not None or budget_device_hours is not None) else ()
    cast = None
    if compare and not of_nd:
        raise ValueError(
            f"compare: laws are stacked over params and tokens; {the_law.name!r} reads {', '.join(the_law.roles)}"
        )
    if compare or (of_nd and budget_device_hours is not None):
        laws = list(dict.fromkeys([the_law.name, *compare]))
        cast = forecast(
            laws,
            given,
            _compute(given, train_frame, flops, flops_per_nd),
            objective=settings,
            level=level,
            seed=seed,
            draws=bootstrap,
            progress=progress,
        )
        report = replace(
            report,
            laws=cast.scores,
            calibration=cast.calibration,
            notes=report.notes + ((cast.why_not,) if cast.why_not else ()),
        )
    if holdout is not None:
        report = replace(report, holdout=_holdout(f, cast, rows(the_law, frame[keep & held], names, response, run)))
    if budget_device_hours is not None:
        report = _next(
            report,
            f,
            cast,
            train_frame,
            given,
            flops_per_nd,
            target_flops,
            budget_device_hours,
            device_hours,
            flops_per_device_hour,
        )
    return report


def _rows_if_usable(law, frame, names, response, run) -> Rows | None:
    """The rows `where` left out as well, if they can be fitted at all: they are only a comparison."""
    try:
        return rows(law, frame, names, response, run)
    except ValueError:
        return None


def _compute(given: Rows, frame, flops, flops_per_nd) -> np.ndarray:
    if flops is not None:
        values = column(frame, flops, "flops").loc[given.index].to_numpy(float)
        if np.isfinite(values).all() and (values > 0).all():
            return values
        raise ValueError(f"flops: column {flops!r} holds null, zero or negative values")
    return flops_per_nd * given.columns["params"] * given.columns["tokens"]


def _optima(report, f: Fit, frame, given, flops, k, targets) -> FitReport:
    if not targets:
        return report
    found = [optimum(f, float(c), k) for c in targets]
    notes = report.notes
    if flops is not None:
        measured = float(
            np.median(_compute(given, frame, flops, k) / (given.columns["params"] * given.columns["tokens"]))
        )
        other = optimum(f, float(targets[-1]), measured)
        if abs(measured / k - 1) > 1e-3:
            notes += (
                f"under the FLOPs of column {flops!r} (C = {measured:.3g} N D) N* at {targets[-1]:.3g} "
                f"is {other.params:.4g}, not {found[-1].params:.4g}",
            )
    return replace(report, optima=tuple(found), convention=f"C = {k:g} N D", notes=notes)


def _frontiers(report, approach, frame, given, names, response, run, flops, k, level, seed) -> FitReport:
    out = []
    for method in approach:
        if method not in ("isoflop", "envelope"):
            raise ValueError(f"approach: unknown {method!r}; there is isoflop, envelope")
        if "params" not in given.columns or ("tokens" not in given.columns and flops is None):
            raise ValueError(f"approach {method}: needs a params column and tokens or flops")
        compute = _compute(given, frame, flops, k)
        if method == "isoflop":
            out.append(isoflop(given.columns["params"], compute, given.y, level=level, seed=seed))
        elif run is None:
            raise ValueError("approach envelope: name the column that tells runs apart (run)")
        else:
            out.append(
                envelope(given.columns["run"], given.columns["params"], compute, given.y, level=level, seed=seed)
            )
    return replace(report, frontiers=tuple(out))


def _holdout(f: Fit, cast: Forecast | None, test: Rows) -> Holdout:
    if len(test.y) == 0:
        raise ValueError("holdout: every held-out row has nulls")
    predicted = f.predict(test.columns)
    plain = calibrated = None
    low = high = [None] * len(test.y)
    if f.draws is not None:
        tail = 50 * (1 - f.level)
        a, b = np.exp(np.nanpercentile(f.log_predict(test.columns, f.draws), [tail, 100 - tail], axis=0))
        plain = float(np.mean((a <= test.y) & (test.y <= b)))
    if cast is not None and cast.calibration is not None:
        _, low, high = cast.predict(test.columns)
        calibrated = float(np.mean((low <= test.y) & (test.y <= high)))
    relative = np.abs(predicted / test.y - 1)
    worst = tuple(
        {
            **{r: test.columns[r][i] for r in f.law.roles},
            "observed": test.y[i],
            "predicted": predicted[i],
            "relative_error": relative[i],
            "low": low[i],
            "high": high[i],
        }
        for i in np.argsort(-relative)[:20]
    )
    return Holdout(
        len(test.y),
        float(np.sqrt(np.mean(np.log(predicted / test.y) ** 2))),
        float(relative.mean()),
        plain,
        calibrated,
        worst,
    )


def _next(report, f, cast, frame, given, k, targets, budget, device_hours, rate) -> FitReport:
    if cast is None:
        raise ValueError(f"budget_device_hours: law {f.law.name!r} does not read params and tokens")
    if rate is None:
        if device_hours is None:
            raise ValueError(
                "budget_device_hours needs a cost: name a device_hours column or give flops_per_device_hour"
            )
        spent = column(frame, device_hours, "device_hours").loc[given.index].to_numpy(float)
        fine = np.isfinite(spent) & (spent > 0)
        if not fine.any():
            raise ValueError(f"device_hours: column {device_hours!r} has no positive value")
        rate = float(np.median((k * given.columns["params"] * given.columns["tokens"])[fine] / spent[fine]))
    if not rate > 0:
        raise ValueError(f"flops_per_device_hour must be positive, got {rate:g}")
    if report.optima:
        target = {
            "params": np.array([o.params for o in report.optima]),
            "tokens": np.array([o.tokens for o in report.optima]),
        }
    else:
        far = optimum(f, 10 * float((k * given.columns["params"] * given.columns["tokens"]).max()), k)
        target = {"params": np.array([far.params]), "tokens": np.array([far.tokens])}
        report = replace(
            report,
            notes=report.notes + ("target of the next run: the optimum at ten times the largest compute of the table",),
        )
    some = candidate_grid(given.columns["params"], given.columns["tokens"])
    found = next_runs(cast, target, some, k * some["params"] * some["tokens"] / rate, budget)
    return replace(report, next_runs=found)
