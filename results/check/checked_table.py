"""What a rule reads and gives: the rows of a table by whole columns, and a verdict with the rows that fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np

from ..efficiency.grouping import groups
from ..efficiency.workload import Group
from ..schema.rows import AnyRow, ok_rows
from ..stats.rank_intervals import MIN_RUNS
from ..table.column_codes import Coded

PASS, FAIL, SKIP = "pass", "fail", "does not apply"


class Outcome(NamedTuple):
    """One rule's verdict, why, and the rows that fail it."""

    verdict: str
    why: str
    failed: Sequence[AnyRow] = ()


@dataclass(frozen=True)
class Table:
    """Rows of `runs`, those that are ok, and the groups of the timed ones among them."""

    rows: tuple[AnyRow, ...]
    ok: tuple[AnyRow, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, rows: Sequence[AnyRow]) -> Table:
        return cls(tuple(rows), tuple(ok_rows(rows)), tuple(groups(rows)[0]))

    @cached_property
    def of_ok(self) -> Coded:
        """The columns of the rows that are ok."""
        return Coded(self.ok)

    @cached_property
    def members(self) -> Coded:
        """The columns of the rows in groups, group by group."""
        return Coded(list(chain.from_iterable(group.rows for group in self.groups)))

    @cached_property
    def sizes(self) -> np.ndarray:
        """(groups,) how many rows each has."""
        return np.array([len(group.rows) for group in self.groups], np.int64)


def outcome_of(failed: Sequence[AnyRow], fails: str, passes: str) -> Outcome:
    return Outcome(FAIL, fails, failed) if failed else Outcome(PASS, passes)


def those(rows: Sequence[AnyRow], which: np.ndarray) -> list[AnyRow]:
    return [rows[int(at)] for at in np.flatnonzero(which)]


def once(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """One row of each run."""
    return list({row["run_id"]: row for row in rows}.values())


def of_few(table: Table, which: np.ndarray) -> list[Group]:
    """Those of these groups that have too few runs for an interval."""
    return [table.groups[at] for at in which[table.sizes[which] < MIN_RUNS]]


def alike(table: Table, name: str) -> np.ndarray:
    """(groups,) bool: the runs of the group have one value, or are all null."""
    codes, starts = table.members.of(name), np.cumsum(table.sizes) - table.sizes
    return np.minimum.reduceat(codes, starts) == np.maximum.reduceat(codes, starts)


def true(numbers: np.ndarray) -> np.ndarray:
    """Known, and not 0."""
    return ~np.isnan(numbers) & (numbers != 0)


def over(work: np.ndarray, cost: np.ndarray) -> np.ndarray:
    return work / np.where(cost == 0, np.nan, cost)


def close(values: np.ndarray, wanted: np.ndarray, tolerance: np.ndarray | float = 1e-6) -> np.ndarray:
    return np.abs(values - wanted) <= tolerance * np.abs(wanted)


def kinds(columns: Coded, name: str) -> int:
    """Different values of a column, null among them."""
    return len(np.unique(columns.of(name)))


def minority(rows: Sequence[AnyRow], columns: Coded, names: Sequence[str]) -> list[AnyRow]:
    """The rows that are not like most."""
    kinds = columns.joint(names)
    return those(rows, kinds != np.bincount(kinds).argmax())


def have(some: Sequence) -> str:
    return "has" if len(some) == 1 else "have"
