"""One study on several links: what a step takes over each, how much of it was waiting, and what was sent.

    python -m scalade.results.report.by_link FIGURE.svg RESULTS...     the figure, and its table as Markdown

Each results folder is the study on one link (a lab's; one folder each, as a case is the same over all of them).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..efficiency.breakdown import outer_of_step_s
from ..efficiency.command import waits_of
from ..stats.rank_intervals import Estimate, median
from ..table.read import runs_table
from ..table.step_columns import Steps
from ..table.work import work_of
from .drawing import bar_looks, encoded, interval_text, legend, new_figure, style, with_intervals
from .outer import sent_a_step

MBIT = 1e6


def by_link(folders: Sequence[Path], level: float = 0.95) -> list[dict]:
    """One row for each link and layout, links in the folders' order, data parallel first, then by the bytes sent.

    `step_s`: Estimate over runs. `exposed_s`: of a step, median over runs of what inner collectives were waited for
    (median step) and outer ones (of a round, over H); None where it was not measured. `sent_bytes`: of one rank and
    step. `sent_s`: what these take at the link's measured rate, for two ranks the least there is (a ring moves each
    message once); None without a lab. `ratio`: step time of the layout without an outer loop over this one's, of
    the same tokens a step; `work`: these.

    Raises
    ------
    ValueError: nothing at a folder, or no timed runs there
    """
    rows = []
    for folder in folders:
        runs = runs_table(folder, where="status == ok and step_time_s != null").to_pylist()
        if not runs:
            raise ValueError(f"no finished runs with a step time in {str(folder)!r}")
        steps = waits_of(folder, runs)
        groups: dict[str, list[dict]] = defaultdict(list)
        for run in runs:
            groups[run["layout"]].append(run)
        link, rates = link_name(runs), _told(runs, "link_rate_measured_bits_per_s")
        found = [{"link": link} | _row(name, some, steps, level) for name, some in groups.items()]
        for row in found:
            plain = [other["step_s"].value for other in found if not other["outer"] and other["work"] == row["work"]]
            row["sent_s"] = 8 * row["sent_bytes"] / np.median(rates) if rates and row["sent_bytes"] else None
            row["ratio"] = min(plain) / row["step_s"].value if plain and row["work"] else None
        rows += sorted(found, key=lambda row: (row["outer"], -(row["sent_bytes"] or 0)))
    return rows


def _row(layout: str, runs: list[dict], steps: Mapping[str, Steps], level: float) -> dict:
    waited = [(run["exposed_comm_time_s"], outer_of_step_s(run, steps.get(run["run_id"]))) for run in runs]
    waits = [(inner or 0.0) + (outer or 0.0) for inner, outer in waited if inner is not None or outer is not None]
    bytes_each = [sent_a_step(run) for run in runs if sent_a_step(run)]
    return {
        "layout": layout,
        "work": work_of(runs[0]),
        "outer": (runs[0]["outer_algorithm"] or "none") != "none",
        "step_s": median([run["step_time_s"] for run in runs], level),
        "exposed_s": float(np.median(waits)) if waits else None,
        "sent_bytes": float(np.median(bytes_each)) if bytes_each else None,
    }


def link_name(runs: Sequence[dict]) -> str:
    """As measured, medians over the runs: `96 Mbit/s, 0.06 ms`."""
    rates, trips = _told(runs, "link_rate_measured_bits_per_s"), _told(runs, "link_rtt_measured_s")
    if not rates or not trips:
        return "this machine's own"
    return f"{np.median(rates) / MBIT:,.0f} Mbit/s, {np.median(trips) * 1e3:.2g} ms"


def _told(runs: Sequence[dict], column: str) -> list[float]:
    return [run[column] for run in runs if run[column]]


def markdown(rows: Sequence[dict]) -> str:
    """The table."""
    lines = [
        "| link, measured | layout | kB sent per rank and step | these at the link's rate, ms | waited, ms | step, ms "
        "| times DP's speed | runs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        step: Estimate = row["step_s"]
        low, high = (step.least, step.most) if step.low is None else (step.low, step.high)
        around = f" ({low * 1e3:.0f} to {high * 1e3:.0f})" if step.runs > 1 else ""
        wait, least = ("-" if row[key] is None else f"{row[key] * 1e3:.1f}" for key in ("exposed_s", "sent_s"))
        size = "-" if row["sent_bytes"] is None else f"{row['sent_bytes'] / 1e3:,.0f}"
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"| {row['link']} | {row['layout']} | {size} | {least} | {wait} | {step.value * 1e3:.0f}{around} | {ratio} "
            f"| {step.runs} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict], level: float = 0.95):
    """matplotlib.figure.Figure: a group of bars for each link, the waiting part of each step hatched."""
    links = list(dict.fromkeys(row["link"] for row in rows))
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    figure, (axes,) = new_figure(8.0, 3.8)
    width, handles = 0.8 / len(layouts), []
    for i, layout in enumerate(layouts):
        for row in (row for row in rows if row["layout"] == layout):
            x = links.index(row["link"]) + (i - (len(layouts) - 1) / 2) * width
            wait = min(row["exposed_s"] or 0.0, row["step_s"].value)
            one = bar_looks(len(layouts))[i] | {"hatch": ""}
            bar = axes.bar(x, (row["step_s"].value - wait) * 1e3, width * 0.92, **one)
            axes.bar(x, wait * 1e3, width * 0.92, bottom=(row["step_s"].value - wait) * 1e3, **one | {"hatch": "////"})
            with_intervals(axes, [x], [row["step_s"]], "#222222", 1e3)
            if row["link"] == links[0]:
                handles.append(bar)
    axes.set_xticks(range(len(links)), links)
    axes.set(ylabel="ms per step", title="Time per step by link; hatched: waited for communication")
    axes.set_xlabel(interval_text([row["step_s"] for row in rows], level, "order statistics"), fontsize=7)
    legend(figure, handles, layouts)
    return figure


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
