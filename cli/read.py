"""The commands that read a table: show, export, efficiency, ops, check, fit, compare, history, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..results.terminal import printable
from ..results.wording import count_of

app = typer.Typer()

Json = Annotated[bool, typer.Option("--json", help="Print a JSON object for programs, and nothing else.")]
FoundResults = Annotated[
    Path | None,
    typer.Argument(
        help="Results folder, run, exported file, study file or study name; default: the newest in ./scalade-results.",
        metavar="RESULTS",
        show_default=False,
    ),
]
Filter = Annotated[str | None, typer.Option("--filter", help="As 'status == ok and tp >= 2'.", metavar="CLAUSES")]
Everything = Annotated[bool, typer.Option("--all", help="Also the earlier attempts of each run.")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="A column; again for more.", metavar="COLUMN")]


def say(content: dict[str, Any] | Iterable[str]) -> None:
    """A JSON object, or lines in which nothing can act on the terminal."""
    text = json.dumps(content, indent=1) if isinstance(content, dict) else printable("\n".join(content))
    print(text, flush=True)


@app.command(epilog="Example: scalade show quickstart --filter 'status == ok' --columns layout,tokens_per_s,loss")
def show(
    results: FoundResults = None,
    columns: Annotated[str | None, typer.Option(help="Names with commas, or `all`.", metavar="NAMES")] = None,
    where: Filter = None,
    sort: Annotated[str | None, typer.Option(help="A column; -COLUMN: largest first.", metavar="COLUMN")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows; 0: all. Default: all, on a terminal 200.", min=0)] = None,
    everything: Everything = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of rows, and nothing else.")] = False,
) -> None:
    """Show the table of a study's runs."""
    from ..results.table.show import show as print_runs

    print_runs(_located(results), columns, where, sort, everything, as_json, limit=limit)


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


@app.command(epilog="Example: scalade efficiency strong-scaling --form step_time")
def efficiency(
    results: FoundResults = None,
    mode: Annotated[str | None, typer.Option(help="strong or weak; default: as the batches say.")] = None,
    form: Annotated[str | None, typer.Option(help="throughput, step_time, or loss (time to --target-loss).")] = None,
    base: Annotated[str | None, typer.Option(help="The base run; default: fewest ranks.", metavar="CLAUSES")] = None,
    where: Filter = None,
    target_loss: Annotated[float | None, typer.Option(help="Of the time-to-loss form.")] = None,
    loss_window: Annotated[int, typer.Option(help="Steps the loss is averaged over before it counts.")] = 10,
    allow: Annotated[list[str] | None, typer.Option(help="A column that may differ; again for more.")] = None,
    published: Annotated[str | None, typer.Option(help="Join published rows by this figure, as mfu_causal.")] = None,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    draws: Annotated[int, typer.Option(help="Resamples of runs for the fitted laws.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    as_json: Json = False,
) -> None:
    """How speed holds as ranks are added, against a declared base; refuses what cannot be compared."""
    from ..results.efficiency import efficiency as measure

    report = measure(
        _located(results),
        mode=mode,
        form=form,
        base=base,
        where=where,
        target_loss=target_loss,
        loss_window=loss_window,
        allow=tuple(allow or ()),
        published=published,
        level=level,
        draws=draws,
        seed=seed,
    )
    say(report.to_dict() | {"exit_code": report.exit_code} if as_json else [report.to_text()])
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example: scalade ops engines --filter 'layout == megatron.tp2' --against 'layout == tp2'")
def ops(
    results: FoundResults = None,
    where: Filter = None,
    against: Annotated[str | None, typer.Option(help="The case to hold it against.", metavar="CLAUSES")] = None,
    rows: Annotated[int, typer.Option(help="Operations to show, those that differ most.", min=1)] = 12,
    as_json: Json = False,
) -> None:
    """What a step's time went into, operation by operation, where measure.profile_steps asked for it."""
    from ..results import op_profile as told

    path = _located(results)
    cases = told.case_ops(path, where)
    if against is None:
        say(told.as_dict(cases) if as_json else told.as_text(cases))
    else:
        case, base = told.one_case(cases, "--filter"), told.one_case(told.case_ops(path, against), "--against")
        say(told.against_dict(case, base) if as_json else told.against_text(case, base, rows))


@app.command(epilog="Example: scalade check quickstart")
def check(results: FoundResults = None, where: Filter = None, as_json: Json = False) -> None:
    """Check a table against the twelve rules of honest benchmarking (Hoefler and Belli, SC'15), and whether the
    machine was quiet."""
    from ..results.check.command import check as examine

    report = examine(_located(results), where)
    say(report.to_dict() | {"exit_code": report.exit_code} if as_json else [report.to_text()])
    raise typer.Exit(report.exit_code)


def _to_fit(given: Path) -> tuple[Any, bool]:
    """The frame at a path, and whether it is our table `runs`: of that the runs with status ok, from a results folder
    as from what `export` wrote of one."""
    from ..results.laws import read_table
    from ..results.table.read import exported_runs, read_exported, read_runs

    found = None
    if given.is_dir():
        found = read_runs(given, where="status == ok"), "runs"
    elif given.is_file() and given.suffix.lower() in (".parquet", ".pq"):
        found = read_exported(given)
    if found is None:
        read = read_table(given)
        ours = exported_runs(read)
        found = (read, "") if ours is None else (ours, "runs")
    frame, name = found
    if name == "runs" and "status" in frame:
        frame = frame[frame["status"] == "ok"]
    frame.attrs["table"] = given.name
    return frame, name == "runs"


def _progress():
    """Shows the progress of a long fit on one line of the terminal; None where standard error is not one."""
    if not sys.stderr.isatty():
        return None

    def tell(stage: str, share: float) -> None:
        print(f"\r\033[K{stage}: {share:.0%}", end="\r", file=sys.stderr, flush=True)

    return tell


@app.command(epilog="Example: scalade fit runs.csv --params n_params --tokens n_tokens --where 'outlier == False'")
def fit(
    table: Annotated[
        Path | None,
        typer.Argument(help="CSV or Parquet, or a results folder or study name.", metavar="TABLE", show_default=False),
    ] = None,
    law: Annotated[str, typer.Option(help="One of --laws.", metavar="NAME")] = "chinchilla",
    laws: Annotated[bool, typer.Option("--laws", help="List every law: equation, columns, source.")] = False,
    params: Annotated[str | None, typer.Option(help="Column of N; a study: params_total.", metavar="COLUMN")] = None,
    tokens: Annotated[str | None, typer.Option(help="Column of D; a study: tokens_seen.", metavar="COLUMN")] = None,
    loss: Annotated[str | None, typer.Option(help="Column of the loss; a study: val_loss.", metavar="COLUMN")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Other roles of the law; again for more.", metavar="ROLE=COLUMN")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Rows to fit.", metavar="EXPRESSION")] = None,
    holdout: Annotated[str | None, typer.Option(help="Rows to forecast, never to fit.", metavar="EXPRESSION")] = None,
    run: Annotated[str | None, typer.Option(help="Column that tells runs apart.", metavar="COLUMN")] = None,
    objective: Annotated[str, typer.Option(help="huber, l1, squares or raw_squares.")] = "huber",
    delta: Annotated[float, typer.Option(help="Huber's, on log residuals.")] = 1e-3,
    fix: Annotated[
        list[str] | None, typer.Option(help="A parameter held, or tied to another.", metavar="NAME=VALUE")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="Strength of the law's weak prior, or `auto`: by curves left out.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples of runs; 0: none.")] = 1000,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    flops: Annotated[str | None, typer.Option(help="Column of C; a study: train_flops_6n.", metavar="COLUMN")] = None,
    target_flops: Annotated[list[float] | None, typer.Option(help="Optimal N and D for this C.", metavar="C")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="A run to forecast, as params=1e9,tokens=2e10; repeatable.", metavar="ROLE=VALUE,..."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="Other laws to stack, comma-separated; `none`: no forecast.", metavar="NAMES")
    ] = None,
    approach: Annotated[list[str] | None, typer.Option(help="isoflop or envelope.", metavar="NAME")] = None,
    nearest: Annotated[int | None, typer.Option(help="isoflop: fit this many sizes around the minimum.")] = None,
    alternative: Annotated[
        list[str] | None,
        typer.Option(help="Sensitivity to another column for a role; repeatable.", metavar="ROLE=COLUMN"),
    ] = None,
    flops_per_nd: Annotated[float, typer.Option(help="k of C = k N D.")] = 6.0,
    budget_device_hours: Annotated[float | None, typer.Option(help="Rank runs to add within this.")] = None,
    device_hours: Annotated[str | None, typer.Option(help="Column of what a run cost.", metavar="COLUMN")] = None,
    flops_per_device_hour: Annotated[float | None, typer.Option(help="Or the speed it comes from.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Fit a table that looks wrong, with warnings.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a scaling law, with intervals and what the table cannot tell. Exit status 1: it did not converge."""
    from ..results.laws import catalogue, fit_file, get_law
    from .locate import locate

    if laws:
        say({"laws": catalogue.as_dicts()} if as_json else catalogue.as_text())
        return
    if table is None:
        raise typer.BadParameter("name a TABLE to fit, or --laws to list the laws")
    given, ours = _to_fit(locate(table))
    if ours:
        roles = get_law(law).roles
        params = params or ("params_total" if "params" in roles else None)
        tokens = tokens or ("tokens_seen" if "tokens" in roles else None)
        loss, flops = loss or "val_loss", flops or "train_flops_6n"
    report = fit_file(
        given, law=law, params=params, tokens=tokens, loss=loss, columns=dict(_pairs("--column", column)), where=where,
        holdout=holdout, run=run, objective=objective, delta=delta, bootstrap=bootstrap, level=level, seed=seed,
        fix={name: _number(value) for name, value in _pairs("--fix", fix)}, flops=flops,
        prior=None if prior is None else _number(prior), target_flops=target_flops or (),
        at=[_run(text) for text in at or ()],
        compare=() if compare == "none" else compare.split(",") if compare else None, approach=approach or (),
        nearest=nearest, alternatives=dict(_pairs("--alternative", alternative)), flops_per_nd=flops_per_nd,
        budget_device_hours=budget_device_hours, device_hours=device_hours,
        flops_per_device_hour=flops_per_device_hour, anyway=anyway,
        progress=_progress(),
    )  # fmt: skip
    say(report.to_dict() | {"exit_code": report.exit_code} if as_json else [report.to_text()])
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example: scalade compare base-results head-results --markdown verdict.md")
def compare(
    base: Annotated[
        str, typer.Argument(help="Results to compare with; with --interleave a git revision.", metavar="BASE")
    ],
    head: Annotated[str, typer.Argument(help="Results to judge; with --interleave a git revision.", metavar="HEAD")],
    study: Annotated[Path | None, typer.Argument(help="With --interleave: what to run.", metavar="[STUDY]")] = None,
    interleave: Annotated[bool, typer.Option("--interleave", help="Run STUDY on both revisions, in turns.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="With --interleave: keep the runs here.", metavar="FOLDER")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="With --interleave: runs of each case.")] = None,
    metric: Metrics = None,
    alpha: Annotated[float, typer.Option(help="False alarms allowed, over all cases.")] = 0.05,
    min_effect: Annotated[float, typer.Option(help="Relative change that is worth a verdict.")] = 0.01,
    margin: Annotated[float, typer.Option(help="Relative change within which two are the same.")] = 0.05,
    loss_tolerance: Annotated[float, typer.Option(help="Of the loss, where the base has under 3 seeds.")] = 0.01,
    where: Filter = None,
    confirm: Annotated[
        Path | None,
        typer.Option(
            help="Other runs of HEAD, or the --json output of comparing them, to confirm gains.", metavar="FOLDER"
        ),
    ] = None,
    fail_on_noise: Annotated[bool, typer.Option("--fail-on-noise", help="Fail `too noisy`, too.")] = False,
    move_baseline: Annotated[bool, typer.Option("--move-baseline", help="Copy confirmed gains to BASE.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write this file.", metavar="FILE")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write this file.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """The regression gate: HEAD against BASE, case by case. Exit status 1: slower, larger, worse or missing."""
    from ..results.gate import formats as formats
    from ..results.gate.rule import Rule
    from .locate import locate

    if confirm is not None and not confirm.is_file():
        confirm = locate(confirm)
    if interleave != (study is not None):
        raise ValueError("STUDY and --interleave go together: scalade compare --interleave BASE_REF HEAD_REF STUDY")
    rule = Rule(
        alpha=alpha, min_effect=min_effect, margin=margin, loss_tolerance=loss_tolerance, fail_on_noise=fail_on_noise
    )
    rule = replace(rule, metrics=tuple(metric)) if metric else rule
    if study is not None:
        from ..launch.interleave import interleave as run_both

        done = run_both(
            base,
            head,
            study,
            results,
            repeats=repeats,
            rule=rule,
            where=where,
            confirm=confirm,
            say=lambda line: print(printable(line), file=sys.stderr, flush=True),
        )
    else:
        from ..results.gate.compare import compare as judge

        done = judge(locate(Path(base)), locate(Path(head)), rule, where, confirm)
    if markdown:
        markdown.write_text(formats.as_markdown(done))
    if junit:
        junit.write_text(formats.as_junit(done))
    say(formats.as_dict(done) | {"exit_code": done.exit_code} if as_json else formats.as_text(done))
    if move_baseline:
        from ..results.gate.baseline import move_baseline as move

        moved = move(done)
        print(printable(f"baseline moved: {', '.join(moved) or 'nothing'}"), file=sys.stderr)
    raise typer.Exit(done.exit_code)


@app.command(epilog="Example: scalade report quickstart --out report.html")
def report(
    results: FoundResults = None,
    out: Annotated[Path | None, typer.Option(help="Default: report.html in RESULTS.", metavar="FILE")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="For the SVG and PNG files; default: beside the page.", metavar="FOLDER")
    ] = None,
    format: Annotated[list[str] | None, typer.Option(help="svg or png; again for both. Default: both.")] = None,
    where: Filter = None,
    mode: Annotated[str | None, typer.Option(help="strong or weak; default: both.")] = None,
    base: Annotated[str | None, typer.Option(help="The base run of the scaling figures.", metavar="CLAUSES")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A column that may differ; again for more.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Results to hold these against: the gate's verdicts.", metavar="RESULTS")
    ] = None,
    convention: Annotated[str, typer.Option(help="mfu_6n, mfu_palm or mfu_causal.")] = "mfu_palm",
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """One page that opens offline, with the figures of a paper: what was measured, what failed, what is missing."""
    from ..results.report import report as write
    from ..results.report.command import FORMATS
    from .locate import locate

    def show(stage: str, fraction: float) -> None:
        end = "\n" if fraction >= 1 else ""
        print(f"\r{fraction:4.0%} {printable(stage):<40}", end=end, file=sys.stderr, flush=True)

    written = write(
        _located(results),
        out,
        figures=figures,
        formats=tuple(format or FORMATS),
        where=where,
        mode=mode,
        base=base,
        allow=tuple(allow or ()),
        convention=convention,
        level=level,
        title=title,
        baseline=None if baseline is None else locate(baseline),
        progress=None if quiet or as_json or not sys.stderr.isatty() else show,
    )
    say(written.to_dict() if as_json else [written.to_text()])


@app.command(epilog="Example: scalade history nightly-results --metric step_time_s")
def history(
    results: Annotated[list[Path], typer.Argument(help="Results folders, in any order.", metavar="RESULTS...")],
    metric: Annotated[str, typer.Option(help="One number per run.", metavar="COLUMN")] = "step_time_s",
    alpha: Annotated[float, typer.Option(help="False alarms allowed, per case.")] = 0.05,
    where: Filter = None,
    as_json: Json = False,
) -> None:
    """When a figure changed: change points over the runs of each case."""
    from ..results.gate import history as told
    from .locate import locate

    found = told.history([locate(path) for path in results], metric, alpha, where)
    say(told.as_dict(found) if as_json else told.as_text(found))


def _located(results: Path | None) -> Path:
    """The results that are meant, named where the user did not."""
    from .locate import locate

    found = locate(results)
    if results != found:
        print(f"reading {printable(str(found))}", file=sys.stderr, flush=True)
    return found


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, str]]:
    for pair in given or []:
        if "=" not in pair:
            raise ValueError(f"{option} {pair}: wants NAME=VALUE")
    out = [tuple(pair.split("=", 1)) for pair in given or []]
    names = [name.strip() for name, _ in out]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{option}: {twice} is given twice")
    return out


def _run(text: str) -> dict[str, float]:
    """A run to forecast, `params=1e9,tokens=2e10`. Raises ValueError for what is no number."""
    out = {}
    for name, value in _pairs("--at", text.split(",")):
        number = _number(value)
        if isinstance(number, str):
            raise ValueError(f"--at {text}: {value!r} is not a number, such as 7e9")
        out[name.strip()] = number
    return out


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
