"""The commands for clusters: submit, status, cancel, logs; and `pack`, which batch scripts call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..results.terminal import printable
from ..results.wording import count_of
from .read import FoundResults, Json, say

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


@app.command(epilog="Example: scalade submit studies/weak-scaling.toml --scheduler slurm --profile site.toml --dry-run")
def submit(
    study: Annotated[Path, typer.Argument(help="The study file (TOML).", metavar="STUDY")],
    scheduler: Annotated[
        str, typer.Option(help="slurm, pbs, flux, lsf or kubernetes; default: the profile's.", show_default=False)
    ] = "",
    profile: Annotated[Path | None, typer.Option(help="The site profile (TOML).", metavar="FILE")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the scripts; submit and write nothing.")] = False,
    launcher: Annotated[
        str, typer.Option(help="srun, torchrun or mpirun; default: the profile's, the study's.", show_default=False)
    ] = "",
    mode: Annotated[str, typer.Option(help="array: a job for each case; packed: many cases in one job.")] = "array",
    nodes: Annotated[int, typer.Option(help="Packed: nodes of the job; 0: as the largest case takes.")] = 0,
    jobs: Annotated[int, typer.Option(help="Packed: so many jobs, which share the cases.")] = 1,
    one_at_a_time: Annotated[bool, typer.Option("--one-at-a-time", help="Packed: no run beside another.")] = False,
    throttle: Annotated[int, typer.Option(help="Array: so many tasks at once; 0: no limit.")] = 0,
    time_limit: Annotated[
        str, typer.Option(help="Of a job, as HH:MM:SS; default: the profile's.", show_default=False)
    ] = "",
    results: Annotated[
        Path | None, typer.Option(help="Results folder; default: the study's.", metavar="FOLDER")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also what failed before.")] = False,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Also the cases of jobs that are lost or unknown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hand what is missing of a study to a scheduler. Submitting again starts nothing twice.

    A job of which nobody has heard the end may be running: its cases are left alone, unless --resubmit is given.
    Exit status 1: there is nothing to hand over, and the table has a failed run or none at all, or such jobs are left.
    """
    from ..launch.cluster.jobs import Wish
    from ..launch.cluster.submit import submit_study
    from ..launch.run import counted

    wish = Wish(
        scheduler, profile, launcher, mode, nodes, jobs, one_at_a_time, throttle, time_limit, retry_failed, resubmit
    )
    done = submit_study(study, results, wish, dry_run=dry_run, tell=_every_few_seconds())
    ids = [job.job_id for job in done.submission.jobs] if done.submission else []
    if as_json:
        say(
            {
                "results": str(done.results),
                "runs": done.runs,
                "kept": done.kept,
                "active_cases": done.active,
                "unheard_cases": done.unheard_cases,
                "unheard": done.unheard,
                "left_cases": done.left,
                "skipped": done.skipped,
                "jobs": ids,
                "submission": done.submission.id if done.submission else None,
                "scripts": done.scripts if dry_run else list(done.scripts),
                "skip_reasons": done.skip_reasons,
                "failed": {run_id: asdict(outcome) for run_id, outcome in done.failed.items()},
                "exit_code": done.exit_code,
            }
        )
        raise typer.Exit(done.exit_code)
    if dry_run:
        for name, text in done.scripts.items():
            say([f"# ---- {name}", text])
    facts = [count_of(done.runs, "run")]
    facts += [f"{done.kept} had been done before"] * bool(done.kept)
    facts += [f"{count_of(done.active, 'case')} under way"] * bool(done.active)
    facts += [f"{len(done.failed)} failed before: --retry-failed submits what can run"] * bool(done.failed)
    facts += [f"{count_of(done.skipped, 'case')} skipped"] * bool(done.skipped)
    more = _left_alone(done)
    verb = "would submit" if dry_run else "submitted" if ids else "nothing to submit"
    lines = [f"{verb}: {', '.join(facts)}", *counted(done.skip_reasons), *more]
    lines += [f"jobs: {_some_of(ids)}"] * bool(ids)
    say([*lines, f"table: {done.results}"]) if not dry_run else print(printable("\n".join(lines)), file=sys.stderr)
    raise typer.Exit(done.exit_code)


def _left_alone(done: Submitted) -> list[str]:
    """What was not handed over, one line each: what it waits for, and how that is changed."""
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
    """Says on standard error how many jobs have been handed over, where that takes its time."""
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
    limit: Annotated[int, typer.Option(min=0, help="So many lines, what needs a look first; 0: all.")] = 100,
    as_json: Json = False,
) -> None:
    """What became of submitted jobs: waiting, running, done, failed, with the scheduler's reason.

    lost: the scheduler does not know it any more, and runs are missing; unknown: the scheduler did not answer. Nothing
    is started again for these by itself. Exit status 1: a job or one of its runs has failed, is lost or unknown.
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

    said = end(locate(results), job)
    say({"said": said} if as_json else said)


@app.command(epilog="Example: scalade logs quickstart --job 1234_3 --lines 50")
def logs(
    results: FoundResults = None,
    job: JobOption = "",
    lines: Annotated[int, typer.Option(help="Of the end of each file.")] = 20,
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
    from ..launch.cluster.pack import as_text
    from ..launch.cluster.pack import pack as run_all

    tally = run_all(job)
    say(as_text(tally))
    raise typer.Exit(tally.exit_code)
