"""What `scalade run` and `scalade worker` do, from a study's path to a summary."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import files
from ..results.store.store import RunStore
from ..results.wording import count_of
from .host.launchers import LAUNCHERS, WorldLauncher
from .host.signals import signal_names
from .process.error_report import one_line
from .process.supervisor import RANK_COMMAND, Signals
from .study.study import load_study
from .study.unmet import refuse_here
from .sweep.display import make_display
from .sweep.executor import Executor
from .sweep.local import LocalExecutor
from .sweep.plan import AnyCase, RunnableStudy, make_plan
from .sweep.summary import Summary
from .sweep.sweep import Sweep
from .sweep.under_launcher import ENDED_FILE, LauncherSweep

if TYPE_CHECKING:
    from .lab.lab import Lab

MakeExecutor = Callable[[Signals], Executor]

MOST_REASONS = 20  # that are shown
MOST_NAMED = 10  # runs


def run_study(
    path: Path,
    results: Path | None = None,
    *,
    retry_failed: bool = False,
    quiet: bool = False,
    command: Sequence[str] = RANK_COMMAND,
    lab: Lab | None = None,
) -> tuple[Summary, Path]:
    """Run what is missing of a study. Gives what was done and the results folder.

    command: what starts one rank
    lab: run on its nodes; None: on this machine

    Raises
    ------
    ValueError: the study or the results folder is wrong
    OSError: the results folder takes no more
    """
    return run_here(load_study(path), results, retry_failed=retry_failed, quiet=quiet, command=command, lab=lab)


def run_here(
    study: RunnableStudy[AnyCase],
    results: Path | None = None,
    *,
    retry_failed: bool = False,
    quiet: bool = False,
    command: Sequence[str] = RANK_COMMAND,
    make_executor: MakeExecutor | None = None,
    lab: Lab | None = None,
) -> tuple[Summary, Path]:
    """run_study, once the study has been read. make_executor: for the launcher `local`; None: LocalExecutor."""
    launchers: Mapping[str, WorldLauncher] = LAUNCHERS
    if lab:
        from .lab.executor import InLab, LabExecutor

        launchers = {name: InLab(lab, name) for name in LAUNCHERS}
        make_executor = make_executor or (lambda signals: LabExecutor(lab, signals, command))
        os.environ.update(lab.environment())  # of every process that is started from here on, and of the rows
    store = RunStore(results or study.results)
    plan = make_plan(study, store, retry_failed=retry_failed)
    here = study.run.launcher in ("local", "torchrun")  # the others may start ranks on other hosts, which look then
    refuse_here(study.path, study.run.device if here else "auto", plan.unfinished)
    _warn(study)
    with Signals(signal_names(study.run.requeue_signals)) as signals:
        executor = make_executor(signals) if make_executor else LocalExecutor(signals, command)
        try:
            sweep = Sweep(study, store, executor, make_display(quiet), signals, retry_failed=retry_failed)
            if study.run.launcher == "local":
                return sweep.run(plan), store.folder
            sweep.write_skipped(plan)
            options = [*(["--retry-failed"] if retry_failed else []), *(["--quiet"] if quiet else [])]
            launcher = launchers[study.run.launcher]
            return LauncherSweep(launcher, study.path, store, signals, options).run(plan), store.folder
        finally:
            executor.close()


def run_worker(
    path: Path,
    results: Path | None = None,
    *,
    retry_failed: bool = False,
    quiet: bool = False,
    only: Collection[str] = (),
    command: Sequence[str] = RANK_COMMAND,
) -> tuple[Summary | None, Path | None, int, str | None]:
    """One supervisor under torchrun, mpirun or srun: (summary and folder on rank 0 only, exit status, why it
    ended early).

    Raises
    ------
    WorldError: the world is not what the launcher says
    ValueError, OSError: as run_study
    """
    study = load_study(path)  # a wrong file costs no rendezvous
    return work_here(study, results, retry_failed=retry_failed, quiet=quiet, only=only, command=command)


def work_here(
    study: RunnableStudy[AnyCase],
    results: Path | None = None,
    *,
    retry_failed: bool = False,
    quiet: bool = False,
    only: Collection[str] = (),
    command: Sequence[str] = RANK_COMMAND,
) -> tuple[Summary | None, Path | None, int, str | None]:
    """run_worker, once the study has been read."""
    from .sweep.join import join_supervisors
    from .sweep.worker import follow, work

    folder = results or study.results
    peers = join_supervisors(dict(os.environ), folder)
    if peers.place.rank == 0 and ENDED_FILE not in os.environ:  # else `scalade run` has printed it
        _warn(study)
    with Signals(signal_names(study.run.requeue_signals), heeds=peers.place.rank == 0) as signals:
        if peers.place.rank != 0:
            return None, None, *follow(peers, signals, command)
        try:
            summary = work(
                study,
                folder,
                peers,
                signals,
                make_display(quiet),
                retry_failed=retry_failed,
                only=only,
                command=command,
            )
        except (ValueError, OSError):
            raise
        except Exception as error:
            if os.environ.get("SCALADE_TRACE"):
                raise
            return None, None, 1, f"rank 0's supervisor failed: {one_line(error)}"
        finally:
            if ENDED_FILE in os.environ:
                with suppress(OSError):
                    files.write(os.environ[ENDED_FILE], "", sync=False)
        return summary, folder, summary.exit_code, summary.interrupted


def _warn(study: RunnableStudy[AnyCase]) -> None:
    """What runs will lack, before they cost anything; quiet or not."""
    for line in study.warnings():
        print(f"warning: {line}", file=sys.stderr)


def to_dict(summary: Summary, folder: Path) -> dict[str, Any]:
    """The summary for programs."""
    runs = [{"run_id": run_id} | asdict(outcome) for run_id, outcome in summary.outcomes.items()]
    return {
        "results": str(folder),
        "runs": runs,
        "kept": summary.kept,
        "skipped": summary.skipped,
        "skip_reasons": summary.skip_reasons,
        "elsewhere": summary.elsewhere,
        "other_sizes": summary.other_sizes,
        "failed_before": {run_id: asdict(outcome) for run_id, outcome in summary.failed_before.items()},
        "interrupted": summary.interrupted,
        "exit_code": summary.exit_code,
    }


def to_text(summary: Summary, folder: Path) -> list[str]:
    """The summary for people."""
    counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items()) or "nothing to do"
    lines = [f"runs: {counts}" + (f"; {len(summary.kept)} had been done before" if summary.kept else "")]
    if before := summary.failed_before.values():
        lines.append(f"{count_of(len(before), 'run')} had failed before; --retry-failed runs again what can run:")
        lines += counted(Counter(f"{outcome.status}: {outcome.reason}" for outcome in before))
    lines += _left_out(summary)
    if summary.interrupted:
        lines.append(f"ended early: {summary.interrupted}; start it again for the rest")
    elif summary.nothing_measured:
        lines.append("nothing was measured: the table has no run of these cases with status ok (exit status 1)")
    return [*lines, f"table: {folder}"]


def _left_out(summary: Summary) -> list[str]:
    """Cases that cannot run here, and those that others run."""
    lines = []
    if summary.skipped:
        lines.append(f"{count_of(summary.skipped, 'case')} skipped:")
        lines += counted(summary.skip_reasons)
    if summary.elsewhere:
        lines.append(f"{count_of(len(summary.elsewhere), 'run')} left to another sweep: {named(summary.elsewhere)}")
    for size, count in summary.other_sizes.items():
        workers = count_of(size, "worker")
        lines.append(f"{count_of(count, 'case')} for a world of {size} left alone: start {workers} for that")
    return lines


def counted(reasons: Mapping[str, int]) -> list[str]:
    """Each distinct reason with its count, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"  {count} x {reason}" for reason, count in ordered[:MOST_REASONS]]
    left = ordered[MOST_REASONS:]
    if left:
        count = sum(count for _, count in left)
        lines.append(f"  {count} more, for {count_of(len(left), 'other reason')}: scalade show --columns layout,reason")
    return lines


def named(words: Sequence[str]) -> str:
    """The first of a list that may be long, and how many more there are."""
    more = len(words) - MOST_NAMED
    return ", ".join(words[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
