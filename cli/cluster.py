"""The commands for clusters: submit, status, cancel, logs; and `pack`, which batch scripts call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..results.terminal import printable
from ..results.wording import count_of
from .options import FoundResults, Json, option_objects, say

if TYPE_CHECKING:
    from ..launch.cluster.submit import Submitted

TELL_S = 5.0
app = typer.Typer()

JobOption = Annotated[
    str,
    typer.Option(
        "--job", help="A job's or task's id, or a submission; default: all.", metavar="ID", show_default=False
    ),
]


class SiteOptions(NamedTuple):
    """The scheduler that the jobs go to, and the launcher of ranks there."""

    scheduler: Annotated[
        str, typer.Option(help="slurm, pbs, flux, lsf or kubernetes; default: the profile's.", show_default=False)
    ] = ""
    profile: Annotated[Path | None, typer.Option(help="The site profile (TOML).", metavar="FILE")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the scripts; submit and write nothing.")] = False
    launcher: Annotated[
        str, typer.Option(help="srun, torchrun or mpirun; default: the profile's, the study's.", show_default=False)
    ] = ""


class JobOptions(NamedTuple):
    """The division of cases into jobs."""

    mode: Annotated[str, typer.Option(help="array: a job for each case; packed: many cases in one job.")] = "array"
    nodes: Annotated[int, typer.Option(help="Packed: nodes of the job; 0: as the largest case takes.")] = 0
    jobs: Annotated[int, typer.Option(help="Packed: number of jobs, which share the cases.")] = 1
    one_at_a_time: Annotated[bool, typer.Option("--one-at-a-time", help="Packed: no run beside another.")] = False
    throttle: Annotated[int, typer.Option(help="Array: most tasks at once; 0: no limit.")] = 0
    time_limit: Annotated[
        str, typer.Option(help="Time limit of a job, as HH:MM:SS; default: the profile's.", show_default=False)
    ] = ""


class CaseOptions(NamedTuple):
    """The results folder, and which of its unfinished cases are submitted again."""

    results: Annotated[Path | None, typer.Option(help="Results folder; default: the study's.", metavar="FOLDER")] = None
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also submit what failed before.")] = False
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Also submit the cases of jobs that are lost or unknown.")
    ] = False


@app.command(epilog="Example: scalade submit studies/weak-scaling.toml --scheduler slurm --profile site.toml --dry-run")
@option_objects
def submit(
    study: Annotated[Path, typer.Argument(help="The study file (TOML).", metavar="STUDY")],
    *,
    site: SiteOptions,
    job: JobOptions,
    cases: CaseOptions,
    as_json: Json = False,
) -> None:
    """Submit the missing runs of a study to a scheduler. Submitting again starts nothing twice.

    A job whose end is not known may still be running: its cases are left alone, unless --resubmit is given.
    Exit status 1: there is nothing to submit, and the table has a failed run or none at all, or such jobs are left.
    """
    from ..launch.cluster.jobs import SubmitOptions
    from ..launch.cluster.submit import submit_study

    options = SubmitOptions(
        site.scheduler,
        site.profile,
        site.launcher,
        job.mode,
        job.nodes,
        job.jobs,
        job.one_at_a_time,
        job.throttle,
        job.time_limit,
        cases.retry_failed,
        cases.resubmit,
    )
    submitted = submit_study(study, cases.results, options, dry_run=site.dry_run, tell=_every_few_seconds())
    if as_json:
        say(_as_dict(submitted, site.dry_run))
    elif site.dry_run:
        for name, text in submitted.scripts.items():
            say([f"# ---- {name}", text])
        print(printable("\n".join(_summary(submitted, dry_run=True))), file=sys.stderr)
    else:
        say([*_summary(submitted, dry_run=False), f"table: {submitted.results}"])
    raise typer.Exit(submitted.exit_code)


def _job_ids(submitted: Submitted) -> list[str]:
    return [job.job_id for job in submitted.submission.jobs] if submitted.submission else []


def _as_dict(submitted: Submitted, dry_run: bool) -> dict[str, Any]:
    return {
        "results": str(submitted.results),
        "runs": submitted.runs,
        "kept": submitted.kept,
        "active_cases": submitted.active,
        "unheard_cases": submitted.unheard_cases,
        "unheard": submitted.unheard,
        "left_cases": submitted.left,
        "skipped": submitted.skipped,
        "jobs": _job_ids(submitted),
        "submission": submitted.submission.id if submitted.submission else None,
        "scripts": submitted.scripts if dry_run else list(submitted.scripts),
        "skip_reasons": submitted.skip_reasons,
        "failed": {run_id: asdict(outcome) for run_id, outcome in submitted.failed.items()},
        "exit_code": submitted.exit_code,
    }


def _summary(submitted: Submitted, dry_run: bool) -> list[str]:
    """The lines for people: what was submitted, what was not and why, and the ids of the jobs."""
    from ..launch.run import counted

    ids = _job_ids(submitted)
    facts = [count_of(submitted.runs, "run")]
    if submitted.kept:
        facts.append(f"{submitted.kept} had been done before")
    if submitted.active:
        facts.append(f"{count_of(submitted.active, 'case')} under way")
    if submitted.failed:
        facts.append(f"{len(submitted.failed)} failed before: --retry-failed submits what can run")
    if submitted.skipped:
        facts.append(f"{count_of(submitted.skipped, 'case')} skipped")
    verb = "would submit" if dry_run else "submitted" if ids else "nothing to submit"
    lines = [f"{verb}: {', '.join(facts)}", *counted(submitted.skip_reasons), *_left_alone(submitted)]
    return [*lines, f"jobs: {_some_of(ids)}"] if ids else lines


def _left_alone(done: Submitted) -> list[str]:
    """One line for each reason why cases were not submitted, with how to change that."""
    lines = []
    if done.unheard_cases:
        jobs = [f"{job} ({state})" for job, state in done.unheard.items()]
        lines.append(
            f"not started again: {count_of(done.unheard_cases, 'case')} of {_some_of(jobs)}: they may be "
            "running; scalade status says more, --resubmit starts them all the same"
        )
    if done.left:
        lines.append(
            f"left for later: {count_of(done.left, 'case')}, since {done.left_why}: submit again, or --mode packed"
        )
    return lines


def _some_of(words: Sequence[str], most: int = 8) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most:,} more" if len(words) > most else "")


def _every_few_seconds() -> Callable[[int, int], None]:
    """Prints to standard error every few seconds how many jobs have been submitted."""
    last = time.monotonic()

    def tell(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_S and done < of:
            last = time.monotonic()
            print(f"scalade: {done:,} of {count_of(of, 'job')} handed over", file=sys.stderr, flush=True)

    return tell


@app.command(epilog="Example: scalade status quickstart")
def status(
    results: FoundResults = None,
    job: JobOption = "",
    limit: Annotated[int, typer.Option(min=0, help="Lines to show, those that need attention first; 0: all.")] = 100,
    as_json: Json = False,
) -> None:
    """Show the state of submitted jobs: waiting, running, done, failed, with the scheduler's reason.

    lost: the scheduler does not know the job any more, and runs are missing; unknown: the scheduler did not answer.
    Neither is started again automatically. Exit status 1: a job or one of its runs has failed, is lost or unknown.
    """
    from ..launch.cluster.status import counted_states, shortened
    from ..launch.cluster.status import status as find
    from ..results.terminal import make_console, print_grid
    from .locate import locate

    lines, doubts = find(locate(results), job)
    code = int(bool(doubts) or any(line.wanting for line in lines))
    if as_json:
        say(
            {
                "jobs": [vars(line) for line in lines],
                "states": counted_states(lines),
                "doubts": doubts,
                "exit_code": code,
            }
        )
    else:
        everything, lines = lines, shortened(lines, limit)
        headers = ("job", "case", ">nodes", ">ranks", "state", "runs", "on", ">time", "reason")
        rows = [
            (
                line.job,
                line.what,
                str(line.nodes),
                str(line.ranks),
                line.state,
                ", ".join(f"{count} {name}" for name, count in line.runs.items()),
                line.where,
                line.elapsed,
                "; ".join(filter(None, (line.reason, line.progress))),
            )
            for line in lines
        ]
        print_grid(make_console(), headers, rows)
        if len(lines) < len(everything):
            counts = ", ".join(f"{count:,} {state}" for state, count in counted_states(everything).items())
            say([f"{len(lines):,} of {count_of(len(everything), 'job')} are shown (--limit): {counts}"])
    for doubt in doubts:
        print(f"scalade: {doubt}", file=sys.stderr)
    raise typer.Exit(code)


@app.command(epilog="Example: scalade cancel quickstart --job 1234_3")
def cancel(results: FoundResults = None, job: JobOption = "", as_json: Json = False) -> None:
    """Cancel submitted jobs that wait or run. Runs that have their row keep it."""
    from ..launch.cluster.cancel import cancel as end
    from .locate import locate

    lines = end(locate(results), job)
    say({"said": lines} if as_json else lines)


@app.command(epilog="Example: scalade logs quickstart --job 1234_3 --lines 50")
def logs(
    results: FoundResults = None,
    job: JobOption = "",
    lines: Annotated[int, typer.Option(help="Lines to show from the end of each file.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the end of what submitted jobs printed, the newest last."""
    from ..launch.cluster.logs import logs as read
    from .locate import locate

    tails = read(locate(results), job, lines)
    if as_json:
        say({"logs": tails})
    else:
        for name, tail in tails.items():
            say([f"==> {name}", *tail, ""])


@app.command(hidden=True)
def pack(job: Annotated[Path, typer.Argument(help="The job file that submit wrote.", metavar="JOB")]) -> None:
    """Inside a job: run its cases side by side, each on nodes of its own."""
    from ..launch.cluster.pack import pack as run_all
    from ..launch.cluster.pack import to_text

    tally = run_all(job)
    say(to_text(tally))
    raise typer.Exit(tally.exit_code)
