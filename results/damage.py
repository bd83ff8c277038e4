"""What of a run's last attempt is not as it was written: looked at before a run that has its row counts as done.

Damage costs the attempt its standing, nothing else: it is kept as it is, and the run runs again under the next number.
An attempt whose digests are unknown (of an older version) is looked at as far as that goes: its files are there, and
begin and end as Arrow's do.
"""

from __future__ import annotations

from pathlib import Path

from . import digests, files
from .columns import TABLES
from .store import attempts_in, known_status, rows_column

MARK = b"ARROW1"


def damage(run_folder: Path, below: Path) -> str | None:
    """`a2/steps.arrow: its content changed ...`, in one line; None: it is whole, or there is no attempt in the folder.

    below: the results folder (files.py). Of an attempt that is not `ok` only the row is looked at. Raises OSError: the
    run's folder is a link, or cannot be read.
    """
    attempts = attempts_in(run_folder, below)
    if not attempts:
        return None
    folder = run_folder / f"a{attempts[-1]}"
    file = folder / "run.json"
    try:
        row = digests.unsealed(files.read(file, below))
        if known_status(row) is None:
            return f"{folder.name}/run.json: its status is none of ours"
        for table in TABLES:
            count = row.get(rows_column(table)) if table != "runs" else None
            if row["status"] == "ok" and isinstance(count, int) and count > 0:
                file = folder / f"{table}.arrow"
                _check(row, table, files.read(file, below, digests.TABLE_LIMIT))
    except (OSError, ValueError) as error:
        if files.look(folder, below) is None:
            return None  # moved away while it was looked at
        return f"{folder.name}/{file.name}: {error.strerror if isinstance(error, OSError) else error}"
    return None


def damaged_tables(results: Path) -> list[str]:
    """What is damaged beside the rows in a results folder, whose readers do not look at all of it: a line for each."""
    from .part import DAMAGE, FOLDER, Part, part_names

    found = []
    for name in files.names(results / "runs", results):
        try:
            why = damage(results / "runs" / name, results) if not name.startswith(".") else None
        except OSError:
            continue  # reading the rows names it
        if why and "/run.json" not in why:
            found.append(f"run {name}: {why}; `scalade run` of its study runs it again")
    for name in part_names(results):
        folder = results / FOLDER / name
        try:
            Part(folder, results).verify()
        except DAMAGE as error:
            found.append(f"{folder}: {error}; `scalade run` of their studies runs its runs again")
    return found


def _check(row: dict, table: str, content: bytes) -> None:
    """Raises ValueError: it is not what was written."""
    digests.check_table(row, table, content)
    if not (content.startswith(MARK) and content.endswith(MARK)):
        raise ValueError("no whole Arrow file")
