"""The program of one rank of one run: `python -m scalade.launch.rank.main SPEC.json`, in a process of its own.

Its supervisor has set RANK, WORLD_SIZE, LOCAL_RANK and the thread counts in the environment. Rank 0 writes the run's
row; a rank that fails leaves a small report in the scratch folder, says why, and ends at once.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ...results import files
from ..host.placement import SECRET, Placement, find_placement
from ..host.signals import signal_names
from ..process.error_report import ErrorReport, error_kind, one_line, write_report
from ..process.goodput import goodput_columns, read_log
from ..process.guard import die_with_supervisor
from ..process.preemption import REQUEUE_STATUS, Preempted
from ..process.progress import Reporter
from ..process.rank_environment import wait_policy
from ..process.run_spec import RunResult, RunSpec, utc
from ..process.scratch import WEIGHTS, WORLD, stack_file
from ..process.warm_pool import ARGUMENT, serve
from .reset import Before
from .world import World, join, leave

Program = Callable[..., "RunResult | None"]


def main(argv: list[str] | None = None, program: Program | None = None) -> NoReturn:
    """Run one rank to its end. `program`: what computes; by default `execute`, imported once the world stands."""
    (file,) = sys.argv[1:] if argv is None else argv
    die_with_supervisor()
    if file.startswith(ARGUMENT):
        serve(int(file.removeprefix(ARGUMENT)), lambda order: _one(order, program, warm=True))
    else:
        _one(Path(file), program)
    # Skip interpreter shutdown, in which a thread of gloo that releases its last work aborts the process
    # (https://github.com/pytorch/pytorch/pull/179291): a rank that is done would end as one that was killed.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _one(file: Path, program: Program | None, warm: bool = False) -> bool:
    """One run; what fails ends the process. warm: another may follow; False where this one left something behind."""
    spec = RunSpec.from_json(files.read(file).decode())
    scratch = Path(spec.scratch)
    place = find_placement()
    assert place is not None, "the supervisor sets RANK"
    stacks = files.stream(stack_file(scratch, place.rank))  # open as long as the run
    for name in signal_names(spec.requeue_signals):
        signal.signal(signal.Signals[name], signal.SIG_IGN)  # the supervisor hears it, and asks
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    try:
        before = _run(spec, place, scratch, program, warm)
        if left := before and before.put_back():
            print(f"a fresh process has to follow: {left}", file=sys.stderr, flush=True)
        faulthandler.unregister(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        stacks.close()
        return not left
    except Preempted as stopped:
        print(stopped, file=sys.stderr, flush=True)
        os._exit(REQUEUE_STATUS)
    except BaseException as error:
        trace = traceback.format_exc()
        print(trace, file=sys.stderr, flush=True)
        report = ErrorReport(place.rank, error_kind(error), one_line(error), trace, time.time())
        try:
            write_report(scratch, report)
        finally:
            sys.stdout.flush()
            os._exit(1)  # torch's and MPI's farewells wait for peers that may be gone


def _run(spec: RunSpec, place: Placement, scratch: Path, program: Program | None, warm: bool) -> Before | None:
    """warm: gives what to put back."""
    secret = os.environ.pop(SECRET, "").encode()
    # Torch brings a quarter of a million objects that stay: no collection while they come (a tenth of the import), and
    # none ever looks at them afterwards (a full one would take as long as a step).
    gc.disable()
    world = join(spec, place, secret)
    before = Before() if warm and "torch" in sys.modules else None
    gc.freeze()
    gc.enable()
    if world.rank == 0:
        files.write(scratch / WORLD, world.ranks_json(), sync=False)
    case = spec.parsed_case()
    reporter = Reporter(scratch, case.steps, active=world.rank == 0, launched=spec.launched, run_id=spec.run_id)
    reporter.phase("building")
    try:
        result = (program or _training())(case, world, reporter)
    except Preempted:
        leave()
        raise
    if world.rank == 0:
        assert result is not None
        reporter.phase("writing")
        write_row(spec, world, result, reporter)
    leave()
    if world.meeting:
        world.meeting.leave()
    return before


def _training() -> Program:
    from .training import execute

    return execute


def write_row(spec: RunSpec, world: World, result: RunResult, reporter: Reporter) -> None:
    """Rank 0's: the run's row, on the disk when this returns."""
    from ...results.store.store import RunStore

    now, run = spec.launched.time_now(), RunStore(Path(spec.results)).run(spec.run_id)
    row = _goodput(run.path, result, reporter, now)
    row |= (
        spec.identity()
        | {
            "status": result.status,
            "reason": result.reason,
            "finished_at": utc(time.time()),
            "wall_s": now - spec.launched_at,
            "ranks_json": world.ranks_json(),
            "nodes": len({seat.host for seat in world.seats}),
            "backend": world.backend,
            "threads_per_rank": world.threads,
            "omp_wait_policy": wait_policy(world.threads),
        }
        | result.row
    )
    trained = Path(spec.scratch) / WEIGHTS
    if result.status == "ok" and files.is_file(trained):  # before the row: a reader of the row finds the weights
        os.replace(trained, run.path / WEIGHTS)
    run.write(row, result.steps, result.evals, result.comm, result.ops)


def _goodput(run_folder: Path, result: RunResult, reporter: Reporter, now: float) -> dict[str, object]:
    """Columns over all starts of the run, of which this is the last."""
    known = read_log(run_folder)
    starts = known.starts
    if not starts:
        return goodput_columns(starts, None, known.damage)
    times = result.steps.get("step_time_s", [])
    useful_s = sum(times) if len(times) and result.status == "ok" else None
    starts[-1] = replace(starts[-1], ended_at=now, trained_from=reporter.trained_from, trained_at=reporter.trained_at)
    return goodput_columns(starts, useful_s, known.damage)
