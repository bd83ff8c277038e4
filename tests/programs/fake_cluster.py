"""A scheduler that answers as recorded, and submissions to it."""

from __future__ import annotations

from scalade.launch.cluster.jobs import SubmitOptions
from scalade.launch.schedulers.ask import SchedulerError
from scalade.launch.schedulers.base import Limits, Task
from scalade.launch.schedulers.slurm import Slurm


class Fake(Slurm):
    """Slurm's scripts; its answers are what the test says."""

    def __init__(self):
        self.handed, self.answers, self.cancelled, self.refuses, self.away = [], {}, [], None, False
        self.most = Limits(1001)

    def submit(self, script, tasks):
        if self.refuses and len(self.handed) >= self.refuses:
            raise SchedulerError("slurm: `sbatch` failed: Invalid account")
        self.handed.append(script)
        return str(100 + len(self.handed))

    def tasks(self, jobs):
        self.asked()
        return {name: dict(self.answers[name]) for name in jobs if name in self.answers}

    def limits(self):
        return self.most

    def find(self, script):
        self.asked()
        return "777" if script.name.removesuffix(".sh") in self.answers else None

    def cancel(self, job_id, task=None):
        self.asked()
        if not any(self.answers.values()):
            raise SchedulerError("slurm: `scancel` failed: Invalid job id specified")
        self.cancelled.append(job_id if task is None else self.task_name(job_id, task))

    def asked(self):
        if self.away:
            raise SchedulerError("slurm: `squeue` failed: slurm_load_jobs error: Unable to contact slurm controller")

    def all(self, submission, state, reason=""):
        for job in submission.jobs:
            self.answers[job.name] = {number: Task(state, reason) for number in job.tasks()}


SLURM = SubmitOptions(scheduler="slurm")
