"""Rows of a table for code that goes run by run: they read as dicts do, and cost only the columns that are asked for.

A list of dicts of 100,000 runs with 251 columns takes gigabytes and most of a minute; these rows share one list of
values per column, made when it is first read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


AnyRow = Mapping[str, Any]
"""A row of a table by column: a `Row` or a dict. results/schema/columns.py says what a column holds."""


class Row(Mapping[str, Any]):
    """One row, read-only; `dict(row)` is a copy that may be changed. Two rows are equal where they are the same one."""

    __slots__ = ("_columns", "_at")

    def __init__(self, columns: _Columns, at: int) -> None:
        self._columns, self._at = columns, at

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._at]

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self._columns[name][self._at]
        except KeyError:
            return default

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.table.column_names)

    def __len__(self) -> int:
        return self._columns.table.num_columns

    def __contains__(self, name: object) -> bool:
        return name in self._columns.names

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of the table, in its order, in place of `table.to_pylist()`."""
    columns = _Columns(table)
    return [Row(columns, at) for at in range(len(table))]


def ok_rows(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """The runs that ended well: status `ok`."""
    return [row for row in rows if row["status"] == "ok"]


def values_in(rows: Iterable[AnyRow], column: str) -> list:
    """The value of each row in this column."""
    return [row[column] for row in rows]


def distinct(rows: Iterable[AnyRow], column: str) -> set:
    """The values that the rows have in this column, None among them where one has none."""
    return {row[column] for row in rows}


def source_of(rows: pa.Table | Sequence[AnyRow]) -> tuple[_Columns | None, np.ndarray | None]:
    """The columns that these rows are of, and the place (rows,) of each there; (None, None): not of one table."""
    import numpy as np

    if hasattr(rows, "column_names"):
        return _Columns(rows), np.arange(len(rows))
    first = rows[0] if len(rows) else None
    if not isinstance(first, Row):
        return None, None
    source = first._columns
    places = [row._at for row in rows if isinstance(row, Row) and row._columns is source]
    return (source, np.array(places, np.int64)) if len(places) == len(rows) else (None, None)


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) int64: equal where the values are, from 0; -1 where null."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == len(column):
        return np.full(len(column), -1)
    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)  # -0.0 equals 0.0
    codes = pc.dictionary_encode(column)
    codes = codes.unify_dictionaries().combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    if isinstance(codes, pa.ChunkedArray):  # none, or text of more than 2 GB
        codes = pa.chunked_array([chunk.indices for chunk in codes.chunks], pa.int32())
        return codes.fill_null(-1).to_numpy().astype(np.int64)
    return codes.indices.fill_null(-1).to_numpy().astype(np.int64)


def values_of(column: pa.ChunkedArray) -> list:
    """The values of a column as Python has them, null as None; equal texts are one object."""
    import numpy as np
    import pyarrow as pa

    if column.null_count == len(column):
        return [None] * len(column)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.ChunkedArray):  # text of more than 2 GB stays in chunks
        return [value for chunk in column.chunks for value in values_of(chunk)]
    if pa.types.is_string(column.type):
        coded = column.dictionary_encode()
        texts = np.array([*coded.dictionary.to_pylist(), None], object)
        return texts[coded.indices.fill_null(len(texts) - 1).to_numpy()].tolist()
    if not column.null_count:
        return column.to_numpy(zero_copy_only=False).tolist()
    values = column.fill_null(False if pa.types.is_boolean(column.type) else 0).to_numpy(zero_copy_only=False)
    values = values.astype(object)
    values[column.is_null().to_numpy(zero_copy_only=False)] = None
    return values.tolist()


class _Columns(dict[str, list]):
    """name -> values, made when first asked for. Raises KeyError: the table has no such column."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        self.table, self.names = table, frozenset(table.column_names)
        self._codes: dict[str, np.ndarray] = {}
        self._numbers: dict[str, np.ndarray] = {}

    def codes(self, name: str) -> np.ndarray:
        """codes_of the column; of one that the table does not have, all null."""
        if name not in self._codes:
            import numpy as np

            here = name in self.names
            self._codes[name] = codes_of(self.table[name]) if here else np.full(len(self.table), -1)
        return self._codes[name]

    def numbers(self, name: str) -> np.ndarray:
        """(rows,) float64 of a column of numbers or truth values, NaN where null."""
        import numpy as np
        import pyarrow as pa

        if name not in self._numbers:
            if name in self.names and self.table[name].null_count < len(self.table):
                self._numbers[name] = self.table[name].cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
            else:
                self._numbers[name] = np.full(len(self.table), np.nan)
        return self._numbers[name]

    def __missing__(self, name: str) -> list:
        if name not in self.names:
            raise KeyError(name)
        self[name] = values_of(self.table[name])
        return self[name]
