"""Attempts in run folders of their own (store.py), read into columns; a damaged file costs its own attempt and a note.

Cells are checked column by column: a column whose values are all of its type is taken as it is, and only
another is looked at value by value (schema.checked).
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .. import files
from ..schema.column import Column
from ..schema.schema import SCHEMA_VERSION, SchemaError, arrow_schema, checked, columns
from . import digests
from .arrow_file import rows_in
from .attempts import OTHERS, ROW_FILE, STARTS, attempts_in, rows_column
from .part import DAMAGE, INDEX, KEPT, rows_schema

CHUNK = 2_000  # attempts read before they become columns
NONE = type(None)
KINDS = {"string": {str, NONE}, "int64": {int, NONE}, "float64": {float, NONE}, "bool": {bool, NONE}}


class NewerRow(ValueError):
    """A row that only a newer Scalade reads."""


@dataclass
class Notes:
    """What reading leaves out: (file, why). gone: those that were listed and not there any more."""

    lines: list[tuple[Path, object]] = field(default_factory=list)
    gone: set[Path] = field(default_factory=set)

    def add(self, file: Path, error: object) -> None:
        cause = getattr(error, "error", error)  # a Loss has one
        if isinstance(cause, OSError) and cause.errno == errno.ENOENT:
            self.gone.add(file)
        self.lines.append((file, error))


@dataclass
class Loose:
    """Attempts as a source of rows (snapshot.py): where each lies, and its row."""

    below: Path
    folders: list[Path]  # of the attempts
    loaded: pa.Table  # rows of `runs`, every column
    others: list[dict]  # columns of other versions
    notes: Notes

    @property
    def index(self) -> pa.Table:
        """run_id, attempt, status, and how many rows it says that it has; -1: it does not say."""
        names = ("run_id", "attempt", "status")
        counts = [self.loaded[rows_column(name)].fill_null(-1) for name in OTHERS]
        return pa.table([*(self.loaded[name] for name in names), *counts], schema=INDEX)

    @property
    def stored(self) -> list[str]:
        return [name for name in self.loaded.column_names if self.loaded[name].null_count < len(self.loaded)]

    def runs(self, names: Sequence[str]) -> pa.Table:
        return self.loaded.select(list(names))

    def kept(self) -> pa.Table:
        """What else the run folders hold; starts.jsonl with the last attempt of a run."""
        last = {folder.parent: at for at, folder in enumerate(self.folders)}
        others = [json.dumps(other) if other else None for other in self.others]
        starts = [
            starts_in(folder.parent, self.below) if last[folder.parent] == at else None
            for at, folder in enumerate(self.folders)
        ]
        return pa.table({"other_json": others, "starts": starts}, schema=KEPT)

    def rows(self, name: str, at: np.ndarray, names: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """(rows of another table, how many each of these attempts has): a damaged file has none, and a note."""
        schema = pa.schema([arrow_schema(name).field(one) for one in names])
        stored, parts, lengths = rows_schema(name), [], np.zeros(len(at), np.int64)
        counts = self.loaded[rows_column(name)].to_pylist()
        seals = self.loaded[digests.TABLES].to_pylist() if digests.TABLES in columns("runs") else [None] * len(counts)
        for place, each in enumerate(at):
            count, file = counts[each], self.folders[each] / f"{name}.arrow"
            if not (count > 0 if count is not None else files.is_file(file, self.below)):
                continue
            row = {rows_column(name): count, digests.TABLES: seals[each]}
            try:
                part = rows_in(files.read(file, self.below, digests.TABLE_LIMIT), stored, row, name)
            except DAMAGE as error:
                self.notes.add(file, error)
                continue
            parts.append(part.select(list(names)))
            lengths[place] = len(part)
        return pa.concat_tables(parts) if parts else schema.empty_table(), lengths


def starts_in(run_folder: Path, below: Path) -> str | None:
    """The run's starts.jsonl; None: it has none, or one that is not read as text."""
    try:
        return files.read(run_folder / STARTS, below, 2**16).decode()
    except (OSError, ValueError):
        return None


def run_folders(path: Path) -> list[tuple[Path, str]]:
    """(folder, run_id) of the runs in a results folder, or of the one run that the path is."""
    if not path.is_dir():
        return []  # a run that lies in a part
    runs = path / "runs"
    if files.look(runs, path) is not None:
        return [(runs / name, name) for name in files.names(runs, path) if not name.startswith(".")]
    return [(path, path.resolve().name)] if attempts_in(path, path) else []


def read_loose(path: Path, all_attempts: bool, some: Sequence[tuple[Path, str]] | None = None) -> Loose:
    """The attempts in the run folders at `path`; without all_attempts each run's last one that can be read.

    some: these runs only, as run_folders has them

    Raises
    ------
    NewerRow: a row of a newer schema than this version knows
    """
    notes, batches = Notes(), list[_Batch]()
    runs = _numbered(path, run_folders(path) if some is None else some, notes)
    while chunk := list(islice(runs, CHUNK)):
        batches += _all_of(chunk, path, notes) if all_attempts else _last_of(chunk, path, notes)
    loaded = pa.concat_tables([arrow_schema("runs").empty_table(), *(batch.table for batch in batches)])
    folders = [folder for batch in batches for folder in batch.folders]
    return Loose(path, folders, loaded, [other for batch in batches for other in batch.others], notes)


class _Run(NamedTuple):
    """A run with the numbers of its attempts."""

    folder: Path
    run_id: str
    numbers: list[int]


class _Attempt(NamedTuple):
    run_folder: Path
    run_id: str
    number: int

    @property
    def folder(self) -> Path:
        return self.run_folder / f"a{self.number}"

    @property
    def row_file(self) -> Path:
        return self.folder / ROW_FILE


@dataclass
class _Batch:
    """Attempts that were read together."""

    folders: list[Path]
    table: pa.Table
    others: list[dict]


def _numbered(path: Path, runs: Sequence[tuple[Path, str]], notes: Notes) -> Iterator[_Run]:
    for folder, run_id in runs:
        try:
            numbers = attempts_in(folder, path)
        except OSError as error:
            notes.add(folder, error)
            continue
        if numbers:
            yield _Run(folder, run_id, numbers)


def _all_of(runs: Sequence[_Run], below: Path, notes: Notes) -> list[_Batch]:
    attempts = [_Attempt(run.folder, run.run_id, number) for run in runs for number in run.numbers]
    return [_batch(attempts, below, notes)]


def _last_of(runs: Sequence[_Run], below: Path, notes: Notes) -> Iterator[_Batch]:
    """Each run's last attempt that can be read."""
    while runs:
        batch = _batch([_Attempt(run.folder, run.run_id, run.numbers[-1]) for run in runs], below, notes)
        yield batch
        read = set(batch.table["run_id"].to_pylist())
        runs = [
            run._replace(numbers=run.numbers[:-1]) for run in runs if run.run_id not in read and len(run.numbers) > 1
        ]


def _batch(attempts: Sequence[_Attempt], below: Path, notes: Notes) -> _Batch:
    """The rows of these attempts as columns; what is damaged is noted and left out."""
    contents = {attempt: content for attempt in attempts if (content := _content(attempt, below, notes)) is not None}
    read = list(contents)
    values, damage = _cells(list(contents.values()))
    for at, error in _misplaced(read, values).items():
        damage.setdefault(at, error)
    for at, error in damage.items():
        notes.add(read[at].row_file, error)
    good = [at for at in range(len(read)) if at not in damage]
    if damage:
        values = {name: list(map(cells.__getitem__, good)) for name, cells in values.items()}
    schema = arrow_schema("runs")
    table = pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)
    others = [_other_columns(contents[read[at]]) for at in good]
    return _Batch([read[at].folder for at in good], table, others)


def _misplaced(attempts: Sequence[_Attempt], values: Mapping[str, list]) -> dict[int, Exception]:
    """By place the rows that are of another attempt than the folder that they lie in."""
    wrong: dict[int, Exception] = {}
    for at, (attempt, run_id, number) in enumerate(zip(attempts, values["run_id"], values["attempt"], strict=True)):
        if (run_id, number) != (attempt.run_id, attempt.number):
            wrong[at] = SchemaError(f"the row is attempt {number} of {run_id}, the folder is another's")
    return wrong


def _other_columns(content: dict[str, object]) -> dict[str, object]:
    """Columns of other versions."""
    return {name: content[name] for name in content.keys() - columns("runs").keys()}


def _content(attempt: _Attempt, below: Path, notes: Notes) -> dict[str, object] | None:
    """The attempt's row; None: it is damaged, which is noted. Raises NewerRow."""
    try:
        content = digests.unsealed(files.read(attempt.row_file, below))
        version = checked(columns("runs")["schema_version"], content.get("schema_version"))
    except DAMAGE as error:
        notes.add(attempt.row_file, error)
        return None
    assert isinstance(version, int), "checked() gives an integer for this column"
    if version > SCHEMA_VERSION:
        raise NewerRow(
            f"{attempt.row_file} has schema version {version}; this Scalade reads up to {SCHEMA_VERSION}: "
            "upgrade scalade"
        )
    return content


def _cells(contents: Sequence[dict]) -> tuple[dict[str, list], dict[int, Exception]]:
    """Values by column of `runs`, as checked() gives them, and by row what is wrong with it: the first wrong cell."""
    values, wrong = dict[str, list](), dict[int, Exception]()
    for name, column in columns("runs").items():
        cells = [content.get(name) for content in contents]
        kinds = set(map(type, cells))
        if not (kinds <= KINDS[column.type] and _plain(column, cells, kinds)):
            for at, content in enumerate(contents):
                try:
                    here = content["schema_version"] == SCHEMA_VERSION or name in content
                    cells[at] = checked(column, cells[at]) if here else None
                except DAMAGE as error:
                    cells[at] = None
                    wrong.setdefault(at, error)
        values[name] = cells
    return values, wrong


def _plain(column: Column, cells: list, kinds: set[type]) -> bool:
    """Whether checked() would leave these cells, which are of the column's type, as they are."""
    if column.required and NONE in kinds:
        return False
    if kinds <= {NONE}:
        return True
    if column.type == "string":
        texts = set(cells) - {None}
        return texts <= set(column.values) if column.values else all(map(_is_text, texts))
    values = [cell for cell in cells if cell is not None]
    if column.type == "int64":
        return -(2**63) <= min(values) and max(values) < 2**63
    if column.type == "float64":
        return column.keeps_nan or all(map(math.isfinite, values))
    return True


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, as JSON may spell it
        return False
    return True
