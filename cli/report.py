"""The commands that summarise results: report (a page of figures) and history (when a figure changed)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ..results.terminal import printable
from .options import Filter, FoundResults, Json, Quiet, located, option_objects, say

app = typer.Typer()


class PageFiles(NamedTuple):
    """Files of the page and its figures."""

    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in RESULTS.", metavar="FILE")] = None
    figures: Annotated[
        Path | None, typer.Option(help="Folder of the SVG and PNG files; default: beside the page.", metavar="FOLDER")
    ] = None
    format: Annotated[list[str] | None, typer.Option(help="svg or png; repeat the option for both. Default: both.")] = (
        None
    )


class Compared(NamedTuple):
    """The runs on the page, and the runs they are compared with."""

    where: Filter = None
    mode: Annotated[str | None, typer.Option(help="strong or weak; default: both.")] = None
    base: Annotated[str | None, typer.Option(help="The base run of the scaling figures.", metavar="CLAUSES")] = None
    allow: Annotated[
        list[str] | None, typer.Option(help="Column that may differ between runs; repeat the option for several.")
    ] = None
    baseline: Annotated[
        Path | None, typer.Option(help="Results to compare with: the regression gate's verdicts.", metavar="RESULTS")
    ] = None


class PageOptions(NamedTuple):
    """Conventions of the figures, and the title of the page."""

    convention: Annotated[str, typer.Option(help="mfu_6n, mfu_palm or mfu_causal.")] = "mfu_palm"
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None


@app.command(epilog="Example: scalade report quickstart --out report.html")
@option_objects
def report(
    results: FoundResults = None,
    *,
    files: PageFiles,
    compared: Compared,
    page: PageOptions,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one page that opens offline, with the figures of a paper: what was measured, failed and is missing."""
    from ..results.report import report as write
    from ..results.report.command import FORMATS
    from .locate import locate

    written = write(
        located(results),
        files.out,
        figures=files.figures,
        formats=tuple(files.format or FORMATS),
        where=compared.where,
        mode=compared.mode,
        base=compared.base,
        allow=tuple(compared.allow or ()),
        convention=page.convention,
        level=page.level,
        title=page.title,
        baseline=None if compared.baseline is None else locate(compared.baseline),
        progress=_progress(quiet or as_json),
    )
    say(written.to_dict() if as_json else [written.to_text()])


def _progress(quiet: bool) -> Callable[[str, float], None] | None:
    """Prints the progress on one line of the terminal; None where standard error is none, or quiet."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(stage: str, fraction: float) -> None:
        end = "\n" if fraction >= 1 else ""
        print(f"\r{fraction:4.0%} {printable(stage):<40}", end=end, file=sys.stderr, flush=True)

    return show


@app.command(epilog="Example: scalade history nightly-results --metric step_time_s")
def history(
    results: Annotated[list[Path], typer.Argument(help="Results folders, in any order.", metavar="RESULTS...")],
    metric: Annotated[str, typer.Option(help="Column with one number per run.", metavar="COLUMN")] = "step_time_s",
    alpha: Annotated[float, typer.Option(help="False alarms allowed, per case.")] = 0.05,
    where: Filter = None,
    as_json: Json = False,
) -> None:
    """Find when a figure changed: change points over the runs of each case."""
    from ..results.gate import history as change_points
    from .locate import locate

    changes = change_points.history([locate(path) for path in results], metric, alpha, where)
    say(change_points.to_dict(changes) if as_json else change_points.to_text(changes))
