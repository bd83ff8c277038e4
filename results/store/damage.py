"""What of a run's last attempt is not as it was written: looked at before a run that has its row counts as done.

Damage costs the attempt its standing, nothing else: it is kept as it is, and the run runs again under the next number.
An attempt whose digests are unknown (of an older version) is looked at as far as that goes: its files are there, and
begin and end as Arrow's do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from . import digests
from .attempts import OTHERS, ROW_FILE, attempts_in, known_status, rows_column

if TYPE_CHECKING:
    from .loose import Loose
    from .part import Part
    from .snapshot import Source

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
    try:
        with _opened(folder, below) as descriptor:
            row = digests.unsealed(files.read_in(descriptor, folder, ROW_FILE))
            if known_status(row) is None:
                return f"{folder.name}/{ROW_FILE}: its status is none of ours"
            damage = _damaged_table(row, folder, descriptor) if row["status"] == "ok" else None
            return damage and f"{folder.name}/{damage}"
    except (OSError, ValueError) as error:
        if files.look(folder, below) is None:
            return None  # moved away while it was looked at
        return f"{folder.name}/{ROW_FILE}: {_why(error)}"


def damaged_tables(sources: Sequence[Source]) -> list[str]:
    """What is damaged beside the rows, whose readers do not look at all of it: a line for each.

    sources: of a snapshot of all attempts
    """
    from .loose import Loose
    from .snapshot import Packed

    lines: list[str] = []
    for source in sources:
        if isinstance(source, Packed):
            lines += _of_part(source.part)
        elif isinstance(source, Loose):
            lines += _of_runs(source)
    return lines


def _of_runs(loose: Loose) -> Iterator[str]:
    """Of the last attempt of each run that has a folder."""
    last = {folder.parent: at for at, folder in enumerate(loose.folders)}
    names = ("status", digests.TABLES, *map(rows_column, OTHERS))
    columns = {name: loose.loaded[name].to_pylist() for name in names}
    for at in last.values():
        row, folder = {name: values[at] for name, values in columns.items()}, loose.folders[at]
        if row["status"] != "ok":
            continue
        try:
            with _opened(folder, loose.below) as descriptor:
                damage = _damaged_table(row, folder, descriptor)
        except OSError:
            continue  # gone since
        if damage:
            why = f"{folder.name}/{damage}"
            yield f"run {folder.parent.name}: {why}; `scalade run` of its study runs it again"


def _of_part(part: Part) -> Iterator[str]:
    from .salvage import losses

    for loss in losses(part):
        again = "" if loss.name == "kept" else "; `scalade run` of their studies runs those that were ok again"
        yield f"{part.folder}/{loss.name}.arrow: {loss}{again}"


def _damaged_table(row: Mapping[str, object], folder: Path, descriptor: int) -> str | None:
    """`steps.arrow: its content changed ...`, of an attempt whose folder is open; None: all that its row counts is as
    it was written."""
    for table in OTHERS:
        count, name = row.get(rows_column(table)), f"{table}.arrow"
        if isinstance(count, int) and count > 0:
            try:
                _check(row, table, files.read_in(descriptor, folder, name, digests.TABLE_LIMIT))
            except (OSError, ValueError) as error:
                return f"{name}: {_why(error)}"
    return None


@contextmanager
def _opened(folder: Path, below: Path) -> Iterator[int]:
    descriptor = files.open_folder(folder, below)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _why(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def _check(row: Mapping[str, object], table: str, content: bytes) -> None:
    """Raises ValueError: it is not what was written."""
    digests.check_table(row, table, content)
    if not (content.startswith(MARK) and content.endswith(MARK)):
        raise ValueError("no whole Arrow file")
