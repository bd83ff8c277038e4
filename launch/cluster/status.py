"""`scalade status`: what became of submitted jobs, by the scheduler's word and the table's rows.

A job that its scheduler has forgotten is judged by its rows: all there is `done`, and one that lacks a row is `lost`.
That is no failure: it may still run where the scheduler was asked in vain, and nothing is started again for it by
itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ...results import files
from ...results.store.store import RunStore
from ...results.wording import count_of
from ..process.progress import read_progress
from ..schedulers import SCHEDULERS
from ..schedulers.state import ACTIVE, UNHEARD, State
from ..study.errors import StudyError, unknown
from ..study.study import load_study
from ..sweep.plan import RETRIED, UNFINISHED, Rows
from .heard import Heard, hear
from .submissions import JobRecord, Submission, locked, submissions

FIRST = (State.FAILED, State.LOST, State.UNKNOWN, State.RUNNING, State.CANCELLED, State.WAITING, State.DONE)


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
    state: State
    runs: dict[str, int] = field(default_factory=dict)  # status -> runs; `missing`
    progress: str = ""
    reason: str = ""
    where: str = ""
    elapsed: str = ""
    array: str = ""  # id of the array that it is a task of; else its own
    task: int = 0  # its number

    @property
    def failed(self) -> bool:
        """The job has, or a run of it stands so in the table."""
        return self.state == State.FAILED or any(status in RETRIED for status in self.runs)

    @property
    def wanting(self) -> bool:
        """A person has to look at it: it has failed, or its end is unknown."""
        return self.failed or self.state in UNHEARD


def status(results: Path, job: str = "") -> tuple[list[Line], list[str]]:
    """Every job of a results folder, oldest first, and what could not be found out.

    job: a job's or task's id or name, or a submission; empty: all

    Raises
    ------
    ValueError: nothing was submitted, or `job` is none of them
    """
    if not submissions(results):
        raise ValueError(f"{results}: nothing was submitted from here; `scalade submit STUDY --scheduler NAME`")
    lines: list[Line] = []
    doubts: list[str] = []
    rows = Rows(RunStore(results))
    with locked(results):
        for submission in submissions(results):
            heard = hear(SCHEDULERS[submission.scheduler], submission)
            doubts += [heard.silent] * bool(heard.silent)
            runs = _run_ids(submission, doubts)
            lines += _lines(submission, heard, runs, rows)
    return _chosen(lines, job) if job else lines, list(dict.fromkeys(doubts))


def _chosen(lines: list[Line], job: str) -> list[Line]:
    chosen = [line for line in lines if job in (line.job, line.name, line.array, line.submission)]
    if not chosen:
        raise ValueError(f"--job {job}: {unknown(job, [line.job for line in lines], 'job')}")
    return chosen


def _lines(submission: Submission, heard: Heard, runs: dict[str, list[str]], rows: Rows) -> Iterator[Line]:
    for record in submission.jobs:
        for number, cases in record.tasks().items():
            yield _line(submission, record, number, cases, heard, runs, rows)


def task_named(lines: list[Line], job: str) -> int | None:
    """The number of the one task that `job` names, of the lines that it chose; None: it names something larger."""
    only = lines[0]
    return only.task if len(lines) == 1 and job == only.job != only.array else None


def shortened(lines: list[Line], limit: int) -> list[Line]:
    """At most so many lines, those that a person has to look at first; 0: all. Else in the order of before."""
    if not limit or len(lines) <= limit:
        return lines
    rank = {state: number for number, state in enumerate(FIRST)}
    order = sorted(range(len(lines)), key=lambda n: (not lines[n].wanting, rank[lines[n].state], n))
    return [lines[n] for n in sorted(order[:limit])]


def counted_states(lines: list[Line]) -> dict[str, int]:
    """State -> jobs."""
    counts = Counter(line.state for line in lines)
    return {str(state): counts[state] for state in FIRST if counts[state]}


def _run_ids(submission: Submission, doubts: list[str]) -> dict[str, list[str]]:
    """case_id -> its runs."""
    case_ids = set(chain.from_iterable(record.cases for record in submission.jobs))
    repeats = submission.repeats
    if not repeats:
        try:
            copy = submission.folder / submission.study
            os.close(files.open_file(copy, submission.folder.parent.parent))  # no link, no pipe
            repeats = load_study(copy).run.repeats
        except (StudyError, OSError) as error:
            doubts.append(str(error))
            return {}
    return {case_id: [f"{case_id}-r{repeat}" for repeat in range(repeats)] for case_id in case_ids}


def _line(
    submission: Submission,
    record: JobRecord,
    number: int,
    cases: list[int],
    heard: Heard,
    runs: dict[str, list[str]],
    rows: Rows,
) -> Line:
    run_ids = list(chain.from_iterable(runs.get(record.cases[index], ()) for index in cases))
    statuses = {run_id: rows.status(run_id) for run_id in run_ids}
    counts = Counter("missing" if status in UNFINISHED else status for status in statuses.values())
    task = heard.word(record, number)
    state, reason = _judged(task.state, task.reason, counts)
    if state not in ACTIVE:
        reason = "; ".join(filter(None, (reason, _reason_of_bad(rows, statuses))))
    several = record.array and len(record.cases) > 1
    job_id = record.job_id or "?"
    return Line(
        submission=submission.id,
        scheduler=submission.scheduler,
        job=SCHEDULERS[submission.scheduler].task_name(job_id, number) if several else job_id,
        name=record.name,
        what=record.labels[cases[0]] if len(cases) == 1 else count_of(len(cases), "case"),
        nodes=record.nodes,
        ranks=record.ranks,
        state=state,
        runs=dict(sorted(counts.items())),
        progress=_progress(rows, run_ids) if state in ACTIVE else "",
        reason=reason,
        where=task.where,
        elapsed=task.elapsed,
        array=job_id,
        task=number,
    )


def _reason_of_bad(rows: Rows, statuses: Mapping[str, str | None]) -> str:
    """Of the first run that stands as failed in the table; empty: none does."""
    bad = next((run_id for run_id, status in statuses.items() if status in RETRIED), None)
    return str(rows.row(bad).get("reason")) if bad else ""


def _judged(state: State, reason: str, counts: Counter[str]) -> tuple[State, str]:
    """The scheduler's state with the table's: a job with all rows is done, whether the scheduler knows it or not."""
    missing = counts["missing"]
    if state not in UNHEARD:
        return state, reason
    if counts and not missing:
        return State.DONE, ""
    if state == State.LOST:
        reason += f"; {count_of(missing, 'run')} missing: `scalade submit --resubmit` starts them again"
    return state, reason


def _progress(rows: Rows, run_ids: Sequence[str]) -> str:
    """How far the runs are that are on now."""
    begun = [run_id for run_id in run_ids if run_id in rows.begun]
    reports = [read_progress(rows.store.runs / run_id / "scratch", rows.store.folder) for run_id in begun]
    now = [f"step {each.step}/{each.steps}" for each in reports if each is not None]
    return ", ".join(now[:4]) + (f" and {len(now) - 4} more" if len(now) > 4 else "")
