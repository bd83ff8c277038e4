"""Throughput and efficiency against devices: ideal lines, intervals over runs, fitted laws of systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..efficiency.series import Series
from ..efficiency.workload import TOKENS
from .drawing import (
    GREY,
    Drawn,
    Figures,
    Undrawn,
    chunks,
    device_scale,
    interval_text,
    legend,
    log_scale,
    look,
    new_figure,
    numbered,
    with_intervals,
)
from .source import Source, label, work_name

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

WORDS = {
    "strong": "total work fixed: the same tokens a step on more devices",
    "weak": "work per device fixed: the tokens of a step grow with the devices",
}


def scaling(source: Source) -> Figures:
    """One figure for each workload and mode."""
    figures: Figures = []
    for mode, series in source.series.items():
        title = f"{mode.capitalize()} scaling"
        by_work: dict[tuple, list[Series]] = {}
        for one in series:
            by_work.setdefault((one.base.group.match_key, one.base.group.level("strong")), []).append(one)
        most_points = sorted(by_work.values(), key=lambda members: -sum(len(one.points) for one in members))
        parts, more = chunks(most_points, title, 1)
        figures += more
        for index, (members,) in enumerate(parts, 1):
            figures.append(_figure(source, mode, members, *numbered(f"scaling-{mode}", title, index, len(parts))))
        if not series:
            grows = "with the same tokens a step" if mode == "strong" else "with the same tokens a step per device"
            needs = f"runs of one model, recipe and engine on two device counts or more {grows}"
            figures.append(Undrawn(title, needs + _in_the_way(source, mode)))
    return figures


def _in_the_way(source: Source, mode: str) -> str:
    """The columns that alone keep runs from being compared; a user may allow them to differ."""
    other = {TOKENS} if mode == "weak" else set()
    columns = sorted({name for one in source.refused for name in one.columns if set(one.columns) - other} - other)
    names = ", ".join(columns[:3]) + (f" and {len(columns) - 3} more" if len(columns) > 3 else "")
    return f"; the runs that are there differ in {names} (`allow` compares them all the same)" if columns else ""


class _Panels:
    """Throughput and efficiency of the series of one workload, side by side.

    curved, straight, alone: the series with the curve of a law, with lines between medians, and with points only.
    """

    def __init__(self, members: Sequence[Series]) -> None:
        self.figure, (self.left, self.right) = new_figure(8.6, 4.1, 2)
        self.members = members
        self.base = members[0].base
        self.counts = sorted({point.group.devices for one in members for point in one.points})
        self.handles: list[Line2D] = []
        self.curved: list[str] = []
        self.straight: list[str] = []
        self.alone: list[str] = []

    def draw(self) -> None:
        ends = np.array([self.base.group.devices, self.counts[-1]])
        ideal = self.left.plot(
            ends,
            self.base.tokens_per_s.value * ends / self.base.group.devices,
            color=GREY,
            linestyle=(0, (1, 1)),
            linewidth=1.2,
            zorder=1,
        )[0]
        self.right.axhline(1, color=GREY, linestyle=(0, (1, 1)), linewidth=1.2, zorder=1)
        for index, series in enumerate(self.members):
            self._draw_series(index, series)
        self._draw_axes()
        engines = {one.engine for one in self.members}
        names = [label(one.family + (f", {one.engine}" if len(engines) > 1 else "")) for one in self.members]
        legend(self.figure, [ideal, *self.handles], ["ideal", *names])

    def _draw_series(self, index: int, series: Series) -> None:
        style = look(index)
        points = style | {"linestyle": "none"}
        dodge = 2 ** (0.07 * (index - (len(self.members) - 1) / 2))  # families on as many devices stand side by side
        devices = np.array([point.group.devices for point in series.points])
        speeds = [point.tokens_per_s for point in series.points]
        rates = np.array([speed.value for speed in speeds])
        self.left.plot(devices * dodge, rates, **points, zorder=3)
        with_intervals(self.left, devices * dodge, speeds, style["color"])
        self._draw_efficiency(series, dodge, points)
        has_line = self._draw_line(series, devices, rates, style)
        self.handles.append(self.left.plot([], [], **(style if has_line else points))[0])

    def _draw_efficiency(self, series: Series, dodge: float, style: dict) -> None:
        """The base is drawn at 1, without an interval."""
        at = np.array([point.group.devices for point in series.points]) * dodge
        ratios = [point.efficiency for point in series.points]
        self.right.plot(at, [1.0 if ratio is None else ratio.value for ratio in ratios], **style, zorder=3)
        bounded = [(x, ratio) for x, ratio in zip(at, ratios, strict=True) if ratio is not None]
        with_intervals(self.right, [x for x, _ in bounded], [ratio for _, ratio in bounded], style["color"])

    def _draw_line(self, series: Series, devices: np.ndarray, rates: np.ndarray, style: dict) -> bool:
        """The curve of the best law, lines between medians where no law is fitted; False: there is neither."""
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.2, "zorder": 2}
        laws = sorted(series.fitted_laws, key=lambda law: law.rms_relative_error)
        if laws:
            grid = np.geomspace(devices.min(), devices.max(), 60)
            fitted = np.array([laws[0].throughput(n) for n in grid])
            self.left.plot(grid, fitted, **line)
            self.right.plot(grid, fitted / grid * self.base.group.devices / series.base.tokens_per_s.value, **line)
            self.curved.append(f"{series.family} ({laws[0].law.name}, rms error {laws[0].rms_relative_error:.1%})")
            return True
        counts = sorted(set(devices.tolist()))
        if len(counts) > 2:
            best = np.array([rates[devices == n].max() for n in counts])
            self.left.plot(counts, best, **line)
            share = best / counts * series.base.group.devices / best[counts.index(devices[0])]
            self.right.plot(counts, share, **line)
            self.straight.append(series.family)
            return True
        self.alone.append(series.family)
        return False

    def _draw_axes(self) -> None:
        log_scale(self.left, "y")
        self.left.set(xlabel="devices (ranks)", ylabel="tokens/s", title="Throughput")
        self.right.set(
            xlabel="devices (ranks)",
            ylabel="efficiency",
            title="Efficiency against the base",
            ylim=(0, max(1.1, self.right.get_ylim()[1])),
        )
        for axes in (self.left, self.right):
            device_scale(axes, self.counts)
            axes.set_xlim(self.counts[0] / 1.25, self.counts[-1] * 1.25)

    def lines_text(self) -> str:
        """What the lines of the series are."""
        texts = [f"Curves: fitted laws of {', '.join(self.curved)}."] if self.curved else []
        if self.straight:
            texts.append(f"Lines between medians: {', '.join(self.straight)} (too few device counts for a law).")
        if self.alone:
            texts.append(f"Points only, two device counts are no trend: {', '.join(self.alone)}.")
        return " ".join(texts)


def _figure(source: Source, mode: str, members: Sequence[Series], name: str, title: str) -> Drawn:
    panels = _Panels(members)
    panels.draw()
    base = panels.base
    points = list({id(point.group): point for one in members for point in one.points}.values())
    absolute = f"{base.tokens_per_s.value:,.0f} tokens/s, {base.step_time_s.value * 1e3:,.1f} ms a step"
    rates = interval_text([point.tokens_per_s for point in points], source.level, "order statistics")
    ratios = [point.efficiency for point in points if point.efficiency is not None]
    return Drawn(
        name,
        f"{title}: {work_name(base.group)}",
        panels.figure,
        sum(len(point.group.rows) for point in points),
        f"throughput: {rates}. Efficiency: {interval_text(ratios, source.level, 'Hodges-Lehmann ratio')}",
        f"{WORDS[mode]}. Efficiency = device-seconds per token of the base over those of the point. "
        f"Base of 1: {base.group.where}, {absolute}. Throughput is tokens_per_step over the median step time of the "
        "slowest rank; where steps differ in tokens, all tokens over all time",
        f"Dotted grey: ideal. Points that share a device count are set side by side. {panels.lines_text()}",
    )
