"""Loss against tokens, FLOPs and device-hours, a line a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ..efficiency.workload import has_outer_loop
from ..table.step_columns import Steps
from ..table.work import work_of
from ..wording import count_of
from .drawing import GREY, Drawn, Figures, Undrawn, legend, log_scale, new_figure, powers, short, size_looks, size_scale
from .source import Source, label

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

FEW = 8  # cases that have a line and name each; of more, each model has
CURVES = 60  # drawn at most; the legend says of how many
EARLY = 12  # runs that ended early, drawn at most
POINTS = 160  # of one curve, evenly spaced in the logarithm of its steps
SMOOTHED = 0.05
OF_CURVES = ("tokens_seen", "loss", "step_time_s")  # columns of `steps`


def curves(source: Source) -> Figures:
    title = "Loss against tokens, FLOPs and device-hours"
    cases = _cases_with_steps(source)
    drawn = _readable(source, _spread(cases, CURVES))
    if not drawn:
        return [Undrawn(title, "the steps of a run with status ok: a results folder, not an exported file of runs")]
    chart = _Curves([rows for rows, _ in drawn])
    for rows, steps in drawn:
        chart.add_case(rows, steps)
    if not chart.handles:
        return [Undrawn(title, "losses in `steps`")]
    early = _early(source)
    for row, its_steps in early[:EARLY]:
        chart.add_early(row, its_steps)
    chart.finish()
    shared = "" if chart.name_of is _case else "; all layouts of a model share its colour and line"
    return [
        Drawn(
            "loss-curves",
            title,
            chart.figure,
            chart.runs,
            "none: a line is the mean over the runs of a case",
            f"training loss over the global batch, before the update. {chart.clock.capitalize()}: step times of the "
            "slowest rank, warm-up counted, times ranks; start-up, evaluations not counted. FLOPs: 6 N per token, N "
            "all parameters",
            f"One line a case, each step the mean of the last {SMOOTHED:.0%} of the steps so far{shared}. "
            "Left and middle, layouts that compute the same lie on each other."
            + _left_out_text(len(drawn), len(cases), len(early)),
        )
    ]


def _left_out_text(drawn: int, cases: int, early: int) -> str:
    """How many cases and early runs are not drawn."""
    text = "" if drawn == cases else f" {drawn} of {count_of(cases, 'case')} are drawn, spread by size."
    if early:
        shown = f"{EARLY} of {early}" if early > EARLY else f"{early}"
        text += f" Dashed, to a cross: runs that were not ok, as far as they came ({shown})."
    return text


def _cases_with_steps(source: Source) -> list[list[Mapping]]:
    """The ok runs of each case that may have steps, small models and short runs first."""
    cases: dict[str, list[Mapping]] = {}
    for row in source.ok:
        if source.may_have_steps(row) and work_of(row):
            cases.setdefault(row["case_id"], []).append(row)
    return sorted(cases.values(), key=lambda rows: (rows[0]["params_total"] or 0, rows[0]["tokens_seen"] or 0))


def _readable(source: Source, cases: Sequence[Sequence[Mapping]]) -> list[tuple[list[Mapping], list[Steps]]]:
    """The runs of each case whose steps can be read, and these; cases without such runs are left out."""
    steps = source.steps(list(chain.from_iterable(cases)), OF_CURVES)
    kept = ([row for row in rows if row["run_id"] in steps] for rows in cases)
    return [(rows, [steps[row["run_id"]] for row in rows]) for rows in kept if rows]


def _spread(cases: list[list[Mapping]], most: int) -> list[list[Mapping]]:
    """At most so many of them, evenly spaced."""
    places = np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int)
    return [cases[at] for at in np.unique(places)]


class _Curves:
    """Loss over tokens, FLOPs and time in three panels; name_of: the name of a case, which those of a look share."""

    def __init__(self, cases: Sequence[Sequence[Mapping]]) -> None:
        self.name_of = _case if len(cases) <= FEW else _kind
        sizes = {self.name_of(rows[0]): rows[0]["params_total"] or 1 for rows in cases}
        looks, self.shades = size_looks(list(sizes.values()))
        self.styles = dict(zip(sizes, looks, strict=True))
        self.figure, self.axes = new_figure(9.4, 3.9, 3, sharey=True)
        self.unit, self.clock = (3600, "device-hours") if _longest(cases) > 360 else (1, "device-seconds")
        self.handles: dict[str, Line2D] = {}
        self.runs = 0

    def add_case(self, rows: Sequence[Mapping], steps: Sequence[Steps]) -> None:
        curve = _mean_curve(steps)
        if not len(curve.steps):
            return
        self.runs += len(rows)
        first, name = rows[0], self.name_of(rows[0])
        style = self.styles[name] | {"marker": None, "linewidth": 1.1}
        work, per_token = work_of(first), first["flops_per_token_6n"]
        assert work is not None, "of cases with steps the work is known"
        tokens = (curve.steps + 1) * float(work.tokens)
        panels = {0: tokens, 2: self._time(curve, first)} | ({1: tokens * per_token} if per_token else {})
        for panel, xs in sorted(panels.items()):
            self.handles.setdefault(name, self.axes[panel].plot(xs, curve.loss, **style)[0])

    def add_early(self, row: Mapping, steps: Steps) -> None:
        """A run that ended early."""
        curve = _mean_curve([steps])
        tokens = steps["tokens_seen"][curve.steps.astype(int)]
        flops = tokens * 6 * (row["params_total"] or np.nan)
        style: dict[str, Any] = {
            "color": GREY,
            "linewidth": 0.9,
            "linestyle": (0, (4, 2)),
            "marker": "x",
            "markevery": [-1],
        }
        for axes, xs in zip(self.axes, (tokens, flops, self._time(curve, row)), strict=True):
            self.handles["ended early"] = axes.plot(xs, curve.loss, **style)[0]

    def _time(self, curve: _Curve, row: Mapping) -> np.ndarray:
        """(points,) in hours or seconds of a device."""
        return curve.seconds * (row["world_size"] or np.nan) / self.unit

    def finish(self) -> None:
        for axes, name in zip(self.axes, ("tokens", "training FLOPs (6 N per token)", self.clock), strict=True):
            axes.set_xlabel(name)
            if axes.lines:
                log_scale(axes, "x", powers if "FLOPs" in name else short)
        self.axes[0].set_ylabel("training loss, nats per token")
        log_scale(self.axes[0], "y", lambda value, _: f"{value:.3g}")
        if self.shades is None:
            legend(self.figure, list(self.handles.values()), [label(name) for name in self.handles])
        else:
            size_scale(self.figure, self.axes, self.shades)


def _longest(cases: Sequence[Sequence[Mapping]]) -> float:
    """Device-seconds of the steps of the longest run."""
    return max(map(_device_seconds, chain.from_iterable(cases)))


def _device_seconds(row: Mapping) -> float:
    return (row["step_time_s"] or 0) * (row["steps"] or 0) * (row["world_size"] or 0)


def _kind(row: Mapping) -> str:
    outer = f", {row['outer_algorithm']} x{row['outer_replicas'] or 1}" if has_outer_loop(row) else ""
    return (row["model"] or "model unnamed") + outer


def _case(row: Mapping) -> str:
    return f"{_kind(row)}, {row['layout'] or '?'}"


def _early(source: Source) -> list[tuple[Mapping, Steps]]:
    """The runs that ended early and have losses, each with its steps."""
    failed = [row for row in source.rows if row["status"] != "ok"]
    steps = source.steps(failed, OF_CURVES)
    early = [(row, steps[row["run_id"]]) for row in failed if row["run_id"] in steps]
    return [(row, its_steps) for row, its_steps in early if np.isfinite(its_steps["loss"]).any()]


@dataclass(frozen=True)
class _Curve:
    """Loss, seconds since step 0 and index of some steps, each (points,) float64."""

    loss: np.ndarray
    seconds: np.ndarray
    steps: np.ndarray


def _mean_curve(runs: Sequence[Steps]) -> _Curve:
    """Means over the runs.

    The loss of step i is the mean of the last SMOOTHED share of the i + 1 steps: equally wide everywhere on a log axis.
    """
    length = min(len(run["loss"]) for run in runs)
    loss = np.mean([run["loss"][:length] for run in runs], axis=0)
    seconds = np.mean([np.cumsum(run["step_time_s"][:length]) for run in runs], axis=0)
    at = np.flatnonzero(np.isfinite(loss) & (loss > 0))
    if len(at) == length:
        total = np.concatenate([[0.0], np.cumsum(loss)])
        end = np.arange(1, length + 1)
        width = np.maximum(1, (end * SMOOTHED).astype(int))
        loss = (total[end] - total[end - width]) / width
    if len(at) > POINTS:
        at = at[np.unique(np.geomspace(1, len(at), POINTS).round().astype(int) - 1)]
    return _Curve(loss[at], seconds[at], at.astype(float))
