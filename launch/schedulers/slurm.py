"""Slurm: sbatch, srun, squeue; accounting (sacct) is used where it is there and not needed where it is not.

Read after Slurm 22.05. squeue is asked by the jobs' names: an id that the controller has forgotten would be an error,
and the answer would be silent about the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..host.hostlist import expand_hosts
from ..host.launchers import Step
from .ask import SUBMIT_PATIENCE_S, SchedulerError
from .base import Capabilities, Limits, Scheduler, Task, register
from .job import Job, walltime
from .state import ACTIVE, State

STATES = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"), State.WAITING),
    **dict.fromkeys(("CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED",
                     "RESIZING"), State.RUNNING),
    "COMPLETED": State.DONE, "CANCELLED": State.CANCELLED,
    **dict.fromkeys(("BOOT_FAIL", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
                     "RECONFIG_FAIL", "REVOKED", "TIMEOUT"), State.FAILED),
}  # fmt: skip
AT_ONCE = 500  # names in one command
FIELDS = "%i|%T|%M|%j|%N|%r"  # id, state, time used, name, nodes, reason: none but the last holds a `|`


@register
class Slurm(Scheduler):
    name = "slurm"
    place = 1
    directive = "#SBATCH"
    by_hand = "sbatch"
    task_id = "SLURM_ARRAY_TASK_ID"
    job_id = "$SLURM_JOB_ID"
    restarts = "${SLURM_RESTART_COUNT:-0}"
    # A step of which a node has crashed may keep its cores on the others until the job ends. Steps share no node here.
    packed_env = {"SLURM_OVERLAP": "1"}
    head = ('read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")', "number=$SLURM_JOB_ID")
    capabilities = Capabilities(
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
        several = job.array and len(job.parts) > 1
        no_kill = job.nodes > 1 and (job.quorum or not job.array)  # what does not need the node that failed goes on
        throttle = f"%{job.throttle}" if job.throttle else ""
        options = (
            (f"--job-name={job.name}", True),
            (f"--array=0-{len(job.parts) - 1}{throttle}", several),
            (f"--account={site.account}", site.account),
            (f"--partition={site.partition}", site.partition),
            (f"--qos={site.qos}", site.qos),
            (f"--nodes={job.nodes}", True),
            (f"--ntasks-per-node={job.per_node}", True),
            (f"--cpus-per-task={site.cpus_per_rank}", site.cpus_per_rank),
            (f"--gpus-per-node={site.gpus_per_node}", site.gpus_per_node),
            ("--exclusive", site.exclusive),
            (f"--time={walltime(job)}", True),
            (f"--output={job.name}.%{'A_%a' if several else 'j'}.log", True),
            ("--open-mode=append", True),
            ("--requeue", True),
            ("--no-kill", no_kill),
            (f"--signal=B:USR1@{site.signal_s}", self.warns(job)),
        )
        return [option for option, wanted in options if wanted]

    def requeue(self, job: Job) -> str:
        return 'scontrol requeue "$SLURM_JOB_ID"'

    def starter(self, step: Step, tasks: int) -> list[str]:
        # the supervisors end together and say why: one that srun ended for another's status could not
        words = ["srun", "--mpi=none", "--kill-on-bad-exit=0", "--no-kill", f"--nodes={step.nodes}"]
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
        output = self.ask(["sbatch", "--parsable", script.name], script.parent, env, SUBMIT_PATIENCE_S)
        return output.strip().splitlines()[-1].partition(";")[0]  # `id;cluster` where there are several

    def limits(self) -> Limits:
        try:
            output = self.ask(["scontrol", "show", "config"])
        except SchedulerError:
            return Limits(self.most_tasks)
        # MaxArraySize is one past the largest index, which begins at 0; without arrays it is 0
        array, jobs = (re.search(rf"^{key}\s*=\s*(\d+)", output, re.M) for key in ("MaxArraySize", "MaxJobCount"))
        most = max(1, int(jobs[1]) - 1) if jobs else None  # it refuses the job that would make it full
        why = f"MaxJobCount = {jobs[1]}" if jobs else ""
        return Limits(max(1, int(array[1])) if array else self.most_tasks, most, why)

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        found: dict[str, dict[int, Task]] = {}
        names = list(jobs)
        for first in range(0, len(names), AT_ONCE):
            some = ",".join(names[first : first + AT_ONCE])
            output = self.ask(["squeue", "--noheader", "--array", "--states=all", f"--name={some}", f"-o{FIELDS}"])
            for line in output.splitlines():
                job_id, state, elapsed, name, nodes, reason = (line.strip().split("|", 5) + [""] * 5)[:6]
                if name in jobs and job_id.partition("_")[0] == jobs[name]:
                    task = Task(STATES.get(state, State.UNKNOWN), _reason(state, reason), nodes, elapsed)
                    found.setdefault(name, {}).update(dict.fromkeys(_numbers(job_id), task))
        forgotten = {job_id: name for name, job_id in jobs.items() if name not in found}
        if forgotten:
            with suppress(SchedulerError):  # clusters without accounting are common
                self._from_accounting(forgotten, found)
        return found

    def _from_accounting(self, names: Mapping[str, str], found: dict[str, dict[int, Task]]) -> None:
        output = self.ask(
            [
                "sacct",
                "--noheader",
                "--parsable2",
                "--allocations",
                f"--jobs={','.join(names)}",
                "--format=JobID,State,Elapsed,NodeList,ExitCode,Reason",
            ]
        )
        for line in output.splitlines():
            job_id, state, elapsed, nodes, status, reason = (line.split("|", 5) + [""] * 5)[:6]
            name, state = names.get(job_id.partition("_")[0]), state.split(" ")[0]  # `CANCELLED by 0`
            if name:
                code = status.partition(":")[0]
                if reason in ("None", "") and code not in ("0", ""):
                    reason = f"exit status {code}"
                task = Task(STATES.get(state, State.UNKNOWN), _reason(state, reason), nodes, elapsed)
                if task.state in ACTIVE:  # the controller has just said that it does not know the job
                    task = Task(State.LOST, f"accounting says {state}, and the controller does not know it")
                found.setdefault(name, {}).update(dict.fromkeys(_numbers(job_id), task))

    def find(self, script: Path) -> str | None:
        """As long as the controller knows it; then as accounting has it, where there is any."""
        name = script.name.removesuffix(self.suffix)
        output = self.ask(["squeue", "--noheader", "--states=all", f"--name={name}", "-o%F"]).split()
        if not output:
            with suppress(SchedulerError):
                asked = ["sacct", "--noheader", "--parsable2", "--allocations", "--starttime=now-30days"]
                output = self.ask([*asked, f"--name={name}", "--format=JobID"]).split()
        return output[0].partition("_")[0] if output else None

    def cancel(self, job_id: str, task: int | None = None) -> None:
        self.ask(["scancel", job_id if task is None else self.task_name(job_id, task)])

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        return expand_hosts(env["SLURM_JOB_NODELIST"])

    def gone(self, hosts: Sequence[str]) -> list[str]:
        output = ""
        with suppress(SchedulerError):
            output = self.ask(["sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N|%t"])
        states = dict(line.strip().partition("|")[::2] for line in output.splitlines())
        # a star: it does not respond
        return [host for host in hosts if states.get(host, "").endswith("*") or states.get(host, "").startswith("down")]

    def own_id(self, env: Mapping[str, str]) -> str | None:
        if "SLURM_ARRAY_JOB_ID" in env:
            return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get(self.task_id, '')}"
        return env.get("SLURM_JOB_ID")


def _numbers(job_id: str) -> list[int]:
    """[17] of `123_17`, [0] of `123`; of `123_[0-2,7%2]`, tasks that wait and are not taken apart, [0, 1, 2, 7]."""
    last = job_id.partition("_")[2].strip("[]").partition("%")[0]
    spans = [part.partition("-") for part in last.split(",")]
    return [
        number for first, _, end in spans if first.isdigit() for number in range(int(first), int(end or first) + 1)
    ] or [0]


def _reason(state: str, reason: str) -> str:
    """The scheduler's words; a plain end has none."""
    words = reason.strip().strip("()")
    words = "" if words == "None" else words
    if STATES.get(state) in (State.WAITING, State.RUNNING, State.DONE):
        return words
    return f"{state}: {words}" if words else state
