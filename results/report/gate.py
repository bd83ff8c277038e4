"""The regression gate in a report that was given a baseline: head over base with its interval, and every verdict."""

from __future__ import annotations

from collections import Counter

from ..gate.compare import Comparison, Finding
from ..gate.formats import HEADER, LOSS_HEADER, cells, loss_cells, summary
from ..gate.rule import IMPROVED, NOISY
from ..table.read import printable
from ..wording import count_of
from .drawing import GREY, Drawn, Undrawn, chunks, legend, log_scale, new_figure, numbered
from .source import label
from .tables import Table, text

TITLE = "Against the baseline"
MOST = 10  # failures named at the top of the page
LOOKS = {  # of a verdict: by marker first, for print
    "fails": {"marker": "X", "color": "#D55E00"},
    "improved": {"marker": "^", "color": "#009E73"},
    "same": {"marker": "o", "color": "#0072B2"},
    "too noisy": {"marker": "s", "color": "#000000", "markerfacecolor": "none"},
}


def figures(gate: Comparison) -> list[Drawn | Undrawn]:
    """Head over base of each metric of each case, with its interval."""
    rows = [one for one in gate.findings if one.ratio is not None]
    if not rows:
        return [Undrawn(TITLE, "a case of which runs are ok on both sides")]
    rule = gate.rule
    rows.sort(key=lambda one: (rule.metrics.index(one.metric), not one.fails, -one.ratio))
    parts, found = chunks(rows, TITLE)
    twins = Counter((one.name, one.metric) for one in rows)
    for index, part in enumerate(parts, 1):
        figure, (axes,) = new_figure(8.6, 1.3 + 0.27 * len(part))
        axes.axvspan(1 / (1 + rule.margin), 1 + rule.margin, color=GREY, alpha=0.15, linewidth=0)
        axes.axvline(1, color=GREY, linestyle=(0, (1, 1)))
        handles = {}
        for y, one in enumerate(part):
            kind = _kind(one)
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [y, y], color=LOOKS[kind]["color"], linewidth=1.2, marker="|")
            handles[kind] = axes.plot(one.ratio, y, linestyle="none", zorder=3, **LOOKS[kind])[0]
        log_scale(axes, "x", lambda value, _: f"{value:.3g}")
        axes.set_yticks(range(len(part)), [_row_name(one, twins) for one in part], fontsize=8)
        axes.set_ylim(len(part) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("this table over the baseline")
        legend(figure, list(handles.values()), list(handles))
        name, title = numbered("gate", TITLE, index, len(parts))
        bounded = sum(one.low is not None for one in part)
        found.append(
            Drawn(
                name,
                title,
                figure,
                sum(one.base_runs + one.head_runs for one in part),
                f"bars: the ratios that the exact Mann-Whitney test does not reject at {rule.alpha:g}, {bounded} of "
                f"{count_of(len(part), 'row')}",
                "ratio: Hodges-Lehmann over runs; for times and memory above 1 is worse. Verdicts after Holm over all "
                f"rows; band: changes of {rule.margin:.0%} either way, which `same` excludes",
                f"Baseline {label(gate.base, 60)}. Cross: fails the gate. Circle: same. Square: too noisy to tell. "
                "Triangle: better, to be confirmed.",
            )
        )
    return found


def tables(gate: Comparison) -> list[Table]:
    """Every finding, those that fail first, and the losses, with the reason beside each."""
    note = f"{summary(gate)}. Baseline {printable(gate.base)}. As an exit status: scalade compare."
    notes = [note, *gate.notes]
    found = []
    for name, title, header, some, row in (
        ("gate", TITLE, HEADER, gate.findings, cells),
        ("gate-losses", f"{TITLE}: losses", LOSS_HEADER, gate.losses, loss_cells),
    ):
        columns = (*((each or "case id", "") for each in header), ("why", ""))
        rows = tuple(tuple(map(text, (*row(one), one.reason or "-"))) for one in some)
        if rows:
            found.append(Table(name, title, columns, rows, " ".join(notes) if name == "gate" else ""))
    return found


def failing(gate: Comparison) -> list[str]:
    """What fails, a line each; at most MOST."""
    bad = [one for one in (*gate.findings, *gate.losses) if one.fails]
    lines = []
    for one in bad[:MOST]:
        measured = one.metric if isinstance(one, Finding) else one.loss
        times = f", {one.ratio:.3f} times the baseline" if isinstance(one, Finding) and one.ratio is not None else ""
        lines.append(f"{one.name}, {measured}: {one.verdict}{times}{f' ({one.reason})' if one.reason else ''}")
    return lines if len(bad) <= MOST else [*lines, f"and {len(bad) - MOST} more"]


def _row_name(one: Finding, twins: Counter) -> str:
    told = f" {one.case_id[:6]}" if twins[one.name, one.metric] > 1 else ""  # of two of one name
    return f"{label(one.name)}{told}: {one.metric}"


def _kind(one: Finding) -> str:
    if one.fails:
        return "fails"
    return "improved" if one.verdict in IMPROVED else "too noisy" if one.verdict == NOISY else "same"
