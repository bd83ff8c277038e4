"""PBS: qsub, qstat, qdel, as OpenPBS and PBS Professional have them.

Read after OpenPBS 23 (src/cmds/qstat.c), Torque 6 and Slurm's wrappers of the same names. `qstat -x` gives finished
jobs, too; on a server that keeps no history (the default) it prints nothing, says so on standard error, and exits with
0. Other qstats refuse `-x` or `-t`. So one form after the other is asked, and only a server that says it does not know
the job is believed that it does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..host.launchers import Step, mpirun_starter
from .ask import Answer, SchedulerError
from .base import ALL, Capabilities, Limits, Scheduler, Task, register
from .job import Job, walltime
from .state import State

STATES = {
    **dict.fromkeys("QHWTM", State.WAITING),
    **dict.fromkeys("REBSU", State.RUNNING),
    **dict.fromkeys("XFC", State.DONE),
}
FORMS = (("-x", "-t"), ("-t",), ())  # finished, too, and the tasks of an array; as much of it as this qstat takes

# Exit statuses of qstat: numbers of pbs_error.h, of which a status keeps the last eight bits.
UNKNOWN_JOB = (15001 % 256, 15139 % 256)  # PBSE_UNKJOBID, PBSE_HISTJOBID
JOB = re.compile(r"^Job Id:\s*", re.M)
UNKNOWN_WORDS = re.compile(r"unknown job id|job has finished", re.I)


@register
class Pbs(Scheduler):
    name = "pbs"
    place = 2
    directive = "#PBS"
    by_hand = "qsub"
    task_id = "PBS_ARRAY_INDEX"
    most_tasks = 10_000  # max_array_size where a server says nothing (pbs_server_attributes(7B))
    head = (
        'head=$(head -n 1 "$PBS_NODEFILE")',
        "number=${PBS_JOBID%%.*}",
        "number=$((10#${number//[!0-9]/}))  # of 12[3].server: 123",
    )
    capabilities = Capabilities(
        launchers=("mpirun", "torchrun"),
        array="job array (`-J`)",
        packed="sub-sets of nodes by mpirun's host list",
        signal="",
        requeue="`-r y` after a node failure; else submit again",
        states="qstat",
        tried="golden scripts; recorded answers of OpenPBS 23 and Torque; the qsub, qstat and qdel of slurm-wlm-torque",
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

    def limits(self) -> Limits:
        asked = self.asked_number(["qstat", "-B", "-f"], r"^\s*max_array_size = (\d+)")
        return Limits(asked or self.most_tasks)

    def submit(self, script: Path, tasks: int) -> str:
        job_id = self.ask(["qsub", script.name], cwd=script.parent).strip()
        if not re.fullmatch(r"\d+(\[\d*\])?(\.[\w.-]+)?", job_id):
            raise SchedulerError(f"pbs: `qsub` gave no job id: {' '.join(job_id.split())[:200]}")
        return job_id

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        found: dict[str, dict[int, Task]] = {}
        forms = list(FORMS)
        for name, job_id in jobs.items():
            for text in _jobs(self._facts(job_id, forms)):
                number, task = _task(text)
                found.setdefault(name, {})[number] = task
        return found

    def _facts(self, job_id: str, forms: list[tuple[str, ...]]) -> str:
        """What qstat says of a job and its tasks; nothing of one that the server does not know (any more).

        forms: to be asked, in this order; the one that was answered comes first afterwards

        Raises
        ------
        SchedulerError: there was no answer to any form
        """
        for form in tuple(forms):
            answer = self.answer(["qstat", *form, "-f", job_id])
            if answer.status in UNKNOWN_JOB and (UNKNOWN_WORDS.search(answer.err) or not answer.err.strip()):
                return ""
            if not answer.status and JOB.search(answer.out):  # not the XML that Torque means by -x
                forms.remove(form)
                forms.insert(0, form)
                return answer.out
        raise self._silent(answer)

    def _silent(self, answer: Answer) -> SchedulerError:
        return SchedulerError(f"pbs: `qstat` failed: {answer.first_line()}", answer.status)

    def find(self, script: Path) -> str | None:
        """Among all jobs, since not every PBS has a `qselect -N`."""
        answer = self.answer(["qstat", "-f"])
        if answer.status and not (answer.status in UNKNOWN_JOB and not answer.err.strip()):
            raise self._silent(answer)
        wanted = script.name.removesuffix(self.suffix)[:230]
        named = (_id(text) for text in _jobs(answer.out) if _attributes(text).get("Job_Name") == wanted)
        return next((re.sub(r"\[\d+\]", "[]", job_id) for job_id in named), None)

    def cancel(self, job_id: str, task: int | None = None) -> None:
        self.ask(["qdel", job_id if task is None else self.task_name(job_id, task)])

    def task_name(self, job_id: str, task: int) -> str:
        return job_id.replace("[]", f"[{task}]", 1)

    def prints_to(self, file: str, task: int) -> bool:
        return file.endswith(f".{task}")  # name.o12.3

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        return list(dict.fromkeys(Path(env["PBS_NODEFILE"]).read_text().split()))

    def own_id(self, env: Mapping[str, str]) -> str | None:
        return env.get("PBS_JOBID")  # an array's has the task's number in brackets


def _jobs(output: str) -> Iterator[str]:
    """The jobs of `qstat -f`, each from its id on."""
    yield from JOB.split(output)[1:]


def _id(text: str) -> str:
    return text.split(maxsplit=1)[0]


def _attributes(text: str) -> dict[str, str]:
    """Name -> value of one job. PBS indents names by spaces and goes on with a value on lines that begin with a tab;
    Slurm's wrapper indents names by a tab and never breaks a value."""
    if re.search(r"^\tjob_state = ", text, re.M):
        return dict(re.findall(r"^\t(\S+) = (.*)$", text, re.M))
    return {key: value.replace("\n\t", "") for key, value in re.findall(r"^ +(\S+) = (.*(?:\n\t.*)*)", text, re.M)}


def _task(text: str) -> tuple[int, Task]:
    """(number, task) of one job; of an array itself, whose tasks follow where this qstat names them, ALL."""
    index = re.search(r"\[(\d*)\]", _id(text))
    number = 0 if index is None else int(index[1]) if index[1] else ALL
    facts = _attributes(text)
    state = STATES.get(facts.get("job_state", ""), State.UNKNOWN)
    status = facts.get("Exit_status", facts.get("exit_status", ""))
    reason = facts.get("comment", "")
    if state == State.DONE:
        failed = status not in ("", "0")
        reason = f"exit status {status}" + (f": {reason}" if reason else "") if failed else ""
        state, reason = (State.FAILED, reason) if failed else (state, "" if status else "it has ended; how is not said")
    where = "+".join(dict.fromkeys(re.findall(r"([^+/\s]+)/", facts.get("exec_host", ""))))
    elapsed = facts.get("resources_used.walltime", "")
    return number, Task(state, reason, where, elapsed)
