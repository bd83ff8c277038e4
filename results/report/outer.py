"""DiLoCo and its family against data parallel: loss and speed for the bytes that one rank sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..efficiency.fastest import same_training
from ..efficiency.workload import Group, has_outer_loop
from ..stats.rank_intervals import Estimate, median
from ..wording import count_of
from .comparable import loss_column
from .drawing import (
    Drawn,
    Figures,
    Undrawn,
    chunks,
    interval_text,
    legend,
    log_scale,
    look,
    new_figure,
    numbered,
    with_intervals,
)
from .source import Source, label, positive, work_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class _Comparison:
    """Data parallel and outer loops of one workload, which all sent something.

    folded: layouts with an outer loop that are left out, as their replicas share a rank and send nothing.
    """

    plain: list[Group]
    outer: list[Group]
    folded: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> _Comparison:
        sides: dict[bool, list[Group]] = {False: [], True: []}
        for group in groups:
            sides[has_outer_loop(group.rows[0])].append(group)
        folded = sum(group["outer_placement"] == "folded" for group in sides[True])
        plain, outer = ([group for group in side if sent(group.rows[0])] for side in sides.values())
        return cls(plain, outer, folded)

    @property
    def groups(self) -> list[Group]:
        return self.plain + self.outer


def diloco(source: Source) -> Figures:
    title = "DiLoCo against data parallel"
    by_work: dict[int, list[Group]] = {}
    for group, work in zip(source.groups, same_training(source.groups), strict=True):
        by_work.setdefault(work, []).append(group)
    every = [_Comparison.of(groups) for groups in by_work.values()]
    ready = [one for one in every if one.plain and one.outer]
    if not ready:
        return [Undrawn(title, _needs(sum(one.folded for one in every)))]
    parts, more = chunks(ready, title, 1)
    return [
        *more,
        *(_figure(source, *numbered("diloco", title, at, len(parts)), one) for at, (one,) in enumerate(parts, 1)),
    ]


def _needs(folded: int) -> str:
    also = f" ({count_of(folded, 'layout')} with an outer loop and folded replicas sent nothing)" if folded else ""
    return (
        "runs with an outer loop beside data parallel ones of the same model, data and recipe, "
        f"with the bytes counted (measure.probe_comm = true){also}"
    )


def sent(row: Mapping) -> float | None:
    """Bytes that one rank passed to collectives over the run; None if that was not counted. With an outer loop: in
    its inner steps, and for the outer steps that the run took."""
    inner = _inner_step(row)
    if row.get("steps") is None or inner is None:
        return None
    return inner * row["steps"] + (row.get("outer_bytes_per_rank") or 0) or None


def sent_a_step(row: Mapping) -> float | None:
    """The same for one step, which does not depend on the length of the run: the outer step of a round over its H."""
    inner = _inner_step(row)
    if inner is None or (row.get("outer_bytes_per_round") is None and has_outer_loop(row)):
        return None
    return inner + (row.get("outer_bytes_per_round") or 0) / (row.get("outer_sync_every") or 1) or None


def _inner_step(row: Mapping) -> float | None:
    name = "comm_bytes_inner_step" if has_outer_loop(row) else "comm_bytes_per_step"
    return row[name] / row["world_size"] if row.get(name) is not None and row.get("world_size") else None


def _median_sent(group: Group) -> float:
    return float(np.median([sent(row) for row in group.rows]))


class _Panels:
    """Loss and throughput over the bytes sent; losses, speeds: the estimates that are drawn."""

    def __init__(self, groups: Sequence[Group], column: str, level: float) -> None:
        self.figure, (self.left, self.right) = new_figure(9.0, 4.2, 2)
        self.groups, self.column, self.level = groups, column, level
        self.kinds = list(dict.fromkeys(map(_kind, groups)))
        self.handles: dict[str, Line2D] = {}
        self.losses: list[Estimate] = []
        self.speeds: list[Estimate] = []

    def draw(self) -> None:
        for group in self.groups:
            losses = positive(group.rows, self.column)
            if losses:
                self.losses.append(median(losses, self.level))
                self._draw_point(self.left, group, self.losses[-1])
            self.speeds.append(median(group.rates, self.level))
            self._draw_point(self.right, group, self.speeds[-1])
        kind_of_loss = "held-out" if self.column == "val_loss" else "training"
        self.left.set(ylabel=f"{kind_of_loss} loss, nats per token", title="Loss")
        self.right.set(ylabel="tokens/s", title="Throughput")
        for axes in (self.left, self.right):
            axes.set_xlabel("MB sent by one rank over the run")
            log_scale(axes, "x")
        log_scale(self.right, "y")
        legend(self.figure, list(self.handles.values()), list(map(label, self.handles)))

    def _draw_point(self, axes: Axes, group: Group, estimate: Estimate) -> None:
        index = self.kinds.index(_kind(group))
        style = look(index) | {"linestyle": "none"}
        megabytes = _median_sent(group) / 1e6
        self.handles[_kind(group)] = axes.plot(megabytes, estimate.value, **style, zorder=3)[0]
        with_intervals(axes, [megabytes], [estimate], style["color"])
        if group["outer_sync_every"]:
            offset = (5, -10 if index % 2 == 0 else 5)
            text = f"H {group['outer_sync_every']}"
            axes.annotate(text, (megabytes, estimate.value), offset, textcoords="offset points", size=7)


def _figure(source: Source, name: str, title: str, comparison: _Comparison) -> Drawn:
    groups = comparison.groups
    column = loss_column([row for group in groups for row in group.rows])
    panels = _Panels(groups, column, source.level)
    panels.draw()
    losses = interval_text(panels.losses, source.level, "order statistics") or "none"
    speeds = interval_text(panels.speeds, source.level, "order statistics")
    times_less = min(map(_median_sent, comparison.plain)) / min(map(_median_sent, comparison.outer))
    folded = comparison.folded
    return Drawn(
        name,
        f"{title}: {work_name(groups[0])}",
        panels.figure,
        sum(len(group.rows) for group in groups),
        f"loss: {losses}. Throughput: {speeds}",
        "bytes are the sizes of the messages that a rank hands to collectives, inner and outer; a ring all-reduce "
        "moves 2 (n-1)/n of that on the wire. Every run sees the same tokens in the same global batch",
        f"H: inner steps between two outer steps. The least that an outer loop sent is {times_less:,.1f} times less "
        "than the least of data parallel."
        + (f" Not drawn: {count_of(folded, 'layout')} whose replicas are folded and send nothing." if folded else ""),
    )


def _kind(group: Group) -> str:
    """The groups that share a look and a name."""
    ranks = count_of(group.devices, "rank")
    if not has_outer_loop(group.rows[0]):
        return f"{group['layout'] or '?'}, {ranks}"
    compression = group["outer_compression"] or "none"
    compressed = "" if compression == "none" else f" {compression}"
    return f"{group['outer_algorithm']} M {group['outer_replicas']}{compressed}, {ranks}"
