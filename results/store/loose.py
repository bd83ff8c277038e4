"""Attempts in run folders of their own (store.py), read into columns; a damaged file costs its own attempt and a note.

What a cell may hold is asked column by column: a column whose values are all of its type is taken as it is, and only
another is looked at value by value (schema.checked).
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from .. import files
from ..schema.schema import SCHEMA_VERSION, SchemaError, arrow_schema, checked, columns
from . import digests
from .arrow_file import rows_in
from .attempts import OTHERS, STARTS, attempts_in, rows_column
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
    notes, pieces = Notes(), []
    runs = _numbered(path, run_folders(path) if some is None else some, notes)
    while chunk := list(islice(runs, CHUNK)):
        if all_attempts:
            pieces.append(
                _piece([(folder, run_id, n) for folder, run_id, numbers in chunk for n in numbers], path, notes)
            )
        while chunk and not all_attempts:
            pieces.append(_piece([(folder, run_id, numbers[-1]) for folder, run_id, numbers in chunk], path, notes))
            good = set(pieces[-1].table["run_id"].to_pylist())
            chunk = [(folder, run_id, numbers[:-1]) for folder, run_id, numbers in chunk if run_id not in good]
            chunk = [one for one in chunk if one[2]]
    loaded = pa.concat_tables([arrow_schema("runs").empty_table(), *(piece.table for piece in pieces)])
    folders = [folder for piece in pieces for folder in piece.folders]
    return Loose(path, folders, loaded, [other for piece in pieces for other in piece.others], notes)


@dataclass
class _Piece:
    folders: list[Path]
    table: pa.Table
    others: list[dict]


def _numbered(path: Path, runs: Sequence[tuple[Path, str]], notes: Notes) -> Iterator[tuple[Path, str, list[int]]]:
    for folder, run_id in runs:
        try:
            numbers = attempts_in(folder, path)
        except OSError as error:
            notes.add(folder, error)
            continue
        if numbers:
            yield folder, run_id, numbers


def _piece(tried: Sequence[tuple[Path, str, int]], below: Path, notes: Notes) -> _Piece:
    """The rows of these attempts as columns; what is damaged is noted and left out."""
    found, contents = [], []
    for folder, run_id, number in tried:
        file = folder / f"a{number}" / "run.json"
        try:
            content = digests.unsealed(files.read(file, below))
            version = checked(columns("runs")["schema_version"], content.get("schema_version"))
        except DAMAGE as error:
            notes.add(file, error)
            continue
        if version > SCHEMA_VERSION:
            raise NewerRow(
                f"{file} has schema version {version}; this Scalade reads up to {SCHEMA_VERSION}: upgrade scalade"
            )
        found.append((folder / f"a{number}", run_id, number))
        contents.append(content)
    values, wrong = _cells(contents)
    for at, (_, run_id, number) in enumerate(found):
        told = values["run_id"][at], values["attempt"][at]
        if at not in wrong and told != (run_id, number):
            wrong[at] = SchemaError(f"the row is attempt {told[1]} of {told[0]}, the folder is another's")
    for at, error in wrong.items():
        notes.add(found[at][0] / "run.json", error)
    good = [at for at in range(len(found)) if at not in wrong]
    schema = arrow_schema("runs")
    arrays = []
    for name in schema.names:
        some = values[name] if not wrong else [values[name][at] for at in good]
        arrays.append(pa.array(some, schema.field(name).type))
    known = set(schema.names)
    others = [{name: contents[at][name] for name in contents[at].keys() - known} for at in good]
    return _Piece([found[at][0] for at in good], pa.table(arrays, schema=schema), others)


def _cells(contents: Sequence[dict]) -> tuple[dict[str, list], dict[int, Exception]]:
    """Values by column of `runs`, as checked() gives them, and by row what is wrong with it: the first wrong cell."""
    values, wrong = {}, {}
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


def _plain(column, cells: list, kinds: set[type]) -> bool:
    """Whether checked() would leave these cells, which are of the column's type, as they are."""
    if column.required and NONE in kinds:
        return False
    if column.type == "string":
        texts = set(cells) - {None}
        return texts <= set(column.values) if column.values else all(map(_is_text, texts))
    if column.type == "int64" and int in kinds:
        numbers = [cell for cell in cells if cell is not None]
        return -(2**63) <= min(numbers) and max(numbers) < 2**63
    if column.type == "float64" and float in kinds and not column.keeps_nan:
        return all(math.isfinite(cell) for cell in cells if cell is not None)
    return True


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, as JSON may spell it
        return False
    return True
