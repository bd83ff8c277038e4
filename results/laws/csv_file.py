"""Reading CSV files of any origin: any usual separator, UTF-8 with or without BOM, UTF-16, a decimal comma.

The form of the file is recognised from its first lines. A decimal comma is taken where another separator makes it
unambiguous. What stays ambiguous (thousands separators, units in the cells, a header in the middle) is not read:
`why_no_number` says what such a cell looks like and what to write.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from .. import files

SAMPLE = 1 << 16  # bytes from which the form of a file is read
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
POINT_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
COMMA_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
BLANK_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:['_\s\u00a0\u202f]\d{3})+(?:[.,]\d+)?")
LONG = re.compile(r"[+-]?\d{4,}")
SUFFIX = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*([kKmMgGbBtT])(?:n|illions?|params?|tokens?)?\.?")
POWERS = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
DECIMAL = "decimal"  # in the attrs of a frame: the sign that the file's numbers have


@dataclass(frozen=True)
class Form:
    """The form of a file: how to read it."""

    encoding: str
    separator: str
    decimal: str
    skip: int = 0  # lines before the header


def read_csv(path: Path) -> pd.DataFrame:
    """The rows of the file; names of columns without the blanks around them, where that leaves them different.

    Raises
    ------
    ValueError: rows longer than the header; pandas' own errors where it cannot read the file
    """
    form = form_of(path)
    frame = pd.read_csv(
        path,
        sep=form.separator,
        decimal=form.decimal,
        encoding=form.encoding,
        skiprows=form.skip,
        skipinitialspace=True,
    )
    names = [str(name).strip() for name in frame.columns]
    if len(set(names)) == len(names):
        frame.columns = names
    frame.attrs[DECIMAL] = form.decimal
    return frame


def form_of(path: Path) -> Form:
    """Encoding, separator and decimal sign of a file, off its first SAMPLE bytes.

    Raises
    ------
    ValueError: rows have more fields than the header
    """
    encoding, lines = _first_lines(path)
    skip = next((i for i, line in enumerate(lines) if line.strip()), 0)
    declared = re.fullmatch(r"sep=(.)", lines[skip].strip("\r\n")) if lines else None  # Excel's
    skip += declared is not None
    lines = list(filter(str.strip, lines[skip:]))
    if not lines:
        raise ValueError("it is empty")
    separator = declared[1] if declared else _separator(lines)
    if separator is None:
        return Form(encoding, r"\s+", ".", skip)
    return Form(encoding, separator, _decimal_sign(lines, separator), skip)


def _decimal_sign(lines: list[str], separator: str) -> str:
    """Raises ValueError where a row has more fields than the header."""
    header, *rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for number, row in enumerate(rows, 2):
        _check_length(number, row, len(header), separator)
    comma = separator != "," and _decimal_comma([cell.strip() for cell in chain.from_iterable(rows)])
    return "," if comma else "."


def _first_lines(path: Path) -> tuple[str, list[str]]:
    """The encoding of a file and its first whole lines."""
    with os.fdopen(files.open_named(path), "rb") as file:
        head = file.read(SAMPLE)
        whole = not file.read(1)
    encoding = _encoding(head)
    lines = head.decode(encoding, errors="ignore").splitlines()
    return encoding, lines if whole else lines[:-1]


def _check_length(number: int, row: list[str], fields: int, separator: str) -> None:
    """Takes blank cells at the end out of `row`. Raises ValueError where it is longer than the header all the same."""
    while len(row) > fields and not row[-1].strip():
        row.pop()
    if len(row) > fields:
        hint = (
            "a comma in a number? separate the columns by semicolons, or quote the number"
            if separator == ","
            else "one header for each column?"
        )
        raise ValueError(f"line {number} has {len(row)} fields, the header {fields} ({hint})")


def why_no_number(cell: object, name: str, decimal: str = ".") -> str:
    """A hint for a cell of the column `name` that is no number: its likely cause and what to write; "" without one.

    decimal: the sign of the file's other numbers
    """
    text = str(cell).strip()
    if text == name.strip():
        return "the header again: two files in one? take that line out"
    grouped = _without_groups(text, decimal)
    if grouped:
        return f"thousands separators? write {grouped}"
    if COMMA.fullmatch(text):
        return f"a decimal comma? write {text.replace(',', '.')}, or one in all numbers and semicolons between columns"
    if decimal == "," and POINT.fullmatch(text):
        return f"the file's other numbers have a decimal comma: write {text.replace('.', ',')}"
    if match := SUFFIX.fullmatch(text):
        return f"a unit in the cell? write {match[1].replace(',', '.')}e{POWERS[match[2].lower()]}"
    if text.endswith("%"):
        return "per cent? write a plain number"
    return ""


def _without_groups(text: str, decimal: str) -> str:
    """How to write a number that seems to have thousands separators; "" for any other cell."""
    if COMMA_GROUPS.fullmatch(text):
        plain = text.replace(",", "")
        ambiguous = text.count(",") == 1 and "." not in text
        return f"{plain}, or {text.replace(',', '.')} where the comma is the decimal sign" if ambiguous else plain
    if POINT_GROUPS.fullmatch(text) and (decimal == "," or text.count(".") > 1 or "," in text):
        return text.replace(".", "").replace(",", decimal)
    return re.sub(r"[^0-9.,+-]", "", text) if BLANK_GROUPS.fullmatch(text) else ""


def numbers(cells: pd.Series, decimal: str = ".") -> pd.Series:
    """The cells as numbers, NaN where they are none; 44.000 is none beside 1,8: it may be either."""
    if decimal == "," and not pd.api.types.is_numeric_dtype(cells):
        cells = cells.map(lambda cell: _pointed(cell) if isinstance(cell, str) else cell)
    return pd.to_numeric(cells, errors="coerce")


def _pointed(text: str) -> str:
    return "" if "." in text else text.replace(",", ".")


def _encoding(head: bytes) -> str:
    for bom, name in BOMS.items():
        if head.startswith(bom):
            return name
    if head[1::2].count(0) > len(head) / 4:
        return "utf-16-le"
    if head[::2].count(0) > len(head) / 4:
        return "utf-16-be"
    try:
        head[:-4].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _decimal_comma(cells: list[str]) -> bool:
    """Whether commas in these cells are decimal signs.

    44,000 may be either; beside 1,8 it is a fraction, and so it is beside 44000000, which needs no separators.
    """
    commas = [cell for cell in cells if COMMA.fullmatch(cell)]
    points = sum(bool(POINT.fullmatch(cell)) and not POINT_GROUPS.fullmatch(cell) for cell in cells)
    sure = any(not COMMA_GROUPS.fullmatch(cell) for cell in commas) or any(LONG.fullmatch(cell) for cell in cells)
    return len(commas) > points and sure


NO_FIT = (0.0, 0)


def _fit_of(separator: str, lines: list[str]) -> tuple[float, int]:
    """(share of the lines with as many fields as the header, these fields); NO_FIT where that is one field."""
    counts = list(map(len, csv.reader(lines, delimiter=separator, skipinitialspace=True)))
    if not counts or counts[0] <= 1:
        return NO_FIT
    return Counter(counts)[counts[0]] / len(counts), counts[0]


def _separator(lines: list[str]) -> str | None:
    """The separator that cuts most lines into as many fields as the header; None: blanks."""
    fits = {separator: _fit_of(separator, lines) for separator in SEPARATORS}
    likely = max(fits, key=lambda separator: fits[separator])  # of equals the first
    if not lines:
        return ","
    if fits[likely] > NO_FIT:
        return likely
    widths = {len(line.split()) for line in lines}
    return None if len(widths) == 1 and widths != {1} else ","
