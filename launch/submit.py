"""`scalade submit`: what is missing of a study as jobs of a scheduler.

The cases are those without a finished row and without a job that waits or runs; so submitting again starts nothing
twice. A case takes as few nodes as hold the same number of its ranks each.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..results.store import RunStore
from .errors import unknown
from .launchers import LAUNCHERS
from .plan import Plan, PlannedRun, make_plan
from .schedulers import SCHEDULERS
from .schedulers.base import Job, Part, Scheduler, SchedulerError, exports
from .schedulers.state import ACTIVE, State
from .site import Site, load_site
from .spec import utc
from .states import task_states
from .study import Study, load_study
from .submissions import FOLDER, JobRecord, Submission, locked, submissions, write_durably
from .supervise import Outcome, Signals
from .sweep import LocalExecutor, Sweep

MODES = ("array", "packed")
MOST_TASKS = 1000  # of one array; Slurm's default limit is 1001
SPARE_S = 300  # for a job to begin and end, beside its runs


@dataclass(frozen=True)
class Wish:
    """What the command line says beside the study."""

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


@dataclass(frozen=True)
class Submitted:
    """What `scalade submit` did, or would do."""

    results: Path
    scripts: dict[str, str]  # file name -> text
    submission: Submission | None  # None: nothing was missing, or a dry run
    runs: int = 0  # that are missing and not under way
    kept: int = 0  # runs that have their row
    active: int = 0  # cases that a job of an earlier submission waits for or runs
    skipped: int = 0
    skip_reasons: dict[str, int] = field(default_factory=dict)  # why -> cases
    failed: dict[str, Outcome] = field(default_factory=dict)  # run_id -> what stands in the table
    measured: bool = True  # the table has a run with status ok

    @property
    def exit_code(self) -> int:
        """0: handed over, or under way, or all is done; 1: there is nothing to hand over, and the table has a failed
        run or none at all."""
        return int(not self.runs and not self.active and bool(self.failed or not self.measured))


def nodes_of(ranks: int, per_node: int) -> tuple[int, int]:
    """(nodes, ranks on each): the fewest nodes that hold the same number each, at most `per_node`."""
    most = next(count for count in range(min(ranks, per_node), 0, -1) if ranks % count == 0)
    return ranks // most, most


def submit_study(path: Path, results: Path | None, wish: Wish, *, dry_run: bool = False) -> Submitted:
    """Write the batch scripts for what is missing of a study and hand them over.

    Raises
    ------
    ValueError: the study, the profile or a wish is wrong, or the scheduler refuses
    OSError: the results folder takes no more
    """
    study, site = load_study(path), load_site(wish.profile)
    scheduler, site, launcher = _choose(study, site, wish)
    folder = Path(os.path.abspath(results or study.results))
    if dry_run and not (folder / "runs").is_dir():
        with tempfile.TemporaryDirectory() as nothing:
            return _submit(study, folder, RunStore(nothing), scheduler, site, launcher, wish, dry_run=True)
    store = RunStore(folder)
    if dry_run:
        return _submit(study, folder, store, scheduler, site, launcher, wish, dry_run=True)
    with locked(folder):
        return _submit(study, folder, store, scheduler, site, launcher, wish, dry_run=False)


def _choose(study: Study, site: Site, wish: Wish) -> tuple[Scheduler, Site, str]:
    name = wish.scheduler or site.scheduler
    if not name:
        raise ValueError(f"which scheduler? --scheduler {'|'.join(SCHEDULERS)}, or `scheduler` in the --profile")
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler {name}: {unknown(name, SCHEDULERS, 'scheduler')}")
    if wish.mode not in MODES:
        raise ValueError(f"--mode {wish.mode}: {unknown(wish.mode, MODES, 'mode')}")
    if wish.alone and wish.mode != "packed":
        raise ValueError("--one-at-a-time: wants --mode packed; an array has --throttle 1")
    scheduler = SCHEDULERS[name]
    of_study = study.run.launcher if study.run.launcher in scheduler.can.launchers else ""
    launcher = wish.launcher or site.launcher or of_study or scheduler.can.launchers[0]
    if launcher not in LAUNCHERS:
        raise ValueError(f"--launcher {launcher}: {unknown(launcher, LAUNCHERS, 'launcher')}")
    for option, value in (("--nodes", wish.nodes), ("--throttle", wish.throttle), ("--jobs", wish.jobs - 1)):
        if value < 0:
            raise ValueError(f"{option}: must be at least {1 if option == '--jobs' else 0}")
    if wish.time_limit:
        site = replace(site, time_limit=wish.time_limit)
        if site.time_limit_s is None:
            raise ValueError(f"--time-limit {wish.time_limit}: must be [days-]HH:MM:SS")
    return scheduler, site, launcher


def _submit(
    study: Study, results: Path, store: RunStore, scheduler: Scheduler, site: Site, launcher: str, wish: Wish,
    *, dry_run: bool,
) -> Submitted:  # fmt: skip
    plan = make_plan(study, store, retry_failed=wish.retry_failed, cases=study.cases_elsewhere())
    active = _active_cases(results, remember=not dry_run)
    pending = [run for run in plan.pending if run.case.case_id not in active]
    done = Submitted(
        results, {}, None, runs=len(pending), kept=len(plan.kept), skipped=plan.skipped,
        active=len({run.case.case_id for run in plan.pending} & active), skip_reasons=plan.skip_reasons,
        failed=plan.failed, measured="ok" in plan.kept.values(),
    )  # fmt: skip
    if not dry_run:
        _write_skipped(study, store, plan)
    if not pending:
        return done
    stamp = os.urandom(3).hex()
    folder = results / FOLDER / stamp
    jobs = _jobs(study, results, folder, site, launcher, wish, pending)
    scripts = {f"{job.name}{scheduler.suffix}": scheduler.render(job) for job in jobs}
    if dry_run:
        return replace(done, scripts=scripts)
    folder.mkdir()
    shutil.copyfile(study.path, folder / study.path.name)
    for job in jobs:
        write_durably(folder / f"{job.name}.json", job_json(job, scheduler.name, wish))
    for name, text in scripts.items():
        write_durably(folder / name, text)
    records = [
        JobRecord(
            job.name, job.array, [part.case_id for part in job.parts], [part.label for part in job.parts], job.nodes,
            job.nodes * job.per_node, f"{job.name}{scheduler.suffix}",
        )  # fmt: skip
        for job in jobs
    ]
    submission = Submission(stamp, scheduler.name, study.path.name, utc(time.time()), records, folder)
    submission.save()
    _hand_over(scheduler, submission)
    return replace(done, scripts=scripts, submission=submission)


def _hand_over(scheduler: Scheduler, submission: Submission) -> None:
    for number, record in enumerate(submission.jobs):
        try:
            record.job_id = scheduler.submit(submission.folder / record.script, len(record.tasks()))
        except SchedulerError as error:
            for each in submission.jobs[number:]:
                each.closed, each.refusal = State.FAILED, f"refused: {error}"
            submission.save()
            before = f"; {number} jobs of it had been taken: scalade status" if number else ""
            raise SchedulerError(f"{error} (script: {submission.folder / record.script}){before}") from None
        submission.save()


def _active_cases(results: Path, remember: bool) -> set[str]:
    """Cases that an earlier submission's job waits for or runs.

    Raises
    ------
    SchedulerError: the scheduler cannot be asked; nothing may be started then
    """
    active: set[str] = set()
    for submission in submissions(results):
        told = task_states(SCHEDULERS[submission.scheduler], submission, remember=remember)
        for record in submission.jobs:
            if record.closed not in ("", State.CANCELLED):
                continue
            states = told.get(record.name, {})
            for number, cases in record.tasks().items():
                # a job whose id was not heard, and that cannot be found by name, may be there all the same
                lost = not record.job_id and not states and not record.closed
                if lost or (number in states and states[number].state in ACTIVE):
                    active |= {record.cases[index] for index in cases}
    return active


def _write_skipped(study: Study, store: RunStore, plan: Plan) -> None:
    if not plan.to_skip:
        return
    from .display import Display

    with Signals() as signals, suppress(FileExistsError):
        executor = LocalExecutor(signals)
        Sweep(study, store, executor, Display(), signals).write_skipped(plan)


def _jobs(
    study: Study, results: Path, folder: Path, site: Site, launcher: str, wish: Wish, pending: Sequence[PlannedRun]
) -> list[Job]:
    by_case: dict[str, list[PlannedRun]] = {}
    for run in pending:
        by_case.setdefault(run.case.case_id, []).append(run)
    sizes: dict[int, list[list[PlannedRun]]] = {}
    for runs in by_case.values():
        sizes.setdefault(runs[0].case.ranks, []).append(runs)
    prefix = f"scalade-{study.name[:24]}-{folder.name}"
    common = {
        "study": folder / study.path.name, "results": results, "workdir": Path.cwd(), "folder": folder, "site": site,
        "launcher": launcher, "mode": wish.mode, "throttle": wish.throttle, "retry_failed": wish.retry_failed,
    }  # fmt: skip
    limit_s = study.run.time_limit_s
    if wish.mode == "packed":
        nodes, per_node = max(nodes_of(ranks, site.per_node) for ranks in sizes)
        if 0 < wish.nodes < nodes:
            raise ValueError(f"--nodes {wish.nodes}: the largest case takes {nodes} nodes of {site.per_node} ranks")
        nodes, per_node = max(nodes, wish.nodes), max(nodes_of(ranks, site.per_node)[1] for ranks in sizes)
        parts = tuple(_part(runs[0]) for ranks in sorted(sizes, reverse=True) for runs in sizes[ranks])
        taking = (nodes if wish.alone else nodes_of(run.case.ranks, site.per_node)[0] for run in pending)
        work_s = sum(taking) * limit_s
        seconds = site.time_limit_s or int(max(limit_s, 2 * work_s / nodes / wish.jobs)) + SPARE_S
        title = f"study {study.name}, {_some(len(parts), 'case')} on {_some(nodes, 'node')}"
        return [
            Job(name=f"{prefix}-{number}", title=title, nodes=nodes, per_node=per_node, seconds=seconds, parts=parts,
                checkpoints=any(run.case.measure.checkpoint_every for run in pending), **common)  # fmt: skip
            for number in range(wish.jobs)
        ]
    jobs = []
    for ranks in sorted(sizes, reverse=True):
        nodes, per_node = nodes_of(ranks, site.per_node)
        for first in range(0, len(sizes[ranks]), MOST_TASKS):
            cases = sizes[ranks][first : first + MOST_TASKS]
            on = f"{_some(nodes, 'node')} with {_some(per_node, 'rank')} each"
            jobs.append(Job(
                name=f"{prefix}-{len(jobs)}", title=f"study {study.name}, {_some(len(cases), 'case')} on {on}",
                nodes=nodes, per_node=per_node, parts=tuple(_part(runs[0]) for runs in cases),
                seconds=site.time_limit_s or int(max(len(runs) for runs in cases) * limit_s) + SPARE_S,
                checkpoints=all(runs[0].case.measure.checkpoint_every for runs in cases), **common,
            ))  # fmt: skip
    return jobs


def _part(run: PlannedRun) -> Part:
    return Part(run.case.case_id, f"{run.case.model_name or 'model'} {run.case.layout_name}")


def job_json(job: Job, scheduler: str, wish: Wish) -> str:
    """What `scalade pack` is told: everything but the script."""
    site = asdict(replace(job.site, environment={}, fabric={}))  # the script has exported them
    content = {
        "scheduler": scheduler, "launcher": job.launcher, "study": str(job.study), "results": str(job.results),
        "workdir": str(job.workdir), "seconds": job.seconds, "retry_failed": wish.retry_failed,
        "alone": wish.alone, "cases": [part.case_id for part in job.parts], "site": site,
        "exports": exports(job.site, warned=True),
    }  # fmt: skip
    return json.dumps(content, indent=1) + "\n"


def _some(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
