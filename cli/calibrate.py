"""The command that measures this machine for predictions: calibrate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from .options import Filter, Json, Quiet, located, option_objects, say

app = typer.Typer()


class Sources(NamedTuple):
    """Where a calibration comes from and goes to."""

    minutes: Annotated[float, typer.Option(help="Time to measure for; starting ranks comes on top.")] = 3.0
    ranks: Annotated[int | None, typer.Option(help="Ranks at work together; default: one a GPU, or core.")] = None
    results: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: improve a profile by these rows.", metavar="RESULTS")
    ] = None
    where: Filter = None
    machine: Annotated[
        str | None, typer.Option("--machine", help="--from: the profile to improve; default: this machine's.")
    ] = None
    write: Annotated[
        Path | None, typer.Option("--write", help="The profile to write; default: that of `this`.", metavar="FILE")
    ] = None


@app.command(epilog="Example: scalade calibrate --minutes 3")
@option_objects
def calibrate(*, sources: Sources, quiet: Quiet = False, as_json: Json = False) -> None:
    """Measure this machine and write its profile, by which `predict` and `run` predict.

    Matrix products, attention, blocks of a model, dispatch, updates, collectives, and how ranks disturb each other.
    With --from the profile is improved by rows that were measured before.
    """
    if sources.results is None:
        if sources.machine is not None or sources.where is not None:
            raise ValueError("--machine and --filter belong to --from RESULTS: without it this machine is measured")
        from ..launch.calibrate import command

        show = (lambda line: None) if quiet or as_json else (lambda line: print(line, file=sys.stderr, flush=True))
        done = command.measure_here(sources.minutes, sources.ranks, sources.write, show)
        say(done.to_dict() if as_json else done.to_text())
        return
    from ..launch.calibrate.from_results import improve

    improved = improve(located(sources.results), sources.machine, sources.write, sources.where)
    say(improved.to_dict() if as_json else improved.to_text())
