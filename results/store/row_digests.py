"""A digest of each attempt's rows by their values, so that of a damaged part only what is damaged counts as lost.

A file of a part has one SHA-256 over all of it; these are 128 bits of SHA-256 over the rows of one attempt, cell by
cell in the order of the file's columns: 8 bytes of value (of a text, the first of its own SHA-256), 1 that says whether
there is one. They say nothing of how Arrow laid the values out, and so outlast its versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

AT_ONCE = 2**17  # rows whose cells are in memory at a time, unless one attempt has more


def row_digests(table: pa.Table, lengths: np.ndarray) -> list[str | None]:
    """(attempts,) hexadecimal; None of an attempt without rows.

    table: the rows of all attempts, one after the other; lengths: (attempts,) how many each has
    """
    ends, digests = np.cumsum(lengths), list[str | None]()
    for start, stop in _stretches(ends):
        first = int(ends[start] - lengths[start])
        cells = _cells(table.slice(first, int(ends[stop - 1]) - first))
        for end, length in zip((ends[start:stop] - first).tolist(), lengths[start:stop].tolist(), strict=True):
            digests.append(hashlib.sha256(cells[end - length : end].data).hexdigest()[:32] if length else None)
    return digests


def _stretches(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Attempts [start, stop) that together have about AT_ONCE rows."""
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + AT_ONCE, side="right")), start + 1)
        yield start, stop
        start = stop


def _cells(table: pa.Table) -> np.ndarray:
    """(rows, 9 * columns) uint8, in one piece."""
    values = np.empty((len(table), table.num_columns), np.uint64)
    known = np.empty((len(table), table.num_columns), np.uint8)
    for at, column in enumerate(table.columns):
        known[:, at] = column.is_valid().to_numpy()
        values[:, at] = _numbers(column)
    return np.ascontiguousarray(np.hstack([values.view(np.uint8), known]))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) uint64: the bits of each value, 0 of null."""
    if column.null_count == len(column):
        return np.zeros(len(column), np.uint64)
    if pa.types.is_string(column.type):
        coded = column.combine_chunks().dictionary_encode()
        texts = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in coded.dictionary.to_pylist()]
        return np.array([*texts, 0], np.uint64)[coded.indices.fill_null(len(texts)).to_numpy()]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    wide = column if pa.types.is_floating(column.type) else column.cast(pa.int64())
    return pc.fill_null(wide, 0).to_numpy().view(np.uint64)
