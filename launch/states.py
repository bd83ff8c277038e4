"""What became of submitted jobs: the scheduler's word, what it said before it forgot, and the table's rows.

Schedulers forget: a Slurm without accounting knows an ended job for five minutes. So an end that was seen is kept in
the submission's record, and a job that nobody remembers is judged by whether its runs have their rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..results.store import RunStore
from .errors import unknown
from .plan import RETRIED, UNFINISHED
from .progress import read_progress
from .schedulers import SCHEDULERS
from .schedulers.base import Scheduler, SchedulerError, Task
from .schedulers.state import ACTIVE, State
from .study import StudyError, load_study
from .submissions import JobRecord, Submission, locked, submissions


@dataclass(frozen=True)
class Line:
    """One job, or one task of an array, as `scalade status` shows it."""

    submission: str
    scheduler: str
    job: str  # id as the scheduler's commands take it
    name: str
    what: str  # the case, or how many
    nodes: int
    ranks: int
    state: str  # waiting, running, done, failed, cancelled, unknown
    runs: dict[str, int] = field(default_factory=dict)  # status -> runs; `missing`
    progress: str = ""
    reason: str = ""
    where: str = ""
    elapsed: str = ""

    @property
    def failed(self) -> bool:
        """The job has, or a run of it stands so in the table."""
        return self.state == State.FAILED or any(status in RETRIED for status in self.runs)


def task_states(scheduler: Scheduler, submission: Submission, *, remember: bool = True) -> dict[str, dict[int, Task]]:
    """Name of a job -> task number -> its state, as far as it is known.

    Raises
    ------
    SchedulerError: the scheduler cannot be asked about jobs whose end has not been seen
    """
    open_ = {job.name: job.job_id for job in submission.jobs
             if job.closed in ("", State.CANCELLED) and set(job.tasks()) - _seen(job)}  # fmt: skip
    told = scheduler.tasks(open_) if open_ else {}
    changed = False
    for job in submission.jobs:
        seen = told.setdefault(job.name, {})
        if seen and not job.job_id:  # submitting was cut off before the id was heard
            job.job_id, changed = scheduler.find(job.name) or "", True
        for number, task in seen.items():
            final = task.state not in (*ACTIVE, State.UNKNOWN)
            if final and job.seen.get(str(number)) != asdict(task):
                job.seen[str(number)], changed = asdict(task), True
            elif not final:
                changed = job.seen.pop(str(number), None) is not None or changed
        for number, kept in job.seen.items():
            seen.setdefault(int(number), Task(**kept))
    if changed and remember:
        submission.save()
    return told


def _seen(job: JobRecord) -> set[int]:
    """Tasks that cannot change any more. One that failed may have been put back into the queue: it is asked about."""
    return {int(number) for number, kept in job.seen.items() if job.closed or kept["state"] == State.DONE}


def status(results: Path, job: str = "") -> tuple[list[Line], list[str]]:
    """Every job of a results folder, oldest first, and what could not be found out.

    job: part of a job's id or name; empty: all

    Raises
    ------
    ValueError: nothing was submitted, or `job` is none of them
    """
    found = submissions(results)
    if not found:
        raise ValueError(f"{results}: nothing was submitted from here; `scalade submit STUDY --scheduler NAME`")
    lines, doubts = [], []
    store = RunStore(results)
    with locked(results):
        for submission in submissions(results):
            try:
                states = task_states(SCHEDULERS[submission.scheduler], submission)
            except SchedulerError as error:
                doubts.append(str(error))
                states = {
                    each.name: {int(number): Task(**kept) for number, kept in each.seen.items()}
                    for each in submission.jobs
                }
            runs = _run_ids(submission, doubts)
            for record in submission.jobs:
                for number, cases in record.tasks().items():
                    task = states.get(record.name, {}).get(number)
                    lines.append(_line(submission, record, number, cases, task, runs, store))
    if job:
        chosen = [line for line in lines if job in (line.job, line.name, line.job.partition("_")[0], line.submission)]
        if not chosen:
            raise ValueError(f"--job {job}: {unknown(job, [line.job for line in lines], 'job')}")
        lines = chosen
    return lines, list(dict.fromkeys(doubts))


def _run_ids(submission: Submission, doubts: list[str]) -> dict[str, list[str]]:
    """case_id -> its runs."""
    try:
        study = load_study(submission.folder / submission.study)
    except (StudyError, OSError) as error:
        doubts.append(str(error))
        return {}
    repeats = range(study.run.repeats)
    return {case.case_id: [f"{case.case_id}-r{repeat}" for repeat in repeats] for case in study.all_cases}


def _line(
    submission: Submission, record: JobRecord, number: int, cases: list[int], task: Task | None,
    runs: dict[str, list[str]], store: RunStore,
) -> Line:  # fmt: skip
    run_ids = [run_id for index in cases for run_id in runs.get(record.cases[index], [])]
    statuses = {run_id: store.finished(run_id) for run_id in run_ids}
    counts = Counter("missing" if status in UNFINISHED else status for status in statuses.values())
    bad = next((run_id for run_id, status in statuses.items() if status in RETRIED), None)
    state, reason = _judge(record, task, counts)
    if bad and state not in ACTIVE:
        reason = "; ".join(filter(None, (reason, str((store.row(bad) or {}).get("reason")))))
    job_id = record.job_id or "?"
    several = record.array and len(record.cases) > 1
    return Line(
        submission=submission.id, scheduler=submission.scheduler,
        job=f"{job_id}_{number}" if several else job_id, name=record.name,
        what=record.labels[cases[0]] if len(cases) == 1 else f"{len(cases)} cases", nodes=record.nodes,
        ranks=record.ranks, state=state, runs=dict(sorted(counts.items())),
        progress=_progress(store, run_ids) if state in ACTIVE else "", reason=reason,
        where=task.where if task else "", elapsed=task.elapsed if task else "",
    )  # fmt: skip


def _judge(record: JobRecord, task: Task | None, counts: Counter[str]) -> tuple[str, str]:
    """State and reason of one task."""
    if record.closed == State.CANCELLED and (task is None or task.state in ACTIVE):
        return (task.state, "is being cancelled") if task else (State.CANCELLED, "by `scalade cancel`")
    if record.closed == State.FAILED:
        return State.FAILED, record.refusal
    if task is not None:
        return task.state, task.reason
    missing = counts["missing"]
    if not missing and counts:
        return State.DONE, ""
    left = f"{missing} run{'s' if missing != 1 else ''} missing: submit again"
    if not record.job_id:
        return State.UNKNOWN, "submitting was cut off: see whether the job is there; `scalade cancel` forgets it"
    return State.FAILED, f"the scheduler does not know it any more; {left}"


def _progress(store: RunStore, run_ids: list[str]) -> str:
    """How far the runs are that are on now."""
    found = [read_progress(store.runs / run_id / "scratch") for run_id in run_ids]
    now = [f"step {each.step}/{each.steps}" for each in found if each is not None]
    return ", ".join(now[:4]) + (f" and {len(now) - 4} more" if len(now) > 4 else "")


def cancel(results: Path, job: str = "") -> list[str]:
    """Cancel the jobs that wait or run; what is not heard of any more is forgotten. Gives what was done, in lines.

    Raises
    ------
    ValueError: as `status`; SchedulerError: the scheduler refuses
    """
    lines, doubts = status(results, job)
    if doubts:
        raise SchedulerError(doubts[0])
    named = {line.name for line in lines if line.state in (*ACTIVE, State.UNKNOWN)}
    tasks = {line.name: line.job for line in lines if job and line.job == job and "_" in job and line.name in named}
    said = []
    with locked(results):
        for submission in submissions(results):
            records = [record for record in submission.jobs if record.name in named]
            heard = [tasks.get(record.name, record.job_id) for record in records if record.job_id]
            if heard:
                SCHEDULERS[submission.scheduler].cancel(heard)
            for record in records:
                if record.name not in tasks:
                    record.closed = State.CANCELLED
            if records:
                submission.save()
                said += [f"cancelled: {tasks.get(record.name, record.job_id or record.name)}" for record in records]
    return said or ["nothing waits or runs"]


def logs(results: Path, job: str = "", lines: int = 20) -> dict[str, list[str]]:
    """The end of what the jobs printed: file or job -> lines, the newest last.

    Raises
    ------
    ValueError: as `status`, or there is nothing yet; SchedulerError: it has to be asked, and cannot
    """
    shown, _ = status(results, job)
    names, number = {line.name for line in shown}, job.partition("_")[2]
    ends: dict[str, list[str]] = {}
    files: list[Path] = []
    for submission in submissions(results):
        for record in submission.jobs:
            if record.name not in names:
                continue
            told = SCHEDULERS[submission.scheduler].printed(record.name, lines)
            if told is not None:
                ends[record.name] = told.splitlines()
            files += [
                file for file in submission.folder.glob(f"{record.name}.*")
                if file.suffix not in OURS and (not number or file.stem.endswith(f"_{number}"))
            ]  # fmt: skip
    for file in sorted(files, key=lambda file: (file.stat().st_mtime, file.name)):
        ends[str(file)] = file.read_text(errors="replace").splitlines()[-lines:]
    if not ends:
        raise ValueError(f"{results}: no job has printed anything yet; see `scalade status`")
    return ends


OURS = (".sh", ".yaml", ".json", ".stop")  # what is no log in a submission's folder
