"""The rows in a run's Arrow file of unknown origin, read within the memory that an honest file of its size takes.

Arrow's reader allocates what the file says. A few bytes may say 10^15 rows of a null column, or hold a compressed body
that unpacks to gigabytes; a dictionary or a nested type takes many times its size once it is cast to ours. Our own
files are plain: columns of text, integers, floats and truth values, not compressed. Only such are read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pyarrow as pa

from ..schema.schema import SchemaError
from ..wording import count_of
from . import digests
from .attempts import rows_column

BEGIN = 8  # bytes before the first message: ARROW1 and two zeros
SMALL = 2**17
PLAIN = (pa.string(), pa.int64(), pa.float64(), pa.bool_())


def rows_in(content: bytes, schema: pa.Schema, row: Mapping[str, object], table: str) -> pa.Table:
    """The rows in the file's content under the schema: others' columns dropped, missing ones null.

    row: the run's, whose tables_sha256 and count of rows (null: not known) the content has to match

    Raises
    ------
    SchemaError, ValueError, pa.ArrowException, MemoryError: damaged, or no file of ours
    """
    digests.check_table(row, table, content)
    rows = _plain(content, len(schema))
    rows.validate(full=True)
    count = row[rows_column(table)]
    if count is not None and len(rows) != count:
        raise SchemaError(f"{count_of(len(rows), 'row')}, the run wrote {count}")
    return under(schema, rows)


def _plain(content: bytes, columns: int) -> pa.Table:
    """What the file holds, read as the stream that it is between its marks, once each batch is known to be plain.

    columns: that the table has in the end; null where the file does not have them
    """
    buffer = pa.py_buffer(content)
    schema = pa.ipc.open_file(pa.BufferReader(buffer)).schema  # and its end is whole
    strange = [field for field in schema if field.type not in PLAIN]
    if strange:
        raise SchemaError(f"column {strange[0].name} is of the type {strange[0].type}: no file of ours")
    rows = 0
    for message in pa.ipc.MessageReader.open_stream(buffer.slice(BEGIN)):
        if message.type == "record batch":
            length, packed = batch(message.metadata.to_pybytes())
            rows += length
            if packed or not 0 <= rows * max(columns, len(schema)) <= len(content) + SMALL:
                raise SchemaError("a compressed file" if packed else f"{count_of(rows, 'row')} in {len(content)} bytes")
        elif message.type != "schema":
            raise SchemaError(f"it holds a {message.type}: no file of ours")
    return pa.ipc.open_stream(buffer.slice(BEGIN)).read_all()


def batch(message: bytes) -> tuple[int, bool]:
    """(rows, whether its body is compressed) of a record batch's message, a FlatBuffer (Message.fbs of Arrow)."""
    try:
        header = _field(message, _number("<I", message, 0), 2)
        batch = header + _number("<I", message, header)
        length = _field(message, batch, 0)
        return _number("<q", message, length) if length else 0, _field(message, batch, 3) != 0
    except struct.error:
        raise SchemaError("the head of a batch is damaged") from None


def _field(data: bytes, table: int, number: int) -> int:
    """Where the field of a FlatBuffer's table lies; 0: it is not there."""
    names, at = table - _number("<i", data, table), 4 + 2 * number
    offset = _number("<H", data, names + at) if at < _number("<H", data, names) else 0
    return table + offset if offset else 0


def _number(kind: str, data: bytes, at: int) -> int:
    return struct.unpack_from(kind, data, at)[0]


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
