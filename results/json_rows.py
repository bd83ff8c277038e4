"""Rows of a table as JSON text, in pieces: what json.dumps(table.to_pylist(), indent=1) gives, without the list.

A column is turned into texts by its different values, and a row is a template filled with its texts: 100,000 rows of
250 columns take seconds, and a piece of them is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

AT_ONCE = 4096  # rows in a piece


def json_pieces(columns: Mapping[str, pa.ChunkedArray]) -> Iterator[str]:
    """The JSON list of the rows with these columns, null for what is missing; no number may be infinite or NaN."""
    rows = len(next(iter(columns.values())))
    if not rows:
        yield "[]"
        return
    fields = (f"  {json.dumps(name)}: ".replace("%", "%%") + "%s" for name in columns)
    template = " {\n" + ",\n".join(fields) + "\n }"
    for start in range(0, rows, AT_ONCE):
        texts = [_texts(column.slice(start, AT_ONCE)) for column in columns.values()]
        body = ",\n".join(template % row for row in zip(*texts, strict=True))
        yield ("[\n" if not start else ",\n") + body
    yield "\n]"


def _texts(column: pa.ChunkedArray) -> list[str]:
    if column.null_count == len(column):
        return ["null"] * len(column)
    column = column.combine_chunks()
    coded = column.dictionary_encode()
    texts = np.array([*map(json.dumps, coded.dictionary.to_pylist()), "null"], object)
    return texts[coded.indices.fill_null(len(texts) - 1).to_numpy()].tolist()
