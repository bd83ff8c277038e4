"""A field of a map: the column that holds a setting or a measurement, and how its cells become numbers or words.

tp = "tp"                                                       the column, as it is
step_time_s = { column = "iter_ms", factor = 1e-3 }             with a unit
precision = { column = "precision", words = { FP8 = "fp8" } }   by a part of the cell, any case, the first that fits
sp = { value = 1 }                                              what the table does not say
micro_batch = ["mbs", { value = 1, assumed = "not printed" }]   the first that gives a value
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....results.wording import did_you_mean

Value = float | str
KEYS = ("column", "value", "factor", "words", "other", "assumed")


@dataclass(frozen=True)
class Field:
    """One way to a value."""

    column: str = ""
    value: Value | None = None  # without a column
    factor: float = 1.0
    words: Mapping[str, Value] = field(default_factory=dict)
    other: Value | None = None  # where a cell has none of the words
    assumed: str = ""  # why it may be taken for granted where the table does not say it

    def of(self, row: Mapping[str, Any]) -> Value | None:
        """The value in a row; None: its cell is empty, no number or has none of the words."""
        if not self.column:
            return self.value
        cell = row.get(self.column)
        if empty(cell):
            return self.other if self.words and self.other is not None else None
        if self.words:
            text = str(cell).lower()
            return next((value for word, value in self.words.items() if word.lower() in text), self.other)
        number = as_number(cell)
        return None if number is None else number * self.factor

    def text(self, row: Mapping[str, Any]) -> str | None:
        """The cell itself, for a field that is a name."""
        if not self.column or self.words:
            value = self.of(row)
            return None if value is None else str(value)
        cell = row.get(self.column)
        return None if empty(cell) else str(cell).strip()


def empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or not str(cell).strip() or str(cell) == "nan"


def as_number(cell: Any) -> float | None:
    """A cell as a finite number; true is 1. None: it is none."""
    try:
        number = float({"true": 1, "false": 0}.get(str(cell).strip().lower(), cell))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def read_field(where: str, entry: Any) -> tuple[Field, ...]:
    """The ways of a map's entry, in order. Raises ValueError where it is not one; `where` begins the line."""
    entries = entry if isinstance(entry, list) else [entry]
    return tuple(_one(where, each) for each in entries)


def _one(where: str, entry: Any) -> Field:
    if isinstance(entry, str):
        return Field(column=entry)
    if not isinstance(entry, dict):
        raise ValueError(f"{where} = {entry!r}: must be a column's name, or a table of {', '.join(KEYS)}")
    for key in entry:
        if key not in KEYS:
            raise ValueError(f"{where}: no key {key!r}: {did_you_mean(key, KEYS)}")
    if ("column" in entry) == ("value" in entry):
        raise ValueError(f"{where}: needs either a column or a value")
    return Field(**entry)
