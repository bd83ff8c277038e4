"""The commands that read a results folder: show, export, efficiency, ops, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ..results.wording import count_of
from .options import Everything, Filter, FoundResults, Json, located, option_objects, say

app = typer.Typer()


@app.command(epilog="Example: scalade show quickstart --filter 'status == ok' --columns layout,tokens_per_s,loss")
def show(
    results: FoundResults = None,
    columns: Annotated[
        str | None, typer.Option(help="Column names separated by commas, or `all`.", metavar="NAMES")
    ] = None,
    where: Filter = None,
    sort: Annotated[
        str | None, typer.Option(help="Column to sort by; -COLUMN: largest first.", metavar="COLUMN")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Rows to show; 0: all. Default: all, on a terminal 200.", min=0)
    ] = None,
    everything: Everything = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of rows, and nothing else.")] = False,
) -> None:
    """Show the table of a study's runs."""
    from ..results.table.show import show as print_runs

    print_runs(located(results), columns, where, sort, everything, as_json, limit=limit)


@app.command(epilog="Example: scalade export scalade-results/quickstart runs.parquet")
def export(
    results: Annotated[Path, typer.Argument(help="Results folder, study file or study name.", metavar="RESULTS")],
    out: Annotated[Path, typer.Argument(help="The file to write.", metavar="OUT")],
    format: Annotated[
        str | None, typer.Option(help="csv, parquet or pytest-benchmark (JSON); default: by OUT's suffix.")
    ] = None,
    table: Annotated[str, typer.Option(help="runs, steps, evals, comm or ops.")] = "runs",
    where: Filter = None,
    everything: Everything = False,
    csv_safe: Annotated[
        bool, typer.Option("--csv-safe", help="Put ' before texts that a spreadsheet would take for formulas.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a table to one file."""
    from .locate import locate

    if format == "pytest-benchmark":
        from ..results.table.pytest_benchmark import export_pytest_benchmark

        table, rows = "cases", export_pytest_benchmark(locate(results), out, where=where)
    else:
        from ..results.table.show import export as write_table

        rows = write_table(locate(results), out, format, table, where, everything, csv_safe)
    say({"rows": rows, "table": table, "file": str(out)} if as_json else [f"{count_of(rows, 'row')} of {table}: {out}"])


class EfficiencyOptions(NamedTuple):
    """The runs that are compared, and the intervals."""

    mode: Annotated[str | None, typer.Option(help="strong or weak; default: as the batches say.")] = None
    form: Annotated[str | None, typer.Option(help="throughput, step_time, or loss (time to --target-loss).")] = None
    base: Annotated[str | None, typer.Option(help="The base run; default: fewest ranks.", metavar="CLAUSES")] = None
    where: Filter = None
    target_loss: Annotated[float | None, typer.Option(help="Target of the time-to-loss form.")] = None
    loss_window: Annotated[int, typer.Option(help="Steps the loss is averaged over before it counts.")] = 10
    allow: Annotated[
        list[str] | None, typer.Option(help="Column that may differ between runs; repeat the option for several.")
    ] = None
    published: Annotated[str | None, typer.Option(help="Join published rows by this figure, as mfu_causal.")] = None
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95
    draws: Annotated[int, typer.Option(help="Resamples of runs for the fitted laws.")] = 2000
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0


@app.command(epilog="Example: scalade efficiency strong-scaling --form step_time")
@option_objects
def efficiency(results: FoundResults = None, *, options: EfficiencyOptions, as_json: Json = False) -> None:
    """Measure how speed scales with ranks, against a declared base; runs that cannot be compared are refused."""
    from ..results.efficiency import efficiency as measure

    report = measure(
        located(results),
        mode=options.mode,
        form=options.form,
        base=options.base,
        where=options.where,
        target_loss=options.target_loss,
        loss_window=options.loss_window,
        allow=tuple(options.allow or ()),
        published=options.published,
        level=options.level,
        draws=options.draws,
        seed=options.seed,
    )
    say(report.to_dict() | {"exit_code": report.exit_code} if as_json else [report.to_text()])
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example: scalade ops engines --filter 'layout == megatron.tp2' --against 'layout == tp2'")
def ops(
    results: FoundResults = None,
    where: Filter = None,
    against: Annotated[str | None, typer.Option(help="The case to compare with.", metavar="CLAUSES")] = None,
    rows: Annotated[int, typer.Option(help="Operations to show, those that differ most.", min=1)] = 12,
    as_json: Json = False,
) -> None:
    """Show the time of a step by operation, for runs that were profiled (measure.profile_steps)."""
    from ..results import op_profile

    path = located(results)
    cases = op_profile.case_ops(path, where)
    if against is None:
        say(op_profile.to_dict(cases) if as_json else op_profile.to_text(cases))
    else:
        case, base = (
            op_profile.one_case(cases, "--filter"),
            op_profile.one_case(op_profile.case_ops(path, against), "--against"),
        )
        say(op_profile.difference_to_dict(case, base) if as_json else op_profile.difference_to_text(case, base, rows))


@app.command(epilog="Example: scalade check quickstart")
def check(results: FoundResults = None, where: Filter = None, as_json: Json = False) -> None:
    """Check a table against the twelve rules of honest benchmarking (Hoefler and Belli, SC'15), and whether the
    machine was quiet."""
    from ..results.check.command import check as examine

    report = examine(located(results), where)
    say(report.to_dict() | {"exit_code": report.exit_code} if as_json else [report.to_text()])
    raise typer.Exit(report.exit_code)
