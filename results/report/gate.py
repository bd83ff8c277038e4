"""The regression gate in a report with a baseline: head over base with its interval, and every verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..gate.compare import Comparison
from ..gate.convergence import LossFinding
from ..gate.formats import HEADER, LOSS_HEADER, cells, loss_cells, summary
from ..gate.pairs import Finding
from ..gate.rule import IMPROVED, Verdict
from ..table.read import printable
from ..wording import count_of
from .drawing import GREY, Drawn, Figures, Undrawn, in_parts, legend, log_scale, named_rows
from .source import label
from .tables import Table, text

TITLE = "Against the baseline"
MOST = 10  # failures named at the top of the page
LOOKS: dict[str, dict[str, Any]] = {  # of a verdict: they differ by marker, for print
    "fails": {"marker": "X", "color": "#D55E00"},
    "improved": {"marker": "^", "color": "#009E73"},
    "same": {"marker": "o", "color": "#0072B2"},
    "too noisy": {"marker": "s", "color": "#000000", "markerfacecolor": "none"},
}


def figures(gate: Comparison) -> Figures:
    """Head over base of each metric of each case, with its interval."""
    rows = [_Ratio(one, one.ratio) for one in gate.findings if one.ratio is not None]
    if not rows:
        return [Undrawn(TITLE, "a case of which runs are ok on both sides")]
    order = gate.rule.metrics.index
    rows.sort(key=lambda row: (order(row.finding.metric), not row.finding.fails, -row.ratio))
    twins = Counter((row.finding.name, row.finding.metric) for row in rows)
    return in_parts(rows, "gate", TITLE, lambda *part: _figure(gate, twins, *part))


class _Ratio(NamedTuple):
    """A finding and its ratio, which not every finding has."""

    finding: Finding
    ratio: float


def _figure(gate: Comparison, twins: Counter, rows: Sequence[_Ratio], name: str, title: str) -> Drawn:
    """twins: how many findings share a name and metric."""
    rule = gate.rule
    findings = [row.finding for row in rows]
    figure, axes = named_rows([_row_name(one, twins) for one in findings])
    axes.axvspan(1 / (1 + rule.margin), 1 + rule.margin, color=GREY, alpha=0.15, linewidth=0)
    axes.axvline(1, color=GREY, linestyle=(0, (1, 1)))
    handles = {}
    for y, (one, ratio) in enumerate(rows):
        kind = _kind(one)
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [y, y], color=LOOKS[kind]["color"], linewidth=1.2, marker="|")
        handles[kind] = axes.plot(ratio, y, linestyle="none", zorder=3, **LOOKS[kind])[0]
    log_scale(axes, "x", lambda value, _: f"{value:.3g}")
    axes.set_xlabel("this table over the baseline")
    legend(figure, list(handles.values()), list(handles))
    bounded = sum(one.low is not None for one in findings)
    return Drawn(
        name,
        title,
        figure,
        sum(one.base_runs + one.head_runs for one in findings),
        f"bars: the ratios that the exact Mann-Whitney test does not reject at {rule.alpha:g}, {bounded} of "
        f"{count_of(len(rows), 'row')}",
        "ratio: Hodges-Lehmann over runs; for times and memory above 1 is worse. Verdicts after Holm over all "
        f"rows; band: changes of {rule.margin:.0%} either way, which `same` excludes",
        f"Baseline {label(gate.base, 60)}. Cross: fails the gate. Circle: same. Square: too noisy to tell. "
        "Triangle: better, to be confirmed.",
    )


def tables(gate: Comparison) -> list[Table]:
    """Every finding, those that fail first, and the losses, with the reason beside each."""
    note = f"{summary(gate)}. Baseline {printable(gate.base)}. As an exit status: scalade compare."
    findings = [(*cells(one), one.reason or "-") for one in gate.findings]
    losses = [(*loss_cells(one), one.reason or "-") for one in gate.losses]
    both = (
        _table("gate", TITLE, HEADER, findings, " ".join([note, *gate.notes])),
        _table("gate-losses", f"{TITLE}: losses", LOSS_HEADER, losses, ""),
    )
    return [table for table in both if table.rows]


def _table(name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Table:
    columns = (*((each or "case id", "") for each in header), ("why", ""))
    return Table(name, title, columns, tuple(tuple(map(text, row)) for row in rows), note)


def failing(gate: Comparison) -> list[str]:
    """The findings that fail, a line each; at most MOST."""
    lines = [_failure(one.name, one.metric, one, one.ratio) for one in gate.findings if one.fails]
    lines += [_failure(one.name, one.loss, one, None) for one in gate.losses if one.fails]
    return lines if len(lines) <= MOST else [*lines[:MOST], f"and {len(lines) - MOST} more"]


def _failure(name: str, measured: str, one: Finding | LossFinding, ratio: float | None) -> str:
    times = "" if ratio is None else f", {ratio:.3f} times the baseline"
    return f"{name}, {measured}: {one.verdict}{times}" + (f" ({one.reason})" if one.reason else "")


def _row_name(one: Finding, twins: Counter) -> str:
    case = f" {one.case_id[:6]}" if twins[one.name, one.metric] > 1 else ""  # of two of one name
    return f"{label(one.name)}{case}: {one.metric}"


def _kind(one: Finding) -> str:
    if one.fails:
        return "fails"
    if one.verdict in IMPROVED:
        return "improved"
    return "too noisy" if one.verdict == Verdict.NOISY else "same"
