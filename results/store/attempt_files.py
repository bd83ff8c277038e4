"""The files of one attempt, from what was measured: its row and its rows of the other tables, checked, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..schema.column import Column
from ..schema.schema import SCHEMA_VERSION, SchemaError, arrow_schema, checked, checked_row, columns, refuse_unknown
from ..wording import count_of
from . import digests
from .attempts import IN_FOLDER, OTHERS, ROW_FILE, rows_column

if TYPE_CHECKING:
    import pyarrow as pa

MeasuredRows = Mapping[str, Any]  # columns by name, equally long: a dict of lists or arrays, or a pa.Table


def attempt_files(row: Mapping[str, object], tables: Mapping[str, MeasuredRows | pa.Table | None]) -> dict[str, bytes]:
    """The content of each file by its name: run.json, and an Arrow file for each table that has rows.

    Raises
    ------
    SchemaError: a column that is not in the schema, or a value of another type; names it
    """
    checked_tables = {name: _table(name, rows) for name, rows in tables.items()}
    contents = {name: arrow_bytes(table) for name, table in checked_tables.items() if len(table)}
    counts = {rows_column(name): len(table) for name, table in checked_tables.items()}
    full = full_row({**row, digests.TABLES: digests.of_tables(contents), **counts})
    return {ROW_FILE: digests.sealed(full)} | {f"{name}.arrow": each for name, each in contents.items()}


def row_alone(row: Mapping[str, object]) -> dict[str, object]:
    """The row of an attempt that has no rows in the other tables. Raises SchemaError."""
    return full_row({**row, **{rows_column(name): 0 for name in OTHERS}})


def full_row(row: Mapping[str, object]) -> dict[str, object]:
    """The row with every column, as it is written. Raises SchemaError: also where its status and its values differ."""
    full = checked_row("runs", {**row, "schema_version": SCHEMA_VERSION})
    ok, run_id = full["status"] == "ok", full["run_id"]
    if ok != (full["reason"] is None):
        raise SchemaError(f"run {run_id}: {full['status']} with reason {full['reason']!r}; all but ok have one")
    for name in ("loss", "val_loss"):
        if ok and row.get(name) is not None and full[name] is None:
            raise SchemaError(f"run {run_id} is ok with {name} = {row[name]}: its status is diverged")
    return full


def arrow_bytes(table: pa.Table) -> bytes:
    """The table as an Arrow IPC file."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _table(name: str, rows: MeasuredRows | pa.Table | None) -> pa.Table:
    """The rows as the file holds them: every column of the table but run_id and attempt, which the folder has."""
    import pyarrow as pa

    values = {} if rows is None else _columns_of(rows)
    refuse_unknown(name, values)
    count = max(map(len, values.values()), default=0)
    schema = arrow_schema(name)
    arrays = {
        column.name: pa.array(_cells(name, column, values.get(column.name), count), schema.field(column.name).type)
        for column in columns(name).values()
        if column.name not in IN_FOLDER
    }
    return pa.table(arrays)


def _columns_of(rows: MeasuredRows | pa.Table) -> dict[str, Any]:
    names = rows.keys() if isinstance(rows, Mapping) else rows.column_names
    return {name: rows[name] for name in names}


def _cells(table: str, column: Column, values: Any, count: int) -> list[str | int | float | bool | None]:
    """The checked values of one column; values: None where it was not measured."""
    if values is None:
        return [checked(column, "model" if column.name == "kind" else None)] * count if count else []
    cells = [checked(column, value) for value in (values.to_pylist() if hasattr(values, "to_pylist") else values)]
    if len(cells) != count:
        raise SchemaError(f"column {column.name} of {table} has {count_of(len(cells), 'row')}, another has {count}")
    return cells
