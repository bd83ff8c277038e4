"""`scalade check`: the twelve rules (rules.py) over a table, beyond them three of ours, and what is damaged.

Each rule passes, fails with the runs named, or does not apply; so do the three beyond (quiet.py, clocks.py,
coverage.py).
A check says whether the table holds what the rule asks to be reported; it cannot say whether a paper then reports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..schema.rows import AnyRow, ok_rows, rows_of
from ..store.damage import damaged_tables
from ..table.held_out import unbelieved
from ..table.quiet import quiet
from ..table.read import no_runs, noted, printable, runs_and_attempts
from ..wording import count_of
from . import clocks
from .checked_table import FAIL, PASS, SKIP, Outcome, Table, outcome_of
from .coverage import coverage
from .rules import RULES

BEYOND = 0  # the number of a rule that is none of the twelve


@dataclass(frozen=True)
class Finding:
    """One rule against the table."""

    rule: int  # of the twelve, or BEYOND
    title: str
    verdict: str
    why: str
    run_ids: tuple[str, ...] = ()  # of a failure

    def to_dict(self) -> dict:
        return {
            "rule": self.rule,
            "title": self.title,
            "verdict": self.verdict,
            "why": self.why,
            "run_ids": list(self.run_ids),
        }


@dataclass(frozen=True)
class CheckReport:
    path: str
    runs: int
    findings: tuple[Finding, ...]  # of the twelve
    beyond: Finding
    notes: tuple[str, ...] = ()
    clocks: Finding | None = None  # beyond, too
    coverage: Finding | None = None  # beyond, too

    @property
    def _all(self) -> tuple[Finding, ...]:
        return (*self.findings, self.beyond, *filter(None, (self.clocks, self.coverage)))

    @property
    def exit_code(self) -> int:
        return 1 if any(one.verdict == FAIL for one in self._all) else 0

    def to_dict(self) -> dict:
        return {
            "path": self.path,
            "runs": self.runs,
            "rules": [one.to_dict() for one in self.findings],
            "beyond": self.beyond.to_dict(),
            "clocks": self.clocks and self.clocks.to_dict(),
            "coverage": self.coverage and self.coverage.to_dict(),
            "notes": list(self.notes),
            "passed": self.exit_code == 0,
        }

    def to_text(self) -> str:
        lines = [f"twelve rules (Hoefler and Belli, SC'15) over {count_of(self.runs, 'run')}"]
        marks = {PASS: "pass", FAIL: "FAIL", SKIP: "n/a "}
        for one in self._all:
            lines.append(f"{one.rule or '+':>2} {marks[one.verdict]}  {one.title}: {one.why}")
            if one.run_ids:
                more = f" and {len(one.run_ids) - 4} more" if len(one.run_ids) > 4 else ""
                lines.append(f"         {', '.join(one.run_ids[:4])}{more}")
        counts = {verdict: sum(one.verdict == verdict for one in self.findings) for verdict in marks}
        counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return "\n".join([*lines, f"of the twelve {counted}", *self.notes])


def check(path: str | Path, where: str | None = None) -> CheckReport:
    """The twelve rules, and the three beyond, over the runs at `path` (see read_runs), or those that `where` keeps.

    Raises
    ------
    ValueError: nothing at the path, no run, or not a filter; what was left out is warned of
    """
    with noted() as warnings:
        seen = runs_and_attempts(path, where, clocks.COLUMNS)
    rows, attempts = rows_of(seen.runs), rows_of(seen.attempts)
    if not rows:
        raise no_runs(path, where, warnings)
    lines = (*warnings, *damaged_tables(seen.sources), *unbelieved(rows))
    notes = [f"warning: {printable(line)}" for line in lines]
    return CheckReport(
        path=str(path),
        runs=len(rows),
        findings=tuple(findings(rows)),
        beyond=beyond(rows),
        notes=tuple(notes),
        clocks=agreeing(attempts),
        coverage=covered(rows),
    )


def findings(rows: Sequence[AnyRow]) -> list[Finding]:
    """The twelve, in order, over rows of `runs`."""
    table = Table.of(rows)
    with np.errstate(all="ignore"):  # numbers that no measurement gives
        return [_finding(number, title, rule(table)) for number, (title, rule) in enumerate(RULES, 1)]


def beyond(rows: Sequence[AnyRow]) -> Finding:
    """What the twelve do not ask of the rows of `runs`: a quiet machine."""
    with np.errstate(all="ignore"):
        return _finding(BEYOND, "the machine was quiet", Outcome(*quiet(ok_rows(rows), outcome_of, SKIP)))


def agreeing(attempts: Sequence[AnyRow]) -> Finding:
    """Nor this, of rows of all attempts: clocks that were not set meanwhile."""
    with np.errstate(all="ignore"):
        return _finding(BEYOND, "clocks agree", Outcome(*clocks.clocks(attempts, outcome_of, SKIP)))


def covered(rows: Sequence[AnyRow]) -> Finding:
    """Nor this, of rows of `runs`: predictions whose intervals hold what was measured."""
    with np.errstate(all="ignore"):
        return _finding(BEYOND, "predictions hold", Outcome(*coverage(ok_rows(rows), outcome_of, SKIP)))


def _finding(number: int, title: str, outcome: Outcome) -> Finding:
    verdict, why, failed = outcome
    assert (verdict == FAIL) == bool(failed)
    return Finding(number, title, verdict, why, tuple(row["run_id"] for row in failed))
