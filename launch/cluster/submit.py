"""`scalade submit`: what is missing of a study as jobs of a scheduler.

The cases are those without a finished row and without a job that waits or runs; so submitting again starts nothing
twice. A job whose end is not known (it is lost, or the scheduler does not answer) may be running: its cases
are left alone until `--resubmit` says otherwise, or `scalade cancel` has ended it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
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
from ..study.case import Case
from ..study.errors import unknown
from ..study.study import Study, load_study
from ..sweep.local import LocalExecutor
from ..sweep.plan import Plan, PlannedRun, make_plan
from ..sweep.sweep import Sweep
from .heard import hear
from .jobs import JobContext, SubmitOptions, job_json, make_jobs
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

    def add(self, record: JobRecord, task: int, state: State) -> None:
        """The cases of a task that is in this state."""
        if state in ACTIVE:
            self.active.update(record.cases_of(task))
        elif state in UNHEARD:
            self.unheard |= dict.fromkeys(record.cases_of(task), (record.job_id or record.name, state))

    def unheard_of(self, cases: Collection[str]) -> dict[str, tuple[str, State]]:
        """Those of the cases whose end is not known, case_id -> job and its state.

        Raises
        ------
        SchedulerError: there are some, and a scheduler does not answer
        """
        unheard = {case: job for case, job in self.unheard.items() if case in cases}
        if self.silent and unheard:
            how = "nothing is submitted while its jobs may be running: try again, or start their cases with --resubmit"
            raise SchedulerError(f"{self.silent}; {how}")
        return unheard


@dataclass(frozen=True)
class Missing:
    """What is missing of a study, and what of it is to be submitted now."""

    plan: Plan[Case]
    earlier: list[Submission]
    under_way: UnderWay
    limits: Limits
    cases: list[list[PlannedRun[Case]]]  # to be submitted: the missing runs of each
    summary: Submitted


def submit_study(
    path: Path,
    results: Path | None,
    options: SubmitOptions,
    *,
    dry_run: bool = False,
    tell: Tell = lambda done, of: None,
) -> Submitted:
    """Write the batch scripts for what is missing of a study and hand them over.

    tell: is called after each job that was handed over

    Raises
    ------
    ValueError: the study, the profile or an option is wrong, or the scheduler refuses, or a scheduler does not answer
        whose jobs may be running
    OSError: the results folder takes no more
    """
    study, site = load_study(path), load_site(options.profile, SCHEDULERS)
    scheduler, site, launcher = _choose(study, site, options)
    folder = Path(os.path.abspath(results or study.results))
    limits = Limits(scheduler.most_tasks)
    context = JobContext(study, folder, folder / FOLDER / os.urandom(3).hex(), site, launcher, limits)
    if not dry_run:
        store = RunStore(folder)
        with locked(folder):
            return _submit(context, store, scheduler, options, tell)
    if (folder / "runs").is_dir():
        return _dry_run(context, RunStore(folder), scheduler, options)
    with tempfile.TemporaryDirectory() as nothing:
        return _dry_run(context, RunStore(nothing), scheduler, options)


def _choose(study: Study, site: Site, options: SubmitOptions) -> tuple[Scheduler, Site, str]:
    """(scheduler, the profile with what the options change in it, launcher)."""
    scheduler = _scheduler(options.scheduler or site.scheduler)
    if options.mode not in MODES:
        raise ValueError(f"--mode {options.mode}: {unknown(options.mode, MODES, 'mode')}")
    if options.alone and options.mode != "packed":
        raise ValueError("--one-at-a-time: requires --mode packed; an array has --throttle 1")
    launcher = options.launcher or site.launcher or _usual_launcher(study, scheduler)
    if launcher not in LAUNCHERS:
        raise ValueError(f"--launcher {launcher}: {unknown(launcher, LAUNCHERS, 'launcher')}")
    for option, value, least in (
        ("--nodes", options.nodes, 0),
        ("--throttle", options.throttle, 0),
        ("--jobs", options.jobs, 1),
    ):
        if value < least:
            raise ValueError(f"{option}: must be at least {least}")
    return scheduler, _with_limit(site, options.time_limit), launcher


def _usual_launcher(study: Study, scheduler: Scheduler) -> str:
    """The study's where the scheduler has it, else the scheduler's first."""
    possible = scheduler.capabilities.launchers
    return study.run.launcher if study.run.launcher in possible else possible[0]


def _with_limit(site: Site, time_limit: str) -> Site:
    if not time_limit:
        return site
    site = replace(site, time_limit=time_limit)
    if site.time_limit_s is None:
        raise ValueError(f"--time-limit {time_limit}: must be [days-]HH:MM:SS")
    return site


def _scheduler(name: str) -> Scheduler:
    if not name:
        raise ValueError(f"which scheduler? --scheduler {'|'.join(SCHEDULERS)}, or `scheduler` in the --profile")
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler {name}: {unknown(name, SCHEDULERS, 'scheduler')}")
    return SCHEDULERS[name]


def _dry_run(context: JobContext, store: RunStore, scheduler: Scheduler, options: SubmitOptions) -> Submitted:
    """Nothing is written and nothing handed over."""
    missing = _missing(context, store, scheduler, options, remember=False)
    _, scripts = _jobs(context, scheduler, options, missing)
    return replace(missing.summary, scripts=scripts)


def _submit(
    context: JobContext, store: RunStore, scheduler: Scheduler, options: SubmitOptions, tell: Tell
) -> Submitted:
    missing = _missing(context, store, scheduler, options, remember=True)
    _write_skipped(context.study, store, missing.plan)
    if not missing.cases:
        return missing.summary
    jobs, scripts = _jobs(context, scheduler, options, missing)
    submission = _write(context, scheduler, options, jobs, scripts)
    if options.resubmit:
        submitted = {case_id for job in submission.jobs for case_id in job.cases}
        _give_up(missing.earlier, submitted & missing.under_way.unheard.keys())
    _hand_over(scheduler, submission, tell)
    return replace(missing.summary, scripts=scripts, submission=submission)


def _by_case(runs: Sequence[PlannedRun[Case]]) -> dict[str, list[PlannedRun[Case]]]:
    by_case: dict[str, list[PlannedRun[Case]]] = {}
    for run in runs:
        by_case.setdefault(run.case.case_id, []).append(run)
    return by_case


def _missing(
    context: JobContext, store: RunStore, scheduler: Scheduler, options: SubmitOptions, *, remember: bool
) -> Missing:
    """remember: what is heard of earlier jobs is written down.

    Raises
    ------
    SchedulerError: a scheduler does not answer whose jobs may be running
    """
    study = context.study
    plan = make_plan(study, store, retry_failed=options.retry_failed, cases=study.cases_elsewhere())
    earlier = submissions(context.results)
    under_way = _under_way(earlier, remember=remember)
    by_case = _by_case(plan.pending)
    unheard = {} if options.resubmit else under_way.unheard_of(by_case)
    waiting = by_case.keys() & under_way.active
    cases = [runs for case_id, runs in by_case.items() if case_id not in waiting | unheard.keys()]
    is_array = options.mode == "array"
    limits = scheduler.limits() if is_array and cases else context.limits
    chosen = cases[: limits.jobs] if is_array else cases
    summary = Submitted(
        context.results,
        {},
        None,
        runs=sum(map(len, chosen)),
        kept=len(plan.kept),
        active=len(waiting),
        unheard={job: str(state) for job, state in unheard.values()},
        unheard_cases=len(unheard),
        left=len(cases) - len(chosen),
        left_why=limits.why,
        skipped=plan.skipped,
        skip_reasons=plan.skip_reasons,
        failed=plan.failed,
        measured="ok" in plan.kept.values(),
    )
    return Missing(plan, earlier, under_way, limits, chosen, summary)


def _jobs(
    context: JobContext, scheduler: Scheduler, options: SubmitOptions, missing: Missing
) -> tuple[list[Job], dict[str, str]]:
    """(jobs, file name -> their scripts)."""
    if not missing.cases:
        return [], {}
    jobs = make_jobs(replace(context, limits=missing.limits), options, missing.cases)
    return jobs, {f"{job.name}{scheduler.suffix}": scheduler.render(job) for job in jobs}


def _write(
    context: JobContext, scheduler: Scheduler, options: SubmitOptions, jobs: list[Job], scripts: dict[str, str]
) -> Submission:
    """The submission's folder, with all that its jobs need; the record last."""
    folder, study = context.folder, context.study
    results = folder.parent.parent
    files.make_folder(folder, results)
    texts: dict[str, bytes | str] = {study.path.name: files.read_named(study.path)}
    texts |= {f"{job.name}.json": job_json(job, scheduler.name, options) for job in jobs}
    texts |= scripts
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
        script = submission.folder / record.script
        try:
            record.job_id = scheduler.submit(script, len(record.tasks()))
        except SchedulerError as error:
            _close(jobs[number + error.unsure :], f"refused: {error}")
            submission.save()
            before = f"; {count_of(number, 'job')} of it had been taken: scalade status" if number else ""
            raise SchedulerError(f"{error} (script: {script}){before}") from None
        except BaseException:
            _close(jobs[number + 1 :], "not handed over")  # this one may have been
            submission.save()
            raise
        tell(number + 1, len(jobs))
        if saving_s <= SAVING * (time.monotonic() - begun):
            before_s = time.monotonic()
            submission.save()
            saving_s += time.monotonic() - before_s
    submission.save()


def _close(jobs: list[JobRecord], why: str) -> None:
    for job in jobs:
        job.closed, job.refusal = State.FAILED, why


def _under_way(earlier: list[Submission], *, remember: bool) -> UnderWay:
    """What earlier submissions' jobs may still be doing."""
    under_way = UnderWay()
    for submission in earlier:
        heard = hear(SCHEDULERS[submission.scheduler], submission, remember=remember)
        under_way.silent = under_way.silent or heard.silent
        for record in submission.jobs:
            for number in record.tasks():
                under_way.add(record, number, heard.word(record, number).state)
    return under_way


def _give_up(earlier: list[Submission], cases: set[str]) -> None:
    """Nobody waits for the tasks any more that had these cases and were not heard of: they are submitted again."""
    for submission in earlier:
        for record in submission.jobs:
            for number in () if record.closed else record.tasks():
                if str(number) not in record.seen and not cases.isdisjoint(record.cases_of(number)):
                    record.give_up(number, "submitted again")
        submission.save()


def _write_skipped(study: Study, store: RunStore, plan: Plan[Case]) -> None:
    if not plan.to_skip:
        return
    from ..sweep.display import Display

    with Signals() as signals, suppress(FileExistsError):
        executor = LocalExecutor(signals)
        Sweep(study, store, executor, Display(), signals).write_skipped(plan)
