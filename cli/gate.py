"""The command that compares results with earlier ones: compare, the regression gate."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ..results.terminal import printable
from .options import Filter, Json, Metrics, option_objects, say

if TYPE_CHECKING:
    from ..results.gate.compare import Comparison
    from ..results.gate.rule import Rule

app = typer.Typer()


class Interleaving(NamedTuple):
    """Run a study on two revisions in turns, in place of reading two results folders."""

    study: Annotated[Path | None, typer.Argument(help="With --interleave: what to run.", metavar="[STUDY]")] = None
    interleave: Annotated[bool, typer.Option("--interleave", help="Run STUDY on both revisions, in turns.")] = False
    results: Annotated[Path | None, typer.Option(help="With --interleave: keep the runs here.", metavar="FOLDER")] = (
        None
    )
    repeats: Annotated[int | None, typer.Option(help="With --interleave: runs of each case.")] = None


class RuleOptions(NamedTuple):
    """When a difference counts."""

    metric: Metrics = None
    alpha: Annotated[float, typer.Option(help="False alarms allowed, over all cases.")] = 0.05
    min_effect: Annotated[float, typer.Option(help="Relative change that is worth a verdict.")] = 0.01
    margin: Annotated[float, typer.Option(help="Relative change within which two are the same.")] = 0.05
    loss_tolerance: Annotated[
        float, typer.Option(help="Relative tolerance of the loss, where the base has under 3 seeds.")
    ] = 0.01


class RunOptions(NamedTuple):
    """Which runs are compared, and what else the exit status depends on."""

    where: Filter = None
    confirm: Annotated[
        Path | None,
        typer.Option(
            help="Other runs of HEAD, or the --json output of comparing them, to confirm gains.", metavar="FOLDER"
        ),
    ] = None
    fail_on_noise: Annotated[bool, typer.Option("--fail-on-noise", help="Also fail on the verdict `too noisy`.")] = (
        False
    )


class Outputs(NamedTuple):
    """Files that are written beside the printed verdicts."""

    move_baseline: Annotated[bool, typer.Option("--move-baseline", help="Copy confirmed gains to BASE.")] = False
    markdown: Annotated[Path | None, typer.Option(help="Also write this file.", metavar="FILE")] = None
    junit: Annotated[Path | None, typer.Option(help="Also write this file.", metavar="FILE")] = None


@app.command(epilog="Example: scalade compare base-results head-results --markdown verdict.md")
@option_objects
def compare(
    base: Annotated[
        str, typer.Argument(help="Results to compare with; with --interleave a git revision.", metavar="BASE")
    ],
    head: Annotated[str, typer.Argument(help="Results to judge; with --interleave a git revision.", metavar="HEAD")],
    turns: Interleaving,
    rules: RuleOptions,
    runs: RunOptions,
    outputs: Outputs,
    as_json: Json = False,
) -> None:
    """The regression gate: HEAD against BASE, case by case. Exit status 1: slower, larger, worse or missing."""
    from ..results.gate import formats
    from .locate import locate

    confirm = runs.confirm
    if confirm is not None and not confirm.is_file():
        confirm = locate(confirm)
    if turns.interleave != (turns.study is not None):
        raise ValueError("STUDY and --interleave go together: scalade compare --interleave BASE_REF HEAD_REF STUDY")
    rule = _rule(rules, runs.fail_on_noise)
    if turns.study is not None:
        comparison = _run_in_turns(base, head, turns.study, turns, rule, runs._replace(confirm=confirm))
    else:
        from ..results.gate.compare import compare as compare_results

        comparison = compare_results(locate(Path(base)), locate(Path(head)), rule, runs.where, confirm)
    if outputs.markdown:
        outputs.markdown.write_text(formats.to_markdown(comparison))
    if outputs.junit:
        outputs.junit.write_text(formats.to_junit(comparison))
    exit_code = {"exit_code": comparison.exit_code}
    say(formats.to_dict(comparison) | exit_code if as_json else formats.to_text(comparison))
    if outputs.move_baseline:
        _move_baseline(comparison)
    raise typer.Exit(comparison.exit_code)


def _rule(options: RuleOptions, fail_on_noise: bool) -> Rule:
    from ..results.gate.rule import Rule

    rule = Rule(
        alpha=options.alpha,
        min_effect=options.min_effect,
        margin=options.margin,
        loss_tolerance=options.loss_tolerance,
        fail_on_noise=fail_on_noise,
    )
    return replace(rule, metrics=tuple(options.metric)) if options.metric else rule


def _run_in_turns(base: str, head: str, study: Path, turns: Interleaving, rule: Rule, runs: RunOptions) -> Comparison:
    """Run `study` on both revisions and compare the runs."""
    from ..launch.interleave import interleave
    from ..results.gate.compare import compare as compare_results

    return interleave(
        base,
        head,
        study,
        turns.results,
        repeats=turns.repeats,
        compare=partial(compare_results, rule=rule, where=runs.where, confirm=runs.confirm),
        say=lambda line: print(printable(line), file=sys.stderr, flush=True),
    )


def _move_baseline(comparison: Comparison) -> None:
    from ..results.gate.baseline import move_baseline

    moved = move_baseline(comparison)
    print(printable(f"baseline moved: {', '.join(moved) or 'nothing'}"), file=sys.stderr)
