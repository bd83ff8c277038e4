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
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .schedulers import SCHEDULERS
from .schedulers.state import State

FOLDER = "submissions"
RECORD = "submission.json"


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
        write_durably(self.folder / RECORD, json.dumps(content, indent=1) + "\n")


def write_durably(file: Path, text: str) -> None:
    """Whole or not at all, and on the disk."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(aside, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def submissions(results: Path) -> list[Submission]:
    """All of a results folder, oldest first.

    Raises
    ------
    ValueError: a record is there and cannot be read; it names the file
    """
    found = []
    for file in (results / FOLDER).glob(f"*/{RECORD}"):
        try:
            found.append(_read(file))
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise ValueError(f"{file}: is no record of a submission ({error}); move its folder away") from None
    return sorted(found, key=lambda submission: (submission.submitted_at, submission.id))


def _read(file: Path) -> Submission:
    content: dict[str, Any] = json.loads(file.read_text())
    jobs = [JobRecord(**job) for job in content.pop("jobs")]
    for job in jobs:
        if job.closed not in ("", State.CANCELLED, State.FAILED):  # written before `refusal` was a field
            job.closed, job.refusal = State.FAILED, job.closed
    for word in [content["study"], *(word for job in jobs for word in (job.name, job.script, job.job_id or "0"))]:
        if "/" in word or not word.isprintable() or word.startswith("-"):  # they name files, and stand in commands
            raise ValueError(f"{word!r} cannot be")
    if content["scheduler"] not in SCHEDULERS or any(len(job.cases) != len(job.labels) for job in jobs):
        raise ValueError("what it holds does not fit together")
    return Submission(**content, jobs=jobs, folder=file.parent)


@contextmanager
def locked(results: Path) -> Iterator[None]:
    """One submission at a time for a results folder; the kernel ends it with the process."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
