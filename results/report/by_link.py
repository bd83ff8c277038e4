"""One study on several links: the time of a step over each, how much of it was waiting, and the bytes sent.

    python -m scalade.results.report.by_link FIGURE.svg RESULTS...     the figure, and its table as Markdown

Each results folder is the study on one link (of a lab): a folder each, as the cases are the same on all links.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..efficiency.breakdown import outer_of_step_s
from ..efficiency.reading import waits_of
from ..efficiency.workload import has_outer_loop
from ..stats.rank_intervals import Estimate, median
from ..table.read import runs_table
from ..table.step_columns import Steps
from ..table.work import Work, work_of
from .drawing import bar_looks, encoded, interval_text, legend, new_figure, style, with_intervals
from .outer import sent_a_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

MBIT = 1e6


@dataclass(frozen=True)
class LinkRow:
    """One layout on one link.

    step_s: over runs. exposed_s: the median over runs of the wait of a step, for inner collectives (median step) and
    outer ones (of a round, over H); None if it was not measured. sent_bytes: of one rank and step. sent_s: their time
    at the measured rate of the link, for two ranks the least possible (a ring moves each message once); None without
    a lab. ratio: the step time of the layout without an outer loop over this one's, for the same tokens a step (work).
    """

    link: str
    layout: str
    work: Work | None
    outer: bool
    step_s: Estimate
    exposed_s: float | None
    sent_bytes: float | None
    sent_s: float | None = None
    ratio: float | None = None

    @property
    def sent_kb(self) -> float | None:
        return None if self.sent_bytes is None else self.sent_bytes / 1e3


def by_link(folders: Sequence[Path], level: float = 0.95) -> list[LinkRow]:
    """One row for each link and layout, links in the order of the folders, data parallel first, then by bytes sent.

    Raises
    ------
    ValueError: nothing at a folder, or no timed runs there
    """
    return [row for folder in folders for row in _rows(folder, level)]


def _rows(folder: Path, level: float) -> list[LinkRow]:
    runs = runs_table(folder, where="status == ok and step_time_s != null").to_pylist()
    if not runs:
        raise ValueError(f"no finished runs with a step time in {str(folder)!r}")
    steps = waits_of(folder, runs)
    by_layout: dict[str, list[Mapping]] = defaultdict(list)
    for run in runs:
        by_layout[run["layout"]].append(run)
    link, rates = link_name(runs), _known(runs, "link_rate_measured_bits_per_s")
    rows = [_row(link, layout, members, steps, level) for layout, members in by_layout.items()]
    bits_per_s = float(np.median(rates)) if rates else None
    rows = [replace(row, sent_s=_sent_s(row, bits_per_s), ratio=_ratio(row, rows)) for row in rows]
    return sorted(rows, key=lambda row: (row.outer, -(row.sent_bytes or 0)))


def _row(link: str, layout: str, runs: list[Mapping], steps: Mapping[str, Steps], level: float) -> LinkRow:
    waits = [wait for run in runs if (wait := _wait_s(run, steps.get(run["run_id"]))) is not None]
    bytes_sent = [size for run in runs if (size := sent_a_step(run))]
    return LinkRow(
        link=link,
        layout=layout,
        work=work_of(runs[0]),
        outer=has_outer_loop(runs[0]),
        step_s=median([run["step_time_s"] for run in runs], level),
        exposed_s=float(np.median(waits)) if waits else None,
        sent_bytes=float(np.median(bytes_sent)) if bytes_sent else None,
    )


def _wait_s(run: Mapping, steps: Steps | None) -> float | None:
    inner, outer = run["exposed_comm_time_s"], outer_of_step_s(run, steps)
    return None if inner is None and outer is None else (inner or 0.0) + (outer or 0.0)


def _sent_s(row: LinkRow, bits_per_s: float | None) -> float | None:
    return 8 * row.sent_bytes / bits_per_s if bits_per_s and row.sent_bytes else None


def _ratio(row: LinkRow, rows: Sequence[LinkRow]) -> float | None:
    plain = [other.step_s.value for other in rows if not other.outer and other.work == row.work]
    return min(plain) / row.step_s.value if plain and row.work else None


def link_name(runs: Sequence[Mapping]) -> str:
    """The link as measured, medians over the runs: `96 Mbit/s, 0.06 ms`."""
    rates, trips = _known(runs, "link_rate_measured_bits_per_s"), _known(runs, "link_rtt_measured_s")
    if not rates or not trips:
        return "this machine's own"
    return f"{np.median(rates) / MBIT:,.0f} Mbit/s, {np.median(trips) * 1e3:.2g} ms"


def _known(runs: Sequence[Mapping], column: str) -> list[float]:
    return [run[column] for run in runs if run[column]]


def markdown(rows: Sequence[LinkRow]) -> str:
    """The table."""
    lines = [
        "| link, measured | layout | kB sent per rank and step | these at the link's rate, ms | waited, ms | step, ms "
        "| times DP's speed | runs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = (
            row.link,
            row.layout,
            _number(row.sent_kb, "{:,.0f}"),
            _number(row.sent_s, "{:.1f}", 1e3),
            _number(row.exposed_s, "{:.1f}", 1e3),
            _step_text(row.step_s),
            _number(row.ratio, "{:.2f}"),
            str(row.step_s.runs),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else form.format(value * scale)


def _step_text(step: Estimate) -> str:
    low, high = step.interval or (step.least, step.most)
    return f"{step.value * 1e3:.0f}" + (f" ({low * 1e3:.0f} to {high * 1e3:.0f})" if step.runs > 1 else "")


def draw(rows: Sequence[LinkRow], level: float = 0.95) -> Figure:
    """A group of bars for each link; the part of each step that was waited for is hatched."""
    links = list(dict.fromkeys(row.link for row in rows))
    layouts = list(dict.fromkeys(row.layout for row in rows))
    figure, (axes,) = new_figure(8.0, 3.8)
    width, looks, handles = 0.8 / len(layouts), bar_looks(len(layouts)), []
    for index, layout in enumerate(layouts):
        for row in (row for row in rows if row.layout == layout):
            x = links.index(row.link) + (index - (len(layouts) - 1) / 2) * width
            bar = _draw_bar(axes, row, x, width * 0.92, looks[index])
            if row.link == links[0]:
                handles.append(bar)
    axes.set_xticks(range(len(links)), links)
    axes.set(ylabel="ms per step", title="Time per step by link; hatched: waited for communication")
    axes.set_xlabel(interval_text([row.step_s for row in rows], level, "order statistics"), fontsize=7)
    legend(figure, handles, layouts)
    return figure


def _draw_bar(axes: Axes, row: LinkRow, x: float, width: float, look: dict[str, Any]) -> BarContainer:
    """One step: the part that computes, and on it the part that waits. Returns the lower one."""
    wait = min(row.exposed_s or 0.0, row.step_s.value)
    work = (row.step_s.value - wait) * 1e3
    bar = axes.bar(x, work, width, **look | {"hatch": ""})
    axes.bar(x, wait * 1e3, width, bottom=work, **look | {"hatch": "////"})
    with_intervals(axes, [x], [row.step_s], "#222222", 1e3)
    return bar


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or not arguments[0].endswith((".svg", ".png")):
        print("use: python -m scalade.results.report.by_link FIGURE.svg RESULTS...", file=sys.stderr)
        return 2
    out, *folders = map(Path, arguments)
    rows = by_link(folders)
    with style():
        out.write_bytes(encoded(draw(rows), out.suffix.lstrip(".")))
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
