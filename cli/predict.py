"""The commands about what has not run yet: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, say

app = typer.Typer()
MachineName = Annotated[
    str | None,
    typer.Option("--machine", help="Machine profile: a name that ships, or a file; default: this machine's."),
]


@app.command(epilog="Example: scalade predict studies/quickstart.toml --machine h100")
def predict(
    target: Annotated[Path, typer.Argument(help="The study file (TOML).", metavar="STUDY")],
    machine: MachineName = None,
    as_json: Json = False,
) -> None:
    """Predict the cases of a study before any of them runs: time by part, memory, bytes, energy.

    Beside each step time stand its 90 % interval, the least it could be, and two naive predictions.
    """
    from ..launch.predict import report
    from ..results.terminal import make_console

    predicted = report.predict_study(target, machine)
    if as_json:
        say(report.to_dict(*predicted))
    else:
        report.print_predictions(*predicted, make_console())
