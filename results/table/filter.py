"""Filters on a table, as a person types them: `status == ok and (tp >= 2 or model == "tiny-100k")`.

    filter     = and { "or" and };  and = not { "and" not };  not = [ "not" ] comparison      (also | & ~)
    comparison = sum { operator sum } | sum [ "not" ] "in" "[" value { "," value } "]"
    operator   = "==" "!=" "<" "<=" ">" ">=";  sum, product: + - * / % on numbers
    value      = a number, true, false, null, "text", 'text', a column, a `column (of any name)`, ( filter )

Beside a column of text a word needs no quotes and is never a column: `layout == fsdp2.tp2`, `engine in [torch, x]`.
Read here, character by character, and never evaluated: there are no calls, dots, powers or names but the columns'.
Unknown is as in SQL: a null matches nothing, neither `x != 1` nor `not x == 1`, but `== null`; `!= null` matches what
is there. Of ours it imports only wording.py, so that the laws may use it on any table.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING

import numpy as np

from ..wording import did_you_mean

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

NUMBER, TEXT, TRUTH, NULL = "a number", "text", "true or false", "null"
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod}
CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])|(?P<text>"[^"]*"|'[^']*')|(?P<column>`[^`]*`)"""
    r"""|(?P<name>[^\W\d]\w*)|(?P<sign>[=!<>]=|[-<>()\[\],+*/%&|~]))"""
)
WORD = re.compile(r"""\s*([^\s"'`=<>!()\[\],&|]+)""")
LONGEST, DEEPEST = 2_000, 40
HOW = "write `column == value`, joined by and, or, not; operators " + " ".join(COMPARE) + " in [...]"


@dataclass(frozen=True)
class Cells:
    """A column, a constant or what was made of them: values and where they are known, (rows,) or scalars."""

    kind: str
    values: np.ndarray
    known: np.ndarray
    column: str | None = None  # its name, where it is one as it stands

    @property
    def constant(self) -> bool:
        return np.ndim(self.values) == 0


def keep(text: str, column: Callable[[str], Cells], rows: int) -> np.ndarray:
    """Which of the rows the filter keeps, bool (rows,). column: the cells of a name, or ValueError.

    Raises
    ------
    ValueError: not a filter, no such column, or kinds that do not go together; one line
    """
    return _Reader(text, column).mask(rows)


def named(text: str, table: str) -> list[str]:
    """The columns of the table that a filter may read: each of its words that is one, or a short name of one."""
    from ..schema.aliases import ALIASES, resolved
    from ..schema.schema import columns

    words = (word.strip("`") for word in re.findall(r"`[^`]*`|[^\W\d]\w*", text[:LONGEST]))
    known = columns(table).keys() | (ALIASES if table == "runs" else {})
    return list(dict.fromkeys(resolved(word, table).column for word in words if word in known))


def mask(table: pa.Table, name: str, where: str) -> pa.Array:
    """Which rows of the table called `name` (runs, steps, evals) the filter keeps: bool, (rows,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from ..schema.aliases import resolved
    from ..schema.schema import known_column

    kinds = {"string": (TEXT, ""), "bool": (TRUTH, False), "int64": (NUMBER, 0), "float64": (NUMBER, 0.0)}

    def column(wanted: str) -> Cells:
        of = resolved(wanted, name)
        kind, filler = kinds[known_column(name, of.column).type]
        cells = table[of.column]
        values = pc.fill_null(cells, filler).to_numpy()
        values = values if of.factor == 1 else values * of.factor
        return Cells(kind, values, pc.is_valid(cells).to_numpy(), wanted)

    return pa.array(keep(where, column, table.num_rows))


def where(frame: pd.DataFrame, text: str) -> pd.Series:
    """Boolean mask over the rows of `frame`; null is what pandas calls missing, NaN too."""
    import pandas as pd

    def column(name: str) -> Cells:
        if name not in frame.columns:
            raise ValueError(f"no column {name!r}: {did_you_mean(name, list(map(str, frame.columns)))}")
        return _of_series(name, frame[name])

    return pd.Series(keep(text, column, len(frame)), index=frame.index)


def _of_series(name: str, cells: pd.Series) -> Cells:
    known = cells.notna().to_numpy()
    there = cells[known]
    kind, filler, dtype = _kind_of_series(name, cells, there)
    values: np.ndarray = np.full(len(cells), filler, dtype)
    values[known] = there.to_numpy()
    return Cells(kind, values, known, name)


def _kind_of_series(name: str, cells: pd.Series, there: pd.Series) -> tuple[str, object, type]:
    """(kind, what stands for null, numpy's type). there: the cells that are known"""
    from pandas.api import types

    if types.is_bool_dtype(cells) or (len(there) and _all_are(there, bool | np.bool_)):
        return TRUTH, False, bool
    if types.is_integer_dtype(cells):
        return NUMBER, 0, int
    if types.is_numeric_dtype(cells):
        return NUMBER, 0.0, float
    if _all_are(there, str):
        return TEXT, "", object
    raise ValueError(f"column {name!r} holds neither numbers, text nor truth values")


def _all_are(values: pd.Series, kind: type | UnionType) -> bool:
    return all(isinstance(value, kind) for value in values)


class _Reader:
    """Reads a filter from left to right and works it out as it goes; each method is a line of the grammar."""

    def __init__(self, text: str, column: Callable[[str], Cells]) -> None:
        self.text, self.column, self.at, self.depth = str(text), column, 0, 0

    def mask(self, rows: int) -> np.ndarray:
        if len(self.text) > LONGEST:
            raise self.wrong(f"longer than {LONGEST} characters")
        cells = self.either()
        if self.text[self.at :].strip():
            raise self.unread()
        cells = self.condition(cells)
        return np.broadcast_to(cells.values & cells.known, rows).copy()

    def either(self) -> Cells:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.wrong(f"nested more than {DEEPEST} deep")
        cells = self.both()
        while self.took("or", "|"):
            cells = _or(self.condition(cells), self.condition(self.both()))
        self.depth -= 1
        return cells

    def both(self) -> Cells:
        cells = self.negated()
        while self.took("and", "&"):
            left, right = self.condition(cells), self.condition(self.negated())
            cells = _not(_or(_not(left), _not(right)))
        return cells

    def negated(self) -> Cells:
        times = 0
        while self.took("not", "~"):
            times += 1
        cells = self.comparison()
        if not times:
            return cells
        return _not(self.condition(cells)) if times % 2 else self.condition(cells)

    def comparison(self) -> Cells:
        left, cells = self.sum(), None
        while True:
            if op := self.took(*COMPARE):
                right = self.word(left) or self.sum(beside=left)
                part = self.compared(op, left, right)
            elif op := self.membership():
                right, part = left, self.one_of(left)
                part = _not(part) if op == "not in" else part
            else:
                return left if cells is None else cells
            cells = part if cells is None else _not(_or(_not(cells), _not(part)))
            left = right

    def membership(self) -> str | None:
        """`in` or `not in`, if it follows."""
        if self.took("in"):
            return "in"
        if not self.took("not"):
            return None
        self.expect("in")
        return "not in"

    def compared(self, op: str, left: Cells, right: Cells) -> Cells:
        kinds = (left.kind, right.kind)
        for kind in (NULL, TRUTH):
            if kind in kinds and op not in ("==", "!="):
                raise self.wrong(f"{kind} goes with == and != only")
        for one, other in ((left, right), (right, left)):
            if one.kind == NULL:
                return Cells(TRUTH, np.asarray(other.known == (op == "!=")), np.asarray(True))
        if left.kind != right.kind:
            raise self.wrong(f"{left.column or 'what stands there'} is compared with {left.kind}, found {right.kind}")
        values = np.asarray(COMPARE[op](left.values, right.values), bool)
        return Cells(TRUTH, values, left.known & right.known)

    def one_of(self, left: Cells) -> Cells:
        if left.constant:
            raise self.wrong("`in` asks for a column's value")
        close = {"[": "]", "(": ")"}.get(self.took("[", "(") or "")
        if close is None:
            raise self.wrong("the right of `in` is a list of constants, as in [1, 2]")
        cells = Cells(TRUTH, np.asarray(False), left.known)
        while not self.took(close):
            cells = _or(cells, self.compared("==", left, self.listed(left)))
            if not self.took(","):
                self.expect(close)
                break
        return cells

    def listed(self, left: Cells) -> Cells:
        """A value of the list after `in`."""
        value = self.word(left) or self.sum(beside=left)
        if not value.constant or value.kind == NULL:
            raise self.wrong("a list after `in` holds constants")
        return value

    def sum(self, beside: Cells | None = None) -> Cells:
        cells = self.product(beside)
        while op := self.took("+", "-"):
            cells = self.computed(op, cells, self.product(None))
        return cells

    def product(self, beside: Cells | None) -> Cells:
        cells = self.signed(beside)
        while op := self.took("*", "/", "%"):
            cells = self.computed(op, cells, self.signed(None))
        return cells

    def signed(self, beside: Cells | None) -> Cells:
        signs = []
        while op := self.took("-", "+"):
            signs.append(op)
        cells = self.atom(beside)
        if not signs:
            return cells
        return self.computed("*", Cells(NUMBER, np.asarray((-1) ** signs.count("-")), np.asarray(True)), cells)

    def computed(self, op: str, left: Cells, right: Cells) -> Cells:
        if (left.kind, right.kind) != (NUMBER, NUMBER):
            raise self.wrong("arithmetic is on numbers only")
        if op in "/%" and right.constant and right.values == 0:
            raise self.wrong("divides by zero")
        with np.errstate(all="ignore"):
            values = ARITHMETIC[op](np.asarray(left.values, float), np.asarray(right.values, float))
        return Cells(NUMBER, values, left.known & right.known)

    def atom(self, beside: Cells | None) -> Cells:
        """beside: what it is compared with, for the message."""
        match = TOKEN.match(self.text, self.at)
        if match is None or match["name"] in ("and", "or", "not", "in") or match["sign"] not in (None, "("):
            raise self.unread()
        self.at = match.end()
        if match["sign"]:
            return self.parenthesised()
        constant = _constant(match)
        return self.named_column(match, beside) if constant is None else constant

    def parenthesised(self) -> Cells:
        inner = self.either()
        self.expect(")")
        return Cells(inner.kind, inner.values, inner.known)

    def named_column(self, match: re.Match[str], beside: Cells | None) -> Cells:
        name = match["name"]
        try:
            return self.column(name or match["column"][1:-1])
        except ValueError as error:
            if beside is not None and beside.column and name:
                raise self.wrong(f"{beside.column} is compared with {beside.kind}, found {name}; {error}") from None
            raise self.wrong(str(error)) from None

    def word(self, beside: Cells) -> Cells | None:
        """The unquoted word beside a column of text; None: it is something else."""
        match = WORD.match(self.text, self.at)
        if beside.kind != TEXT or beside.column is None or not match or match[1] in ("null", "None"):
            return None
        self.at = match.end()
        return Cells(TEXT, np.asarray(match[1], object), np.asarray(True))

    def took(self, *wanted: str) -> str | None:
        """The next token, if it is one of these words or signs."""
        match = TOKEN.match(self.text, self.at)
        if match is None or (token := match["name"] or match["sign"]) not in wanted:
            return None
        self.at = match.end()
        return token

    def expect(self, token: str) -> None:
        """Take this word or sign, which must follow."""
        if not self.took(token):
            raise self.unread()

    def condition(self, cells: Cells) -> Cells:
        if cells.kind != TRUTH:
            value = f"{cells.column} is {cells.kind}" if cells.column else f"{cells.kind} is"
            raise self.wrong(f"{value}, not a condition: compare it, as in loss < 3")
        return cells

    def unread(self) -> ValueError:
        rest = self.text[self.at :].strip()
        return self.wrong(f"cannot read {rest[:40]!r}: {HOW}" if rest else f"ends where a value belongs: {HOW}")

    def wrong(self, why: str) -> ValueError:
        text = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return ValueError(f"filter {text!r}: {why}")


def _constant(match: re.Match[str]) -> Cells | None:
    """A number, a text, true, false or null; None: the token is something else."""
    if match["number"]:
        whole = re.fullmatch(r"\d{1,18}", match["number"])
        return Cells(NUMBER, np.asarray(int(whole[0]) if whole else float(match["number"])), np.asarray(True))
    if match["text"]:
        return Cells(TEXT, np.asarray(match["text"][1:-1], object), np.asarray(True))
    if match["name"] not in CONSTANTS:
        return None
    value = CONSTANTS[match["name"]]
    return Cells(NULL if value is None else TRUTH, np.asarray(bool(value)), np.asarray(value is not None))


def _not(one: Cells) -> Cells:
    return Cells(TRUTH, ~one.values, one.known)


def _or(one: Cells, other: Cells) -> Cells:
    """Kleene's: true where either is, unknown where it hangs on what is not known."""
    yes = (one.values & one.known) | (other.values & other.known)
    return Cells(TRUTH, yes, yes | (one.known & other.known))
