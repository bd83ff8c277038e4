"""What a scheduler reports of the jobs that were handed to it, and what it reported before it forgot them.

A job is looked for by its id, and by its name, which is unique, where submitting ended before the id was written down.
Schedulers forget: a Slurm without accounting knows an ended job for five minutes. So an end that was seen is kept in
the submission's record. A scheduler that does not answer says nothing, and what it would say is `unknown`.
"""

from __future__ import annotations

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
        if record.closed == State.CANCELLED and (task is None or task.state in ACTIVE):
            going = task and replace(task, reason="is being cancelled")
            return going or Task(State.CANCELLED, "by `scalade cancel`")
        if task is not None:
            return task
        if self.silent:
            return Task(State.UNKNOWN, "the scheduler did not answer")
        if not record.job_id:
            return Task(State.LOST, f"submitting was cut off, and {self.scheduler} knows no job of this name")
        return Task(State.LOST, f"{self.scheduler} does not know it any more")


def hear(scheduler: Scheduler, submission: Submission, *, remember: bool = True) -> Heard:
    """Ask about the jobs whose end has not been seen. remember: what is heard is kept in the record."""
    jobs = {job.name: job for job in submission.jobs if job.closed != State.FAILED and set(job.tasks()) - _settled(job)}
    tasks: dict[str, dict[int, Task]] = {}
    silent, changed = "", False
    try:
        changed = _find_ids(scheduler, submission, jobs)
        ids = {name: job.job_id for name, job in jobs.items() if job.job_id}
        tasks = scheduler.tasks(ids) if ids else {}
    except SchedulerError as error:
        silent = str(error)
    for job in submission.jobs:
        seen = tasks.setdefault(job.name, {})
        if ALL in seen:
            rest = seen.pop(ALL)
            seen |= {number: rest for number in job.tasks() if number not in seen}
        changed = _keep(job, seen) or changed
    if changed and remember:
        submission.save()
    return Heard(scheduler.name, tasks, silent)


def _settled(job: JobRecord) -> set[int]:
    """Tasks that cannot change any more. One that failed may have been put back into the queue: it is asked about."""
    return {int(number) for number, kept in job.seen.items() if job.closed or kept["state"] == State.DONE}


def _find_ids(scheduler: Scheduler, submission: Submission, jobs: dict[str, JobRecord]) -> bool:
    """Ids of jobs that were submitted and not written down; whether there was one."""
    found = False
    for job in jobs.values():
        if not job.job_id and (job_id := scheduler.find(submission.folder / job.script)):
            job.job_id, found = job_id, True
    return found


def _keep(job: JobRecord, seen: dict[int, Task]) -> bool:
    """Write ends into the record, and take from it those that the scheduler forgot; whether it changed."""
    changed = False
    for number, task in seen.items():
        ended = task.state not in ACTIVE | UNHEARD
        content = {"state": str(task.state), "reason": task.reason, "where": task.where, "elapsed": task.elapsed}
        if ended and job.seen.get(str(number)) != content:
            job.seen[str(number)], changed = content, True
        elif not ended and task.state in ACTIVE:
            changed = job.seen.pop(str(number), None) is not None or changed
    for name, kept in job.seen.items():
        number = int(name)
        if number not in seen or seen[number].state in UNHEARD:
            seen[number] = Task(State(kept["state"]), *(kept.get(part, "") for part in ("reason", "where", "elapsed")))
    return changed
