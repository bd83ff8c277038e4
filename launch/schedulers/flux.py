"""Flux: flux batch, flux run, flux jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..hostlist import expand_hosts
from ..launchers import Step
from .base import Capabilities, Job, Scheduler, Task
from .state import State

STATES = {
    **dict.fromkeys(("DEPEND", "PRIORITY", "SCHED"), State.WAITING), **dict.fromkeys(("RUN", "CLEANUP"), State.RUNNING)
}  # fmt: skip


class Flux(Scheduler):
    name = "flux"
    directive = "#flux:"
    by_hand = "flux batch --env=SCALADE_TASK=0"
    task_id = "SCALADE_TASK"
    head = ("head=$(flux hostlist --limit=1 local)", "number=$(flux job id --to=dec \"$(flux getattr jobid)\")")
    can = Capabilities(
        launchers=("torchrun",),
        array="one `flux batch` for each",
        packed="sub-sets of nodes by `flux run --requires=hosts:`",
        signal="",
        requeue="no; submit again",
        states="flux jobs",
        tried="golden scripts",
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

    def submit(self, script: Path, tasks: int) -> str:
        """One job for each task: an id that is several, with commas."""
        words = ["flux", "batch"]
        told = [self.ask([*words, f"--env=SCALADE_TASK={n}", script.name], cwd=script.parent) for n in range(tasks)]
        return ",".join(each.strip() for each in told)

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        ids = {job_id: (name, number) for name, told in jobs.items()
               for number, job_id in enumerate(filter(None, told.split(",")))}  # fmt: skip
        if not ids:
            return {}
        told = json.loads(self.ask(["flux", "jobs", "--json", *ids]))
        found: dict[str, dict[int, Task]] = {}
        for each in told["jobs"] if "jobs" in told else [told]:
            if each.get("id") not in ids:
                continue
            name, number = ids[each["id"]]
            state, result = each.get("state", ""), each.get("result", "")
            ended = {"COMPLETED": State.DONE, "CANCELED": State.CANCELLED}.get(result, State.FAILED)
            reason = "" if result in ("", "COMPLETED") else f"{result}: {each.get('exception', {}).get('note', '')}"
            task = Task(STATES.get(state, ended), reason.rstrip(": "), each.get("nodelist", ""))
            found.setdefault(name, {})[number] = task
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.ask(["flux", "cancel", *(each for job_id in job_ids for each in job_id.split(","))])

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        return expand_hosts(self.ask(["flux", "getattr", "hostlist"]).strip())

    def own_id(self, env: Mapping[str, str]) -> str | None:
        return env.get("FLUX_ENCLOSING_ID") or env.get("FLUX_JOB_ID")  # the batch job's, not that of its `flux run`
