"""Slurm: sbatch, srun, squeue; accounting (sacct) is used where it is there and not needed where it is not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..hostlist import expand_hosts
from ..launchers import Step
from .base import Capabilities, Job, Scheduler, SchedulerError, Task, walltime
from .state import State

STATES = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"), State.WAITING),
    **dict.fromkeys(("CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED",
                     "RESIZING"), State.RUNNING),
    "COMPLETED": State.DONE, "CANCELLED": State.CANCELLED,
}  # fmt: skip
FIELDS = "%i|%T|%M|%j|%N|%r"  # id, state, time used, name, nodes, reason: none but the last holds a `|`


class Slurm(Scheduler):
    name = "slurm"
    directive = "#SBATCH"
    by_hand = "sbatch"
    task_id = "SLURM_ARRAY_TASK_ID"
    job_id = "$SLURM_JOB_ID"
    restarts = "${SLURM_RESTART_COUNT:-0}"
    head = ('read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")', "number=$SLURM_JOB_ID")
    can = Capabilities(
        launchers=("srun", "torchrun", "mpirun"),
        array="job array",
        packed="sub-sets of nodes by `srun --nodelist`",
        signal="`--signal=B:USR1@seconds`",
        requeue="`--requeue` after a node failure; `scontrol requeue` from the script",
        states="squeue; sacct where it is there",
        tried="a real Slurm 22.05, four nodes",
    )

    def directives(self, job: Job) -> list[str]:
        site = job.site
        lines = [f"--job-name={job.name}"]
        if job.array and len(job.parts) > 1:
            lines.append(f"--array=0-{len(job.parts) - 1}" + (f"%{job.throttle}" if job.throttle else ""))
        lines += [f"--{key}={value}" for key, value in
                  (("account", site.account), ("partition", site.partition), ("qos", site.qos)) if value]  # fmt: skip
        lines += [f"--nodes={job.nodes}", f"--ntasks-per-node={job.per_node}"]
        lines += [f"--cpus-per-task={site.cpus_per_rank}"] if site.cpus_per_rank else []
        lines += [f"--gpus-per-node={site.gpus_per_node}"] if site.gpus_per_node else []
        lines += ["--exclusive"] if site.exclusive else []
        lines += [f"--time={walltime(job)}"]
        several = job.array and len(job.parts) > 1
        lines += [f"--output={job.name}.%{'A_%a' if several else 'j'}.log", "--open-mode=append", "--requeue"]
        if self.warns(job):
            lines.append(f"--signal=B:USR1@{site.signal_s}")
        return lines

    def requeue(self, job: Job) -> str:
        return 'scontrol requeue "$SLURM_JOB_ID"'

    def starter(self, step: Step, tasks: int) -> list[str]:
        # the supervisors end together and say why: one that srun ended for another's status could not
        words = ["srun", "--mpi=none", "--kill-on-bad-exit=0", f"--nodes={step.nodes}"]
        words += [f"--ntasks={step.nodes * tasks}", f"--ntasks-per-node={tasks}"]
        if step.cpus_per_rank:
            words.append(f"--cpus-per-task={step.cpus_per_rank * step.per_node // tasks}")
        else:
            words.append("--cpu-bind=none")  # else one core may be all that a task is given
        words += [f"--nodelist={','.join(step.hosts)}"] if step.hosts else []
        return [*words, *step.options]

    def submit(self, script: Path, tasks: int) -> str:
        # from inside another job, that job's SLURM_* and SBATCH_* would be options of this one
        ours = ("SLURM_", "SBATCH_")
        env = {key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith(ours)}
        told = self.ask(["sbatch", "--parsable", script.name], cwd=script.parent, env=env)
        return told.strip().splitlines()[-1].partition(";")[0]  # `id;cluster` where there are several

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        if not jobs:
            return {}
        # by name: an id that is forgotten would be an error, and an id that was never heard is found, too
        told = self.ask(["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(jobs)}", f"-o{FIELDS}"])
        found: dict[str, dict[int, Task]] = {}
        for line in told.splitlines():
            job_id, state, elapsed, name, nodes, reason = (line.strip().split("|", 5) + [""] * 5)[:6]
            if name in jobs and (not jobs[name] or job_id.partition("_")[0] == jobs[name]):
                task = Task(STATES.get(state, State.FAILED), _reason(state, reason), nodes, elapsed)
                found.setdefault(name, {})[_number(job_id)] = task
        forgotten = {job_id: name for name, job_id in jobs.items() if job_id and name not in found}
        if forgotten:
            with suppress(SchedulerError):  # clusters without accounting are common
                self._from_accounting(forgotten, found)
        return found

    def _from_accounting(self, names: Mapping[str, str], found: dict[str, dict[int, Task]]) -> None:
        told = self.ask(
            ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(names)}",
             "--format=JobID,State,Elapsed,NodeList,ExitCode,Reason"]
        )  # fmt: skip
        for line in told.splitlines():
            job_id, state, elapsed, nodes, status, reason = (line.split("|", 5) + [""] * 5)[:6]
            name, state = names.get(job_id.partition("_")[0]), state.split(" ")[0]  # `CANCELLED by 0`
            if name:
                code = status.partition(":")[0]
                if reason in ("None", "") and code not in ("0", ""):
                    reason = f"exit status {code}"
                task = Task(STATES.get(state, State.FAILED), _reason(state, reason), nodes, elapsed)
                found.setdefault(name, {})[_number(job_id)] = task

    def find(self, name: str) -> str | None:
        """Id of the job of this name, as long as the controller knows it."""
        told = self.ask(["squeue", "--noheader", "--states=all", f"--name={name}", "-o%A|%F"])
        return told.splitlines()[0].partition("|")[2].strip() if told.strip() else None

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.ask(["scancel", *job_ids])

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        return expand_hosts(env["SLURM_JOB_NODELIST"])

    def own_id(self, env: Mapping[str, str]) -> str | None:
        if "SLURM_ARRAY_JOB_ID" in env:
            return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get(self.task_id, '')}"
        return env.get("SLURM_JOB_ID")


def _number(job_id: str) -> int:
    """17 of `123_17`; 0 of `123`, and of `123_[0-4]` where a squeue does not take it apart."""
    last = job_id.partition("_")[2]
    return int(last) if last.isdigit() else 0


def _reason(state: str, reason: str) -> str:
    """The scheduler's words; a plain end has none."""
    said = reason.strip().strip("()")
    said = "" if said in ("None", "") else said
    if STATES.get(state) in (State.WAITING, State.RUNNING, State.DONE):
        return said
    return f"{state}: {said}" if said else state
