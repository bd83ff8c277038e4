"""In which columns the rows of a table, or of each part of it, differ.

    a part differs in a column where it holds two values of it or more; a null is a value only where that is asked
    a column is implied by others where rows that agree in those, none of them null, agree in it

By codes (column_codes.py), so that parts of any number and size cost one pass over each column.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .column_codes import NULL, Coded, coded, joint

if TYPE_CHECKING:
    from .column_codes import Rows


def differing(rows: Rows, names: Iterable[str], nulls: Collection[str] | None = None) -> list[str]:
    """The columns in which these rows differ, in the order of `names`.

    nulls: the columns in which a null is a value beside others; None: all of them.
    """
    columns = Coded(rows)
    one = np.zeros(len(columns), np.int64)
    return [
        name for name in dict.fromkeys(names) if _differ(columns.of(name), one, nulls is None or name in nulls).any()
    ]


def differing_in_parts(
    rows: Rows, part_of: Sequence[Hashable], names: Sequence[str], most: int | None = None
) -> list[tuple[str, ...]]:
    """Of each row the columns in which its part differs, in the order of `names`, the first `most` of them.

    part_of: (rows,) equal for the rows of one part. A null is a value.
    """
    columns, part = Coded(rows), joint([coded(part_of)], len(rows))
    varies = np.array([_differ(columns.of(name), part, True) for name in names]).reshape(
        len(names), -1
    )  # (names, parts)
    of_part = [tuple(names[i] for i in np.flatnonzero(column)[:most]) for column in varies.T]
    return [of_part[at] for at in part]


def implied_by(rows: Rows, names: Sequence[str], by: Iterable[str]) -> list[str]:
    """Of these columns those that the columns `by` tell: rows that agree in `by`, where none is null, agree in them."""
    columns = Coded(rows)
    keys = [columns.of(one) for one in by] if names else []
    if not names or any((key == NULL).any() for key in keys):
        return []
    part = joint(keys, len(columns))
    return [name for name in names if not _differ(columns.of(name), part, True).any()]


def _differ(codes: np.ndarray, part: np.ndarray, nulls: bool) -> np.ndarray:
    """(parts,) bool: the codes (rows,) of a part are not all one; nulls: NULL counts as one."""
    if not nulls:
        part, codes = part[codes != NULL], codes[codes != NULL]
    count = int(part.max()) + 1 if len(part) else 0
    first = np.zeros(count, np.int64)
    first[part[::-1]] = codes[::-1]  # of several rows the first one is written last
    return np.bincount(part, codes != first[part], count) > 0
