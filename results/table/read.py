"""Reading the tables back, from a results folder, one run's folder, or an exported Parquet file, into pandas.

A damaged file costs its own row and a warning that names it (DamagedFile); all others are read. Rows of an older
schema read with null in the columns they did not have, and in those that it wrote wrong (errata.py), with a warning
(OldRows).

For code of ours, by column:

    runs_table(path, all_attempts, where, columns=[...])           a pyarrow Table of those columns, in that order
    rows_table(path, "steps", runs, all_attempts, columns=[...])   the same of another table; run_id is a column
    rows.rows_of(table)                                            rows that read as dicts do; columns made when asked

Rows are ordered by run_id and attempt, and those of another table within a run as they were written: a run's rows lie
together. `columns=None` is every column of the schema, in its order.

Runs are stored as Arrow IPC and exported as Parquet: 2,000 files of 500 rows and 16 columns read in 0.15 s as the
former and in 2.1 s as the latter (pyarrow 26, one core). tests/benchmarks/test_bench_table.py measures the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .. import files
from ..schema.rows import codes_of
from ..schema.schema import SCHEMA_VERSION, arrow_schema
from ..store.arrow_file import under
from ..store.attempts import IN_FOLDER
from ..store.loose import NewerRow, Notes
from ..store.part import DAMAGE, KEYS, NewerPart
from ..store.snapshot import Snapshot, Source, take_snapshot
from . import errata
from .filter import mask, named

if TYPE_CHECKING:
    import pandas as pd

EXPORT_KEY = b"scalade"  # metadata of an exported Parquet file: {"table": ..., "schema_version": ...}


class TableWarning(UserWarning):
    """Something of the table that reading leaves out."""


class DamagedFile(TableWarning):
    """A file in the results folder that cannot be read: named, left out, never fatal."""


class OldRows(TableWarning):
    """Columns that an older version of the schema wrote wrong: null when read."""


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects what reading the table warns of, as lines, each once; they are there when the block has ended."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TableWarning)
        yield lines
    lines += dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, TableWarning))


def no_runs(path: str | Path, where: str | None, warnings: Sequence[str]) -> ValueError:
    """What to raise where a table has no row; warnings: of reading it, which may be why."""
    more = f" and {len(warnings) - 1} more" if len(warnings) > 1 else ""
    return ValueError(
        f"no runs at {str(path)!r}"
        + (f" match {where!r}" if where else "")
        + (f"; {printable(warnings[0])}{more}" if warnings else "")
    )


def read_runs(path: str | Path, all_attempts: bool = False, where: str | None = None) -> pd.DataFrame:
    """The table `runs`: one row per run, its last attempt.

    path: a results folder, one run's folder, or a Parquet file that `export` wrote (it holds what was exported).
    all_attempts: also the earlier attempts of each run.
    where: a filter as `status == ok and tp >= 2` (see filter.py).

    Every column of the schema is there, typed string, Int64, Float64 or boolean; missing is <NA>.

    Raises
    ------
    ValueError: nothing at that path, or rows of a newer schema than this version of Scalade knows
    """
    return to_pandas(runs_table(path, all_attempts, where))


def read_steps(
    path: str | Path, runs: Iterable[str] | pd.DataFrame | None = None, all_attempts: bool = False
) -> pd.DataFrame:
    """The table `steps`: one row per step of each run's last attempt. Arguments and errors as read_runs.

    runs: run_ids to read, or a frame with a run_id column (as read_runs returns); None: all.

    Where the loss was NaN the file says NaN; pandas 3 shows it as <NA>, the run's status says `diverged`.
    """
    return to_pandas(rows_table(path, "steps", runs, all_attempts))


def read_evals(
    path: str | Path, runs: Iterable[str] | pd.DataFrame | None = None, all_attempts: bool = False
) -> pd.DataFrame:
    """The table `evals`: one row per evaluation. As read_steps."""
    return to_pandas(rows_table(path, "evals", runs, all_attempts))


def read_comm(
    path: str | Path, runs: Iterable[str] | pd.DataFrame | None = None, all_attempts: bool = False
) -> pd.DataFrame:
    """The table `comm`: one row per collective, mesh dimension and message size of a sweep. As read_steps."""
    return to_pandas(rows_table(path, "comm", runs, all_attempts))


def read_ops(
    path: str | Path, runs: Iterable[str] | pd.DataFrame | None = None, all_attempts: bool = False
) -> pd.DataFrame:
    """The table `ops`: one row per rank and operation of the profiled steps. As read_steps."""
    return to_pandas(rows_table(path, "ops", runs, all_attempts))


def exported_runs(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The frame of a CSV of `runs` that `export` wrote, with the wrong columns of old rows null; None: another's.

    It is known by its columns run_id and schema_version, and keeps those it has beside ours.
    """
    if not {"run_id", "schema_version"} <= set(frame.columns):
        return None
    frame, taken = errata.of_frame(frame)
    _say_old(errata.lines(taken))
    return frame


def read_exported(file: Path) -> tuple[pd.DataFrame, str] | None:
    """A Parquet file that `export` wrote, with the name of its table, for readers of any; None: another's."""
    from ..store import parquet_file

    try:
        name = _about(parquet_file.metadata_of(file)).get("table")
    except DAMAGE:
        return None
    return None if name is None else (to_pandas(runs_table(file) if name == "runs" else rows_table(file, name)), name)


def runs_table(
    path: str | Path, all_attempts: bool = False, where: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """read_runs as a pyarrow Table.

    columns: names, in the order wanted; None: all. `where` may name others.
    """
    wanted = arrow_schema("runs").names if columns is None else list(columns)
    if Path(path).is_file():
        table = _exported(Path(path), "runs")
    else:
        names = list(dict.fromkeys([*wanted, *named(where or "", "runs"), *errata.named("runs")]))
        for snapshot in _snapshots(path, names, all_attempts):
            table = snapshot.runs(names)
        _warn(snapshot.notes)
    table, taken = errata.of_runs(table)
    kept = mask(table, "runs", where) if where else None
    _say_old(errata.lines(taken, kept and kept.to_numpy(zero_copy_only=False), where))
    table = table.select(wanted)
    return table if kept is None else table.filter(kept)


@dataclass(frozen=True)
class Seen:
    """A table read once: the rows of runs as runs_table gives them, columns of all attempts, and where they lie."""

    runs: pa.Table
    attempts: pa.Table
    sources: Sequence[Source] = ()  # of every attempt; none of an exported file


def runs_and_attempts(path: str | Path, where: str | None, of_attempts: Sequence[str]) -> Seen:
    """Every column of the last attempts that `where` keeps, and these columns of all attempts that it keeps."""
    if Path(path).is_file():
        runs = runs_table(path, where=where)
        return Seen(runs, runs.select(list(of_attempts)))
    for snapshot in _snapshots(path, arrow_schema("runs").names, True):
        table = snapshot.runs(arrow_schema("runs").names)
    _warn(snapshot.notes)
    table, taken = errata.of_runs(table)
    run = codes_of(table["run_id"])
    last = np.append(run[1:] != run[:-1], True)[: len(table)]
    kept = mask(table, "runs", where).to_numpy(zero_copy_only=False) if where else np.ones(len(table), bool)
    _say_old(errata.lines(taken, last & kept, where))
    runs, attempts = (
        some if rows.all() else some.filter(pa.array(rows))  # not copied where it is whole
        for some, rows in ((table, last & kept), (table.select(list(of_attempts)), kept))
    )
    return Seen(runs, attempts, snapshot.sources)


def _run_ids(runs: Iterable[str] | pd.DataFrame | None) -> pa.Array | None:
    """Of one id, several, or a frame of runs, each once; None: of all runs."""
    if runs is None:
        return None
    if isinstance(runs, str):
        return pa.array([runs], pa.string())
    ids: Any = runs
    return pa.array(dict.fromkeys(ids["run_id"] if hasattr(ids, "columns") else ids), pa.string())


def rows_table(
    path: str | Path,
    name: str,
    runs: Iterable[str] | pd.DataFrame | None = None,
    all_attempts: bool = False,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """read_steps, read_evals, read_comm or read_ops (by the table's name) as a pyarrow Table.

    columns: names, in the order wanted; None: all.
    """
    columns = arrow_schema(name).names if columns is None else list(columns)
    wanted = _run_ids(runs)
    if not Path(path).is_file():
        return _rows_in_folder(path, name, wanted, all_attempts, columns)
    table = _exported(Path(path), name)
    table = table if wanted is None else table.filter(pc.is_in(table["run_id"], wanted))
    return table.select(columns)


def _rows_in_folder(
    path: str | Path, name: str, wanted: pa.Array | None, all_attempts: bool, columns: list[str]
) -> pa.Table:
    """wanted: run_ids; None: of all runs."""
    inner = [one for one in (columns or arrow_schema(name).names) if one not in IN_FOLDER]
    inner = list(dict.fromkeys([*inner, *errata.taken_from(name)])) or ["step"]
    owners = list(dict.fromkeys([*KEYS, "schema_version", *errata.named(name)]))
    for snapshot in _snapshots(path, owners, all_attempts):
        ids = snapshot.index["run_id"]
        which = np.arange(len(snapshot)) if wanted is None else np.flatnonzero(pc.is_in(ids, wanted).to_numpy())
        table, lengths = snapshot.rows(name, which, inner)
        runs_of = snapshot.runs(owners)
    _warn(snapshot.notes)
    schema, repeated = arrow_schema(name), pa.array(np.repeat(which, lengths))
    for column in IN_FOLDER:
        if column in columns:
            table = table.append_column(schema.field(column), runs_of[column].combine_chunks().take(repeated))
    table, taken = errata.of_rows(name, table, runs_of.take(pa.array(which)), lengths)
    _say_old(errata.lines(taken))
    return table.select(columns)


def _snapshots(path: str | Path, names: Sequence[str], all_attempts: bool) -> Iterator[Snapshot]:
    path = Path(path)
    try:
        yield from take_snapshot(path, names, all_attempts)
    except (NewerRow, NewerPart) as error:
        raise ValueError(printable(error)) from None


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table with the schema's nullable dtypes."""
    import pandas as pd

    dtypes = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    # In one chunk, since pandas converts chunk by chunk, and there is one chunk per run; and column by column, so that
    # no more than one is in memory a third time. As arrays: of series pandas would compare every index.
    arrays = {
        name: table.column(name).combine_chunks().to_pandas(types_mapper=dtypes.get).array
        for name in table.column_names
    }
    return pd.DataFrame(arrays, index=pd.RangeIndex(len(table)), copy=False)


def _exported(file: Path, name: str) -> pa.Table:
    from ..store import parquet_file

    schema = arrow_schema(name)
    try:
        table = parquet_file.read(file, schema.names)
        about = _about(table.schema.metadata or {})
        known = under(schema, table) if about.get("table") == name else None
    except DAMAGE as error:
        raise ValueError(f"{printable(file)} is not an exported Parquet file: {printable(_line(error))}") from None
    if known is None:
        what = f"the table {printable(about['table'])}" if "table" in about else "no table of ours"
        raise ValueError(f"{printable(file)} holds {what}, not {name}")
    if about["schema_version"] > SCHEMA_VERSION:
        raise ValueError(f"{printable(file)} has schema version {about['schema_version']}: upgrade scalade")
    if name != "runs":  # of runs, each row says by which version it was written
        known, taken = errata.of_exported(name, known, about["schema_version"])
        _say_old(errata.lines(taken))
    return known


def _about(metadata: Mapping[bytes, bytes]) -> dict:
    """{"table", "schema_version"} of an exported file; {} where it is another's. ValueError: damaged."""
    about = files.parse_json(metadata.get(EXPORT_KEY, b"{}"))
    if about != {} and not (
        isinstance(about, dict) and isinstance(about.get("table"), str) and type(about.get("schema_version")) is int
    ):
        raise ValueError("what it says about itself is not what `export` writes")
    return about


def printable(text: object) -> str:
    """One line without control characters: a file name or an error must not drive the terminal."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def _warn(notes: Notes) -> None:
    for file, error in notes.lines:
        warnings.warn(f"{printable(file)} left out: {_line(error)}", DamagedFile, stacklevel=3)


def _say_old(lines: Iterable[str]) -> None:
    for line in lines:
        warnings.warn(line, OldRows, stacklevel=3)
