"""A job as data: what a batch script is written from, whichever scheduler takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..host.launchers import Step
from ..process.preemption import STOP_FILE, UNDONE_FILE
from .site import Site, clock


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
    quorum: bool = False  # its runs go on without a host that crashed
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

    def step(self, **more: Any) -> Step:
        site = self.site
        return Step(
            nodes=self.nodes,
            per_node=self.per_node,
            cpus_per_rank=site.cpus_per_rank,
            python=site.python,
            container=site.container,
            options=site.launcher_options,
            mpirun=site.mpirun,
            mpi=site.mpi,
            **more,
        )


def exports(site: Site, warned: bool, queued_again: bool = False) -> tuple[str, ...]:
    """Variables that the ranks need, for a launcher that hands on none by itself. warned: see `Scheduler.warns`."""
    names = ["OMP_NUM_THREADS"]
    if warned:
        names.append(STOP_FILE)
    if queued_again:
        names.append(UNDONE_FILE)
    return tuple(dict.fromkeys([*names, *site.environment, *site.fabric]))


def walltime(job: Job) -> str:
    return clock(job.seconds)
