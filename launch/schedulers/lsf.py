"""LSF: bsub, bjobs, bkill."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..launchers import Step, mpirun_starter
from ..stop import REQUEUE_STATUS
from .base import Capabilities, Job, Scheduler, SchedulerError, Task, walltime
from .state import State

STATES = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT"), State.WAITING),
    **dict.fromkeys(("RUN", "USUSP", "SSUSP"), State.RUNNING),
    "DONE": State.DONE, **dict.fromkeys(("EXIT", "ZOMBI"), State.FAILED),
}  # fmt: skip


class Lsf(Scheduler):
    name = "lsf"
    directive = "#BSUB"
    by_hand = "bsub <"
    task_id = "LSB_JOBINDEX - 1"  # LSF counts from 1
    head = ("read -r head _ <<< \"$LSB_MCPU_HOSTS\"", "number=$((LSB_JOBID * 97 + ${LSB_JOBINDEX:-0}))")
    can = Capabilities(
        launchers=("mpirun", "torchrun"),
        array="job array (`-J name[1-n]`)",
        packed="sub-sets of nodes by mpirun's host list",
        signal="",
        requeue=f"`-r` after a node failure; exit status {REQUEUE_STATUS} (`-Q`)",
        states="bjobs",
        tried="golden scripts",
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
        told = self.ask(["sh", "-c", 'exec bsub < "$1"', "sh", script.name], cwd=script.parent)
        found = re.search(r"Job <(\d+)>", told)
        if found is None:
            raise SchedulerError(f"lsf: `bsub` gave no job id: {told.strip()[:200]}")
        return found[1]

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        names = {job_id: name for name, job_id in jobs.items() if job_id}
        if not names:
            return {}
        fields = "jobid jobindex stat exec_host exit_code exit_reason pend_reason run_time"
        told = json.loads(self.ask(["bjobs", "-a", "-json", "-o", fields, *names]))
        found: dict[str, dict[int, Task]] = {}
        for each in told.get("RECORDS", []):
            name = names.get(each.get("JOBID", ""))
            if name is None or "STAT" not in each:
                continue  # forgotten
            state = STATES.get(each["STAT"], State.UNKNOWN)
            reason = each.get("PEND_REASON", "") if state == State.WAITING else each.get("EXIT_REASON", "")
            if state == State.FAILED and each.get("EXIT_CODE"):
                reason = f"exit status {each['EXIT_CODE']}" + (f": {reason}" if reason else "")
            number = max(0, int(each.get("JOBINDEX") or 0) - 1)
            where = "+".join(dict.fromkeys(host.split("*")[-1] for host in each.get("EXEC_HOST", "").split(":")))
            found.setdefault(name, {})[number] = Task(state, "" if state == State.DONE else reason, where,
                                                      each.get("RUN_TIME", ""))  # fmt: skip
        return found

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.ask(["bkill", *job_ids])

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        words = env["LSB_MCPU_HOSTS"].split()  # host count host count; a batch host of its own has count 1
        return words[::2]

    def own_id(self, env: Mapping[str, str]) -> str | None:
        index = env.get("LSB_JOBINDEX", "0")  # 0: it is no array
        return env["LSB_JOBID"] + (f"[{index}]" if index != "0" else "") if "LSB_JOBID" in env else None
