"""A Parquet file of unknown origin, read within the memory that an honest file of its size takes.

A few kilobytes of Parquet can say a billion rows (one value, repeated), unpack to gigabytes (a compressed page), or
hold one text of a megabyte that a million rows point to. Arrow's reader allocates as the file says, and the totals in
the file's footer need not be true. So before any page is unpacked, the header of each is looked at (parquet-format's
PageHeader, in Thrift's compact protocol); texts come as indices first, and are spelled out once it is known how long
they are. Where the pages lie is read from the footer here, too (FileMetaData): pyarrow's ColumnChunkMetaData ends the
process on a column whose statistics are damaged (pyarrow 26: `terminate called`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import files
from ..wording import count_of

LEAST = 2**28  # bytes that any file may take in memory
UNPACKED = 64  # times the file: its pages, unpacked. Honest ones of ours: up to 20
DECODED = 256  # times the file: its rows in memory. Honest ones of ours: up to 90, where most columns are null
FOOTER_BYTES, PAGES = 2**24, 200_000  # of any file
DEEP = 16  # structs and lists in each other; of a footer 8
DELTA_BYTE_ARRAY = 7  # an encoding in which each text says how much of the one before it begins with
Struct = dict[int, Any]  # of Thrift: field id -> value
PLAIN = ("is_null", "is_boolean", "is_integer", "is_floating", "is_decimal", "is_temporal")


def read(path: str | Path, names: Collection[str] | None = None) -> pa.Table:
    """The columns of these names that the file has, and its metadata.

    names: None: all columns but those of lists, structs and the like

    Raises
    ------
    ValueError: it would take too much memory, or one of the columns is a list or the like
    OSError, pa.ArrowException: it is no Parquet file, or damaged
    """
    with os.fdopen(files.open_named(path), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        file = _opened(stream, size)
        wanted = _wanted(file.schema_arrow, names)
        most = max(LEAST, DECODED * size)
        if file.metadata.num_rows * 8 * (1 + len(wanted)) > most:
            rows = count_of(file.metadata.num_rows, "row")
            raise ValueError(f"{rows} of {len(wanted)} columns in a file of {size} bytes")
        _check_pages(stream, size, max(LEAST, UNPACKED * size))
        stream.seek(0)
        texts = [field.name for field in wanted if _is_text(field.type)]
        table = pq.ParquetFile(stream, read_dictionary=texts).read([field.name for field in wanted])
    length = sum(_length(column) for column in table.columns)
    if length > most:
        raise ValueError(f"texts of {length} bytes in a file of {size} bytes")
    return _spelled_out(table)


def _wanted(schema: pa.Schema, names: Collection[str] | None) -> list[pa.Field]:
    """The fields of these names; ValueError: one is a list or the like. names: None: all fields but such."""
    if names is None:
        return [field for field in schema if _is_plain(field.type)]
    for field in schema:
        if field.name in names and not _is_plain(field.type):
            raise ValueError(f"column {field.name} is of the type {field.type}")
    return [field for field in schema if field.name in names]


def metadata_of(path: str | Path) -> dict[bytes, bytes]:
    """The file's own key-value metadata. Errors as read."""
    with os.fdopen(files.open_named(path), "rb") as stream:
        return _opened(stream, os.fstat(stream.fileno()).st_size).schema_arrow.metadata or {}


def _opened(stream: BinaryIO, size: int) -> pq.ParquetFile:
    stream.seek(max(0, size - 8))
    end = stream.read(8)
    if size < 12 or end[4:] != b"PAR1":
        raise ValueError("it does not end as a Parquet file does")
    if int.from_bytes(end[:4], "little") > min(size, FOOTER_BYTES):
        raise ValueError(f"a footer of more than {min(size, FOOTER_BYTES)} bytes")
    return pq.ParquetFile(stream)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(
        is_one(kind)
        for is_one in (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    )


def _is_plain(kind: pa.DataType) -> bool:
    """Whether it takes as much memory as its rows say, or, of texts, as they are long."""
    return _is_text(kind) or any(getattr(pa.types, name)(kind) for name in PLAIN)


def _length(column: pa.ChunkedArray) -> int:
    """Bytes of its texts once they are spelled out."""
    coded = [chunk for chunk in column.chunks if pa.types.is_dictionary(chunk.type)]
    lengths = [pc.cast(pc.binary_length(chunk.dictionary), pa.int64()).take(chunk.indices) for chunk in coded]
    return sum(pc.sum(each).as_py() or 0 for each in lengths)


def _spelled_out(table: pa.Table) -> pa.Table:
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names).replace_schema_metadata(table.schema.metadata)


def _check_pages(stream: BinaryIO, size: int, most: int) -> None:
    """Raises ValueError: the pages unpack to more than `most` bytes, or are in an encoding that has no bound."""
    total = count = 0
    for chunk in _chunks(stream, size):
        for page in _pages(stream, chunk):
            total, count = total + page[2], count + 1
            if total > most or count > PAGES:
                raise ValueError(f"pages that unpack to more than {most} bytes, or more than {PAGES} of them")
            if DELTA_BYTE_ARRAY in _encodings(page):
                raise ValueError("texts in the encoding DELTA_BYTE_ARRAY: write it with another")


def _encodings(page: Struct) -> tuple[object, object]:
    """Of the values, in a data page of the first version and of the second."""
    return (page.get(5) or {}).get(2), (page.get(8) or {}).get(4)


def _chunks(stream: BinaryIO, size: int) -> list[Struct]:
    """The footer's ColumnMetaData, as _struct, of each column in each group of rows."""
    stream.seek(size - 8)
    length = int.from_bytes(stream.read(4), "little")
    stream.seek(size - 8 - length)
    try:
        groups = _struct(io.BytesIO(stream.read(length)))[4]
        return [column[3] for group in groups for column in group[1]]
    except (IndexError, KeyError, TypeError, OverflowError):
        raise ValueError("its footer is damaged") from None


def _pages(stream: BinaryIO, chunk: Struct) -> Iterator[Struct]:
    """The headers of the pages of a column's chunk, as _struct; 2: bytes unpacked, 3: packed, 5 and 8: of data."""
    starts = [chunk[field] for field in (9, 11) if field in chunk]  # of the data, and of the dictionary
    if not (starts and all(map(_is_size, (*starts, chunk.get(7))))):
        raise ValueError("its footer is damaged")
    at = min(starts)
    end = at + chunk[7]
    while at < end:
        stream.seek(at)
        try:
            page = _struct(stream)
        except (IndexError, OverflowError):
            page = {}
        if not _is_page(page):
            raise ValueError("a page's header is damaged")
        yield page
        at = stream.tell() + page[3]


def _is_page(page: Struct) -> bool:
    """Whether it has its sizes, and what else is looked at is of the right kind."""
    return all(_is_size(page.get(field)) for field in (2, 3)) and all(
        isinstance(page.get(field, {}), dict) for field in (5, 8)
    )


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _struct(data: BinaryIO, deep: int = 0) -> Struct:
    """A struct of Thrift's compact protocol: field id -> value; of what is not used, None."""
    values: Struct = {}
    field = 0
    while (head := data.read(1)[0]) != 0:
        field = field + (head >> 4) if head >> 4 else _zigzag(data)
        values[field] = _value(data, head & 15, deep)
    return values


def _value(data: BinaryIO, kind: int, deep: int) -> object:
    if kind in (1, 2):  # true and false, in the field's head
        return kind == 1
    if kind == 3:
        return data.read(1)[0]
    if kind in (4, 5, 6):
        return _zigzag(data)
    if kind in (7, 8):  # a double; bytes
        _skip(data, 8 if kind == 7 else _varint(data))
        return None
    if kind in (9, 10) and deep < DEEP:  # a list, a set
        head = data.read(1)[0]
        count = head >> 4 if head >> 4 < 15 else _varint(data)
        return [_element(data, head & 15, deep + 1) for _ in range(count)]  # each takes a byte at least
    if kind == 12 and deep < DEEP:
        return _struct(data, deep + 1)
    raise IndexError(kind)  # maps are in no header and no footer


def _element(data: BinaryIO, kind: int, deep: int) -> object:
    """Of a list: true and false take a byte there. Raises IndexError at the end of the data."""
    return data.read(1)[0] == 1 if kind in (1, 2) else _value(data, kind, deep)


def _skip(data: BinaryIO, length: int) -> None:
    """Raises IndexError: it is not all there."""
    if length:
        data.seek(length - 1, os.SEEK_CUR)
        data.read(1)[0]


def _varint(data: BinaryIO) -> int:
    value = shift = 0
    while shift < 70:
        byte = data.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value
    raise IndexError(shift)


def _zigzag(data: BinaryIO) -> int:
    value = _varint(data)
    return (value >> 1) ^ -(value & 1)
