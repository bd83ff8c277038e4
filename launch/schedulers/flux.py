"""Flux: flux batch, flux run, flux jobs.

Read after flux-core 0.88: `flux jobs --json ID...` gives one object for one id and `{"jobs": [...]}` for several, with
integer ids; of ids that it does not know it says `JobID ID unknown` on standard error, and with none that it knows it
prints nothing and exits with 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..host.hostlist import expand_hosts
from ..host.launchers import Step
from .ask import SchedulerError
from .base import Capabilities, Limits, Scheduler, Task, register
from .flux_id import number_of
from .job import Job
from .state import State

STATES = {
    **dict.fromkeys(("DEPEND", "PRIORITY", "SCHED"), State.WAITING),
    **dict.fromkeys(("RUN", "CLEANUP"), State.RUNNING),
}
ENDS = {"COMPLETED": State.DONE, "CANCELED": State.CANCELLED, "FAILED": State.FAILED, "TIMEOUT": State.FAILED}
AT_ONCE = 1000  # ids in one command


@register
class Flux(Scheduler):
    name = "flux"
    place = 3
    nesting = 1
    directive = "#flux:"
    by_hand = "flux batch --env=SCALADE_TASK=0"
    task_id = "SCALADE_TASK"
    head = ("head=$(flux hostlist --limit=1 local)", 'number=$(flux job id --to=dec "$(flux getattr jobid)")')
    capabilities = Capabilities(
        launchers=("torchrun",),
        array="one `flux batch` for each",
        packed="sub-sets of nodes by `flux run --requires=hosts:`",
        signal="",
        requeue="no; submit again",
        states="flux jobs",
        tried="golden scripts; recorded answers of flux-core 0.88",
    )

    def directives(self, job: Job) -> list[str]:
        site = job.site
        lines = [f"--job-name={job.name}", f"--nodes={job.nodes}", f"--nslots={job.nodes * job.per_node}"]
        lines += [f"--cores-per-slot={site.cpus_per_rank}"] if site.cpus_per_rank else []
        lines += [f"--gpus-per-slot={max(1, site.gpus_per_node // job.per_node)}"] if site.gpus_per_node else []
        lines += ["--exclusive"] if site.exclusive else []
        lines += [f"--queue={site.partition}"] if site.partition else []
        lines += [f"--setattr=system.bank={site.account}"] if site.account else []
        lines += [f"--time-limit={-(-job.seconds // 60)}m"]
        return [*lines, f"--output={job.name}.{{{{id}}}}.log"]

    def starter(self, step: Step, tasks: int) -> list[str]:
        words = ["flux", "run", f"--nodes={step.nodes}", f"--ntasks={step.nodes * tasks}", "--exclusive"]
        words += [f"--requires=hosts:{','.join(step.hosts)}"] if step.hosts else []
        return [*words, *step.options]

    def limits(self) -> Limits:
        return Limits(self.most_tasks, self.most_tasks, "one `flux batch` each takes its time; --mode packed has none")

    def submit(self, script: Path, tasks: int) -> str:
        """One job for each task, with the task's number in its name: an id that is several, with commas."""
        ids: list[str] = []
        name = script.name.removesuffix(self.suffix)
        for task in range(tasks):
            words = ["flux", "batch", f"--job-name={name}.{task}", f"--env=SCALADE_TASK={task}", script.name]
            try:
                ids.append(self.ask(words, cwd=script.parent).strip())
            except SchedulerError as error:
                raise SchedulerError(str(error), error.status, unsure=bool(ids) or error.unsure) from None
        return ",".join(ids)

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        wanted = {
            number_of(job_id): (name, task)
            for name, job_ids in jobs.items()
            for task, job_id in enumerate(job_ids.split(","))
            if job_id
        }
        ids = [str(number) for number in wanted]
        found: dict[str, dict[int, Task]] = {}
        for first in range(0, len(ids), AT_ONCE):
            for each in self._jobs(ids[first : first + AT_ONCE]):
                name, task = wanted.get(_id(each), (None, 0))
                if name is not None:
                    found.setdefault(name, {})[task] = _task(each)
        return found

    def _jobs(self, arguments: list[str]) -> list[dict[str, Any]]:
        """What `flux jobs` says of the ids, without those that it does not know.

        Raises
        ------
        SchedulerError: it says something else
        """
        answer = self.answer(["flux", "jobs", "--json", *arguments])
        other = [line for line in answer.err.splitlines() if line and not re.search(r"JobID \S+ unknown$", line)]
        if answer.status and (other or not answer.err.strip()):
            raise SchedulerError(
                f"flux: `flux jobs` failed: {(other or [f'status {answer.status}'])[0]}", answer.status
            )
        if not answer.out.strip():
            return []
        try:
            content = json.loads(answer.out)
            return content["jobs"] if "jobs" in content else [content]
        except (ValueError, TypeError) as error:
            raise SchedulerError(f"flux: `flux jobs` gave no JSON: {error}") from None

    def find(self, script: Path) -> str | None:
        """Ids of the jobs of this name, in the order of their tasks; empty between the commas: there is none."""
        stem = script.name.removesuffix(self.suffix)
        ids: dict[int, int] = {}
        for each in self._jobs(["-a", "--count=0"]):
            name, _, task = str(each.get("name", "")).rpartition(".")
            if name == stem and task.isdecimal():
                ids[int(task)] = _id(each)
        return ",".join(str(ids.get(task, "")) for task in range(max(ids) + 1)) if ids else None

    def cancel(self, job_id: str, task: int | None = None) -> None:
        ids = job_id.split(",")
        self.ask(["flux", "cancel", *filter(None, ids if task is None else ids[task : task + 1])])

    def task_name(self, job_id: str, task: int) -> str:
        return (job_id.split(",") + [""] * task)[task] or "?"

    def prints_to(self, file: str, task: int) -> bool:
        return True  # its name has Flux's id in one of several forms

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        return expand_hosts(self.ask(["flux", "getattr", "hostlist"]).strip())

    def own_id(self, env: Mapping[str, str]) -> str | None:
        return env.get("FLUX_ENCLOSING_ID") or env.get("FLUX_JOB_ID")  # the batch job's, not that of its `flux run`


def _id(job: Mapping[str, Any]) -> int:
    """A number in JSON; as text (`jobid`) where a reader of JSON could not hold it."""
    return number_of(str(job.get("id", job.get("jobid", ""))))


def _task(job: Mapping[str, Any]) -> Task:
    result = job.get("result", "")
    state = STATES.get(job.get("state", ""), ENDS.get(result, State.UNKNOWN))
    reason = "" if result in ("", "COMPLETED") else f"{result}: {job.get('exception', {}).get('note', '')}"
    seconds = job.get("runtime")
    return Task(state, reason.rstrip(": "), job.get("nodelist", ""), f"{seconds:.0f} s" if seconds else "")
