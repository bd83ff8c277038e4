"""The command line. Each command imports what it needs when it is called: `scalade --help` imports nothing heavy.

Exit status: 0 done, 1 a negative result (a failed run in the table is one), 2 a mistake of the user (one line, no
trace), 70 a mistake of Scalade (one line, too), 75 to be queued again, 128 + n ended by signal n; docs/exit-status.md
lists them for every command.
SCALADE_TRACE=1 shows the trace behind a one-line message.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from ..results.terminal import printable
from . import calibrate, cluster, fit, gate, plan, predict, read, report, table
from . import lab as lab_commands
from .options import Json, say

app = typer.Typer(
    name="scalade",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERNAL = 70  # EX_SOFTWARE of sysexits.h
UserError: Any = typer.BadParameter.__mro__[2]  # ClickException, of click or of the copy that newer typers carry


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"scalade {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
StudyPath = Annotated[Path, typer.Argument(help="The study file (TOML).", metavar="STUDY")]
Results = Annotated[Path | None, typer.Option(help="Results folder; default: the study's.", metavar="FOLDER")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Also run again what failed before.")]
LabName = Annotated[
    str | None, typer.Option("--lab", help="Run on this lab's nodes (`scalade lab up`).", metavar="NAME")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only failures.")]


@app.callback()
def scalade(version: Version = False) -> None:
    """Measures how distributed training scales."""


@app.command(epilog="Example: scalade init my-studies")
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to write to; default: the current one.", metavar="FOLDER")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files whose content differs.")] = False,
    list_studies: Annotated[bool, typer.Option("--list", help="List the studies that ship; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write a first study with comments, and the studies that ship with Scalade.

    A file that is there with other content stays, and then nothing is written, unless --force is given.
    """
    from ..launch.study import starter

    if not list_studies:
        written = starter.write_starter_folder(folder or Path("."), force=force)
        say(starter.to_dict(written) if as_json else starter.to_text(written))
    elif folder or force:
        raise ValueError("--list writes nothing: give it without a folder and without --force")
    else:
        say(starter.list_as_json() if as_json else starter.list_as_text())


@app.command(epilog="Example: scalade run studies/quickstart.toml")
def run(
    study: StudyPath,
    results: Results = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
    lab: LabName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is missing; run and write nothing.")] = False,
    limit: Annotated[int, typer.Option(help="--dry-run: cases that are shown; 0: all.", min=0)] = 40,
    as_json: Json = False,
) -> None:
    """Run what is missing of a study, each run in fresh processes.

    Exit status 0: every case that can run has its runs in the table; 1: the table holds a failed run of the study,
    also of an earlier day, or nothing was measured.
    """
    from ..launch import run as launch

    if dry_run:
        return _dry_run(study, results, retry_failed, limit, as_json)
    measured_lab = lab_commands.measured(lab, quiet or as_json) if lab else None
    summary, folder = launch.run_study(
        study, results, retry_failed=retry_failed, quiet=quiet or as_json, lab=measured_lab
    )
    say(launch.to_dict(summary, folder) if as_json else launch.to_text(summary, folder))
    raise typer.Exit(summary.exit_code)


def _dry_run(study: Path, results: Path | None, retry_failed: bool, limit: int, as_json: bool) -> None:
    from ..launch import dry_run as dry
    from ..results.terminal import make_console

    plan = dry.dry_run(study, results, retry_failed=retry_failed)
    if as_json:
        say(dry.to_dict(plan))
    else:
        dry.print_dry_run(plan, make_console(), limit)


@app.command(epilog="Example: torchrun --nproc-per-node 2 -m scalade worker studies/quickstart.toml")
def worker(
    study: StudyPath,
    results: Results = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Run only this case_id or run_id; repeat the option for several.", metavar="ID"),
    ] = None,
    as_json: Json = False,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", hidden=True)] = False,
) -> None:
    """Run the cases that fit the ranks that are there (torchrun, mpirun, srun).

    Exit status 0: all of these cases have their runs in the table; 1: one of the runs failed, or nothing was measured.
    """
    from ..launch import run as launch

    summary, folder, code, why = launch.run_worker(
        study, results, retry_failed=retry_failed, quiet=quiet or as_json, only=tuple(case or ())
    )
    if summary is not None and folder is not None and not exit_zero:
        say(launch.to_dict(summary, folder) if as_json else launch.to_text(summary, folder))
    elif summary is None and why:
        print(f"scalade: {why}", file=sys.stderr)
    raise typer.Exit(0 if exit_zero and not why else code)


@app.command(epilog="Example: scalade verify studies/parity.toml --tolerance 1e-5")
def verify(
    study: StudyPath,
    tolerance: Annotated[float, typer.Option(help="Largest relative difference that passes.", metavar="NUMBER")] = 1e-4,
    results: Annotated[Path | None, typer.Option(help="Keep the runs in this new folder.", metavar="FOLDER")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check that every layout trains as one process does.

    Each layout takes 10 steps in fp32 on this machine; losses and gradient norms are compared with those of one
    process. Exit status 0: all agree; 1: one does not, or none could be tried.
    """
    from ..launch.verify import report
    from ..launch.verify.command import verify_study
    from ..results.terminal import make_console

    done, code = verify_study(study, results, tolerance=tolerance, quiet=quiet or as_json)
    if as_json:
        say(report.to_dict(done) | {"exit_code": code})
    else:
        report.print_verification(done, make_console())
    raise typer.Exit(code)


@app.command(epilog="Example: scalade doctor --results /scratch/scalade-results")
def doctor(
    results: Annotated[
        Path | None, typer.Option(help="Folder to try instead of ./scalade-results.", metavar="FOLDER")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at this machine.

    What works, what would disturb a measurement, what is missing and how to get it. Exit status 0: `scalade run` can
    work here.
    """
    from ..launch.doctor import command as look
    from ..results.terminal import make_console

    if sys.stderr.isatty() and not as_json:
        print("Starting ranks to see whether they find each other ...", file=sys.stderr)
    findings = look.examine(results)
    code = 0 if look.healthy(findings) else 1
    if as_json:
        say(look.to_dict(findings) | {"exit_code": code})
    else:
        look.print_findings(findings, make_console())
    raise typer.Exit(code)


app.add_typer(lab_commands.app)
app.add_typer(read.app)
app.add_typer(fit.app)
app.add_typer(gate.app)
app.add_typer(report.app)
app.add_typer(table.app)
app.add_typer(cluster.app)
app.add_typer(predict.app)
app.add_typer(plan.app)
app.add_typer(calibrate.app)


def _mistake(line: str) -> SystemExit:
    print(f"scalade: {printable(line)}", file=sys.stderr)
    return SystemExit(2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; a warning of another library also says where it comes from."""
    if category.__module__.startswith(f"{__package__.partition('.')[0]}."):
        text = f"warning: {message}"
    else:
        text = warnings.formatwarning(message, category, filename, lineno).rstrip()
    print(text, file=sys.stderr)


def main() -> None:
    warnings.showwarning = _show_warning
    try:
        raise SystemExit(app(prog_name="scalade", standalone_mode=False))
    except UserError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            error.show()
            raise SystemExit(2) from None
        command = f"{error.ctx.command_path} --help" if getattr(error, "ctx", None) else "scalade --help"
        raise _mistake(f"{error.format_message().rstrip('.')} (see `{command}`)") from None
    except BrokenPipeError:  # `scalade show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + 13) from None
    except Exception as error:
        if os.environ.get("SCALADE_TRACE"):
            raise
        raise _ended(error) from None


def _ended(error: Exception) -> SystemExit:
    """The exit status for an exception that a command raised, after printing its one line."""
    from ..launch.host.placement import WorldError

    if isinstance(error, OSError) and error.filename:
        return _mistake(f"{error.strerror}: {error.filename}")
    if isinstance(error, (ValueError, OSError, WorldError)):
        return _mistake(str(error))
    if isinstance(error, ArithmeticError):  # a table with numbers that no measurement gives
        return _mistake(f"numbers that cannot be computed with ({error}): see `scalade check`")
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return _mistake(f"out of memory: {error}" if str(error) else "out of memory")
    line = f"internal error: {type(error).__name__}{f': {text}' if text else ''}"
    print(f"scalade: {printable(line)}; this is a bug: SCALADE_TRACE=1 shows the trace to report", file=sys.stderr)
    return SystemExit(INTERNAL)
