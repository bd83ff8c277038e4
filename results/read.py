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
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from . import digests, errata, files
from .arrow_file import rows_in, under
from .schema import SCHEMA_VERSION, SchemaError, arrow_schema, checked
from .schema import columns as schema_columns
from .store import IN_FOLDER, attempts_in, rows_column
from .where import mask

if TYPE_CHECKING:
    import pandas as pd

EXPORT_KEY = b"scalade"  # metadata of an exported Parquet file: {"table": ..., "schema_version": ...}
DAMAGE = (OSError, ValueError, TypeError, LookupError, MemoryError, RecursionError, SchemaError, pa.ArrowException)


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


def read_runs(path: str | Path, all_attempts: bool = False, where: str | None = None) -> pd.DataFrame:
    """The table `runs`: one row per run, its last attempt.

    path: a results folder, one run's folder, or a Parquet file that `export` wrote (it holds what was exported).
    all_attempts: also the earlier attempts of each run.
    where: a filter as `status == ok and tp >= 2` (see where.py).

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
    from . import parquet_file

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
    if Path(path).is_file():
        table = _exported(Path(path), "runs")
    else:
        rows = [row for _, row in _attempts(Path(path), all_attempts)]
        table = pa.Table.from_pylist(rows, arrow_schema("runs"))
    table, taken = errata.of_runs(table)
    kept = mask(table, "runs", where) if where else None
    _say_old(errata.lines(taken, kept and kept.to_numpy(zero_copy_only=False), where))
    table = table if columns is None else table.select(list(columns))
    return table if kept is None else table.filter(kept)


def rows_table(
    path: str | Path, name: str, runs: Iterable[str] | pd.DataFrame | None = None, all_attempts: bool = False,
    columns: Sequence[str] | None = None,
) -> pa.Table:  # fmt: skip
    """read_steps, read_evals, read_comm or read_ops (by the table's name) as a pyarrow Table.

    columns: names, in the order wanted; None: all.
    """
    table = _rows_table(path, name, runs, all_attempts)
    return table if columns is None else table.select(list(columns))


def _rows_table(path: str | Path, name: str, runs: Iterable[str] | pd.DataFrame | None, all_attempts: bool) -> pa.Table:
    runs = [runs] if isinstance(runs, str) else runs["run_id"] if hasattr(runs, "columns") else runs
    wanted = None if runs is None else set(runs)
    if Path(path).is_file():
        table = _exported(Path(path), name)
        if wanted is not None:
            table = table.filter(pc.is_in(table["run_id"], pa.array(wanted, pa.string())))
        return table
    path, schema = Path(path), arrow_schema(name)
    stored = pa.schema([field for field in schema if field.name not in IN_FOLDER])
    parts, owners = [], []
    for folder, row in _attempts(path, all_attempts):
        count, file = row[rows_column(name)], folder / f"{name}.arrow"
        there = count > 0 if count is not None else files.is_file(file, path)  # null: older than this column
        if (wanted is None or row["run_id"] in wanted) and there:
            part = _stored_rows(file, path, stored, row, name)
            if part is not None:
                parts.append(part)
                owners.append(row)
    if not parts:
        return schema.empty_table()
    table = pa.concat_tables(parts)
    lengths = [len(part) for part in parts]
    for position, column in enumerate(IN_FOLDER):
        values = pa.array([owner[column] for owner in owners], schema.field(column).type)
        table = table.add_column(position, schema.field(column), values.take(_repeated(lengths)))
    table, taken = errata.of_rows(name, table.select(schema.names), owners, lengths)
    _say_old(errata.lines(taken))
    return table


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table with the schema's nullable dtypes."""
    import pandas as pd

    dtypes = {
        pa.string(): pd.StringDtype("pyarrow"), pa.int64(): pd.Int64Dtype(),
        pa.float64(): pd.Float64Dtype(), pa.bool_(): pd.BooleanDtype(),
    }  # fmt: skip
    # In one chunk, since pandas converts chunk by chunk, and there is one chunk per run; and column by column, so that
    # no more than one is in memory a third time.
    series = {
        name: table.column(name).combine_chunks().to_pandas(types_mapper=dtypes.get) for name in table.column_names
    }
    return pd.DataFrame(series, copy=False)


def _attempts(path: Path, all_attempts: bool) -> Iterator[tuple[Path, dict]]:
    """(folder, row) of the attempts under a results folder or in a run's folder, by run_id and attempt."""
    if not path.is_dir():
        raise ValueError(f"no results at {str(path)!r}: neither a results folder, nor a run, nor an exported file")
    runs = path / "runs"
    if files.look(runs, path) is not None:
        run_folders = [(runs / name, name) for name in files.names(runs, path) if not name.startswith(".")]
    else:
        run_folders = [(path, path.resolve().name)] if attempts_in(path) else []
    for folder, run_id in run_folders:
        try:
            numbers = attempts_in(folder, path)
        except OSError as error:
            _warn(folder, error)
            continue
        found = []
        for number in reversed(numbers):
            row = _row(folder / f"a{number}" / "run.json", path, run_id, number)
            if row:
                found.append((folder / f"a{number}", row))
                if not all_attempts:
                    break
        yield from reversed(found)


def _row(file: Path, below: Path, run_id: str, attempt: int) -> dict | None:
    """The row in the file, every column of the schema; None, and a warning, where it is damaged."""
    try:
        content = digests.unsealed(files.read(file, below))
        version = checked(schema_columns("runs")["schema_version"], content.get("schema_version"))
        if version <= SCHEMA_VERSION:
            current = version == SCHEMA_VERSION
            row = {
                name: checked(column, content.get(name)) if current or name in content else None
                for name, column in schema_columns("runs").items()
            }
            if (row["run_id"], row["attempt"]) != (run_id, attempt):
                raise SchemaError(f"the row is attempt {row['attempt']} of {row['run_id']}, the folder is another's")
            return row
    except DAMAGE as error:
        _warn(file, error)
        return None
    raise ValueError(
        f"{printable(file)} has schema version {version}; this Scalade reads up to {SCHEMA_VERSION}: upgrade scalade"
    )


def _stored_rows(file: Path, below: Path, schema: pa.Schema, row: dict, table: str) -> pa.Table | None:
    """The rows in an Arrow file under our schema (what it does not have is null); None, and a warning: damaged."""
    try:
        return rows_in(files.read(file, below, digests.TABLE_LIMIT), schema, row, table)
    except DAMAGE as error:
        _warn(file, error)
        return None


def _exported(file: Path, name: str) -> pa.Table:
    from . import parquet_file

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
    if about != {} and not (isinstance(about, dict) and isinstance(about.get("table"), str)
                            and type(about.get("schema_version")) is int):  # fmt: skip
        raise ValueError("what it says about itself is not what `export` writes")
    return about


def _repeated(lengths: list[int]) -> pa.Array:
    """0 x lengths[0], 1 x lengths[1], ...: the owner of each row."""
    import numpy as np

    return pa.array(np.repeat(np.arange(len(lengths)), lengths))


def printable(text: object) -> str:
    """One line without control characters: a file name or an error must not drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _line(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _warn(file: Path, error: object) -> None:
    warnings.warn(f"{printable(file)} left out: {_line(error)}", DamagedFile, stacklevel=2)


def _say_old(lines: Iterable[str]) -> None:
    for line in lines:
        warnings.warn(line, OldRows, stacklevel=3)
