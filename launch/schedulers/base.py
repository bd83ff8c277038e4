"""What every scheduler has in common: a batch script around a few lines of its own, and what it can be asked.

A batch script has one of two shapes. An *array* runs one case a task, each in a job of its own: all cases of one
world size. A *packed* job takes nodes once and `scalade pack` runs many cases on them, side by side.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..host.launchers import LAUNCHERS, Raw, Step
from ..process.preemption import REQUEUE_STATUS, STOP_FILE, UNDONE_FILE
from .ask import PATIENCE_S, Answer, SchedulerError, answer
from .job import Job, exports
from .shell import command, comment, quote
from .state import State

MOST_TASKS = 10_000  # of one array, whatever a cluster allows: its script names every case


@dataclass(frozen=True)
class Task:
    """A job, or one task of an array, as its scheduler sees it."""

    state: State
    reason: str = ""  # in the scheduler's words; empty: it has none
    where: str = ""  # its nodes
    elapsed: str = ""


ALL = -1  # in place of a task's number: every task that is not named beside it


@dataclass(frozen=True)
class Capabilities:
    """What a scheduler can do here, in words for the table in docs/clusters.md; empty: it cannot."""

    launchers: tuple[str, ...]  # the usual one first
    array: str
    packed: str
    signal: str
    requeue: str
    states: str
    tried: str


@dataclass(frozen=True)
class Limits:
    """What a cluster takes."""

    array: int  # tasks of one array
    jobs: int | None = None  # jobs and tasks at one time, those of others too; None: it did not say
    why: str = ""  # where the second comes from, in the scheduler's words


REGISTERED: dict[str, Scheduler] = {}  # in order of import; `launch.schedulers` imports all and orders them


def register(scheduler: type[Scheduler]) -> type[Scheduler]:
    """Class decorator: makes the scheduler known under its name."""
    REGISTERED[scheduler.name] = scheduler()
    return scheduler


TAKEN = 'while (: <> "/dev/tcp/$head/$port") 2> /dev/null; do port=$((10000 + RANDOM % 20000)); done  # it is taken'


class Scheduler:
    """The part that is the same for all that take a shell script."""

    name: ClassVar[str]
    place: ClassVar[int] = 100  # in lists for people, smallest first: the most common schedulers
    nesting: ClassVar[int] = 0  # above 0: it may run inside another scheduler's job, and its own job is the inner one
    capabilities: ClassVar[Capabilities]
    suffix: ClassVar[str] = ".sh"
    most_tasks: ClassVar[int] = 1000  # of one array, where the cluster cannot be asked
    directive: ClassVar[str]
    task_id: ClassVar[str]  # shell: the number of an array's task, from 0
    packed_env: ClassVar[Mapping[str, str]] = {}  # for what starts the ranks of one of many steps
    head: ClassVar[tuple[str, ...]]  # shell lines: `head` is the job's first node, `number` a number of its own

    # what a scheduler says for itself

    def directives(self, job: Job) -> list[str]:
        raise NotImplementedError

    def starter(self, step: Step, tasks: int) -> list[str]:
        """The words that start `tasks` processes of what follows on each node of a step."""
        raise NotImplementedError

    def requeue(self, job: Job) -> str:
        """A shell command that puts the running job back into the queue; empty: there is none."""
        return ""

    def submit(self, script: Path, tasks: int) -> str:
        """Hand the script over, in its folder. Gives the job's id. tasks: of an array; else 1."""
        raise NotImplementedError

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        """name -> task number (0: the job itself, where it is no array) -> what is known of it.

        jobs: name -> id. ALL may stand for a task's number. What is left out the scheduler does not know (any more):
        it has answered, and said so.

        Raises
        ------
        SchedulerError: it did not answer, or with something else than an answer
        """
        raise NotImplementedError

    def find(self, script: Path) -> str | None:
        """Id of the job that was made of this script, by its name, which is unique; None: no such job is known.

        Raises
        ------
        SchedulerError: it did not answer
        """
        raise NotImplementedError

    def cancel(self, job_id: str, task: int | None = None) -> None:
        """End a job, or one task of it.

        Raises
        ------
        SchedulerError: it did not answer, or does not know the job
        """
        raise NotImplementedError

    def task_name(self, job_id: str, task: int) -> str:
        """Id of one task of an array, as the scheduler's own commands take it."""
        return f"{job_id}_{task}"

    def limits(self) -> Limits:
        """What the cluster takes; a default that docs/clusters.md states where it cannot be asked."""
        return Limits(self.most_tasks)

    def asked_number(self, words: Sequence[str], pattern: str) -> int | None:
        """A number in what a command says; None: it is not there, or says none."""
        try:
            found = re.search(pattern, self.ask(words), re.M)
        except SchedulerError:
            return None
        return int(found[1]) if found else None

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        """Inside a job: its nodes."""
        raise NotImplementedError

    def gone(self, hosts: Sequence[str]) -> list[str]:
        """Inside a job: those of its nodes that the scheduler hears nothing of any more, as far as it is known."""
        return []

    def own_id(self, env: Mapping[str, str]) -> str | None:
        """Inside a job: its id, with the task's number where it is one of an array. None: this is no job of it."""
        raise NotImplementedError

    def printed(self, job_id: str, lines: int) -> str | None:
        """The end of what a job printed, where that is in no file; None: it is in a file of the submission's folder."""
        return None

    def prints_to(self, file: str, task: int) -> bool:
        """Whether a log of this name is that of an array's task."""
        return file.removesuffix(".log").endswith(f"_{task}")

    # what is the same for all

    def refuse(self, job: Job) -> None:
        """Raises ValueError: this scheduler cannot do that job."""
        if job.launcher not in self.capabilities.launchers:
            raise ValueError(
                f"{self.name} starts ranks by {' or '.join(self.capabilities.launchers)}, not by {job.launcher}"
            )
        if job.site.qos and self.name != "slurm":
            raise ValueError(f"qos = {job.site.qos}: {self.name} has none; use `options`")
        if not job.array and not self.capabilities.packed:
            raise ValueError(f"{self.name} has no packed jobs here: --mode array")

    def render(self, job: Job) -> str:
        """The batch script.

        Raises
        ------
        ValueError: this scheduler cannot do that job
        """
        self.refuse(job)
        lines = ["#!/bin/bash", *comment(f"Scalade: {job.title}"), *self.hint(job)]
        lines += [f"{self.directive} {line}" for line in [*self.directives(job), *job.site.options]]
        lines += ["", "set -euo pipefail", *self.setting(job), "", *self.body(job)]
        return "\n".join(lines) + "\n"

    def hint(self, job: Job) -> list[str]:
        return comment(f"By hand: from the folder of this file, {self.by_hand} {job.name}{self.suffix}")

    by_hand: ClassVar[str] = ""

    def setting(self, job: Job) -> list[str]:
        """Folder, modules and environment."""
        site = job.site
        lines = ["", "# Relative paths in the study are meant from here", command(["cd", "--", str(job.workdir)])]
        if site.modules:
            lines += ["", "# Modules; their scripts use variables that are not set", "set +u"]
            lines += [command(["module", "load", module]) for module in site.modules] + ["set -u"]
        if site.pre_commands:
            lines += ["", "# The site's own commands", *site.pre_commands]
        for title, table in (("Environment", site.environment), ("Fabric", site.fabric)):
            if table:
                lines += ["", f"# {title}", *(f"export {key}={quote(value)}" for key, value in table.items())]
        if "OMP_NUM_THREADS" not in {*site.environment, *site.fabric}:
            lines += ["", "# Of the supervisors; each rank's threads are set by scalade", "export OMP_NUM_THREADS=1"]
        return lines

    def body(self, job: Job) -> list[str]:
        return self._array(job) if job.array else self._packed(job)

    def _array(self, job: Job) -> list[str]:
        lines = []
        if len(job.parts) > 1:
            lines += ["# The case of this task", "cases=("]
            lines += [f"    {part.case_id}  {comment(part.label)[0]}" for part in job.parts]
            lines += [")", f"case=${{cases[{self.task_id}]}}"]
        else:
            lines += [*comment(job.parts[0].label), f"case={job.parts[0].case_id}"]
        more = {}
        if job.launcher == "torchrun":
            lines += ["", "# Where torchrun's agents meet: the first node, and a port of this job's own", *self.head]
            lines += ["port=$((10000 + number % 20000))", TAKEN]
            more = {"head": Raw('"$head"'), "port": Raw('"$port"'), "name": Raw('"scalade-$number"')}
        again = bool(self.requeue(job) and job.site.max_restarts)
        step = job.step(exports=exports(job.site, self.warns(job), again), **more)
        words = LAUNCHERS[job.launcher].step(step, self.starter, job.program(Raw('"$case"')))
        return [*lines, "", *self._supervised(job, words)]

    def _packed(self, job: Job) -> list[str]:
        lines = ["# Many cases, each on nodes of its own, the largest first"]
        # outside of the site's container: there may be no srun or mpirun in it
        words = [job.scalade or sys.executable, "-m", "scalade", "pack", str(job.folder / f"{job.name}.json")]
        return [*lines, *self._supervised(job, words)]

    def _supervised(self, job: Job, words: list[str]) -> list[str]:
        """The command itself; with a warning before the end and a way back into the queue, around them."""
        requeue = self.requeue(job) if job.site.max_restarts else ""
        if not requeue:
            return [command(words)]
        file, again = f"{quote(str(job.folder / job.name))}.{self.job_id}", [f'[ "$status" -eq {REQUEUE_STATUS} ]']
        lines = []
        if job.array:
            lines += [
                "# There while a run is on: where a host crashes, the launcher may have a status of its own",
                f"export {UNDONE_FILE}={file}.undone",
                f'rm -f -- "${UNDONE_FILE}"',
                "",
            ]
            again.append(f'[ -e "${UNDONE_FILE}" ]')
        if self.warns(job):
            lines += self._warned(job, words, file)
            again.insert(0, '{ [ "$told" = yes ] && [ "$status" -ne 0 ]; }')
        else:
            lines += ["status=0", command(words) + " || status=$?"]
        return [
            *lines,
            "",
            "# What is left goes on in the next allocation",
            f"if {' || '.join(again)}; then",
            f'    [ "{self.restarts}" -ge {job.site.max_restarts} ] || {requeue}',
            "fi",
            'exit "$status"',
        ]

    def _warned(self, job: Job, words: list[str], file: str) -> list[str]:
        return [
            f"# {job.site.signal_s} s before the time limit: the ranks are asked to write a checkpoint and to stop",
            f"export {STOP_FILE}={file}.stop",
            f'rm -f -- "${STOP_FILE}"',
            "told=no",
            f"trap 'told=yes; touch -- \"${STOP_FILE}\"' USR1",
            command(words) + " &",
            "step=$!",
            "status=0",
            'wait "$step" || status=$?',
            'if [ "$told" = yes ]; then',
            "    status=0",
            '    wait "$step" || status=$?',
            "fi",
        ]

    def warns(self, job: Job) -> bool:
        """Whether the job is warned before its time is up: where it can resume from a checkpoint or run another run."""
        return bool(
            self.capabilities.signal
            and job.site.signal_s
            and job.site.max_restarts
            and (job.checkpoints or not job.array)
        )

    job_id: ClassVar[str] = ""  # shell: the id of the running job
    restarts: ClassVar[str] = ""  # shell: how often the job went back into the queue

    # for those that are asked

    def answer(self, words: Sequence[str]) -> Answer:
        """Of a command of the scheduler whose exit status says more than that it failed. Raises as `ask`."""
        return answer(self.name, words)

    def ask(
        self,
        words: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> str:
        """Output of a command of the scheduler. env: None, this process's.

        Raises
        ------
        SchedulerError: it is not there, takes too long or fails
        """
        done = answer(self.name, words, cwd, env, patience_s)
        if done.status:
            raise SchedulerError(f"{self.name}: `{words[0]}` failed: {done.first_line()}", done.status)
        return done.out
