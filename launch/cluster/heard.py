"""What a scheduler reports of the jobs that were handed to it, and what it reported before it forgot them.

A job is looked for by its id, and by its name, which is unique, where submitting ended before the id was written down.
Schedulers forget: a Slurm without accounting knows an ended job for five minutes. So an end that was seen is kept in
the submission's record. A scheduler that does not answer says nothing, and what it would say is `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..schedulers.ask import SchedulerError
from ..schedulers.base import ALL, Scheduler, Task
from ..schedulers.state import ACTIVE, UNHEARD, State
from .submissions import JobRecord, Submission


@dataclass(frozen=True)
class Heard:
    """The scheduler's word on one submission."""

    scheduler: str
    tasks: dict[str, dict[int, Task]]  # name of a job -> task number -> as it is, or as it was seen to end
    silent: str = ""  # why the scheduler gave no answer, in one line; empty: it did, or did not have to be asked

    def word(self, record: JobRecord, number: int) -> Task:
        """Of one task, without a look at the table: a job that is not known any more may still be done."""
        task = self.tasks.get(record.name, {}).get(number)
        if record.closed == State.FAILED:
            return Task(State.FAILED, record.refusal)
        if task is None:
            return self._unheard(record)
        if record.closed == State.CANCELLED and task.state in ACTIVE:
            return replace(task, reason="is being cancelled")
        return task

    def _unheard(self, record: JobRecord) -> Task:
        """The scheduler said nothing of it."""
        if record.closed == State.CANCELLED:
            return Task(State.CANCELLED, "by `scalade cancel`")
        if self.silent:
            return Task(State.UNKNOWN, "the scheduler did not answer")
        if not record.job_id:
            return Task(State.LOST, f"submitting was cut off, and {self.scheduler} knows no job of this name")
        return Task(State.LOST, f"{self.scheduler} does not know it any more")


def hear(scheduler: Scheduler, submission: Submission, *, remember: bool = True) -> Heard:
    """Ask about the jobs whose end has not been seen. remember: what is heard is kept in the record."""
    before = _known(submission)
    tasks: dict[str, dict[int, Task]] = {}
    silent = ""
    try:
        tasks = _asked(scheduler, submission)
    except SchedulerError as error:
        silent = str(error)
    for job in submission.jobs:
        seen = tasks.setdefault(job.name, {})
        _spread(job, seen)
        _keep(job, seen)
    if remember and _known(submission) != before:
        submission.save()
    return Heard(scheduler.name, tasks, silent)


def _known(submission: Submission) -> list[tuple[str, dict[str, dict[str, str]]]]:
    """What hearing may change in the record."""
    return [(job.job_id, dict(job.seen)) for job in submission.jobs]


def _spread(job: JobRecord, seen: dict[int, Task]) -> None:
    """Give a word on all tasks of the job to each that has none of its own."""
    of_all = seen.pop(ALL, None)
    if of_all is not None:
        for number in job.tasks():
            seen.setdefault(number, of_all)


def _asked(scheduler: Scheduler, submission: Submission) -> dict[str, dict[int, Task]]:
    """What the scheduler reports of jobs that may have changed; their ids are written into the records."""
    jobs = [job for job in submission.jobs if job.closed != State.FAILED and set(job.tasks()) - _settled(job)]
    _find_ids(scheduler, submission, jobs)
    ids = {job.name: job.job_id for job in jobs if job.job_id}
    return scheduler.tasks(ids) if ids else {}


def _settled(job: JobRecord) -> set[int]:
    """Tasks that cannot change any more. One that failed may have been put back into the queue: it is asked about."""
    return {int(number) for number, kept in job.seen.items() if job.closed or kept["state"] == State.DONE}


def _find_ids(scheduler: Scheduler, submission: Submission, jobs: Iterable[JobRecord]) -> None:
    """Write down the ids of jobs that were submitted and whose id is not known."""
    for job in jobs:
        if not job.job_id:
            job.job_id = scheduler.find(submission.folder / job.script) or ""


def _keep(job: JobRecord, seen: dict[int, Task]) -> None:
    """Write ends into the record, and take from it those that the scheduler forgot."""
    for number, task in seen.items():
        if task.state in ACTIVE:
            job.seen.pop(str(number), None)
        elif task.state not in UNHEARD:
            words = {"reason": task.reason, "where": task.where, "elapsed": task.elapsed}
            job.seen[str(number)] = {"state": str(task.state), **words}
    for name, kept in job.seen.items():
        number = int(name)
        if number not in seen or seen[number].state in UNHEARD:
            seen[number] = Task(State(kept["state"]), *(kept.get(part, "") for part in ("reason", "where", "elapsed")))
