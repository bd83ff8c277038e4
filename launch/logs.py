"""`scalade logs`: the end of what submitted jobs printed."""

from __future__ import annotations

from pathlib import Path

from .schedulers import SCHEDULERS
from .states import status
from .submissions import submissions

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
    task = shown[0].task if len(shown) == 1 and job == shown[0].job != shown[0].array else None
    ends: dict[str, list[str]] = {}
    files: list[Path] = []
    for submission in submissions(results):
        scheduler = SCHEDULERS[submission.scheduler]
        for record in submission.jobs:
            if record.name not in names:
                continue
            told = scheduler.printed(record.job_id, lines) if record.job_id else None
            if told is not None:
                ends[record.name] = told.splitlines()
            files += [
                file for file in submission.folder.glob(f"{record.name}.*")
                if file.suffix not in OURS and (task is None or scheduler.prints_to(file.name, task))
            ]  # fmt: skip
    for file in sorted(files, key=lambda file: (file.stat().st_mtime, file.name)):
        ends[str(file)] = file.read_text(errors="replace").splitlines()[-lines:]
    if not ends:
        raise ValueError(f"{results}: no job has printed anything yet; see `scalade status`")
    return ends
