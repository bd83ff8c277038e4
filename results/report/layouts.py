"""Layout beside layout: MFU, where the time of a step went, and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..efficiency.breakdown import RESIDUAL_FLAG, Breakdown
from ..efficiency.workload import Group
from ..stats.rank_intervals import Estimate, median
from .drawing import (
    GREY,
    Drawn,
    Figures,
    Undrawn,
    bar_looks,
    dense,
    in_parts,
    interval_text,
    legend,
    log_scale,
    named_rows,
    short,
    with_intervals,
)
from .source import Source, by_size, positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PARTS = {
    "compute_s": "forward and backward",
    "exposed_comm_s": "exposed communication",
    "bubble_s": "pipeline bubble",
    "data_s": "waiting for data",
    "optimizer_s": "optimizer",
    "outer_s": "outer step",
    "rest_s": "not split off",
}
CONVENTIONS = {
    "mfu_6n": "FLOPs = 6 N per token (Chinchilla)",
    "mfu_palm": "FLOPs with attention, not causal (PaLM)",
    "mfu_causal": "FLOPs with causal attention (Megatron)",
}
MIB = 2.0**20


def mfu(source: Source) -> Figures:
    column = source.convention
    groups = [group for group in source.groups if measured(group, column)]
    if not groups:
        return [Undrawn("MFU by layout", "a known peak of the device: measure.peak_matmul = true measures it")]
    groups.sort(key=lambda g: (by_size(g), -np.median(positive(g.rows, column))))
    return in_parts(groups, "mfu", "MFU by layout", lambda *part: _mfu_figure(source, *part))


def measured(group: Group, column: str) -> bool:
    """Whether every run of the group has a value above 0 in the column."""
    return len(positive(group.rows, column)) == len(group.rows)


def _runs(groups: Iterable[Group]) -> int:
    return sum(len(group.rows) for group in groups)


def _mfu_figure(source: Source, groups: Sequence[Group], name: str, title: str) -> Drawn:
    column = source.convention
    values = [positive(group.rows, column) for group in groups]
    estimates = [median(of_group, source.level) for of_group in values]
    figure, axes = _group_rows(source, groups)
    every = 100 * np.concatenate(values)
    places = np.repeat(np.arange(len(groups)), [len(of_group) for of_group in values])
    axes.plot(every, places, linestyle="none", marker="|", color=GREY, markersize=9, **dense(len(every)))
    with_intervals(axes, range(len(groups)), estimates, "#000000", 100, horizontal=True)
    axes.plot(
        [100 * estimate.value for estimate in estimates],
        range(len(groups)),
        linestyle="none",
        marker="D",
        color="#0072B2",
        zorder=3,
    )
    axes.set(xlabel=f"MFU, % of peak ({column})", xlim=(0, max(1e-9, axes.get_xlim()[1])))
    return Drawn(
        name,
        title,
        figure,
        _runs(groups),
        interval_text(estimates, source.level, "order statistics"),
        f"{CONVENTIONS[column]}, times tokens/s of one device, over its peak: "
        + _peaks(chain.from_iterable(group.rows for group in groups)),
        "Diamond: median over runs; grey ticks: each run. Best first within a model.",
    )


def time_breakdown(source: Source) -> Figures:
    title = "Where the time of a step went"
    split = [(group, b) for group in source.groups if _has_a_part(b := source.breakdown(group))]
    if not split:
        return [Undrawn(title, "compute_time_s, optimizer_time_s or comm_time_s of a run")]
    split.sort(key=lambda pair: (by_size(pair[0]), pair[1].step_s))
    return in_parts(split, "time-breakdown", title, lambda *part: _time_figure(source, *part))


def _has_a_part(b: Breakdown) -> bool:
    parts = (b.compute_s, b.optimizer_s, b.exposed_comm_s, b.outer_s, b.comm_unhidden_s)
    return any(part is not None for part in parts)


class _StepBars:
    """Bars of the parts of a step, one below the other, and the legend's handle of each kind of mark that was drawn."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.looks = dict(zip(PARTS, bar_looks(len(PARTS)), strict=True))
        self.parts: dict[str, BarContainer] = {}
        self.probed: Line2D | None = None
        self.theory: Line2D | None = None

    def add(self, y: int, b: Breakdown) -> None:
        left = 0.0
        for name, seconds in _seconds_of_parts(b):
            share = 100 * seconds / b.step_s
            self.parts[name] = self.axes.barh(y, share, left=left, height=0.7, **self.looks[name])
            left += share
        self.axes.text(101, y, f"{b.step_s * 1e3:,.1f} ms", va="center", fontsize=8, clip_on=False)
        self._add_probed(y, b)
        self._add_theory(y, b)

    def _add_probed(self, y: int, b: Breakdown) -> None:
        if b.comm_unhidden_s:
            self.probed = self.axes.plot(
                min(100 * b.comm_unhidden_s / b.step_s, 100),
                y,
                linestyle="none",
                marker="D",
                markersize=6,
                markerfacecolor="white",
                markeredgecolor="black",
                zorder=4,
                clip_on=False,
            )[0]

    def _add_theory(self, y: int, b: Breakdown) -> None:
        if b.bubble_share_theory is not None:
            self.theory = self.axes.plot(
                100 * _end_of_bubble(b, b.bubble_share_theory),
                y,
                linestyle="none",
                marker="|",
                markersize=13,
                markeredgewidth=2,
                color="#D55E00",
                zorder=4,
            )[0]

    def legend(self, figure: Figure) -> None:
        used = [name for name in PARTS if name in self.parts]
        handles: list = [self.parts[name] for name in used]
        names = [PARTS[name] for name in used]
        marks = ((self.probed, "all collectives, each waited for"), (self.theory, "bubble by formula: its end"))
        for handle, name in marks:
            if handle is not None:
                handles.append(handle)
                names.append(name)
        legend(figure, handles, names)


def _seconds_of_parts(b: Breakdown) -> Iterator[tuple[str, float]]:
    """The parts that took any time, in the order of PARTS."""
    for name in PARTS:
        seconds = _rest(b) if name == "rest_s" else getattr(b, name)
        if (seconds or 0) > 0:
            yield name, seconds


def _end_of_bubble(b: Breakdown, theory: float) -> float:
    """Where the bubble by the formula ends, as a share of the step: it begins at the measured one, else at 0."""
    compute, exposed, bubble = b.compute_s or 0, b.exposed_comm_s or 0, b.bubble_s or 0
    before = compute + exposed if b.bubble_s is not None else 0
    forward_backward = 1 if b.compute_s is None else sum([b.compute_s, exposed, bubble]) / b.step_s
    return before / b.step_s + theory * forward_backward


def _time_figure(source: Source, split: Sequence[tuple[Group, Breakdown]], name: str, title: str) -> Drawn:
    groups = [group for group, _ in split]
    figure, axes = _group_rows(source, groups)
    bars = _StepBars(axes)
    for y, (_, b) in enumerate(split):
        bars.add(y, b)
    axes.set(xlabel="share of the step, %", xlim=(0, 100))
    axes.grid(visible=False)
    bars.legend(figure)
    return Drawn(
        name,
        title,
        figure,
        _runs(groups),
        "none: each part is its median over runs",
        "parts of the median step of the slowest rank, which is written at the right. Diamonds: the communication of "
        "one probed step with every collective waited for, the most that can be exposed; at 100% it was as long as a "
        "step or longer. Exposed communication and bubble: what was waited for, slower ranks in it, mean over the "
        "ranks. The bubble by formula, (p-1)/(vm+p-1) of forward and backward, is marked at its end: it begins where "
        "the measured one does, or at 0 where none was",
        "Fastest first within a model. " + _missing_parts(bars.parts) + _residuals([b for _, b in split]),
    )


def _missing_parts(drawn: Collection[str]) -> str:
    unknown = [PARTS[name] for name in ("compute_s", "exposed_comm_s", "optimizer_s") if name not in drawn]
    return f"Not measured, so not split off: {', '.join(unknown)}. " if unknown else ""


def _residuals(breakdowns: Iterable[Breakdown]) -> str:
    flagged = sum(bool(b.residual_flagged) for b in breakdowns)
    have = "layout has" if flagged == 1 else "layouts have"
    return f"{flagged} {have} more than {RESIDUAL_FLAG:.0%} in no measured part." if flagged else ""


def memory(source: Source) -> Figures:
    title = "Memory of the fullest rank"
    on_device = any(positive(group.rows, "peak_memory_bytes") for group in source.groups)
    column = "peak_memory_bytes" if on_device else "peak_host_memory_bytes"
    groups = [group for group in source.groups if measured(group, column)]
    if not groups:
        return [Undrawn(title, "peak_memory_bytes or peak_host_memory_bytes of a run")]
    groups.sort(key=lambda g: (by_size(g), np.median(positive(g.rows, column))))
    return in_parts(groups, "memory", title, lambda *part: _memory_figure(source, column, *part))


def _memory_figure(source: Source, column: str, groups: Sequence[Group], name: str, title: str) -> Drawn:
    figure, axes = _group_rows(source, groups)
    estimates = [median(positive(group.rows, column), source.level) for group in groups]
    handles = axes.plot(
        [estimate.value / MIB for estimate in estimates],
        range(len(groups)),
        linestyle="none",
        marker="o",
        color="#0072B2",
        zorder=3,
    )
    with_intervals(axes, range(len(groups)), estimates, "#000000", 1 / MIB, horizontal=True)
    predictions = _draw_predicted_memory(axes, groups)
    handles += predictions
    log_scale(axes, "x", lambda value, _: f"{value:,.4g}")
    axes.set_xlabel("MiB, logarithmic")
    legend(figure, handles, ["measured", "predicted before the run"][: len(handles)])
    on_host = "peak resident memory of the process, interpreter and libraries included, which the prediction leaves out"
    return Drawn(
        name,
        title,
        figure,
        _runs(groups),
        interval_text(estimates, source.level, "order statistics"),
        f"measured: {on_host if column == 'peak_host_memory_bytes' else 'peak allocated on the device'}",
        "Circle: median over runs. " + ("Diamond: predicted for a rank." if predictions else "Nothing was predicted."),
    )


def _draw_predicted_memory(axes: Axes, groups: Sequence[Group]) -> list[Line2D]:
    """The legend's handle, or nothing where nothing was predicted."""
    predictions = {y: size for y, group in enumerate(groups) if (size := group["predicted_memory_bytes"])}
    if not predictions:
        return []
    return axes.plot(
        np.array(list(predictions.values())) / MIB,
        list(predictions),
        linestyle="none",
        marker="D",
        markerfacecolor="none",
        color="#D55E00",
        zorder=3,
    )


def throughput_estimate(source: Source, group: Group) -> Estimate:
    return median(group.rates, source.level)


def _peaks(rows: Iterable[Mapping]) -> str:
    """The peaks of these runs by their source; the MFU of each run is over its own."""
    by_origin: dict[str, list[float]] = {}
    for row in rows:
        if row["peak_flops"] is not None:
            by_origin.setdefault(str(row["peak_flops_source"]), []).append(row["peak_flops"])
    return "; ".join(f"{origin}, {_range(peaks)} FLOP/s" for origin, peaks in sorted(by_origin.items()))


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{short(low)} to {short(high)}" if high > low else short(low)


def _group_rows(source: Source, groups: Sequence[Group]) -> tuple[Figure, Axes]:
    """A figure with one named row for each group, the first on top."""
    figure, axes = named_rows([source.name(group) for group in groups])
    models = [group["model"] for group in groups]
    if 2 * len(set(models)) <= len(models):  # a line between models that have several rows each
        for y, (above, below) in enumerate(pairwise(models)):
            if above != below:
                axes.axhline(y + 0.5, color=GREY, linewidth=0.6)
    return figure, axes


def _rest(b: Breakdown) -> float:
    """The time in no measured part: the residual if there is one."""
    if b.residual_s is not None:
        return b.residual_s
    return b.step_s - sum(value or 0.0 for value in (b.exposed_comm_s, b.bubble_s, b.data_s, b.optimizer_s, b.outer_s))
