"""The command about what has not run yet, and how well that is known: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from .options import Json, option_objects, say

app = typer.Typer()
TABLES = (".csv", ".tsv", ".parquet", ".pq")
MachineName = Annotated[
    str | None,
    typer.Option("--machine", help="Machine profile: a name that ships, or a file; default: this machine's."),
]


class JudgeOptions(NamedTuple):
    """Of a table of measured runs, against which the model is held."""

    map: Annotated[
        str | None,
        typer.Option(help="What its columns mean (TOML); default: the shipped map that fits.", metavar="MAP"),
    ] = None
    calibrate: Annotated[
        str | None, typer.Option(help="Rows, or another table, to calibrate on.", metavar="EXPRESSION|TABLE")
    ] = None
    judge: Annotated[str | None, typer.Option(help="Rows to judge; default: all others.", metavar="EXPRESSION")] = None
    by: Annotated[str | None, typer.Option(help="Figures for each value of this column too.", metavar="COLUMN")] = None


@app.command(epilog="Example: scalade predict studies/quickstart.toml --machine h100")
@option_objects
def predict(
    target: Annotated[
        Path, typer.Argument(help="The study file (TOML), or a table of measured runs.", metavar="STUDY|TABLE")
    ],
    table: JudgeOptions,
    machine: MachineName = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Hold bytes, calls and memory against the engine's code on fake tensors.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict the cases of a study before any of them runs: time by part, memory, bytes, energy.

    Beside each step time stand its 90 % interval, the least it could be, and two naive predictions. Of a table (CSV,
    Parquet): how far the model is from what was measured there, in error, order, choice of layout, memory, intervals.
    """
    if trace:
        return _trace(target, as_json)
    if target.suffix.lower() in TABLES:
        return _judge(target, machine, table, as_json)
    if given := [f"--{name}" for name, value in table._asdict().items() if value is not None]:
        raise ValueError(f"{given[0]} is for a table of measured runs ({', '.join(TABLES)}), not for a study")
    from ..launch.predict import report
    from ..results.terminal import make_console

    predicted = report.predict_study(target, machine)
    if as_json:
        say(report.to_dict(*predicted))
    else:
        report.print_predictions(*predicted, make_console())


def _trace(path: Path, as_json: bool) -> None:
    from ..launch.trace import report
    from ..results.terminal import make_console

    if path.suffix.lower() in TABLES:
        raise ValueError(f"--trace runs the engine of a study's cases: {path} is a table of measured runs")
    traces = list(report.trace_study(path))
    if as_json:
        say(report.to_dict(traces))
    else:
        report.print_traces(traces, make_console())
    if not all(each.agrees for each in traces):
        raise typer.Exit(1)


def _judge(path: Path, machine: str | None, options: JudgeOptions, as_json: bool) -> None:
    from ..parallelism.predict.tables.judge import judge_table
    from ..parallelism.predict.tables.report import to_dict, to_text

    verdict = judge_table(path, options.map, machine, options.calibrate, options.judge, options.by)
    say(to_dict(verdict) if as_json else to_text(verdict))
