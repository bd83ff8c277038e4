"""What was handed to a scheduler: one folder for each submission in the results folder, one JSON file that says it all.

    <results>/submissions/<id>/submission.json   this record, replaced atomically
                              <study file>       a copy: jobs that wait do not see later changes
                              <job>.sh, .manifest.json   the batch scripts, with <job>.json for `scalade pack`
                              <job>.*.log        what the jobs printed

The record is written before the scheduler is asked, so that a job whose id was never heard (the submission was killed
in between) is known by its name.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...results import files
from ...results.store.attempts import RUN_ID
from ..schedulers import SCHEDULERS
from ..schedulers.state import State

FOLDER = "submissions"
RECORD = "submission.json"
LOCK = "lock"
LIMIT = 2**26  # of a record, bytes: of a million cases
MOST_RUNS = 10**7
OF_TASK = {"state", "reason", "where", "elapsed"}


@dataclass
class JobRecord:
    """One batch script."""

    name: str
    array: bool  # one task for each case; else one job for all
    cases: list[str]  # case_ids; of an array in the order of its tasks
    labels: list[str]  # of the cases, for people
    nodes: int
    ranks: int
    script: str  # file name
    job_id: str = ""  # empty: not heard
    closed: str = ""  # nobody waits for it any more: cancelled, or failed where the scheduler refused it
    refusal: str = ""  # in the scheduler's words
    seen: dict[str, dict[str, str]] = field(default_factory=dict)  # task number -> how it ended, once it was seen to

    def give_up(self, task: int, why: str) -> None:
        """Nobody waits for this task any more, unless its scheduler speaks of it again."""
        self.seen[str(task)] = {"state": str(State.CANCELLED), "reason": why, "where": "", "elapsed": ""}

    def tasks(self) -> dict[int, list[int]]:
        """Task number -> indices of its cases."""
        return {n: [n] for n in range(len(self.cases))} if self.array else {0: list(range(len(self.cases)))}

    def cases_of(self, task: int) -> list[str]:
        """case_ids of the task."""
        return [self.cases[task]] if self.array else self.cases


@dataclass
class Submission:
    id: str
    scheduler: str
    study: str  # file name in the folder
    submitted_at: str  # UTC, ISO 8601
    jobs: list[JobRecord]
    repeats: int = 0  # runs of a case; 0: the study's copy says it (records of before)
    folder: Path = field(default=Path(), compare=False)

    def save(self) -> None:
        """Raises OSError: the disk is full or refuses; the record of before stands."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        files.write(self.folder / RECORD, json.dumps(content, indent=1) + "\n", self.folder.parent.parent)


def submissions(results: Path) -> list[Submission]:
    """All of a results folder, oldest first.

    Raises
    ------
    ValueError: a record is there and cannot be read; it names the file
    """
    records = []
    for name in files.names(results / FOLDER, results):
        file = results / FOLDER / name / RECORD
        try:
            if name == LOCK or files.look(file, results) is None:
                continue
            records.append(_read(file, results))
        except (ValueError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{file}: is no record of a submission ({why}); move its folder away") from None
    return sorted(records, key=lambda submission: (submission.submitted_at, submission.id))


def _read(file: Path, results: Path) -> Submission:
    from pydantic import TypeAdapter, ValidationError

    try:
        submission = TypeAdapter(Submission).validate_json(files.read(file, results, LIMIT), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
    submission.folder = file.parent
    for job in submission.jobs:
        if job.closed not in ("", State.CANCELLED, State.FAILED):  # written before `refusal` was a field
            job.closed, job.refusal = State.FAILED, job.closed
    _check(submission)
    return submission


def _check(submission: Submission) -> None:
    """Raises ValueError: a text of it cannot be a name, or it contradicts itself."""
    words = [submission.study]
    for job in submission.jobs:
        words += [job.name, job.script, job.job_id or "0"]
    impossible = next(itertools.filterfalse(_is_name, words), None)
    if impossible is not None:
        raise ValueError(f"{impossible!r} cannot be")
    runs = submission.repeats * sum(len(job.cases) for job in submission.jobs)
    if submission.scheduler not in SCHEDULERS or not all(map(_fits, submission.jobs)) or not 0 <= runs <= MOST_RUNS:
        raise ValueError("what it holds does not fit together")


def _is_name(word: str) -> bool:
    """Whether it can name a file, and stand in a command."""
    return "/" not in word and word.isprintable() and not word.startswith("-")


def _fits(job: JobRecord) -> bool:
    """Whether its lists agree, its cases can be names of runs, and its ends are words of ours."""
    return (
        len(job.cases) == len(job.labels)
        and all(map(RUN_ID.fullmatch, job.cases))
        and all(
            number.isdecimal() and kept.get("state") in set(State) and kept.keys() <= OF_TASK
            for number, kept in job.seen.items()
        )
    )


@contextmanager
def locked(results: Path) -> Iterator[None]:
    """One submission at a time for a results folder; the kernel ends it with the process."""
    results.mkdir(parents=True, exist_ok=True)
    files.make_folder(results / FOLDER, results)
    with os.fdopen(files.open_file(results / FOLDER / LOCK, results, os.O_RDWR | os.O_CREAT), "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
