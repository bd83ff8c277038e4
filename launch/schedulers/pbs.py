"""PBS (OpenPBS, PBS Professional; Torque's qsub reads the same script but for the array): qsub, qstat, qdel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..launchers import Step, mpirun_starter
from .base import Capabilities, Job, Scheduler, SchedulerError, Task, walltime
from .state import State

STATES = {
    **dict.fromkeys("QHWTM", State.WAITING), **dict.fromkeys("REBSU", State.RUNNING),
    **dict.fromkeys("XFC", State.DONE),
}  # fmt: skip

# Exit statuses of qstat: numbers of pbs_error.h, of which a status keeps the last eight bits.
UNKNOWN_JOB = (15001 % 256, 15139 % 256)  # PBSE_UNKJOBID, PBSE_HISTJOBID
NO_HISTORY = 15140 % 256  # PBSE_JOBHISTNOTSET


class Pbs(Scheduler):
    name = "pbs"
    directive = "#PBS"
    by_hand = "qsub"
    task_id = "PBS_ARRAY_INDEX"
    head = (
        'head=$(head -n 1 "$PBS_NODEFILE")',
        "number=${PBS_JOBID%%.*}",
        'number=$((10#${number//[!0-9]/}))  # of 12[3].server: 123',
    )
    can = Capabilities(
        launchers=("mpirun", "torchrun"),
        array="job array (`-J`)",
        packed="sub-sets of nodes by mpirun's host list",
        signal="",
        requeue="`-r y` after a node failure; else submit again",
        states="qstat",
        tried="golden scripts",
    )

    def directives(self, job: Job) -> list[str]:
        site = job.site
        chunk = f"select={job.nodes}:ncpus={job.per_node * max(1, site.cpus_per_rank)}:mpiprocs={job.per_node}"
        chunk += f":ngpus={site.gpus_per_node}" if site.gpus_per_node else ""
        lines = [f"-N {job.name[:230]}"]
        if job.array and len(job.parts) > 1:
            lines.append(f"-J 0-{len(job.parts) - 1}" + (f"%{job.throttle}" if job.throttle else ""))
        lines += [f"-A {site.account}"] if site.account else []
        lines += [f"-q {site.partition}"] if site.partition else []
        lines += [f"-l {chunk}", f"-l place=scatter{':excl' if site.exclusive else ''}", f"-l walltime={walltime(job)}"]
        return [*lines, "-j oe", "-k doe", "-r y"]

    def starter(self, step: Step, tasks: int) -> list[str]:
        return mpirun_starter(step, tasks)

    def submit(self, script: Path, tasks: int) -> str:
        return self.ask(["qsub", script.name], cwd=script.parent).strip()

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        found: dict[str, dict[int, Task]] = {}
        for name, job_id in jobs.items():
            if not job_id:
                continue
            for text in re.split(r"^Job Id: ", self._facts(job_id), flags=re.M)[1:]:
                parsed = _task(text)
                if parsed:
                    found.setdefault(name, {})[parsed[0]] = parsed[1]
        return found

    def _facts(self, job_id: str) -> str:
        """What qstat says of a job and its tasks; nothing of one that it does not know (any more)."""
        for history in (["-x"], []):  # the finished, too; a server may keep none
            try:
                return self.ask(["qstat", *history, "-t", "-f", job_id])  # -t: the tasks of an array
            except SchedulerError as error:
                if error.status in UNKNOWN_JOB:
                    return ""
                if error.status != NO_HISTORY or not history:
                    raise
        raise AssertionError

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.ask(["qdel", *job_ids])

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        return list(dict.fromkeys(Path(env["PBS_NODEFILE"]).read_text().split()))

    def own_id(self, env: Mapping[str, str]) -> str | None:
        return env.get("PBS_JOBID")  # an array's has the task's number in brackets


def _task(text: str) -> tuple[int, Task] | None:
    """(number, task) of one job of `qstat -f`; None: it is the array itself, whose tasks follow."""
    job_id = text.split(maxsplit=1)[0]
    facts = dict(re.findall(r"^\s+(\S+) = (.*(?:\n\t.*)*)", text, re.M))
    index = re.search(r"\[(\d*)\]", job_id)
    if index and not index[1]:
        return None
    state = STATES.get(facts.get("job_state", ""), State.UNKNOWN)
    status = facts.get("Exit_status", facts.get("exit_status", ""))
    reason = facts.get("comment", "").replace("\n\t", "")
    if state == State.DONE and status not in ("", "0"):
        state, reason = State.FAILED, f"exit status {status}" + (f": {reason}" if reason else "")
    where = "+".join(dict.fromkeys(re.findall(r"([^+/\s]+)/", facts.get("exec_host", "").replace("\n\t", ""))))
    elapsed = facts.get("resources_used.walltime", "")
    return int(index[1]) if index else 0, Task(state, reason if state != State.DONE else "", where, elapsed)
