"""Predicted against measured: step time, memory and the parts of a step, with intervals and both naive predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..efficiency.workload import Group
from ..stats.rank_intervals import Estimate, median
from ..wording import count_of
from .drawing import (
    GREY,
    Drawn,
    Figures,
    Undrawn,
    dense,
    interval_text,
    legend,
    log_scale,
    look,
    new_figure,
    with_intervals,
)
from .layouts import MIB
from .source import Source, label, positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

TITLE = "Predicted against measured"
LEVEL = 0.9  # of the predictions' intervals


@dataclass(frozen=True)
class Quantity:
    """One that is predicted before a run and measured in it: names of columns, and how it is shown."""

    name: str
    unit: str
    scale: float
    prediction: str
    measured: str
    low: str = ""  # columns of the prediction's interval
    high: str = ""
    naive: tuple[tuple[str, str], ...] = ()  # (name, column) of simpler predictions

    @property
    def label(self) -> str:
        return f"{self.name}, {self.unit}"


WHOLE = (
    Quantity(
        "step time",
        "ms",
        1e3,
        "predicted_step_time_s",
        "step_time_s",
        "predicted_step_time_low_s",
        "predicted_step_time_high_s",
        (
            ("constant MFU", "predicted_constant_mfu_step_time_s"),
            ("as at the smallest scale", "predicted_smallest_scale_step_time_s"),
        ),
    ),
    Quantity(
        "device memory",
        "MiB",
        1 / MIB,
        "predicted_memory_bytes",
        "peak_memory_bytes",
        "predicted_memory_low_bytes",
        "predicted_memory_high_bytes",
    ),
)
PARTS = tuple(
    Quantity(name, "ms", 1e3, f"predicted_{column}", column)
    for name, column in (
        ("forward and backward", "compute_time_s"),
        ("exposed communication", "exposed_comm_time_s"),
        ("pipeline bubble", "bubble_time_s"),
        ("optimizer", "optimizer_time_s"),
        ("waiting for data", "data_time_s"),
    )
)


@dataclass(frozen=True)
class Pair:
    """A group's prediction beside its measurement. low, high: of the prediction; equal to it where it has none."""

    group: Group
    predicted: float
    low: float
    high: float
    measured: Estimate

    @property
    def ratio(self) -> float:
        """predicted / measured"""
        return self.predicted / self.measured.value

    @property
    def has_interval(self) -> bool:
        return self.low < self.high

    @property
    def is_inside(self) -> bool:
        return self.low <= self.measured.value <= self.high


def predicted(source: Source) -> Figures:
    """The whole (step time, memory) in one figure and the parts of a step in another, where both sides are known."""
    whole = _figure(source, WHOLE, "predicted", TITLE)
    if whole is None:
        needs = "predicted_step_time_s beside step_time_s, or predicted_memory_bytes beside peak_memory_bytes"
        return [Undrawn(TITLE, needs)]
    parts = _figure(source, PARTS, "predicted-parts", f"{TITLE}, part by part")
    return [whole, parts] if parts else [whole]


def _figure(source: Source, quantities: Sequence[Quantity], name: str, title: str) -> Drawn | None:
    """None: none of the quantities is known on both sides."""
    panels = [(quantity, pairs) for quantity in quantities if (pairs := pairs_of(source, quantity))]
    if not panels:
        return None
    figure, all_axes = new_figure(4.3 * len(panels) + (0.8 if len(panels) == 1 else 0), 4.2, len(panels))
    families = list(dict.fromkeys(pair.group.family for _, pairs in panels for pair in pairs))
    handles: dict[str, Line2D] = {}
    for axes, (quantity, pairs) in zip(all_axes, panels, strict=True):
        _draw(axes, quantity, pairs, families, handles)
    legend(figure, list(handles.values()), list(map(label, handles)))
    texts = [reading(source, quantity, pairs) for quantity, pairs in panels]
    return Drawn(
        name,
        title,
        figure,
        len({row["run_id"] for _, pairs in panels for pair in pairs for row in pair.group.rows}),
        interval_text([pair.measured for _, pairs in panels for pair in pairs], source.level, "order statistics"),
        "predicted before the run from shape, layout and the machine's profile; measured as in the table",
        f"Dotted: equal; band: 20% either way; bars: {LEVEL:.0%} interval of the prediction. {'; '.join(texts)}.",
    )


def pairs_of(source: Source, quantity: Quantity) -> list[Pair]:
    """Of each group that has both. Runs of a group may have been predicted by more than one profile: the first's."""
    found = []
    for group in source.groups:
        value = group[quantity.prediction]
        measured = positive(group.rows, quantity.measured)
        if (value or 0) > 0 and len(measured) == len(group.rows):
            low, high = (group[column] if column else None for column in (quantity.low, quantity.high))
            low, high = (low, high) if low is not None and high is not None else (value, value)
            found.append(Pair(group, value, low, high, median(measured, source.level)))
    return found


def reading(source: Source, quantity: Quantity, pairs: Sequence[Pair]) -> str:
    """What the panel says in words: how near, how well covered, and how near the naive predictions are."""
    ratios = np.array([pair.ratio for pair in pairs])
    within = np.mean(np.abs(np.log(ratios)) <= np.log(1.2))
    text = (
        f"{quantity.name}: {within:.0%} of {count_of(len(ratios), 'layout')} within 20%, predicted/measured "
        f"{np.median(ratios):.2f} in the median, {ratios.min():.2f} to {ratios.max():.2f}"
    )
    if stated := [pair.is_inside for pair in pairs if pair.has_interval]:
        text += f", {np.mean(stated):.0%} inside the {LEVEL:.0%} interval"
    for name, column in quantity.naive:
        naive = Quantity(name, quantity.unit, quantity.scale, column, quantity.measured)
        if others := pairs_of(source, naive):
            error = np.median([abs(pair.ratio - 1) for pair in others])
            text += f"; median error of {name} {error:.0%}"
            ours = np.median(np.abs(ratios - 1))
            text += f", of the model {ours:.0%}" if name == quantity.naive[-1][0] else ""
    return text


def _draw(
    axes: Axes, quantity: Quantity, pairs: Sequence[Pair], families: Sequence[str], handles: dict[str, Line2D]
) -> None:
    """Draws a panel and adds the legend's handle of each family."""
    scale = quantity.scale
    values = scale * np.array([[pair.low, pair.predicted, pair.high, pair.measured.value] for pair in pairs])
    values = values[values > 0]
    ends = np.array([values.min() / 1.3, values.max() * 1.3])
    axes.plot(ends, ends, color=GREY, linestyle=(0, (1, 1)))
    axes.fill_between(ends, ends / 1.2, ends * 1.2, color=GREY, alpha=0.15, linewidth=0)
    for index, family in enumerate(families):
        of_family = [pair for pair in pairs if pair.group.family == family]
        if of_family:
            points = look(index) | {"linestyle": "none"} | dense(len(of_family))
            xs = [pair.predicted * scale for pair in of_family]
            handles[family] = axes.plot(xs, [pair.measured.value * scale for pair in of_family], **points, zorder=3)[0]
            with_intervals(axes, xs, [pair.measured for pair in of_family], points["color"], scale)
            for pair in of_family:
                if pair.has_interval:
                    heights = [pair.measured.value * scale] * 2
                    axes.plot([pair.low * scale, pair.high * scale], heights, color=points["color"], linewidth=0.8)
    axes.set(xlim=ends, ylim=ends, xlabel=f"predicted {quantity.label}", ylabel=f"measured {quantity.label}")
    for which in ("x", "y"):
        log_scale(axes, which, lambda value, _: f"{value:,.4g}")
