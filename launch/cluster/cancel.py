"""`scalade cancel`: end submitted jobs, also those that may or may not still run."""

from __future__ import annotations

from pathlib import Path

from ..schedulers import SCHEDULERS
from ..schedulers.ask import SchedulerError
from ..schedulers.state import ACTIVE, UNHEARD, State
from .status import Line, status, task_named
from .submissions import JobRecord, Submission, locked, submissions


def cancel(results: Path, job: str = "") -> list[str]:
    """Cancel the jobs that wait or run; one that is lost is asked to end, too, and then forgotten, so that its cases
    may be submitted again. Gives what was done, in lines.

    job: as `status`

    Raises
    ------
    ValueError: as `status`; SchedulerError: the scheduler does not answer, or refuses
    """
    by_name = _not_ended(status(results, job)[0])
    report = []
    with locked(results):
        for submission in submissions(results):
            records = [record for record in submission.jobs if record.name in by_name]
            try:
                for record in records:
                    report.append(_end(submission, record, by_name[record.name], job))
            finally:
                if records:
                    submission.save()
    return report or ["nothing waits or runs"]


def _not_ended(lines: list[Line]) -> dict[str, list[Line]]:
    """By the name of the job."""
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        if line.state in ACTIVE | UNHEARD:
            by_name.setdefault(line.name, []).append(line)
    return by_name


def _end(submission: Submission, record: JobRecord, lines: list[Line], job: str) -> str:
    """End one job, or the one task of it that `job` names. Raises SchedulerError."""
    task = task_named(lines, job)
    name = lines[0].job if task is not None else record.job_id or record.name
    states = {line.state for line in lines}
    try:
        line = _ask_to_end(submission.scheduler, record, name, task, states)
    except SchedulerError as error:
        if states != {State.LOST}:
            raise
        line = f"forgotten: {name}: {error}"
    if task is None:
        record.closed = State.CANCELLED
    elif lines[0].state == State.LOST:
        record.give_up(task, "by `scalade cancel`")
    return line


def _ask_to_end(scheduler: str, record: JobRecord, name: str, task: int | None, states: set[State]) -> str:
    if record.job_id:
        SCHEDULERS[scheduler].cancel(record.job_id, task)
        return f"cancelled: {name}"
    if State.UNKNOWN in states:
        raise SchedulerError(f"{scheduler}: the scheduler did not answer; {name} may be there")
    return f"forgotten: {name}: {scheduler} knows no such job"
