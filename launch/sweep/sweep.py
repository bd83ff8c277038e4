"""The sweep: the missing runs of a study, one after the other, each leaving a row. Starting it again resumes.

A run is claimed before it starts, so two sweeps over one results folder share the work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from ...results.store.run_folder import FULL, Claim, RunFolder
from ...results.store.store import RunStore
from ..predict.rows import predicted_columns
from ..process.cause import Status, StopReason
from ..process.outcome import Outcome
from ..process.supervisor import Signals
from .attempt import RunAttempt, run_spec
from .display import Display
from .executor import Executor
from .forecast import Forecast
from .plan import RETRIED, AnyCase, Plan, PlannedRun, RunnableStudy, damaged_lines, outcome_of, wanted
from .summary import Summary, undone

PACKED_FROM = 1000  # run folders from which a sweep that is done moves finished runs into parts


class Sweep:
    """Executes a plan. Raises OSError, in one line, when the results folder takes no more."""

    def __init__(
        self,
        study: RunnableStudy[AnyCase],
        store: RunStore,
        executor: Executor,
        display: Display,
        signals: Signals,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.study, self.store, self.executor, self.display, self.signals = study, store, executor, display, signals
        self.retry_failed = retry_failed
        self.predicted: Mapping[str, Mapping[str, Any]] = {}  # case_id -> columns of its rows
        self.forecast = Forecast(self.predicted)
        self._plan: Plan[AnyCase] | None = None  # its skipped cases are not written yet

    def run(self, plan: Plan[AnyCase]) -> Summary:
        summary = Summary.of(plan)
        self._plan = plan
        for line in damaged_lines(plan.damaged, self.store.damaged_parts() if plan.pending else {}):
            print(f"warning: {line}", file=sys.stderr)
        if plan.pending:
            plan = self._predict(plan)
        self.display.plan(plan.pending)
        self.display.left(self.forecast.left(plan.pending))
        self._tidy(plan)
        with undone(summary) if plan.pending else nullcontext():
            self._run(plan, summary)
        return summary

    def _run(self, plan: Plan[AnyCase], summary: Summary) -> None:
        try:
            held = [run for run in plan.pending if self._goes_on(summary) and not self._one(run, summary)]
            for run in held:  # the sweep that held it may have ended since
                if not self._goes_on(summary) or not self._one(run, summary):
                    summary.elsewhere.append(run.run_id)
            self._write_skipped()
        finally:
            self.display.close()
        self._look(summary)
        if summary.interrupted is None:
            self.store.compact(at_least=PACKED_FROM)

    def _predict(self, plan: Plan[AnyCase]) -> Plan[AnyCase]:
        """The plan, its longest runs first. A profile that cannot be read costs the rows their predictions, and no
        run."""
        try:
            self.predicted = predicted_columns(self.study)
        except ValueError as error:
            print(f"warning: nothing is predicted: {error}", file=sys.stderr)
        self.forecast = Forecast(self.predicted)
        return self.forecast.ordered(plan, self.study.run.isolation)

    def _look(self, summary: Summary) -> None:
        """Whether a signal has ended the sweep."""
        if summary.interrupted is None and self.signals.received:
            summary.interrupt(self.signals.received, signal=self.signals.received)

    def _tidy(self, plan: Plan[AnyCase]) -> None:
        """What a sweep that was killed left of runs that had just written their row."""
        for run_id in (run_id for run_id, status in plan.kept.items() if status == "ok"):
            run = self.store.run(run_id)
            if run.has_scratch() and (claim := run.claim()):
                with claim:
                    run.release_reserve()
                    run.clean_scratch()

    def _goes_on(self, summary: Summary) -> bool:
        """Whether the next run may start."""
        if summary.interrupted is None and (broken := self.executor.broken):
            summary.interrupt(broken.line, requeue=broken.reason is not StopReason.LEFT)
        self._look(summary)
        if summary.interrupted is None and self.signals.warned:
            summary.interrupt(f"stopped by {self.signals.warned}", requeue=True)
        return summary.interrupted is None

    def _write_skipped(self) -> None:
        """Once, when the first ranks have been started: they import torch meanwhile."""
        if self._plan is not None:
            plan, self._plan = self._plan, None
            self.write_skipped(plan)

    def _one(self, planned: PlannedRun[AnyCase], summary: Summary) -> bool:
        """False: another sweep holds it."""
        claim = self.store.run(planned.run_id).claim()
        if claim is None:
            return False
        with claim:
            status = _status(claim.run)
            if status is not None and not wanted(status, self.retry_failed):  # another sweep was faster
                self._pass_over(planned, status, summary)
                return True
            outcome = summary.outcomes[planned.run_id] = self._execute(planned, claim)
        if outcome.status == Status.CANCELLED:
            summary.interrupt(self.signals.received or outcome.reason or "cancelled", signal=self.signals.received)
        elif outcome.status == Status.PREEMPTED:
            summary.interrupt(outcome.reason or "preempted", requeue=True)
        return True

    def _pass_over(self, planned: PlannedRun[AnyCase], status: str, summary: Summary) -> None:
        summary.kept[planned.run_id] = status
        if status in RETRIED:
            summary.failed_before[planned.run_id] = outcome_of(self.store.row(planned.run_id) or {"status": status})
        self.display.passed_over(planned)

    def _execute(self, planned: PlannedRun[AnyCase], claim: Claim) -> Outcome:
        try:
            predicted = self.predicted.get(planned.case.case_id, {})
            run = RunAttempt(planned, claim, self.study, self.executor, self.display, self._write_skipped, predicted)
            return run.execute()
        except OSError as error:
            if error.errno not in FULL:
                raise
            line = f"{error.strerror}; run {planned.run_id} is not finished, what is finished stays: start it again"
            raise OSError(error.errno, f"{line} when there is room", str(self.store.folder)) from None
        finally:
            claim.run.release_reserve()

    def write_skipped(self, plan: Plan[AnyCase]) -> None:
        """One row for each case that cannot run."""
        rows = []
        for case in plan.to_skip:
            run = PlannedRun(case.case, 0, case.predicted_memory_bytes)
            spec = run_spec(self.study, self.executor, self.store.folder, run, attempt=1, scratch="", predicted={})
            rows.append(spec.identity() | {"started_at": None, "status": "skipped", "reason": case.skip_reason})
        self.store.write_rows(rows)


def _status(run: RunFolder) -> str | None:
    """None: it has to run, also where what it measured is damaged."""
    status = run.status()
    return None if status == "ok" and run.damage() else status
