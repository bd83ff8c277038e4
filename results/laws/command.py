"""`scalade fit`: one function from a file and column names to a report. The command line only parses and prints.

`fit_file` runs the stages in order: read the table, fit, intervals, report, optima, approaches 1 and 2, forecast,
held-out rows, the run to add next. Each stage that looks ahead takes the report and returns it with its part filled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from ..table.held_out import one_set
from .ahead import NOTHING, frontiers, look_ahead, with_optima
from .curves import effective_rows
from .fit import Fit, Settings, fit, with_bootstrap, with_profiles
from .identify import Profile
from .look import after, before, doubts, nothing_said, refused, unusual
from .options import FitKeywords, FitOptions
from .predictions import points
from .prior import fit_with_prior
from .report import FitReport, estimates, some_resamples
from .resample import Progress
from .sensitivity import with_sensitivity
from .source import Fitted, Source, as_runs, read_source, rows_if_usable
from .table import Rows


def fit_file(
    path: str | Path | pd.DataFrame, *, progress: Progress | None = None, **keywords: Unpack[FitKeywords]
) -> FitReport:
    """Fit a law to the table at `path` (CSV or Parquet), or to the frame itself.

    Keywords, with their defaults (`options.py` types them):

    law ("chinchilla"): its name. params, tokens, loss (None): column names of the usual roles; columns (None): role ->
    column for any other law (and "loss", or the law's own response, for its response). where, holdout (None): row
    expressions; held-out rows are taken away before anything is centred, fitted, weighted or scaled. run (None): the
    column telling runs apart; by default each row is a run.
    objective ("huber"), delta (1e-3): as `Objective`. fix (None): name -> value for a parameter held, or name -> name
    for one tied to another. prior (None): strength of the law's own weak prior, or "auto" (`prior.py`); by default
    none. anyway (False): fit a table that looks wrong (`look.py`: units, ladders, diverged rows, noise) and say so in
    notes.
    bootstrap (1000): resamples of runs. level (0.95): of the intervals. seed (0): of the resamples. profile,
    sensitivity (True): make them. alternatives (None): role -> other column, for the sensitivity table.
    flops (None): a FLOPs column, for cuts, for approaches 1 and 2 and as a second convention. flops_per_nd (6.0): k of
    C = k N D. target_flops (()): budgets for the compute optimum. approach (()): "isoflop" (nearest: how many sizes
    around the lowest loss a parabola is fitted to; default all), "envelope".
    at (()): runs to forecast, role or column -> value. compare (None): laws to stack and calibrate with; by default
    those of the same columns, `STACKS`, when there is a run to forecast, a holdout or a device-hour budget; () for
    none. budget_device_hours (None): rank runs to add; cost from device_hours (column) or flops_per_device_hour.
    progress(stage, fraction) is called while work is long.

    Raises ValueError with one line for a user's mistake.
    """
    options = FitOptions.of(keywords)
    source = read_source(path, options)
    data = source.rows_of(source.train)
    one_kind = one_set(source.frame[source.keep], {source.response, *source.names.values()})
    settings = _settings(options)
    warnings = _refused(before(source.law, data, source.names, source.response, bool(options.method.fix)), options)
    warnings += map(_warning, unusual(source.law, data, source.response))
    data, copies = as_runs(source, data)

    f = _point_fit(source, data, settings, progress)
    first = f.plain or f.sample or f
    warnings += _refused(after(first, source.response), options)
    noise = nothing_said(first)
    if noise:
        warnings.append(_warning(f"{source.law.response}: {noise}"))
        f = refused(f, NOTHING)
    else:
        warnings += map(_warning, doubts(first, source.train, source.used, source.response))
        f = _with_intervals(f, options, progress)
    notes = [*warnings, *filter(None, (f.no_draws, one_kind)), *copies, *f.notes]
    if options.rows.run is None and f.draws is not None and not copies:
        notes.append("no run column: every row was resampled as a run of its own")
    notes += _doubts(f, data, profile=options.intervals.profile and not noise, prior=options.method.prior is not None)
    if options.intervals.sensitivity and not noise:
        f = _with_sensitivity(f, source, progress)

    fitted = Fitted(source, data, f, settings, bool(noise))
    report = with_optima(_report(fitted, tuple(notes)), fitted)
    report = replace(report, frontiers=frontiers(fitted))
    runs = points(source.law, options.forecast.at, source.names, data)
    return look_ahead(report, fitted, runs, progress)


def _settings(options: FitOptions) -> Settings:
    method, intervals = options.method, options.intervals
    return Settings(objective=method.settings(), fix=method.held, level=intervals.level, seed=intervals.seed)


def _point_fit(source: Source, data: Rows, settings: Settings, progress: Progress | None) -> Fit:
    prior = source.options.method.prior
    if prior is None:
        return fit(source.law, data, progress=progress, **settings)
    return fit_with_prior(source.law, data, prior, **settings)


def _with_intervals(f: Fit, options: FitOptions, progress: Progress | None) -> Fit:
    if options.intervals.profile:
        f = with_profiles(f)
    if options.intervals.bootstrap:
        f = with_bootstrap(f, options.intervals.bootstrap, progress)
    return f


def _with_sensitivity(f: Fit, source: Source, progress: Progress | None) -> Fit:
    everything = None if source.options.rows.where is None else rows_if_usable(source, source.frame[~source.held])
    alternatives = source.options.intervals.alternatives or {}
    others = {
        f"{role} = {other}": replace(source, names=source.names | {role: other}).rows_of(source.train)
        for role, other in alternatives.items()
    }
    return with_sensitivity(f, everything, others, progress)


def _report(fitted: Fitted, notes: tuple[str, ...]) -> FitReport:
    source, data, f = fitted.source, fitted.rows, fitted.fit
    law, keep, held = source.law, source.keep, source.held
    return FitReport(
        law=law.name,
        equation=law.equation,
        source=law.source,
        table=source.table,
        rows=len(data.y),
        runs=data.clusters,
        left_out={"where": int((~keep).sum()), "held out": int((keep & held).sum()), "null": data.missing},
        objective=f.objective.kind,
        delta=f.objective.delta if f.objective.kind == "huber" else None,
        objective_value=f.value,
        parameters=estimates(f),
        convergence=f.convergence,
        bootstrap_draws=0 if f.draws is None else len(f.draws),
        bootstrap_converged=f.draws_converged,
        level=f.level,
        seed=f.seed,
        residual_rmse_log=float(np.sqrt(np.mean(f.residuals**2))),
        sensitivity=f.sensitivity,
        prior=f.prior,
        notes=notes,
        response=source.response,
        columns={role: source.names.get(role, role) for role in law.roles},
        ranges={role: _range(data.columns[role]) for role in law.roles},
        resamples=some_resamples(f),
        fit=f,
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(np.min(values)), float(np.max(values))


def _doubts(f: Fit, data: Rows, *, profile: bool, prior: bool) -> list[str]:
    """The limits of the intervals that a reader must know."""
    notes: list[str] = []
    if f.draws_converged is not None and f.draws_converged < 0.95:
        notes.append(
            f"{1 - f.draws_converged:.0%} of the resamples did not converge: the table hardly identifies this law, "
            "and its intervals are rough"
        )
    return notes + _doubts_of_profiles(f, data, prior) if profile else notes


def _doubts_of_profiles(f: Fit, data: Rows, prior: bool) -> list[str]:
    notes: list[str] = []
    off = [p.name for p in f.profiles if not _holds(p, f.natural[p.name])]
    if off and prior:
        notes.append(f"profiles are of the data without the prior, which moves {', '.join(off)} outside them")
    if f.law.needs_run:
        notes.append(
            "profiles take the rows of a curve as independent; they are not, so read them as lower bounds of the width"
        )
    alone = len(data.y) if f.law.needs_run else effective_rows(f.residuals, data.cluster)
    if alone < 0.9 * len(data.y):
        notes.append(
            f"{len(data.y)} rows of {data.clusters} runs weigh about as {alone:.0f} independent rows: {_by_run(f)}"
        )
    return notes


def _holds(p: Profile, value: float) -> bool:
    return (p.low or -np.inf) <= value <= (p.high or np.inf)


def _refused(lines: list[str], options: FitOptions) -> list[str]:
    """Raises ValueError with what is wrong, or returns it as notes where the user wants the fit anyway."""
    if lines and not options.method.anyway:
        raise ValueError("; ".join(lines) + " (--anyway fits it as it is)")
    return list(map(_warning, lines))


def _warning(line: str) -> str:
    return f"WARNING: {line}"


def _by_run(f: Fit) -> str:
    withheld = next((p.withheld for p in f.profiles if p.withheld), "")
    return f"profiles are withheld, {withheld}" if withheld else "profiles are widened for it"
