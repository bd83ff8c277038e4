"""Improvements count as confirmed once another comparison, of other runs of HEAD, has seen them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import files
from ..schema.rows import AnyRow, ok_rows, rows_of
from ..table.read import printable, runs_table
from .findings import findings_of
from .pairs import Finding
from .rule import IMPROVED, Rule

JSON_KIND = "scalade comparison"
_Key = tuple[str, str, str]  # case_id, metric, verdict


@dataclass(frozen=True)
class Earlier:
    """What another comparison shows, and which runs of HEAD it is of."""

    path: Path
    verdicts: set[_Key]
    evidence: set[str]

    def confirm(self, findings: Iterable[Finding], evidence: Iterable[str]) -> list[Finding]:
        """The findings, those improvements marked that were seen here too.

        Raises
        ------
        ValueError: both are of the same runs
        """
        if again := self.evidence.intersection(evidence):
            run = printable(min(again))
            raise ValueError(f"{printable(self.path)} is of the same runs of HEAD, as {run}: run HEAD again to confirm")
        return [self._marked(one) for one in findings]

    def _marked(self, one: Finding) -> Finding:
        if one.verdict not in IMPROVED:
            return one
        return replace(one, confirmed=(one.case_id, one.metric, one.verdict) in self.verdicts)


def earlier(base: Sequence[AnyRow], path: Path, where: str | None, rule: Rule) -> Earlier:
    """From other runs of HEAD at the path, compared with BASE now, or from the JSON of a comparison of such.

    Raises
    ------
    ValueError: neither is there
    """
    return _of_runs(base, path, where, rule) if _holds_runs(path) else _of_json(path)


def _holds_runs(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in (".parquet", ".pq")


def _of_runs(base: Sequence[AnyRow], path: Path, where: str | None, rule: Rule) -> Earlier:
    rows = rows_of(runs_table(path, where=where))
    if not rows:
        raise ValueError(f"no runs in {printable(path)} to confirm by" + (f" where {where}" if where else ""))
    verdicts = {(one.case_id, one.metric, str(one.verdict)) for one in findings_of(base, rows, rule)}
    return Earlier(path, verdicts, set(map(execution, ok_rows(rows))))


def _of_json(path: Path) -> Earlier:
    try:
        content: Any = files.parse_json(files.read_named(path, 2**26))
        assert content["kind"] == JSON_KIND
        verdicts = {(one["case_id"], one["metric"], one["verdict"]) for one in content["findings"]}
        return Earlier(path, verdicts, set(content["evidence"]))
    except (OSError, ValueError, LookupError, TypeError, AssertionError):
        raise ValueError(
            f"{printable(path)} holds neither runs nor a comparison: give a folder of other runs of HEAD, or what "
            "`scalade compare --json` wrote of such"
        ) from None


def execution(row: AnyRow) -> str:
    """A run and when it ran: the same text only for the same execution."""
    return f"{row['run_id']} attempt {row['attempt']} {row['started_at']}"
