"""Rows of a table as JSON text, in pieces: what json.dumps(table.to_pylist(), indent=1) gives, without the list.

A column is turned into texts by its different values, and a row is a template filled with its texts; what is the same
in all rows of a piece is in the template. 100,000 rows of 250 columns take seconds, and a piece of them is in memory at
a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

AT_ONCE = 4096  # rows in a piece


def json_pieces(columns: Mapping[str, pa.ChunkedArray]) -> Iterator[str]:
    """The JSON list of the rows with these columns, null for what is missing or not finite."""
    rows = len(next(iter(columns.values())))
    if not rows:
        yield "[]"
        return
    for start in range(0, rows, AT_ONCE):
        piece = {name: column.slice(start, AT_ONCE) for name, column in columns.items()}
        yield ("[\n" if not start else ",\n") + ",\n".join(_filled(piece, min(AT_ONCE, rows - start)))
    yield "\n]"


def _filled(columns: Mapping[str, pa.ChunkedArray], rows: int) -> Iterable[str]:
    """The text of each row."""
    texts = {name: _texts(column) for name, column in columns.items()}
    fields = (f"  {_escaped(json.dumps(name))}: {text}" for name, (text, _) in texts.items())
    template = " {\n" + ",\n".join(fields) + "\n }"
    varying = [some for _, some in texts.values() if some is not None]
    return map(template.__mod__, zip(*varying, strict=True)) if varying else [template % ()] * rows


def _texts(column: pa.ChunkedArray) -> tuple[str, list[str] | None]:
    """("%s", the text of each row), or (the text, None) where it is that of all rows, for a template."""
    if column.null_count == len(column):
        return "null", None
    coded = column.combine_chunks().dictionary_encode()
    texts = [*map(WRITERS.get(column.type, json.dumps), coded.dictionary.to_pylist()), "null"]
    if len(texts) == 2 and not column.null_count:
        return _escaped(texts[0]), None
    return "%s", np.array(texts, object)[coded.indices.fill_null(len(texts) - 1).to_numpy()].tolist()


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _finite(number: float) -> str:
    """As json.dumps has it, in a fifth of its time; JSON has no number for what is not finite."""
    return repr(number) if math.isfinite(number) else "null"


WRITERS: dict[pa.DataType, Callable[[Any], str]] = {
    pa.float64(): _finite,
    pa.int64(): repr,
    pa.string(): json.encoder.encode_basestring_ascii,
}
