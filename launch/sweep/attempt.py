"""One attempt of one run, from its claim to its row: start the ranks, and see that the row says what became of them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...results import files
from ...results.store.run_folder import Claim
from ..host.clock import Moment
from ..host.link import link_columns
from ..predict.rows import memory_columns
from ..process.cause import Cause, Status
from ..process.goodput import StartLog, chances_used_up, goodput_columns, read_log, read_starts
from ..process.outcome import Outcome
from ..process.run_spec import RunSpec, utc
from ..process.scratch import CHECKPOINT, WORLD
from ..process.step_journal import read_journal
from ..process.watchdog import keep_stacks
from ..schedulers import job_columns
from .display import Display
from .executor import Callback, Executor
from .forecast import Forecast
from .plan import AnyCase, PlannedRun, RunnableStudy, outcome_of

ROW_BYTES, STEP_BYTES = 2**17, 512  # room for a run's row: more than it and a step of it take


def run_spec(
    study: RunnableStudy[AnyCase],
    executor: Executor,
    results: Path,
    planned: PlannedRun[AnyCase],
    attempt: int,
    scratch: str,
    predicted: Mapping[str, Any],
) -> RunSpec:
    """What every rank of the run reads; the executor fills in where they meet. The launch time is now.

    predicted: columns of what was predicted, beside the memory that the run was planned with
    """
    launched = Moment.now()
    return RunSpec(
        run_id=planned.run_id,
        case=planned.case.to_json(),
        repeat=planned.repeat,
        study=study.name,
        launcher=executor.launcher,
        results=str(results.absolute()),
        scratch=scratch,
        size=planned.case.ranks,
        nonce="",
        address="",
        port=0,
        device=study.device,
        threads=study.threads_per_rank(executor.one_host),
        attempt=attempt,
        launched_at=launched.at,
        launched_monotonic=launched.monotonic,
        launched_clock=launched.clock,
        predicted={**predicted, **memory_columns(planned.predicted_memory_bytes)},
        link=link_columns(),
        job=job_columns(),
        hang_limit_s=study.run.hang_limit_s,
        grace_s=study.run.grace_s,
        requeue_signals=study.run.requeue_signals,
        isolation=study.run.isolation,
    )


class RunAttempt:
    """Call `execute` once, while the claim is held.

    predicted: columns `predicted_...` of the row
    on_started: called when the ranks have been started, before the display hears of it
    """

    def __init__(
        self,
        planned: PlannedRun[AnyCase],
        claim: Claim,
        study: RunnableStudy[AnyCase],
        executor: Executor,
        display: Display,
        on_started: Callback,
        predicted: Mapping[str, Any],
    ) -> None:
        self.planned, self.claim, self.run = planned, claim, claim.run
        self.study, self.executor, self.display, self.on_started = study, executor, display, on_started
        self.predicted = predicted
        self.scratch = self.run.scratch().absolute()
        self.log = StartLog(self.run.path, self.scratch)
        self.job = job_columns().get("job_id", "")

    def execute(self) -> Outcome:
        """Raises OSError where the disk takes no more."""
        self.log.settle()
        if outcome := self._out_of_chances():
            self.display.started(self.planned, self.scratch)
            self.spec = self._new_spec()
            return self._write_failed(outcome)
        self.run.clean_scratch(keep=[CHECKPOINT])
        self.spec = self._new_spec()
        self.log.begin(self.spec.launched, self.claim.attempt, self.executor.mark, self.job)
        self.run.reserve(ROW_BYTES + STEP_BYTES * self.planned.case.steps)
        outcome = self.executor.execute(self.spec, self._time_limit_s(), self._started, self.display.tick)
        return self._settled(outcome)

    def _time_limit_s(self) -> float:
        run, forecast = self.study.run, Forecast({self.planned.case.case_id: self.predicted})
        return forecast.time_limit_s(self.planned, run.time_limit_s, run.time_limit_factor)

    def _new_spec(self) -> RunSpec:
        results = self.run.results
        return run_spec(
            self.study, self.executor, results, self.planned, self.claim.attempt, str(self.scratch), self.predicted
        )

    def _out_of_chances(self) -> Outcome | None:
        """Starts of this attempt that took their host, and this supervisor, with them; None: it may start again."""
        starts = read_starts(self.run.path)
        reason = chances_used_up(starts, self.claim.attempt, self.job)
        return (
            Outcome(Status.FAILED, f"{reason}; the last host: {starts[-1].host}", Cause.HOST_GONE) if reason else None
        )

    def _started(self) -> None:
        self.on_started()
        self.display.started(self.planned, self.scratch)

    def _settled(self, outcome: Outcome) -> Outcome:
        """The outcome that the table has: the row that the ranks wrote stands, else one is written here."""
        row = self.run.row()
        self.ended_at = self.spec.launched.time_now()
        if row is not None and row["attempt"] == self.claim.attempt:
            return self._finished(row)
        if outcome.status == Status.PREEMPTED:
            return self._preempted(outcome)
        if outcome.status == Status.FAILED and not self.run.has_room():  # whatever failed, it had no disk
            self._log_end(outcome.status)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._failed(outcome)

    def _finished(self, row: Mapping[str, Any]) -> Outcome:
        outcome = outcome_of(row)
        self._log_end(outcome.status)
        self.display.ended(self.planned, outcome, row, self.scratch)
        if outcome.status == Status.OK:
            self.run.clean_scratch()
        return outcome

    def _preempted(self, outcome: Outcome) -> Outcome:
        """Its row comes when it is finished, unless it has been started too often for nothing."""
        self._log_end(outcome.cause if outcome.cause is Cause.HOST_GONE else outcome.status)
        if reason := chances_used_up(read_starts(self.run.path), self.claim.attempt, self.job):
            return self._write_failed(replace(outcome, status=Status.FAILED, reason=f"{outcome.reason}; {reason}"))
        self.display.ended(self.planned, outcome, {}, self.scratch)
        return outcome

    def _failed(self, outcome: Outcome) -> Outcome:
        if outcome.status == Status.OK:
            outcome = Outcome(Status.FAILED, "every rank ended well, but rank 0 wrote no row")
        if outcome.status == Status.TIMEOUT:
            stacks = keep_stacks(self.scratch, self.run.path, self.claim.attempt)
            if stacks and outcome.cause is Cause.HANG:
                where = stacks.relative_to(self.run.results.absolute())
                outcome = replace(outcome, reason=f"{outcome.reason}; stacks in {where}")
        self._log_end(outcome.status)
        return self._write_failed(outcome)

    def _log_end(self, cause: str) -> None:
        self.log.end(self.ended_at, cause)

    def _write_failed(self, outcome: Outcome) -> Outcome:
        """The row of a run that produced no result; the log has how its last start ended."""
        log = read_log(self.run.path)
        row = self._failed_row(outcome) | goodput_columns(log.starts, None, log.damage)
        self.run.write(row, **read_journal(self.scratch))
        self.display.ended(self.planned, outcome, row, self.scratch)
        return outcome

    def _failed_row(self, outcome: Outcome) -> dict[str, object]:
        return self.spec.identity() | {
            "status": outcome.status,
            "reason": outcome.reason,
            "finished_at": utc(time.time()),
            "wall_s": self.spec.launched.time_now() - self.spec.launched_at,
            **self._world_columns(),
        }

    def _world_columns(self) -> dict[str, object]:
        """Who ran where; nothing where the run ended before its ranks had come together."""
        try:
            text = files.read(self.scratch / WORLD).decode()
            ranks: Any = files.parse_json(text)
            return {"ranks_json": text, "nodes": len({str(rank["host"]) for rank in ranks})}
        except (OSError, ValueError, LookupError, TypeError):
            return {}
