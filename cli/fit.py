"""The command that fits a scaling law: fit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from .options import Json, option_objects, say

if TYPE_CHECKING:
    import pandas as pd

    from ..results.laws.options import FitKeywords

app = typer.Typer()


class LawOptions(NamedTuple):
    """The law that is fitted."""

    law: Annotated[str, typer.Option(help="One of --laws.", metavar="NAME")] = "chinchilla"
    laws: Annotated[bool, typer.Option("--laws", help="List every law: equation, columns, source.")] = False

    def keywords(self) -> FitKeywords:
        return {"law": self.law}


class TableOptions(NamedTuple):
    """The rows and columns of the table that are read."""

    params: Annotated[str | None, typer.Option(help="Column of N; a study: params_total.", metavar="COLUMN")] = None
    tokens: Annotated[str | None, typer.Option(help="Column of D; a study: tokens_seen.", metavar="COLUMN")] = None
    loss: Annotated[str | None, typer.Option(help="Column of the loss; a study: val_loss.", metavar="COLUMN")] = None
    column: Annotated[
        list[str] | None,
        typer.Option(help="Column for another role of the law; repeat the option for several.", metavar="ROLE=COLUMN"),
    ] = None
    where: Annotated[str | None, typer.Option(help="Rows to fit.", metavar="EXPRESSION")] = None
    holdout: Annotated[str | None, typer.Option(help="Rows to forecast, never to fit.", metavar="EXPRESSION")] = None
    run: Annotated[str | None, typer.Option(help="Column that tells runs apart.", metavar="COLUMN")] = None

    def keywords(self) -> FitKeywords:
        return {
            "params": self.params,
            "tokens": self.tokens,
            "loss": self.loss,
            "columns": dict(_pairs("--column", self.column)),
            "where": self.where,
            "holdout": self.holdout,
            "run": self.run,
        }


class MethodOptions(NamedTuple):
    """The objective, and constraints on parameters."""

    objective: Annotated[str, typer.Option(help="huber, l1, squares or raw_squares.")] = "huber"
    delta: Annotated[float, typer.Option(help="Threshold of the Huber objective, on log residuals.")] = 1e-3
    fix: Annotated[
        list[str] | None, typer.Option(help="A parameter held, or tied to another.", metavar="NAME=VALUE")
    ] = None
    prior: Annotated[
        str | None, typer.Option(help="Strength of the law's weak prior, or `auto`: by curves left out.")
    ] = None

    def keywords(self) -> FitKeywords:
        return {
            "objective": self.objective,
            "delta": self.delta,
            "fix": {name: _number(value) for name, value in _pairs("--fix", self.fix)},
            "prior": None if self.prior is None else _number(self.prior),
        }


class IntervalOptions(NamedTuple):
    """The intervals of the estimates."""

    bootstrap: Annotated[int, typer.Option(help="Resamples of runs; 0: none.")] = 1000
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0

    def keywords(self) -> FitKeywords:
        return {"bootstrap": self.bootstrap, "level": self.level, "seed": self.seed}


class ForecastOptions(NamedTuple):
    """Computed from the fit: optima and runs to forecast."""

    flops: Annotated[str | None, typer.Option(help="Column of C; a study: train_flops_6n.", metavar="COLUMN")] = None
    target_flops: Annotated[list[float] | None, typer.Option(help="Optimal N and D for this C.", metavar="C")] = None
    at: Annotated[
        list[str] | None,
        typer.Option(help="A run to forecast, as params=1e9,tokens=2e10; repeatable.", metavar="ROLE=VALUE,..."),
    ] = None
    compare: Annotated[
        str | None, typer.Option(help="Other laws to stack, comma-separated; `none`: no forecast.", metavar="NAMES")
    ] = None
    approach: Annotated[list[str] | None, typer.Option(help="isoflop or envelope.", metavar="NAME")] = None
    nearest: Annotated[int | None, typer.Option(help="isoflop: fit this many sizes around the minimum.")] = None

    def keywords(self) -> FitKeywords:
        return {
            "flops": self.flops,
            "target_flops": self.target_flops or (),
            "at": [_run(text) for text in self.at or ()],
            "compare": self._stack(),
            "approach": self.approach or (),
            "nearest": self.nearest,
        }

    def _stack(self) -> list[str] | None:
        if self.compare == "none":
            return []
        return self.compare.split(",") if self.compare else None


class AssumptionOptions(NamedTuple):
    """Assumptions of the fit, and the cost of a run to add."""

    alternative: Annotated[
        list[str] | None,
        typer.Option(help="Sensitivity to another column for a role; repeatable.", metavar="ROLE=COLUMN"),
    ] = None
    flops_per_nd: Annotated[float, typer.Option(help="k of C = k N D.")] = 6.0
    budget_device_hours: Annotated[float | None, typer.Option(help="Rank the runs to add within this budget.")] = None
    device_hours: Annotated[
        str | None, typer.Option(help="Column with the cost of a run in device-hours.", metavar="COLUMN")
    ] = None
    flops_per_device_hour: Annotated[
        float | None, typer.Option(help="Speed that costs are computed from, without such a column.")
    ] = None
    anyway: Annotated[bool, typer.Option("--anyway", help="Fit a table that looks wrong, with warnings.")] = False

    def keywords(self) -> FitKeywords:
        return {
            "alternatives": dict(_pairs("--alternative", self.alternative)),
            "flops_per_nd": self.flops_per_nd,
            "budget_device_hours": self.budget_device_hours,
            "device_hours": self.device_hours,
            "flops_per_device_hour": self.flops_per_device_hour,
            "anyway": self.anyway,
        }


@app.command(epilog="Example: scalade fit runs.csv --params n_params --tokens n_tokens --where 'outlier == False'")
@option_objects
def fit(
    table: Annotated[
        Path | None,
        typer.Argument(help="CSV or Parquet, or a results folder or study name.", metavar="TABLE", show_default=False),
    ] = None,
    *,
    law: LawOptions,
    rows: TableOptions,
    method: MethodOptions,
    intervals: IntervalOptions,
    forecast: ForecastOptions,
    assumptions: AssumptionOptions,
    as_json: Json = False,
) -> None:
    """Fit a scaling law, with intervals and what the table cannot tell. Exit status 1: it did not converge."""
    from ..results.laws import catalogue, fit_file
    from .locate import locate

    if law.laws:
        say({"laws": catalogue.to_dicts()} if as_json else catalogue.to_text())
        return
    if table is None:
        raise typer.BadParameter("name a TABLE to fit, or --laws to list the laws")
    frame, is_study = read_for_fit(locate(table))
    study_columns: FitKeywords = _study_columns(law.law, rows, forecast) if is_study else {}
    keywords = (
        law.keywords()
        | rows.keywords()
        | method.keywords()
        | intervals.keywords()
        | forecast.keywords()
        | assumptions.keywords()
        | study_columns
    )
    report = fit_file(frame, progress=_progress(), **keywords)
    say(report.to_dict() | {"exit_code": report.exit_code} if as_json else [report.to_text()])
    raise typer.Exit(report.exit_code)


def _study_columns(law: str, rows: TableOptions, forecast: ForecastOptions) -> FitKeywords:
    """The columns of a study's table, where the user named no others."""
    from ..results.laws import get_law

    roles = get_law(law).roles
    return {
        "params": rows.params or ("params_total" if "params" in roles else None),
        "tokens": rows.tokens or ("tokens_seen" if "tokens" in roles else None),
        "loss": rows.loss or "val_loss",
        "flops": forecast.flops or "train_flops_6n",
    }


def read_for_fit(path: Path) -> tuple[pd.DataFrame, bool]:
    """The table at a path, and whether it is the `runs` of a study, in a results folder or exported from one; of that
    only the runs with status ok are read."""
    frame, name = _read(path)
    is_study = name == "runs"
    if is_study and "status" in frame:
        frame = frame[frame["status"] == "ok"]
    frame.attrs["table"] = path.name
    return frame, is_study


def _read(path: Path) -> tuple[pd.DataFrame, str]:
    """The table, and its name where it is one of a study's."""
    from ..results.laws import read_table
    from ..results.table.read import exported_runs, read_exported, read_runs

    if path.is_dir():
        return read_runs(path, where="status == ok"), "runs"
    if path.is_file() and path.suffix.lower() in (".parquet", ".pq"):
        exported = read_exported(path)
        if exported is not None:
            return exported
    frame = read_table(path)
    runs = exported_runs(frame)
    return (frame, "") if runs is None else (runs, "runs")


def _progress() -> Callable[[str, float], None] | None:
    """Prints the progress of a long fit on one line of the terminal; None where standard error is not one."""
    if not sys.stderr.isatty():
        return None

    def show(stage: str, share: float) -> None:
        print(f"\r\033[K{stage}: {share:.0%}", end="\r", file=sys.stderr, flush=True)

    return show


def _pairs(option: str, texts: list[str] | None) -> list[tuple[str, str]]:
    """(NAME, VALUE) of every NAME=VALUE. Raises ValueError for another form and for a name given twice."""
    for text in texts or []:
        if "=" not in text:
            raise ValueError(f"{option} {text}: needs NAME=VALUE")
    pairs = [(name, value) for name, _, value in (text.partition("=") for text in texts or [])]
    names = [name.strip() for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{option}: {twice} is given twice")
    return pairs


def _run(text: str) -> dict[str, float]:
    """A run to forecast, `params=1e9,tokens=2e10`. Raises ValueError for a value that is no number."""
    run = {}
    for name, value in _pairs("--at", text.split(",")):
        number = _number(value)
        if isinstance(number, str):
            raise ValueError(f"--at {text}: {value!r} is not a number, such as 7e9")
        run[name.strip()] = number
    return run


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
