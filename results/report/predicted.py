"""Predicted against measured: step time and device memory, where both are known and of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..efficiency.workload import Group
from ..schema.rows import distinct
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
from .layouts import MIB, measured
from .source import Source, label, positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class _Panel:
    """One quantity that was predicted and measured; pairs: of each group its prediction and its measurement."""

    name: str
    unit: str
    scale: float
    pairs: list[tuple[Group, float, Estimate]]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.unit}"

    def text(self, ratios: np.ndarray) -> str:
        """ratios: predicted over measured."""
        within = np.mean(np.abs(np.log(ratios)) <= np.log(1.2))
        return (
            f"{self.name}: {within:.0%} of {count_of(len(ratios), 'layout')} within 20%, predicted/measured "
            f"{np.median(ratios):.2f} in the median, {ratios.min():.2f} to {ratios.max():.2f}"
        )


PREDICTED = (
    ("predicted_step_time_s", "step_time_s", "step time", "ms", 1e3),
    ("predicted_memory_bytes", "peak_memory_bytes", "device memory", "MiB", 1 / MIB),
)


def predicted(source: Source) -> Figures:
    """Predicted against measured, where both are known and of one kind."""
    title = "Predicted against measured"
    every = (
        _Panel(name, unit, scale, _predicted_pairs(source, prediction, column))
        for prediction, column, name, unit, scale in PREDICTED
    )
    panels = [panel for panel in every if panel.pairs]
    if not panels:
        needs = "predicted_step_time_s beside step_time_s, or predicted_memory_bytes beside peak_memory_bytes"
        return [Undrawn(title, needs)]
    pairs = list(chain.from_iterable(panel.pairs for panel in panels))
    figure, all_axes = new_figure(4.3 * len(panels) + (0.8 if len(panels) == 1 else 0), 4.2, len(panels))
    families = list(dict.fromkeys(group.family for group, *_ in pairs))
    handles: dict[str, Line2D] = {}
    texts = [
        panel.text(_draw_predicted(axes, panel, families, handles))
        for axes, panel in zip(all_axes, panels, strict=True)
    ]
    legend(figure, list(handles.values()), list(map(label, handles)))
    return [
        Drawn(
            "predicted",
            title,
            figure,
            len(set().union(*(distinct(group.rows, "run_id") for group, *_ in pairs))),
            interval_text([estimate for *_, estimate in pairs], source.level, "order statistics"),
            "predicted before the run from shape and layout; measured as in the table",
            "Dotted: equal; band: 20% either way. " + "; ".join(texts) + ".",
        )
    ]


def _predicted_pairs(source: Source, prediction: str, column: str) -> list[tuple[Group, float, Estimate]]:
    return [
        (group, group[prediction], median(positive(group.rows, column), source.level))
        for group in source.groups
        if (group[prediction] or 0) > 0 and measured(group, column)
    ]


def _draw_predicted(axes: Axes, panel: _Panel, families: Sequence[str], handles: dict[str, Line2D]) -> np.ndarray:
    """Draws a panel, adds the legend's handle of each family, and returns predicted over measured, (groups,)."""
    scale = panel.scale
    values = np.array([[guess * scale, estimate.value * scale] for _, guess, estimate in panel.pairs])
    ends = np.array([values.min() / 1.3, values.max() * 1.3])
    axes.plot(ends, ends, color=GREY, linestyle=(0, (1, 1)))
    axes.fill_between(ends, ends / 1.2, ends * 1.2, color=GREY, alpha=0.15, linewidth=0)
    for index, family in enumerate(families):
        of_family = [(guess * scale, estimate) for group, guess, estimate in panel.pairs if group.family == family]
        if of_family:
            xs, estimates = zip(*of_family, strict=True)
            points = look(index) | {"linestyle": "none"} | dense(len(of_family))
            handles[family] = axes.plot(xs, [estimate.value * scale for estimate in estimates], **points, zorder=3)[0]
            with_intervals(axes, xs, estimates, points["color"], scale)
    axes.set(xlim=ends, ylim=ends, xlabel=f"predicted {panel.label}", ylabel=f"measured {panel.label}")
    for which in ("x", "y"):
        log_scale(axes, which, lambda value, _: f"{value:,.4g}")
    return values[:, 0] / values[:, 1]
