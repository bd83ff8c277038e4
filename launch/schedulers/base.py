"""What every scheduler has in common: a job as data, its batch script around a few lines of its own, its states.

A batch script has one of two shapes. An *array* runs one case a task, each in a job of its own: all cases of one
world size. A *packed* job takes nodes once and `scalade pack` runs many cases on them, side by side.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..launchers import LAUNCHERS, Raw, Step
from ..site import Site, clock
from ..stop import REQUEUE_STATUS, STOP_FILE
from .shell import command, comment, quote
from .state import State

PATIENCE_S = 60.0  # for a command of the scheduler


@dataclass(frozen=True)
class Part:
    """One case of a job, as the script shows it."""

    case_id: str
    label: str  # for people


@dataclass(frozen=True)
class Job:
    """One batch script."""

    name: str  # unique; letters, digits and . _ -
    title: str  # one line for people
    mode: str  # array, packed
    study: Path
    results: Path
    workdir: Path  # where `scalade submit` was called: what relative paths in the study mean
    folder: Path  # of the submission: script, job file and logs; the job is submitted from here
    site: Site
    launcher: str
    nodes: int
    per_node: int  # ranks on each node; packed: of the largest case
    seconds: int  # that the job may take
    parts: tuple[Part, ...]
    checkpoints: bool = False  # a job that is cut off can go on where it was
    throttle: int = 0  # tasks of an array that run at once; 0: as many as there is room for
    retry_failed: bool = False
    scalade: str = ""  # python that runs `scalade pack` in the batch script; empty: this one

    @property
    def array(self) -> bool:
        return self.mode == "array"

    def program(self, case: str) -> list[str]:
        """What python runs in every rank; `case` may be Raw."""
        files = [str(self.study), "--results", str(self.results)]
        retry = ["--retry-failed"] * self.retry_failed
        return ["-m", "scalade", "worker", *files, "--case", case, "--quiet", *retry]

    def step(self, **more: object) -> Step:
        site = self.site
        return Step(
            nodes=self.nodes, per_node=self.per_node, cpus_per_rank=site.cpus_per_rank, python=site.python,
            container=site.container, options=site.launcher_options, mpirun=site.mpirun, mpi=site.mpi, **more,
        )  # fmt: skip


def exports(site: Site, warned: bool) -> tuple[str, ...]:
    """Variables that the ranks need, for a launcher that hands on none by itself. warned: see `Scheduler.warns`."""
    return tuple(dict.fromkeys(["OMP_NUM_THREADS", *[STOP_FILE] * warned, *site.environment, *site.fabric]))


@dataclass(frozen=True)
class Task:
    """A job, or one task of an array, as its scheduler sees it."""

    state: State
    reason: str = ""  # in the scheduler's words; empty: it has none
    where: str = ""  # its nodes
    elapsed: str = ""


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


class SchedulerError(ValueError):
    """A command of the scheduler failed; one line that says which and what it said. status: its exit status."""

    def __init__(self, line: str, status: int | None = None) -> None:
        super().__init__(line)
        self.status = status


TAKEN = 'while (: <> "/dev/tcp/$head/$port") 2> /dev/null; do port=$((10000 + RANDOM % 20000)); done  # it is taken'


class Scheduler:
    """The part that is the same for all that take a shell script."""

    name: ClassVar[str]
    can: ClassVar[Capabilities]
    suffix: ClassVar[str] = ".sh"
    directive: ClassVar[str]
    task_id: ClassVar[str]  # shell: the number of an array's task, from 0
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

        jobs: name -> id; an id is empty where a submission was cut off before it heard one. A name that the scheduler
        does not know (any more) is left out.
        """
        raise NotImplementedError

    def cancel(self, job_ids: Sequence[str]) -> None:
        raise NotImplementedError

    def hosts(self, env: Mapping[str, str]) -> list[str]:
        """Inside a job: its nodes."""
        raise NotImplementedError

    def own_id(self, env: Mapping[str, str]) -> str | None:
        """Inside a job: its id, with the task's number where it is one of an array. None: this is no job of it."""
        raise NotImplementedError

    def find(self, name: str) -> str | None:
        """Id of the job of this name; None: it cannot be found by that."""
        return None

    def printed(self, name: str, lines: int) -> str | None:
        """The end of what a job printed, where that is in no file; None: it is in a file of the submission's folder."""
        return None

    # what is the same for all

    def refuse(self, job: Job) -> None:
        """Raises ValueError: this scheduler cannot do that job."""
        if job.launcher not in self.can.launchers:
            raise ValueError(f"{self.name} starts ranks by {' or '.join(self.can.launchers)}, not by {job.launcher}")
        if job.site.qos and self.name != "slurm":
            raise ValueError(f"qos = {job.site.qos}: {self.name} has none; use `options`")
        if not job.array and not self.can.packed:
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
        told = ["OMP_NUM_THREADS" in table for table in (site.environment, site.fabric)]
        if not any(told):
            lines += ["", "# Of the supervisors; each rank's threads are set by scalade", "export OMP_NUM_THREADS=1"]
        return lines

    def body(self, job: Job) -> list[str]:
        return self._array(job) if job.array else self._packed(job)

    def _array(self, job: Job) -> list[str]:
        lines = []
        if len(job.parts) > 1:
            lines += ["# The case of this task", "cases=("]
            lines += [f"    {part.case_id}  {comment(part.label)[0]}" for part in job.parts]
            lines += [")", f'case=${{cases[{self.task_id}]}}']
        else:
            lines += [*comment(job.parts[0].label), f"case={job.parts[0].case_id}"]
        more = {}
        if job.launcher == "torchrun":
            lines += ["", "# Where torchrun's agents meet: the first node, and a port of this job's own", *self.head]
            lines += ["port=$((10000 + number % 20000))", TAKEN]
            more = {"head": Raw('"$head"'), "port": Raw('"$port"'), "name": Raw('"scalade-$number"')}
        step = job.step(exports=exports(job.site, warned=self.warns(job)), **more)
        words = LAUNCHERS[job.launcher].step(step, self.starter, job.program(Raw('"$case"')))
        return [*lines, "", *self._supervised(job, words)]

    def _packed(self, job: Job) -> list[str]:
        lines = ["# Many cases, each on nodes of its own, the largest first"]
        # outside of the site's container: there may be no srun or mpirun in it
        words = [job.scalade or sys.executable, "-m", "scalade", "pack", str(job.folder / f"{job.name}.json")]
        return [*lines, *self._supervised(job, words)]

    def _supervised(self, job: Job, words: list[str]) -> list[str]:
        """The command itself; with a warning before the end and a way back into the queue, around them."""
        requeue = self.requeue(job) if self.warns(job) else ""
        if not requeue:
            return [command(words)]
        stop_file = quote(str(job.folder / job.name))
        return [
            f"# {job.site.signal_s} s before the time limit: the ranks are asked to write a checkpoint and to stop",
            f"export {STOP_FILE}={stop_file}.{self.job_id}.stop",
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
            "",
            "# What is left goes on in the next allocation",
            'if { [ "$told" = yes ] && [ "$status" -ne 0 ]; } || [ "$status" -eq ' + f"{REQUEUE_STATUS} ]; then",
            f'    [ "{self.restarts}" -ge {job.site.max_restarts} ] || {requeue}',
            "fi",
            'exit "$status"',
        ]  # fmt: skip

    def warns(self, job: Job) -> bool:
        """Whether the job is told before its time is up: where it can go on from a checkpoint, or with another run."""
        return bool(self.can.signal and job.site.signal_s and job.site.max_restarts
                    and (job.checkpoints or not job.array))  # fmt: skip

    job_id: ClassVar[str] = ""  # shell: the id of the running job
    restarts: ClassVar[str] = ""  # shell: how often the job went back into the queue

    # for those that are asked

    def ask(self, words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Output of a command of the scheduler. env: None, this process's.

        Raises
        ------
        SchedulerError: it is not there, takes too long or fails
        """
        try:
            done = subprocess.run(
                words, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S,
                stdin=subprocess.DEVNULL, env=env,
            )  # fmt: skip
        except FileNotFoundError:
            raise SchedulerError(f"{self.name}: there is no `{words[0]}` here; is this a login node?") from None
        except subprocess.TimeoutExpired:
            raise SchedulerError(f"{self.name}: `{words[0]}` gave no answer within {PATIENCE_S:g} s") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[0]
            raise SchedulerError(f"{self.name}: `{words[0]}` failed: {said}", done.returncode)
        return done.stdout


def walltime(job: Job) -> str:
    return clock(job.seconds)
