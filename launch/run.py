"""What `scalade run` and `scalade worker` do, from a study's path to a summary."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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
from .process.guard import MARK, Guard, end_marked, new_mark
from .process.outcome import Outcome
from .process.preemption import STOP_FILE, UNDONE_FILE
from .process.supervisor import RANK_COMMAND, Signals
from .study.study import load_study
from .study.unmet import refuse_here
from .sweep.display import make_display
from .sweep.local import Executor, LocalExecutor
from .sweep.plan import Plan, make_plan
from .sweep.summary import Summary
from .sweep.sweep import Sweep

if TYPE_CHECKING:
    from .lab.lab import Lab
    from .sweep.plan import AnyCase, RunnableStudy

MakeExecutor = Callable[[Signals], Executor]

FAREWELL_S = 10.0  # for workers that were asked to end to write their row
LEAVE_S = 30.0  # for a launcher to end once rank 0's supervisor has; one may wait for a host that is cut off
MOST_REASONS = 20  # that are shown
MOST_NAMED = 10  # runs
ENDED_FILE = "SCALADE_ENDED_FILE"  # by which rank 0's supervisor says so


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
    lab: on whose nodes; None: this machine

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
    """run_study, once the study has been read. make_executor: who starts a run's ranks, where the launcher is local."""
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
            launcher = launchers[study.run.launcher]
            return _run_through(launcher, study, store, plan, signals, retry_failed, quiet), store.folder
        finally:
            executor.close()


def _run_through(
    launcher: WorldLauncher,
    study: RunnableStudy[AnyCase],
    store: RunStore,
    plan: Plan,
    signals: Signals,
    retry_failed: bool,
    quiet: bool,
) -> Summary:
    """Start the launcher once for each world size; its workers write the rows and show the progress."""
    options = ["--results", str(store.folder.absolute()), "--exit-zero"]
    options += ["--retry-failed"] * retry_failed + ["--quiet"] * quiet
    summary = Summary.of(plan)
    attempts = {run.run_id: store.attempts(run.run_id) for run in plan.pending}
    mark, guard = new_mark(), None
    stop_file = Path(os.environ.get(STOP_FILE, store.folder.absolute() / f".stop-{mark.rsplit('/', 1)[-1]}"))
    ended_file = store.folder.absolute() / f".ended-{mark.rsplit('/', 1)[-1]}"
    undone_file = ended_file.with_name(ended_file.name.replace("ended", "undone"))
    env = os.environ | {MARK: mark, STOP_FILE: str(stop_file), ENDED_FILE: str(ended_file)}
    env[UNDONE_FILE] = str(undone_file)
    env.setdefault("OMP_NUM_THREADS", "1")  # of the supervisors; torchrun talks where it is not set
    try:
        for size in sorted({run.case.ranks for run in plan.pending}):
            if summary.interrupted:
                break
            files.remove_file(ended_file)
            program = ["-m", "scalade", "worker", str(study.path.absolute()), *options]
            process = subprocess.Popen(
                launcher.command(size, program), env=env, start_new_session=True, stdin=subprocess.DEVNULL
            )
            guard, ended_at = guard or Guard(mark), None
            while process.poll() is None and not signals.received:
                if signals.warned:  # a launcher may not hand a signal on: the worker looks for the file
                    files.write(stop_file, "", sync=False)
                if ended_at is None and files.is_file(ended_file):
                    ended_at = time.monotonic()
                if ended_at and time.monotonic() - ended_at > LEAVE_S:
                    break
                time.sleep(0.05)
            late = process.poll() is None
            if late:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(FAREWELL_S)
            started = f"{launcher.name} with {count_of(size, 'rank')}"
            if signals.received:
                summary.interrupted = summary.signal = signals.received
            elif files.is_file(undone_file) and not signals.warned:  # a host is gone, or the launcher ended all
                status = "" if late else f" with status {process.returncode}"
                said = f"{started} ended{status} in the middle of a run"
                summary.interrupted, summary.requeue = _told(undone_file) or said, True
            elif late:
                said = f"{started} had not ended"
                summary.interrupted = f"{said} {LEAVE_S:g} s after rank 0's supervisor"
            elif signals.warned:
                summary.interrupted, summary.requeue = f"stopped by {signals.warned}", True
            elif process.returncode:
                summary.interrupted = f"{started} ended with status {process.returncode}"
            end_marked(mark)
    finally:
        end_marked(mark)
        files.remove_file(ended_file)
        files.remove_file(undone_file)
        if STOP_FILE not in os.environ:
            files.remove_file(stop_file)
        if guard:
            guard.close()
    for run in plan.pending:
        row = store.row(run.run_id)
        if row and store.attempts(run.run_id) != attempts[run.run_id]:
            summary.outcomes[run.run_id] = Outcome(row["status"], row["reason"])
        elif not summary.interrupted:
            summary.elsewhere.append(run.run_id)
    return summary


def _told(file: Path) -> str:
    """Why the sweep ended, as its worker wrote it; nothing where it cannot be read."""
    with suppress(OSError):
        return files.read(file, limit=files.MIB).decode(errors="replace")
    return ""


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
    if peers.place.rank == 0 and ENDED_FILE not in os.environ:  # else `scalade run` has said it
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


def as_json(summary: Summary, folder: Path) -> dict[str, Any]:
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


def as_text(summary: Summary, folder: Path) -> list[str]:
    """The summary for people."""
    counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items()) or "nothing to do"
    lines = [f"runs: {counts}" + (f"; {len(summary.kept)} had been done before" if summary.kept else "")]
    if before := summary.failed_before.values():
        lines.append(f"{count_of(len(before), 'run')} had failed before; --retry-failed runs again what can run:")
        lines += counted(Counter(f"{outcome.status}: {outcome.reason}" for outcome in before))
    if summary.skipped:
        lines.append(f"{count_of(summary.skipped, 'case')} skipped:")
        lines += counted(summary.skip_reasons)
    if summary.elsewhere:
        lines.append(f"{count_of(len(summary.elsewhere), 'run')} left to another sweep: {named(summary.elsewhere)}")
    for size, count in summary.other_sizes.items():
        workers = count_of(size, "worker")
        lines.append(f"{count_of(count, 'case')} for a world of {size} left alone: start {workers} for that")
    if summary.interrupted:
        lines.append(f"ended early: {summary.interrupted}; start it again for the rest")
    elif summary.nothing_measured:
        lines.append("nothing was measured: the table has no run of these cases with status ok (exit status 1)")
    return [*lines, f"table: {folder}"]


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
