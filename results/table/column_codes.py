"""Columns of rows as small integers: equal where the values are equal, so that grouping is numpy's work; or as floats.

Rows are mappings, `rows_of` a table or dicts of anyone's. A null is -1 and equals a null, as None equals None; of rows
that lack a column its values are null.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..schema.rows import source_of

if TYPE_CHECKING:
    import pyarrow as pa

    from ..schema.rows import AnyRow

    Rows: TypeAlias = pa.Table | Sequence[AnyRow]

NULL = -1
ROOM = 2**62  # of joint codes


class Coded:
    """The columns of these rows as codes.

    rows: a table, `rows_of` one, any of them in any order, or other mappings, which are read one by one.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows: Any = rows
        self._source, self._at = source_of(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, name: str) -> np.ndarray:
        """(rows,) int64: equal where the values are; NULL where null, else from 0."""
        if self._source is None:
            return coded(row.get(name) for row in self.rows)
        return self._source.codes(name)[self._at]

    def numbers(self, name: str) -> np.ndarray:
        """(rows,) float64: the values of a column of numbers or truth values, which is finite or null; NaN: null."""
        if self._source is None:
            values = (row.get(name) for row in self.rows)
            return np.fromiter((np.nan if value is None else value for value in values), np.float64, len(self.rows))
        return self._source.numbers(name)[self._at]

    def null(self, name: str) -> np.ndarray:
        """(rows,) bool."""
        return self.of(name) == NULL

    def joint(self, names: Iterable[str], *more: np.ndarray) -> np.ndarray:
        """(rows,) int64: equal where the rows agree in all of these columns, and in `more` codes (rows,) each."""
        return joint([*map(self.of, names), *more], len(self))


def coded(values: Iterable[Hashable]) -> np.ndarray:
    """(values,) int64: equal where the values are, in the order of their first appearance; NULL for None."""
    seen: dict[Hashable, int] = {None: NULL}
    return np.fromiter((seen.setdefault(value, len(seen) - 1) for value in values), np.int64)


def joint(codes: Iterable[np.ndarray], count: int) -> np.ndarray:
    """(count,) int64 from 0: equal where all of the codes (count,) are, in the order of their first appearance."""
    key, kinds = np.zeros(count, np.int64), 1
    for some in codes:
        least, most = (int(some.min()), int(some.max())) if count else (0, 0)
        if least == most:
            continue
        if kinds > ROOM // (most - least + 1):
            key = np.unique(key, return_inverse=True)[1].ravel()
            kinds = int(key.max()) + 1
        key = key * (most - least + 1) + (some - least)
        kinds *= most - least + 1
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    return place[inverse.ravel()]


def parts(key: np.ndarray) -> list[np.ndarray]:
    """The places of the rows of each part, in order; key: (rows,) as `joint` makes it."""
    if not len(key):
        return []
    return np.split(np.argsort(key, kind="stable"), np.cumsum(np.bincount(key))[:-1])


def first_of(key: np.ndarray) -> np.ndarray:
    """(parts,) the place of each part's first row."""
    return np.unique(key, return_index=True)[1]
