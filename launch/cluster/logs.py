"""`scalade logs`: the end of what submitted jobs printed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ...results import files
from ...results.opened import Refused
from ..schedulers import SCHEDULERS
from ..schedulers.base import Scheduler
from .status import status, task_named
from .submissions import JobRecord, Submission, submissions

MOST = 2**22  # bytes of the end of a file
OURS = (".sh", ".yaml", ".json", ".stop", ".undone")  # what is no log in a submission's folder


def logs(results: Path, job: str = "", lines: int = 20) -> dict[str, list[str]]:
    """File or job -> lines, the newest last.

    job: as `status`

    Raises
    ------
    ValueError: as `status`, or there is nothing yet; SchedulerError: it has to be asked, and cannot
    """
    shown, _ = status(results, job)
    names = {line.name for line in shown}
    task = task_named(shown, job)
    ends: dict[str, list[str]] = {}
    printed: list[Path] = []
    for submission, record in _records(results, names):
        scheduler = SCHEDULERS[submission.scheduler]
        text = scheduler.printed(record.job_id, lines) if record.job_id else None
        if text is not None:
            ends[record.name] = text.splitlines()
        printed += _log_files(submission.folder, results, record.name, scheduler, task)
    for file in sorted(printed, key=lambda file: (file.lstat().st_mtime, file.name)):
        ends[str(file)] = _end_of(file, results, lines)
    if not ends:
        raise ValueError(f"{results}: no job has printed anything yet; see `scalade status`")
    return ends


def _records(results: Path, names: Collection[str]) -> Iterator[tuple[Submission, JobRecord]]:
    """The jobs of these names."""
    for submission in submissions(results):
        for record in submission.jobs:
            if record.name in names:
                yield submission, record


def _log_files(folder: Path, results: Path, job: str, scheduler: Scheduler, task: int | None) -> list[Path]:
    """What a job of that name printed, or (task) the one task of it."""
    names = [name for name in files.names(folder, results) if name.startswith(f"{job}.")]
    logs_of_job = [name for name in names if Path(name).suffix not in OURS]
    return [folder / name for name in logs_of_job if task is None or scheduler.prints_to(name, task)]


def _end_of(file: Path, results: Path, lines: int) -> list[str]:
    try:
        return files.read_end(file, results, MOST).decode(errors="replace").splitlines()[-lines:]
    except Refused as refused:
        return [f"not read: {refused.strerror}"]
