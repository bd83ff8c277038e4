"""From the missing runs of a study to the jobs that will do them.

An array holds the cases of one world size, as many as the cluster takes in one; what is more becomes another array. A
packed job holds all cases. A case takes as few nodes as hold the same number of its ranks each.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from ...results.wording import count_of
from ..schedulers.base import MOST_TASKS, Limits
from ..schedulers.job import Job, Part, exports
from ..schedulers.site import Site
from ..study.case import Case
from ..study.labels import labels
from ..study.study import Study
from ..sweep.plan import PlannedRun

SPARE_S = 300  # for a job to begin and end, beside its runs


@dataclass(frozen=True)
class SubmitOptions:
    """The command line of `scalade submit`, but for the study."""

    scheduler: str = ""
    profile: Path | None = None
    launcher: str = ""
    mode: str = "array"
    nodes: int = 0  # packed: of one job; 0: as many as the largest case takes
    jobs: int = 1  # packed: so many of them, which share the cases
    alone: bool = False  # packed: no run beside another, where nodes share what they talk over
    throttle: int = 0  # array: tasks that run at once; 0: no limit
    time_limit: str = ""
    retry_failed: bool = False
    resubmit: bool = False  # also the cases of jobs that are lost or unknown


@dataclass(frozen=True)
class JobContext:
    """What jobs are made from, beside the cases and the options."""

    study: Study
    results: Path
    folder: Path  # of the submission
    site: Site
    launcher: str
    limits: Limits


def nodes_of(ranks: int, per_node: int) -> tuple[int, int]:
    """(nodes, ranks on each): the fewest nodes that hold the same number each, at most `per_node`."""
    most = next(count for count in range(min(ranks, per_node), 0, -1) if ranks % count == 0)
    return ranks // most, most


def make_jobs(context: JobContext, options: SubmitOptions, cases: Sequence[Sequence[PlannedRun[Case]]]) -> list[Job]:
    """One for each batch script. cases: the missing runs of each case.

    Raises
    ------
    ValueError: --nodes is less than the largest case takes
    """
    study, folder = context.study, context.folder
    names = labels([runs[0].case for runs in cases])
    part = {id(runs): Part(runs[0].case.case_id, name) for runs, name in zip(cases, names, strict=True)}
    sizes: dict[int, list[Sequence[PlannedRun[Case]]]] = {}
    for runs in cases:
        sizes.setdefault(runs[0].case.ranks, []).append(runs)
    common = {
        "study": folder / study.path.name,
        "results": context.results,
        "workdir": Path.cwd(),
        "folder": folder,
        "site": context.site,
        "launcher": context.launcher,
        "mode": options.mode,
        "throttle": options.throttle,
        "retry_failed": options.retry_failed,
    }
    make = _packed if options.mode == "packed" else _arrays
    return make(context, options, sizes, part, common)


def _packed(
    context: JobContext,
    options: SubmitOptions,
    sizes: dict[int, list[Sequence[PlannedRun[Case]]]],
    part: dict[int, Part],
    common: dict,
) -> list[Job]:
    study, per_node_most, limit_s = context.study, context.site.per_node, context.study.run.time_limit_s
    nodes, per_node = _largest(sizes, per_node_most, options.nodes)
    cases = list(chain.from_iterable(sizes[ranks] for ranks in sorted(sizes, reverse=True)))
    parts = tuple(part[id(runs)] for runs in cases)
    pending = list(chain.from_iterable(cases))
    taking = (nodes if options.alone else nodes_of(run.case.ranks, per_node_most)[0] for run in pending)
    work_s = sum(taking) * limit_s
    seconds = context.site.time_limit_s or int(max(limit_s, 2 * work_s / nodes / options.jobs)) + SPARE_S
    title = f"study {study.name}, {count_of(len(parts), 'case')} on {count_of(nodes, 'node')}"
    checkpoints = any(run.case.measure.checkpoint_every for run in pending)
    return [
        Job(
            name=f"{_prefix(context)}-{number}",
            title=title,
            nodes=nodes,
            per_node=per_node,
            seconds=seconds,
            parts=parts,
            checkpoints=checkpoints,
            **common,
        )
        for number in range(options.jobs)
    ]


def _largest(sizes: Iterable[int], per_node_most: int, asked: int) -> tuple[int, int]:
    """(nodes, ranks of the fullest node) that hold a case of each size. asked: nodes, or 0.

    Raises
    ------
    ValueError: it takes more than were asked for
    """
    placed = [nodes_of(ranks, per_node_most) for ranks in sizes]
    nodes = max(nodes for nodes, _ in placed)
    if 0 < asked < nodes:
        takes = f"{count_of(nodes, 'node')} of {count_of(per_node_most, 'rank')}"
        raise ValueError(f"--nodes {asked}: the largest case takes {takes}")
    return max(nodes, asked), max(per_node for _, per_node in placed)


def _arrays(
    context: JobContext,
    options: SubmitOptions,
    sizes: dict[int, list[Sequence[PlannedRun[Case]]]],
    part: dict[int, Part],
    common: dict,
) -> list[Job]:
    study, most, limit_s = context.study, min(context.limits.array, MOST_TASKS), context.study.run.time_limit_s
    jobs: list[Job] = []
    for ranks in sorted(sizes, reverse=True):
        nodes, per_node = nodes_of(ranks, context.site.per_node)
        for first in range(0, len(sizes[ranks]), most):
            cases = sizes[ranks][first : first + most]
            on = f"{count_of(nodes, 'node')} with {count_of(per_node, 'rank')} each"
            jobs.append(
                Job(
                    name=f"{_prefix(context)}-{len(jobs)}",
                    title=f"study {study.name}, {count_of(len(cases), 'case')} on {on}",
                    nodes=nodes,
                    per_node=per_node,
                    parts=tuple(part[id(runs)] for runs in cases),
                    seconds=context.site.time_limit_s or int(max(len(runs) for runs in cases) * limit_s) + SPARE_S,
                    checkpoints=all(runs[0].case.measure.checkpoint_every for runs in cases),
                    quorum=any(runs[0].case.outer.quorum for runs in cases),
                    **common,
                )
            )
    return jobs


def _prefix(context: JobContext) -> str:
    return f"scalade-{context.study.name[:24]}-{context.folder.name}"


def job_json(job: Job, scheduler: str, options: SubmitOptions) -> str:
    """The job file that `scalade pack` reads: everything but the script."""
    site = asdict(replace(job.site, environment={}, fabric={}))  # the script has exported them
    content = {
        "scheduler": scheduler,
        "launcher": job.launcher,
        "study": str(job.study),
        "results": str(job.results),
        "workdir": str(job.workdir),
        "seconds": job.seconds,
        "retry_failed": options.retry_failed,
        "alone": options.alone,
        "cases": [part.case_id for part in job.parts],
        "site": site,
        "exports": exports(job.site, warned=True),
    }
    return json.dumps(content, indent=1) + "\n"
