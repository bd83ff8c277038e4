"""`scalade submit`: what is missing of a study as jobs of a scheduler.

The cases are those without a finished row and without a job that waits or runs; so submitting again starts nothing
twice. A job that nobody has heard the end of (it is lost, or the scheduler does not answer) may be running: its cases
are left alone until `--resubmit` says otherwise, or `scalade cancel` has ended it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...results import files
from ...results.store.store import RunStore
from ...results.wording import count_of
from ..host.launchers import LAUNCHERS
from ..process.outcome import Outcome
from ..process.run_spec import utc
from ..process.supervisor import Signals
from ..schedulers import SCHEDULERS
from ..schedulers.ask import SchedulerError
from ..schedulers.base import Limits, Scheduler
from ..schedulers.job import Job
from ..schedulers.site import Site, load_site
from ..schedulers.state import ACTIVE, UNHEARD, State
from ..study.errors import unknown
from ..study.study import Study, load_study
from ..sweep.local import LocalExecutor
from ..sweep.plan import Plan, PlannedRun, make_plan
from ..sweep.sweep import Sweep
from .heard import hear
from .jobs import Ground, Wish, job_json, make_jobs
from .submissions import FOLDER, JobRecord, Submission, locked, submissions

MODES = ("array", "packed")
SAVING = 0.1  # of the time in which jobs are handed over: what writing their ids down may take

Tell = Callable[[int, int], None]  # jobs handed over, of how many


@dataclass(frozen=True)
class Submitted:
    """What `scalade submit` did, or would do."""

    results: Path
    scripts: dict[str, str]  # file name -> text
    submission: Submission | None  # None: nothing was missing, or a dry run
    runs: int = 0  # that are missing and not under way
    kept: int = 0  # runs that have their row
    active: int = 0  # cases that a job of an earlier submission waits for or runs
    unheard: dict[str, str] = field(default_factory=dict)  # job -> lost or unknown: its cases are left alone
    unheard_cases: int = 0
    left: int = 0  # cases for which the cluster has no room now
    left_why: str = ""
    skipped: int = 0
    skip_reasons: dict[str, int] = field(default_factory=dict)  # why -> cases
    failed: dict[str, Outcome] = field(default_factory=dict)  # run_id -> what stands in the table
    measured: bool = True  # the table has a run with status ok

    @property
    def exit_code(self) -> int:
        """0: handed over, or under way, or all is done; 1: there is nothing to hand over, and the table has a failed
        run or none at all, or somebody has to say what is to become of jobs that were not heard of."""
        wanting = self.unheard_cases or self.failed or not self.measured
        return int(not self.runs and not self.active and bool(wanting))


@dataclass
class UnderWay:
    """Cases of earlier submissions that have no end yet."""

    active: set[str] = field(default_factory=set)
    unheard: dict[str, tuple[str, State]] = field(default_factory=dict)  # case_id -> job and its state
    silent: str = ""  # why a scheduler gave no answer


def submit_study(
    path: Path, results: Path | None, wish: Wish, *, dry_run: bool = False, tell: Tell = lambda done, of: None
) -> Submitted:
    """Write the batch scripts for what is missing of a study and hand them over.

    tell: is called after each job that was handed over

    Raises
    ------
    ValueError: the study, the profile or a wish is wrong, or the scheduler refuses, or a scheduler does not answer
        whose jobs may be running
    OSError: the results folder takes no more
    """
    study, site = load_study(path), load_site(wish.profile, SCHEDULERS)
    scheduler, site, launcher = _choose(study, site, wish)
    folder = Path(os.path.abspath(results or study.results))
    ground = Ground(study, folder, folder / FOLDER / os.urandom(3).hex(), site, launcher, Limits(scheduler.most_tasks))
    if dry_run and not (folder / "runs").is_dir():
        with tempfile.TemporaryDirectory() as nothing:
            return _submit(ground, RunStore(nothing), scheduler, wish, None)
    store = RunStore(folder)
    if dry_run:
        return _submit(ground, store, scheduler, wish, None)
    with locked(folder):
        return _submit(ground, store, scheduler, wish, tell)


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
    of_study = study.run.launcher if study.run.launcher in scheduler.capabilities.launchers else ""
    launcher = wish.launcher or site.launcher or of_study or scheduler.capabilities.launchers[0]
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


def _submit(ground: Ground, store: RunStore, scheduler: Scheduler, wish: Wish, tell: Tell | None) -> Submitted:
    """tell: None: nothing is written and nothing handed over."""
    study, dry_run = ground.study, tell is None
    plan = make_plan(study, store, retry_failed=wish.retry_failed, cases=study.cases_elsewhere())
    earlier = submissions(ground.results)
    under_way = _under_way(earlier, remember=not dry_run)
    by_case: dict[str, list[PlannedRun]] = {}
    for run in plan.pending:
        by_case.setdefault(run.case.case_id, []).append(run)
    unheard = {} if wish.resubmit else {case: job for case, job in under_way.unheard.items() if case in by_case}
    if under_way.silent and unheard:
        how = "nothing is submitted while its jobs may be running: try again, or start their cases with --resubmit"
        raise SchedulerError(f"{under_way.silent}; {how}")
    waiting = by_case.keys() & under_way.active
    apart = waiting | unheard.keys()
    cases = {case_id: runs for case_id, runs in by_case.items() if case_id not in apart}
    if cases and wish.mode == "array":
        ground = replace(ground, limits=scheduler.limits())
    room = ground.limits.jobs if wish.mode == "array" else None
    chosen = list(cases.values())[:room]
    done = Submitted(
        ground.results,
        {},
        None,
        runs=sum(map(len, chosen)),
        kept=len(plan.kept),
        active=len(waiting),
        unheard={job: str(state) for job, state in unheard.values()},
        unheard_cases=len(unheard),
        left=len(cases) - len(chosen),
        left_why=ground.limits.why,
        skipped=plan.skipped,
        skip_reasons=plan.skip_reasons,
        failed=plan.failed,
        measured="ok" in plan.kept.values(),
    )
    if not dry_run:
        _write_skipped(study, store, plan)
    if not chosen:
        return done
    jobs = make_jobs(ground, wish, chosen)
    scripts = {f"{job.name}{scheduler.suffix}": scheduler.render(job) for job in jobs}
    if dry_run:
        return replace(done, scripts=scripts)
    submission = _write(ground, scheduler, wish, jobs, scripts)
    if wish.resubmit:
        _give_up(earlier, {case_id for job in submission.jobs for case_id in job.cases} & under_way.unheard.keys())
    _hand_over(scheduler, submission, tell)
    return replace(done, scripts=scripts, submission=submission)


def _write(ground: Ground, scheduler: Scheduler, wish: Wish, jobs: list[Job], scripts: dict[str, str]) -> Submission:
    """The submission's folder, with all that its jobs need; the record last."""
    folder, study = ground.folder, ground.study
    results = folder.parent.parent
    files.make_folder(folder, results)
    texts = {study.path.name: files.read_named(study.path)}
    texts |= {f"{job.name}.json": job_json(job, scheduler.name, wish) for job in jobs} | scripts
    for name, text in texts.items():
        files.write(folder / name, text, results)
    records = [
        JobRecord(
            job.name,
            job.array,
            [part.case_id for part in job.parts],
            [part.label for part in job.parts],
            job.nodes,
            job.nodes * job.per_node,
            f"{job.name}{scheduler.suffix}",
        )
        for job in jobs
    ]
    now = utc(time.time())
    submission = Submission(
        folder.name, scheduler.name, study.path.name, now, records, repeats=study.run.repeats, folder=folder
    )
    submission.save()
    return submission


def _hand_over(scheduler: Scheduler, submission: Submission, tell: Tell) -> None:
    """Ids are written down as they come, as often as that takes little of the time; one that was not is found by the
    job's name."""
    jobs = submission.jobs
    begun, saving_s = time.monotonic(), 0.0
    for number, record in enumerate(jobs):
        try:
            record.job_id = scheduler.submit(submission.folder / record.script, len(record.tasks()))
        except BaseException as error:
            refused = isinstance(error, SchedulerError)
            for each in jobs[number + (not refused or error.unsure) :]:
                each.closed, each.refusal = State.FAILED, f"refused: {error}" if refused else "not handed over"
            submission.save()
            if not refused:
                raise
            before = f"; {count_of(number, 'job')} of it had been taken: scalade status" if number else ""
            raise SchedulerError(f"{error} (script: {submission.folder / record.script}){before}") from None
        tell(number + 1, len(jobs))
        if saving_s <= SAVING * (time.monotonic() - begun):
            before_s = time.monotonic()
            submission.save()
            saving_s += time.monotonic() - before_s
    submission.save()


def _under_way(earlier: list[Submission], *, remember: bool) -> UnderWay:
    """What earlier submissions' jobs may still be doing."""
    found = UnderWay()
    for submission in earlier:
        heard = hear(SCHEDULERS[submission.scheduler], submission, remember=remember)
        found.silent = found.silent or heard.silent
        for record in submission.jobs:
            for number, cases in record.tasks().items():
                state = heard.word(record, number).state
                if state in ACTIVE:
                    found.active |= {record.cases[index] for index in cases}
                elif state in UNHEARD:
                    job = record.job_id or record.name
                    found.unheard |= {record.cases[index]: (job, state) for index in cases}
    return found


def _give_up(earlier: list[Submission], cases: set[str]) -> None:
    """Nobody waits for the tasks any more that had these cases and were not heard of: they are submitted again."""
    for submission in earlier:
        for record in submission.jobs:
            for number, its in record.tasks().items() if not record.closed else ():
                if str(number) not in record.seen and cases & {record.cases[index] for index in its}:
                    record.give_up(number, "submitted again")
        submission.save()


def _write_skipped(study: Study, store: RunStore, plan: Plan) -> None:
    if not plan.to_skip:
        return
    from ..sweep.display import Display

    with Signals() as signals, suppress(FileExistsError):
        executor = LocalExecutor(signals)
        Sweep(study, store, executor, Display(), signals).write_skipped(plan)
