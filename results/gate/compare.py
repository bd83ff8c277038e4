"""`scalade compare BASE HEAD`: is HEAD slower, and does it still learn as well? For a CI: exit status 0 or 1.

Cases are paired by `case_id`: base and head computed the same thing. The unit of repetition is the run. What cannot
be compared does not pass: a case that is missing or failed in HEAD fails the gate; noise alone does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..schema.rows import ok_rows, rows_of
from ..table.read import noted, runs_table
from .confirm import earlier, execution
from .convergence import LossFinding, compare_losses
from .findings import findings_of
from .pairs import Finding
from .rule import Rule
from .side_notes import notes_on


@dataclass(frozen=True)
class Comparison:
    base: str
    head: str
    rule: Rule
    findings: tuple[Finding, ...]  # what fails first
    losses: tuple[LossFinding, ...]
    notes: tuple[str, ...]
    evidence: tuple[str, ...]  # the head's runs and when each ran: another comparison of these confirms nothing

    @property
    def everything(self) -> tuple[Finding | LossFinding, ...]:
        return (*self.findings, *self.losses)

    @property
    def compared(self) -> int:
        """Cases of which something was measured on both sides."""
        return len({one.case_id for one in self.findings if one.ratio is not None})

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not any(one.fails for one in self.everything)

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1


def compare(
    base: str | Path,
    head: str | Path,
    rule: Rule | None = None,
    where: str | None = None,
    confirm: str | Path | None = None,
) -> Comparison:
    """Compare two tables: results folders, or Parquet files that `export` wrote.

    where: a filter on both, as `engine == torch`
    confirm: other runs of HEAD, read as it is, or the JSON of an earlier comparison of such; improvements found there
        and here are confirmed

    Raises
    ------
    ValueError: nothing at a path, no runs in BASE, not a filter, or `confirm` is neither other runs nor a
        comparison of such
    """
    rule = rule or Rule()
    with noted() as warnings:
        base_rows, head_rows = (rows_of(runs_table(path, where=where)) for path in (base, head))
    if not base_rows:
        raise ValueError(f"no runs in BASE {str(base)!r}" + (f" where {where}" if where else ""))
    findings = findings_of(base_rows, head_rows, rule)
    evidence = tuple(sorted(map(execution, ok_rows(head_rows))))
    if confirm is not None:
        findings = earlier(base_rows, Path(confirm), where, rule).confirm(findings, evidence)
    return Comparison(
        base=str(base),
        head=str(head),
        rule=rule,
        findings=tuple(sorted(findings, key=lambda one: not one.fails)),
        losses=tuple(compare_losses(base_rows, head_rows, rule.alpha, declared=rule.loss_tolerance)),
        notes=(*warnings, *notes_on(base_rows, head_rows, findings)),
        evidence=evidence,
    )
