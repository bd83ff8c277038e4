"""What efficiency and reports read of a table: the groups of its runs, the steps that they need, and notes on both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..schema.rows import rows_of
from ..table.read import noted, runs_table
from ..table.step_columns import StepColumns, read_step_columns
from ..wording import count_of
from . import breakdown
from .grouping import groups
from .workload import Group


@dataclass(frozen=True)
class GroupedRuns:
    """The runs of a table. ungrouped: those in no group. base: the user's filter; base_runs: those that it keeps."""

    rows: Sequence[Mapping]
    groups: list[Group]
    ungrouped: list[Mapping]
    notes: list[str]
    base: str | None
    base_runs: frozenset[str]

    def declared(self) -> list[Group] | None:
        """The groups that the user named as bases; None: no filter names one.

        Raises
        ------
        ValueError: the filter keeps no run of a group
        """
        if self.base is None:
            return None
        declared = [group for group in self.groups if group.rows[0]["run_id"] in self.base_runs]
        if not declared:
            raise ValueError(f"base {self.base!r}: matches no run with status ok")
        return declared


def read_groups(path: str | Path, where: str | None, base: str | None) -> GroupedRuns:
    """The runs at `path` that `where` keeps.

    Raises
    ------
    ValueError: nothing at the path, or a mistake in `where` or `base`
    """
    base = base or None
    with noted() as notes:
        rows = rows_of(runs_table(path, where=where))
        base_runs = runs_table(path, where=base, columns=["run_id"])["run_id"].to_pylist() if base else []
    grouped, ungrouped = groups(rows)
    return GroupedRuns(rows, grouped, ungrouped, notes, base, frozenset(base_runs))


def waits_of(path: str | Path, rows: Iterable[Mapping]) -> StepColumns:
    """The columns of steps that `breakdown` reads, of the runs whose waits are only in their steps."""
    return steps_of(path, filter(breakdown.waits_in_steps, rows), breakdown.COLUMNS)


def steps_of(path: str | Path, rows: Iterable[Mapping], names: Sequence[str]) -> StepColumns:
    """These columns of the steps of the runs; an exported file of runs holds none."""
    with noted():  # was noted when the runs were read, or the run has no steps
        return read_step_columns(path, (row["run_id"] for row in rows), names)


def unchecked(rows: Iterable[Mapping]) -> list[str]:
    """A note if runs were recorded from outside."""
    count = sum(row.get("parity") is not None for row in rows)
    runs = count_of(count, "run was", "runs were")
    return [f"{runs} recorded from outside: parity not checked"] if count else []
