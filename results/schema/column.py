"""What a column of a table is, and a short word for each kind of it."""

from __future__ import annotations

from dataclasses import dataclass

TYPES = ("string", "int64", "float64", "bool")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    type: one of TYPES; a structure that no flat column holds is JSON text in a string column named `*_json`.
    unit: "" for labels and plain numbers.
    required: never null. A new column is never required: the rows that stand do not have it.
    values: all that a string column may hold; empty: anything.
    keeps_nan: NaN and infinity are kept as measured. Elsewhere they become null: a rate that is not a number was
        not measured.
    """

    name: str
    type: str
    unit: str
    doc: str
    required: bool = False
    values: tuple[str, ...] = ()
    keeps_nan: bool = False

    def __post_init__(self) -> None:
        assert self.type in TYPES, f"{self.name}: type {self.type!r}"
        assert self.type == "string" or not self.values
        assert self.type == "float64" or not self.keeps_nan


def string(name: str, doc: str, **more) -> Column:
    return Column(name, "string", "", doc, **more)


def count(name: str, doc: str, unit: str = "", **more) -> Column:
    return Column(name, "int64", unit, doc, **more)


def real(name: str, doc: str, unit: str = "", **more) -> Column:
    return Column(name, "float64", unit, doc, **more)


def flag(name: str, doc: str, **more) -> Column:
    return Column(name, "bool", "", doc, **more)


def seconds(name: str, doc: str, **more) -> Column:
    return real(name, doc, "s", **more)


def nbytes(name: str, doc: str, **more) -> Column:
    return count(name, doc, "bytes", **more)
