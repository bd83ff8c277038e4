"""The sweep: the missing runs of a study, one after the other, each leaving a row. Starting it again resumes.

A run is claimed before it starts, so two sweeps over one results folder share the work.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...results import files
from ...results.store.damage import damage
from ...results.store.store import FULL, Claim, RunStore
from ..host.clock import Moment
from ..host.link import link_columns
from ..process.cause import Cause, Why
from ..process.goodput import StartLog, goodput_columns, in_vain, read_log, read_starts
from ..process.outcome import Outcome
from ..process.run_spec import RunSpec, utc
from ..process.scratch import CHECKPOINT, WORLD
from ..process.step_journal import taken
from ..process.supervisor import Signals
from ..process.watchdog import keep_stacks
from ..schedulers import job_columns
from .display import Display
from .local import Executor
from .plan import Plan, PlannedRun, damaged_lines, failed_row, wanted
from .summary import Summary, undone

if TYPE_CHECKING:
    from ..study.study import Study

PACKED_FROM = 1000  # run folders from which a sweep that is done moves finished runs into parts
ROW_BYTES, STEP_BYTES = 2**17, 512  # room for a run's row: more than it and a step of it take


class Sweep:
    """Executes a plan. Raises OSError, in one line, when the results folder takes no more."""

    def __init__(
        self,
        study: Study,
        store: RunStore,
        executor: Executor,
        display: Display,
        signals: Signals,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.study, self.store, self.executor, self.display, self.signals = study, store, executor, display, signals
        self.retry_failed = retry_failed
        self._plan: Plan | None = None  # whose skipped cases have to be written yet

    def run(self, plan: Plan) -> Summary:
        summary = Summary.of(plan)
        self._plan = plan
        for line in damaged_lines(plan.damaged, self.store.damaged_parts() if plan.pending else {}):
            print(f"warning: {line}", file=sys.stderr)
        self.display.plan(plan.pending)
        self._tidy(plan)
        with undone(summary) if plan.pending else nullcontext():
            self._run(plan, summary)
        return summary

    def _run(self, plan: Plan, summary: Summary) -> None:
        try:
            held = [run for run in plan.pending if self._goes_on(summary) and not self._one(run, summary)]
            for run in held:  # its other sweep may be done by now, or dead
                if not self._goes_on(summary) or not self._one(run, summary):
                    summary.elsewhere.append(run.run_id)
            self._write_skipped()
        finally:
            self.display.close()
        self._look(summary)
        if summary.interrupted is None:
            self.store.compact(at_least=PACKED_FROM)

    def _look(self, summary: Summary) -> None:
        """Whether a signal has ended the sweep."""
        if summary.interrupted is None:
            summary.interrupted = summary.signal = self.signals.received

    def _tidy(self, plan: Plan) -> None:
        """What a sweep that was killed left of runs that had just written their row."""
        for run_id in (run_id for run_id, status in plan.kept.items() if status == "ok"):
            if self.store.has_scratch(run_id) and (claim := self.store.claim(run_id)):
                with claim:
                    self.store.release(run_id)
                    self.store.clean_scratch(run_id)

    def _goes_on(self, summary: Summary) -> bool:
        """Asked where there is more to do."""
        if summary.interrupted is None and (broken := self.executor.broken):
            summary.interrupted, summary.requeue = broken.line, broken.why is not Why.LEFT
        self._look(summary)
        if summary.interrupted is None and self.signals.warned:
            summary.interrupted, summary.requeue = f"stopped by {self.signals.warned}", True
        return summary.interrupted is None

    def _write_skipped(self) -> None:
        """Once, and early: but the first ranks are started before it, and import torch meanwhile."""
        if self._plan is not None:
            plan, self._plan = self._plan, None
            self.write_skipped(plan)

    def _one(self, run: PlannedRun, summary: Summary) -> bool:
        """False: another sweep holds it."""
        claim = self.store.claim(run.run_id)
        if claim is None:
            return False
        with claim:
            status = self.store.finished(run.run_id)
            if status == "ok" and not self.store.in_part(run.run_id):
                status = None if damage(self.store.run_folder(run.run_id), self.store.folder) else status
            if not wanted(status, self.retry_failed):  # another sweep was faster
                summary.kept[run.run_id] = status
                summary.failed_before |= failed_row(self.store, run.run_id, status)
                self.display.passed_over(run)
                return True
            try:
                outcome = summary.outcomes[run.run_id] = self._execute(run, claim)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                line = f"{error.strerror}; run {run.run_id} is not finished, what is finished stays: start it again"
                raise OSError(error.errno, f"{line} when there is room", str(self.store.folder)) from None
            finally:
                self.store.release(run.run_id)
        if outcome.status == "cancelled":
            summary.interrupted, summary.signal = self.signals.received or outcome.reason, self.signals.received
        elif outcome.status == "preempted":
            summary.interrupted, summary.requeue = outcome.reason, True
        return True

    def _execute(self, run: PlannedRun, claim: Claim) -> Outcome:
        scratch = self.store.scratch(run.run_id).absolute()
        log = StartLog(self.store.run_folder(run.run_id), scratch)
        log.settle()
        job, starts = job_columns().get("job_id", ""), read_starts(log.run_folder)
        if vain := in_vain(starts, claim.attempt, job):  # on hosts that took this supervisor with them
            self.display.started(run, scratch)
            outcome = Outcome("failed", f"{vain}; the last host: {starts[-1].host}", Cause.HOST_GONE)
            return self._write_failed(run, self._spec(run, claim.attempt, str(scratch)), outcome, log)
        self.store.clean_scratch(run.run_id, keep=[CHECKPOINT])
        spec = self._spec(run, claim.attempt, str(self.store.scratch(run.run_id).absolute()))
        log.begin(spec.launched, claim.attempt, self.executor.mark, job)
        self.store.reserve(run.run_id, ROW_BYTES + STEP_BYTES * run.case.steps)

        def started() -> None:
            self._write_skipped()
            self.display.started(run, scratch)

        outcome = self.executor.execute(spec, self.study.run.time_limit_s, started, self.display.tick)
        row, now = self.store.row(run.run_id), spec.launched.time_now()
        if row is not None and row["attempt"] == claim.attempt:  # what the ranks wrote stands
            outcome = Outcome(row["status"], row["reason"])
            log.end(now, outcome.status)
        elif outcome.status == "preempted":  # its row comes when it is finished
            log.end(now, outcome.cause if outcome.cause is Cause.HOST_GONE else outcome.status)
            vain = in_vain(read_starts(log.run_folder), claim.attempt, job)
            if vain:
                outcome = replace(outcome, status="failed", reason=f"{outcome.reason}; {vain}")
                return self._write_failed(run, spec, outcome, log)
            row = {}
        elif outcome.status == "failed" and not self.store.has_room(run.run_id):  # whatever failed, it had no disk
            log.end(now, outcome.status)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            if outcome.status == "ok":
                outcome = Outcome("failed", "every rank ended well, but rank 0 wrote no row")
            stacks = keep_stacks(scratch, log.run_folder, claim.attempt) if outcome.status == "timeout" else None
            if stacks and outcome.cause is Cause.HANG:
                where = stacks.relative_to(self.store.folder.absolute())
                outcome = replace(outcome, reason=f"{outcome.reason}; stacks in {where}")
            log.end(now, outcome.status)
            return self._write_failed(run, spec, outcome, log)
        self.display.ended(run, outcome, row, scratch)
        if outcome.status == "ok":
            self.store.clean_scratch(run.run_id)
        return outcome

    def _write_failed(self, run: PlannedRun, spec: RunSpec, outcome: Outcome, log: StartLog) -> Outcome:
        """The row of a run that came to nothing; the log has how its last start ended."""
        scratch, known = Path(spec.scratch), read_log(log.run_folder)
        row = self._row(spec, outcome, spec.launched.time_now()) | goodput_columns(known.starts, None, known.damage)
        self.store.write_run(row, **taken(scratch))
        self.display.ended(run, outcome, row, scratch)
        return outcome

    def _spec(self, run: PlannedRun, attempt: int, scratch: str) -> RunSpec:
        launched = Moment.now()
        return RunSpec(
            run_id=run.run_id,
            case=run.case.to_json(),
            repeat=run.repeat,
            study=self.study.name,
            launcher=self.executor.launcher,
            results=str(self.store.folder.absolute()),
            scratch=scratch,
            size=run.case.ranks,
            nonce="",
            address="",
            port=0,
            device=self.study.device,
            threads=self.study.threads_per_rank(self.executor.one_host),
            attempt=attempt,
            launched_at=launched.at,
            launched_monotonic=launched.monotonic,
            launched_clock=launched.clock,
            predicted_memory_bytes=run.predicted_memory_bytes,
            link=link_columns(),
            job=job_columns(),
            hang_limit_s=self.study.run.hang_limit_s,
            grace_s=self.study.run.grace_s,
            requeue_signals=self.study.run.requeue_signals,
            isolation=self.study.run.isolation,
        )

    def _row(self, spec: RunSpec, outcome: Outcome, ended_at: float) -> dict[str, object]:
        row = spec.identity() | {
            "status": outcome.status,
            "reason": outcome.reason,
            "finished_at": utc(time.time()),
            "wall_s": ended_at - spec.launched_at,
        }
        try:
            text = files.read(Path(spec.scratch) / WORLD).decode()
            row |= {"ranks_json": text, "nodes": len({str(rank["host"]) for rank in files.parse_json(text)})}
        except (OSError, ValueError, LookupError, TypeError):
            pass  # it ended before its ranks had come together
        return row

    def write_skipped(self, plan: Plan) -> None:
        """One row for each case that cannot run."""
        runs = (PlannedRun(planned.case, 0, planned.predicted_memory_bytes) for planned in plan.to_skip)
        rows = [self._spec(run, attempt=1, scratch="").identity() for run in runs]
        for row, planned in zip(rows, plan.to_skip, strict=True):
            row |= {"started_at": None, "status": "skipped", "reason": planned.skip_reason}
        self.store.write_rows(rows)
