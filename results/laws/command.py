"""`scalade fit`: one function from a file and column names to a report. The command line only parses and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..table.held_out import one_set
from .asked import check, kept_and_held, names_of
from .base import Law, get_law
from .curves import effective_rows, find_curves
from .fit import Fit, fit, with_bootstrap, with_profiles, with_sensitivity
from .forecast import Forecast, forecast
from .isoflop import envelope, isoflop
from .look import after, before, doubts, nothing_said, refused, unusual
from .next_run import candidate_grid, next_runs
from .optimum import identified_optimum, optimum
from .predictions import OTHER_UNITS, points, predictions
from .predictions import holdout as held_out
from .prior import fit_with_prior
from .report import FitReport, estimates
from .resample import Progress
from .solver import Objective
from .table import Rows, column, read_table, rows

STACKS = (  # laws of the same columns that a forecast is stacked from; any other law stands alone
    ("chinchilla", "skaling", "kaplan", "overtraining"),
    ("diloco_joint", "diloco_joint_constant", "diloco_exponent", "diloco_additive"),
    ("routed", "routed_saturating"),
    ("power", "power_constant"),
)
NOTHING = "the law says no more than a constant"


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
    at: Sequence[Mapping[str, float]] = (),
    alternatives: Mapping[str, str] | None = None,
    compare: Sequence[str] | None = None,
    approach: Sequence[str] = (),
    nearest: int | None = None,
    budget_device_hours: float | None = None,
    device_hours: str | None = None,
    flops_per_device_hour: float | None = None,
    profile: bool = True,
    sensitivity: bool = True,
    anyway: bool = False,
    progress: Progress | None = None,
) -> FitReport:
    """Fit `law` to the table at `path` (CSV or Parquet), or to the frame itself.

    params, tokens, loss: column names of the usual roles; columns: role -> column for any other law (and
    "loss", or the law's own response, for its response). where, holdout: row expressions; held-out rows
    are taken away before anything is centred, fitted, weighted or scaled. run: the column telling runs
    apart (default: each row a run). prior: strength of the law's own weak prior, or "auto" (`prior.py`); by
    default none. flops: a FLOPs column, for cuts, for approaches 1 and 2 and as a second convention.
    target_flops: budgets for the compute optimum. at: runs to forecast, role or column -> value.
    alternatives: role -> other column, for the sensitivity table. compare: laws to stack and calibrate with (default:
    those of the same columns, `STACKS`, when there is a run to forecast, a holdout or a device-hour budget; () for
    none). approach: "isoflop" (`nearest`: how many sizes around the lowest loss a parabola is fitted to; default all),
    "envelope".
    budget_device_hours: rank runs to add; cost from `device_hours` (column) or `flops_per_device_hour`.
    anyway: fit a table that looks wrong (`look.py`: units, ladders, diverged rows, noise) and say so in notes.
    progress(stage, fraction) is called while work is long. Raises ValueError with one line for a user's mistake.
    """
    the_law, given_frame = get_law(law), isinstance(path, pd.DataFrame)
    frame = path if given_frame else read_table(path)
    check(level, bootstrap, seed, fix or {}, flops_per_nd, target_flops, at, compare)
    names, response = names_of(the_law, columns, params, tokens, loss)
    keep, held = kept_and_held(frame, where, holdout)
    train_frame = frame[keep & ~held]
    given = rows(the_law, train_frame, names, response, run)
    sets = one_set(frame[keep], {response, *names.values()})
    settings = Objective(objective, delta)
    wrong = _refused(before(the_law, given, names, response, bool(fix)), anyway)
    wrong += [f"WARNING: {line}" for line in unusual(the_law, given, response)]
    given, copied = _as_runs(the_law, train_frame, given, run)

    asked = dict(objective=settings, fix=dict(fix or {}), level=level, seed=seed)
    if prior is None:
        f = fit(the_law, given, progress=progress, **asked)
    else:
        f = fit_with_prior(the_law, given, prior, **asked)
    first = f.plain or f.sample or f
    wrong += _refused(after(first, response), anyway)
    noise = nothing_said(first)
    used = {response, run, *names.values(), *the_law.roles}
    some = [f"{the_law.response}: {noise}"] if noise else doubts(first, train_frame, used, response)
    wrong += [f"WARNING: {line}" for line in some]
    if noise:
        f = refused(f, NOTHING)
        profile = sensitivity = bootstrap = False
    if profile:
        f = with_profiles(f)
    if bootstrap:
        f = with_bootstrap(f, bootstrap, progress)
    notes = [*wrong, *filter(None, (f.no_draws, sets)), *copied, *f.notes]
    if run is None and f.draws is not None and not copied:
        notes.append("no run column: every row was resampled as a run of its own")
    notes += _doubts(f, given, profile, prior is not None)
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
    report = _frontiers(report, the_law, approach, train_frame, given, run, flops, flops_per_nd, target_flops, nearest)
    asked = points(the_law, at, names, given)
    cast, wanted = None, asked or target_flops or holdout is not None or budget_device_hours is not None
    if noise:
        if wanted or compare:
            report = replace(report, notes=report.notes + (f"no forecast: {NOTHING}",))
        asked, wanted, compare, budget_device_hours = [], False, (), None
    if compare or budget_device_hours is not None or (compare is None and wanted and not the_law.needs_run):
        some = given if f.sample is None else f.sample.rows
        cast = forecast(
            _stack_of(the_law, compare),
            some,
            _compute(the_law, some, train_frame, flops, flops_per_nd),
            objective=settings,
            level=level,
            seed=seed,
            draws=0 if budget_device_hours is None else bootstrap,
            fix=dict(fix or {}),
            progress=progress,
        )
        report = _forecasts(report, cast, given, asked)
    if holdout is not None:
        report = replace(report, holdout=held_out(f, cast, rows(the_law, frame[keep & held], names, response, run)))
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


def _doubts(f: Fit, given: Rows, profile: bool, prior: bool) -> list[str]:
    """What a reader must know of the intervals before believing them."""
    notes = []
    if f.draws_converged is not None and f.draws_converged < 0.95:
        notes.append(
            f"{1 - f.draws_converged:.0%} of the resamples did not converge: the table hardly identifies this law, "
            "and its intervals are rough"
        )
    if not profile:
        return notes
    off = [p.name for p in f.profiles if not (p.low or -np.inf) <= f.natural[p.name] <= (p.high or np.inf)]
    if off and prior:
        notes.append(f"profiles are of the data without the prior, which moves {', '.join(off)} outside them")
    if f.law.needs_run:
        notes.append(
            "profiles take the rows of a curve as independent; they are not, so read them as lower bounds of the width"
        )
    alone = len(given.y) if f.law.needs_run else effective_rows(f.residuals, given.cluster)
    if alone < 0.9 * len(given.y):
        notes.append(
            f"{len(given.y)} rows of {given.clusters} runs weigh about as {alone:.0f} independent rows: {_by_run(f)}"
        )
    return notes


def _refused(lines: list[str], anyway: bool) -> list[str]:
    """Raises ValueError with what is wrong, or hands it on as notes."""
    if lines and not anyway:
        raise ValueError("; ".join(lines) + " (--anyway fits it as it is)")
    return [f"WARNING: {line}" for line in lines]


def _as_runs(law, frame, given: Rows, run) -> tuple[Rows, list[str]]:
    """The rows with copies and points of one curve as one run each, and what to say of it."""
    notes = []
    if given.copies:
        notes.append(
            f"{given.copies} rows are exact copies of others" + ("" if run else "; copies were resampled as one run")
        )
    if given.twins:
        count, more = len(given.twins), len(given.twins) - 4
        some = ", ".join(f"{a} and {b}" for a, b in given.twins[:4]) + (f" and {more} more pairs" if more > 0 else "")
        notes.append(
            f"{count} pair{'s' if count > 1 else ''} of rows hold one run twice, rounded or under another name (rows "
            f"{some}): resampled as one run each, and counted twice in the fit; drop one of each"
        )
    curves = find_curves(law, frame, given) if run is None else None
    if curves is not None:
        given = replace(given, cluster=curves)
        notes.append(
            f"the {len(given.y)} rows look like points of {given.clusters} training curves: a curve was taken as one "
            "run; name the column that tells runs apart (--run)"
        )
    return given, notes


def _by_run(f: Fit) -> str:
    withheld = next((p.withheld for p in f.profiles if p.withheld), "")
    return f"profiles are withheld, {withheld}" if withheld else "profiles are widened for it"


def _rows_if_usable(law, frame, names, response, run) -> Rows | None:
    """The rows `where` left out as well, if they can be fitted at all: they are only a comparison."""
    try:
        return rows(law, frame, names, response, run)
    except ValueError:
        return None


def _stack_of(law: Law, compare: Sequence[str] | None) -> list[str]:
    """The laws of a forecast, the user's first. Raises ValueError where they read other columns than it does."""
    if law.needs_run:
        raise ValueError(f"forecast: law {law.name!r} reads whole curves; there is a plain holdout only (compare=())")
    if compare is None:
        compare = next((stack for stack in STACKS if law.name in stack), ())
        compare = compare or (STACKS[0] if law.roles == ("params", "tokens") and law.response == "loss" else ())
    for other in map(get_law, compare):
        if set(other.roles) != set(law.roles) or other.response != law.response:
            raise ValueError(
                f"compare: laws are stacked over the same columns; {law.name!r} predicts {law.response} from "
                f"{', '.join(law.roles)}, {other.name!r} {other.response} from {', '.join(other.roles)}"
            )
    return list(dict.fromkeys([law.name, *compare]))


def _forecasts(report, cast: Forecast, given: Rows, asked) -> FitReport:
    """The runs asked for, and the loss at every optimum: one predictor for both."""
    known = [o for o in report.optima if o.params is not None]
    at_best = predictions(
        cast, given, [{"params": o.params, "tokens": o.tokens} for o in known], [o.flops for o in known]
    )
    loss = {p.target_flops: (p.point, None if p.low is None else (p.low, p.high)) for p in at_best}
    return replace(
        report,
        laws=cast.scores,
        calibration=cast.calibration,
        forecasts=at_best + predictions(cast, given, asked),
        optima=tuple(
            replace(o, loss=loss[o.flops][0], loss_interval=loss[o.flops][1]) if o.flops in loss else o
            for o in report.optima
        ),
        notes=report.notes + ((cast.why_not,) if cast.why_not else ()),
    )


def _compute(law: Law, given: Rows, frame, flops, flops_per_nd) -> np.ndarray:
    if flops is not None:
        values = column(frame, flops, "flops").loc[given.index].to_numpy(float)
        if np.isfinite(values).all() and (values > 0).all():
            return values
        raise ValueError(f"flops: column {flops!r} holds null, zero or negative values")
    if {"params", "tokens"} <= set(given.columns):
        return flops_per_nd * given.columns["params"] * given.columns["tokens"]
    return law.extent(given.columns)


def _optima(report, f: Fit, frame, given, flops, k, targets) -> FitReport:
    if not targets:
        return report
    if {"params", "tokens"} <= set(given.columns):
        least = float((k * given.columns["params"] * given.columns["tokens"]).min())
        low = next((c for c in targets if c * OTHER_UNITS**2 < least), None)
        if low is not None:
            raise ValueError(
                f"target_flops: {low:g} is {least / low:.3g} times below the smallest run of the table, {least:.3g} "
                "FLOPs: give FLOPs"
            )
    found = [identified_optimum(f, float(c), k) for c in targets]
    notes = report.notes
    if flops is not None:
        compute = _compute(f.law, given, frame, flops, k)
        measured = float(np.median(compute / (given.columns["params"] * given.columns["tokens"])))
        if abs(measured / k - 1) > 1e-3 and found[-1].params is not None:
            other = optimum(f, float(targets[-1]), measured)
            notes += (
                f"under the FLOPs of column {flops!r} (C = {measured:.3g} N D) N* at {targets[-1]:.3g} "
                f"is {other.params:.4g}, not {found[-1].params:.4g}",
            )
    return replace(report, optima=tuple(found), convention=f"C = {k:g} N D", notes=notes)


def _frontiers(report, law: Law, approach, frame, given, run, flops, k, targets, nearest) -> FitReport:
    out, asked = [], dict(level=report.level, seed=report.seed, targets=targets, flops_per_nd=k)
    for method in approach:
        if method not in ("isoflop", "envelope"):
            raise ValueError(f"approach: unknown {method!r}; there is isoflop, envelope")
        if "params" not in given.columns or ("tokens" not in given.columns and flops is None):
            raise ValueError(f"approach {method}: needs a params column and tokens or flops")
        params, compute = given.columns["params"], _compute(law, given, frame, flops, k)
        if method == "isoflop":
            out.append(isoflop(params, compute, given.y, nearest=nearest, **asked))
        elif run is None:
            raise ValueError("approach envelope: name the column that tells runs apart (run)")
        else:
            out.append(envelope(given.columns["run"], params, compute, given.y, **asked))
    return replace(report, frontiers=tuple(out))


def _next(report, f, cast, frame, given, k, targets, budget, device_hours, rate) -> FitReport:
    if cast is None or f.law.roles != ("params", "tokens"):
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
    known = [o for o in report.optima if o.params is not None]
    if known:
        target = {"params": np.array([o.params for o in known]), "tokens": np.array([o.tokens for o in known])}
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
