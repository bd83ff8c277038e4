"""LSF: bsub, bjobs, bkill.

Read after LSF 10.1: `bjobs -json` gives a record for each job, with `ERROR` in place of its fields where it is not
known; without a job at all it says so on standard error. While the batch daemon is away, LSF's commands wait and say so
before anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..host.launchers import Step, mpirun_starter
from ..process.preemption import REQUEUE_STATUS
from .ask import SchedulerError
from .base import Capabilities, Limits, Scheduler, Task, register
from .job import Job, walltime
from .state import State

STATES = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT"), State.WAITING),
    **dict.fromkeys(("RUN", "USUSP", "SSUSP"), State.RUNNING),
    "DONE": State.DONE,
    **dict.fromkeys(("EXIT", "ZOMBI"), State.FAILED),
}


@register
class Lsf(Scheduler):
    name = "lsf"
    place = 4
    directive = "#BSUB"
    by_hand = "bsub <"
    task_id = "LSB_JOBINDEX - 1"  # LSF counts from 1
    head = ('read -r head _ <<< "$LSB_MCPU_HOSTS"', "number=$((LSB_JOBID * 97 + ${LSB_JOBINDEX:-0}))")
    capabilities = Capabilities(
        launchers=("mpirun", "torchrun"),
        array="job array (`-J name[1-n]`)",
        packed="sub-sets of nodes by mpirun's host list",
        signal="",
        requeue=f"`-r` after a node failure; exit status {REQUEUE_STATUS} (`-Q`)",
        states="bjobs",
        tried="golden scripts; recorded answers of LSF 10.1",
    )

    def directives(self, job: Job) -> list[str]:
        site, several = job.site, job.array and len(job.parts) > 1
        throttle = f"%{job.throttle}" if job.throttle else ""
        lines = [f"-J {job.name}" + (f"[1-{len(job.parts)}]{throttle}" if several else "")]
        lines += [f"-P {site.account}"] if site.account else []
        lines += [f"-q {site.partition}"] if site.partition else []
        lines += [f"-n {job.nodes * job.per_node}", f'-R "span[ptile={job.per_node}]"']
        if site.cpus_per_rank:
            lines.append(f'-R "affinity[core({site.cpus_per_rank})]"')
        lines += [f'-gpu "num={site.gpus_per_node}:mode=shared"'] if site.gpus_per_node else []
        lines += ["-x"] if site.exclusive else []
        lines += [f"-W {walltime(job)[:-3]}"]  # hours and minutes
        return [*lines, f"-o {job.name}.%J{'_%I' if several else ''}.log", "-r", f'-Q "{REQUEUE_STATUS}"']

    def starter(self, step: Step, tasks: int) -> list[str]:
        return mpirun_starter(step, tasks)

    def submit(self, script: Path, tasks: int) -> str:
        # bsub reads the script from standard input; a shell with the name as its argument does that
        output = self.ask(["sh", "-c", 'exec bsub < "$1"', "sh", script.name], cwd=script.parent)
        found = re.search(r"Job <(\d+)>", output)
        if found is None:
            raise SchedulerError(f"lsf: `bsub` gave no job id: {output.strip()[:200]}")
        return found[1]

    def limits(self) -> Limits:
        asked = self.asked_number(["bparams", "-a"], r"MAX_JOB_ARRAY_SIZE\s*=\s*(\d+)")
        return Limits(asked or self.most_tasks)

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        names = {job_id: name for name, job_id in jobs.items()}
        found: dict[str, dict[int, Task]] = {}
        for each in self._records(list(names)):
            name = names.get(str(each.get("JOBID", "")))
            if name is not None and "STAT" in each:
                number = max(0, int(each.get("JOBINDEX") or 0) - 1)
                found.setdefault(name, {})[number] = _task(each)
        return found

    def _records(self, arguments: list[str]) -> list[dict[str, str]]:
        """What bjobs says, without the jobs that it does not know.

        Raises
        ------
        SchedulerError: it says something else
        """
        fields = "jobid jobindex stat exec_host exit_code exit_reason pend_reason run_time"
        answer = self.answer(["bjobs", "-a", "-json", "-o", fields, *arguments])
        text = answer.out[max(0, answer.out.find("{")) :]
        try:
            content = json.loads(text)
            return [each for each in content["RECORDS"] if "ERROR" not in each]
        except (ValueError, TypeError, KeyError):
            if re.search(r"is not found|no (matching |unfinished )?job", answer.err + answer.out, re.I):
                return []
            raise SchedulerError(f"lsf: `bjobs` failed: {answer.first_line()}", answer.status) from None

    def find(self, script: Path) -> str | None:
        records = self._records(["-J", script.name.removesuffix(self.suffix)])
        return str(records[0]["JOBID"]) if records else None

    def cancel(self, job_id: str, task: int | None = None) -> None:
        self.ask(["bkill", job_id if task is None else self.task_name(job_id, task)])

    def task_name(self, job_id: str, task: int) -> str:
        return f"{job_id}[{task + 1}]"

    def prints_to(self, file: str, task: int) -> bool:
        return super().prints_to(file, task + 1)

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        words = env["LSB_MCPU_HOSTS"].split()  # host count host count; a batch host of its own has count 1
        return words[::2]

    def own_id(self, env: Mapping[str, str]) -> str | None:
        index = env.get("LSB_JOBINDEX", "0")  # 0: it is no array
        return env["LSB_JOBID"] + (f"[{index}]" if index != "0" else "") if "LSB_JOBID" in env else None


def _task(record: Mapping[str, str]) -> Task:
    state = STATES.get(record["STAT"], State.UNKNOWN)
    reason = record.get("PEND_REASON", "") if state == State.WAITING else record.get("EXIT_REASON", "")
    if state == State.FAILED and record.get("EXIT_CODE"):
        reason = f"exit status {record['EXIT_CODE']}" + (f": {reason}" if reason else "")
    where = "+".join(dict.fromkeys(host.split("*")[-1] for host in record.get("EXEC_HOST", "").split(":")))
    return Task(state, "" if state == State.DONE else reason, where, record.get("RUN_TIME", ""))
