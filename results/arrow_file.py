"""The rows in a run's Arrow file, which may be anybody's: within the memory that an honest file of its size takes.

Arrow's reader allocates what the file says. A few bytes may say 10^15 rows of a null column, or hold a compressed body
that unpacks to gigabytes; a dictionary or a nested type takes many times its size once it is cast to ours. Our own
files are plain: columns of text, integers, floats and truth values, not compressed. Only such are read.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from . import digests
from .schema import SchemaError
from .store import rows_column

LIMIT = 256 * 2**20  # of one run's file, bytes: over a million steps
PLAIN = (pa.string(), pa.int64(), pa.float64(), pa.bool_())


def rows_in(content: bytes, schema: pa.Schema, row: Mapping[str, object], table: str) -> pa.Table:
    """The rows in the file's content under the schema: others' columns dropped, missing ones null.

    row: the run's, whose tables_sha256 and count of rows (null: not known) the content has to match

    Raises
    ------
    SchemaError, ValueError, pa.ArrowException, MemoryError: damaged, or no file of ours
    """
    digests.check_table(row, table, content)
    found = pa.ipc.open_file(pa.BufferReader(content)).read_all()
    found.validate(full=True)
    count = row[rows_column(table)]
    if count is not None and len(found) != count:
        raise SchemaError(f"{len(found)} rows, the run wrote {count}")
    return under(schema, found)


def under(schema: pa.Schema, table: pa.Table) -> pa.Table:
    """The table with exactly the schema's columns: others dropped, missing ones null."""
    if table.schema.equals(schema):
        return table
    return pa.table(
        [
            table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
            for field in schema
        ],
        schema=schema,
    )
