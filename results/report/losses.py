"""Loss against tokens, FLOPs and device-hours; the final loss with a fitted frontier; isoFLOP curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..efficiency.workload import has_outer_loop
from ..laws.base import get_law
from ..laws.fit import Fit, fit, with_profiles
from ..laws.isoflop import Frontier, budgets, isoflop
from ..laws.optimum import optimum
from ..laws.table import Rows
from ..table.held_out import refusal
from ..table.step_columns import StepColumns, Steps
from ..table.work import work_of
from ..wording import count_of
from .drawing import (
    GREY,
    Drawn,
    Figures,
    Undrawn,
    dense,
    legend,
    log_scale,
    look,
    new_figure,
    powers,
    short,
    size_looks,
    size_scale,
)
from .source import Source, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

FEW = 8  # cases that have a line and name each; of more, each model has
CURVES = 60  # drawn at most; the legend says of how many
EARLY = 12  # runs that ended early, drawn at most
POINTS = 160  # of one curve, evenly spaced in the logarithm of its steps
DRAWS = 400
SMOOTHED = 0.05
OF_CURVES = ("tokens_seen", "loss", "step_time_s")  # columns of `steps`
SAME = ("data_hash", "data_vocab", "model_vocab", "model_seq_len")  # losses may be compared if these agree
ROLES = {"params": "params_total", "tokens": "tokens_seen"}
CONVENTION = "C = 6 N D, N all parameters (train_flops_6n)"


def curves(source: Source) -> Figures:
    title = "Loss against tokens, FLOPs and device-hours"
    cases = _cases_with_steps(source)
    drawn = _spread(cases, CURVES)
    steps = source.steps([row for rows in drawn for row in rows], OF_CURVES)
    drawn = [kept for rows in drawn if (kept := [row for row in rows if row["run_id"] in steps])]
    if not drawn:
        return [Undrawn(title, "the steps of a run with status ok: a results folder, not an exported file of runs")]
    chart = _Curves(drawn)
    for rows in drawn:
        chart.add_case(rows, [steps[row["run_id"]] for row in rows])
    if not chart.handles:
        return [Undrawn(title, "losses in `steps`")]
    early, steps = _early(source)
    for row in early[:EARLY]:
        chart.add_early(row, steps[row["run_id"]])
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
        flops = tokens * per_token if per_token else None
        for axes, xs in zip(self.axes, (tokens, flops, self._time(curve, first)), strict=True):
            if xs is not None:
                self.handles.setdefault(name, axes.plot(xs, curve.loss, **style)[0])

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
    return max((r["step_time_s"] or 0) * (r["steps"] or 0) * (r["world_size"] or 0) for rows in cases for r in rows)


def final_loss(source: Source) -> Figures:
    title = "Final loss against compute"
    rows, column = _sweep(source)
    distinct = {(row["params_total"], row["tokens_seen"]) for row in rows}
    if len(distinct) < 3:
        return [
            Undrawn(
                title,
                "runs without outer loop of three different (parameters, tokens) on one data set "
                f"(there are {len(distinct)}): see studies/ladder.toml",
            )
        ]
    table = law_rows(rows, column, ROLES)
    compute = np.array([row["train_flops_6n"] for row in rows])
    figure, (axes,) = new_figure(7.2, 4.4)
    sizes = sorted({row["params_total"] for row in rows})
    looks, shades = size_looks(sizes)
    handles, names = [], []
    for size, style in zip(sizes, looks, strict=True):
        here = table.columns["params"] == size
        style = style | {"linestyle": "none"} | dense(len(rows))
        points = axes.plot(compute[here], table.y[here], **style, zorder=3)[0]
        if shades is None:
            handles.append(points)
            names.append(f"N = {short(size)}")
    law, why = _law(table)
    text, interval = f"No law is drawn: {why}.", "none"
    if law is not None:
        line, text, interval = _draw_frontier(axes, law, compute)
        handles.append(line)
        names.append("fitted frontier")
    if shades is not None:
        size_scale(figure, [axes], shades)
    axes.set_ylim(table.y.min() / 1.03, table.y.max() * 1.03)
    log_scale(axes, "x", powers)
    log_scale(axes, "y", lambda value, _: f"{value:.3g}")
    axes.set(xlabel="training FLOPs C (6 N D)", ylabel=loss_name(column))
    if handles:
        legend(figure, handles, names, 6)
    return [Drawn("loss-compute", title, figure, len(rows), interval, CONVENTION, f"One point a run. {text}")]


def _draw_frontier(axes: Axes, law: Fit, compute: np.ndarray) -> tuple[Line2D, str, str]:
    """Draws the lowest loss of the law at each C; its line, what it is, and its interval."""
    grid = np.geomspace(compute.min(), compute.max(), 24)
    best = [optimum(law, float(flops)) for flops in grid]
    losses = np.array([one.loss for one in best], float)
    line = axes.plot(grid, losses, color="#000000", linewidth=1.6, zorder=2)[0]
    bands = [one.loss_interval for one in best if one.loss_interval]
    interval = law.no_draws
    if len(bands) == len(best) and law.draws is not None:
        low, high = zip(*bands, strict=True)
        axes.fill_between(grid, low, high, color="#000000", alpha=0.15, linewidth=0)
        interval = f"band: {law.level:.0%} of the law by {len(law.draws)} resamples of runs, without a run's noise"
    values = ", ".join(f"{name} = {value:.4g}" for name, value in law.natural.items())
    share = float(np.sqrt(np.mean(law.residuals**2)))
    largest = best[-1]
    assert largest.params is not None, "_law refuses laws without an optimum"
    text = (
        f"Frontier: {law.law.equation} at the best N and D of each C, {law.law.name}, {values}; rms log residual "
        f"{share:.2%}; at C = {compute.max():.3g} N* = {short(largest.params)}, N* ~ C^{largest.exponent:.2f}. "
        "Only over the compute measured."
    )
    return line, text, interval


def isoflop_curves(source: Source) -> Figures:
    title = "IsoFLOP curves"
    rows, column = _sweep(source)
    needs = "two compute budgets or more (equal to 15%), each with four model sizes or more around its lowest loss"
    if len({row["params_total"] for row in rows}) < 4:
        return [Undrawn(title, needs)]
    table = law_rows(rows, column, ROLES)
    params, flops = table.columns["params"], np.array([row["train_flops_6n"] for row in rows])
    try:
        result = isoflop(params, flops, table.y)
    except ValueError as error:
        return [Undrawn(title, f"{needs} ({error})")]
    chart = _IsoFlops(result)
    budget = budgets(flops)
    for at in range(budget.max() + 1):
        here = budget == at
        if len(set(params[here])) >= 2:  # of fewer there is no curve; the text names what is left out
            chart.add_budget(params[here], flops[here], table.y[here], dense(len(rows)))
    chart.finish(column)
    bounds = result.exponent_interval
    span = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
    left_out = f" Left out: {'; '.join(result.left_out)}." if result.left_out else ""
    return [
        Drawn(
            "isoflop",
            title,
            chart.figure,
            len(rows),
            "exponent: 95% by resampling runs within budgets" if bounds else "none: two budgets only",
            f"{CONVENTION}. Runs of a budget share C to 15%",
            f"Parabolas in ln N, crosses at their lowest points. N* ~ C^{result.exponent:.3f}{span}.{left_out}",
        )
    ]


class _IsoFlops:
    """Left the losses of each budget with their parabola, right the sizes at the lowest points over the budgets."""

    def __init__(self, result: Frontier) -> None:
        self.result = result
        self.figure, (self.left, self.right) = new_figure(9.0, 4.2, 2)
        self.handles: list[Line2D] = []
        self.names: list[str] = []

    def add_budget(self, params: np.ndarray, flops: np.ndarray, losses: np.ndarray, many: dict) -> None:
        """The runs of one budget, (runs,) each; many: the style of many points."""
        style = look(len(self.names))
        centre = float(np.exp(np.log(flops).mean()))
        self.handles.append(self.left.plot(params, losses, **style | {"linestyle": "none"} | many, zorder=3)[0])
        self.names.append(f"C = {powers(float(f'{centre:.1e}'))}")
        vertices = zip(self.result.flops, self.result.params, strict=True)
        vertex = next((n for c, n in vertices if abs(c / centre - 1) < 1e-9), None)
        if vertex is None:
            return
        u = np.log(params)
        parabola = np.polyfit(u - u.mean(), losses, 2)
        grid = np.linspace(u.min(), u.max(), 60)
        self.left.plot(
            np.exp(grid), np.polyval(parabola, grid - u.mean()), color=style["color"], linestyle=style["linestyle"]
        )
        lowest = np.polyval(parabola, np.log(vertex) - u.mean())
        self.left.plot(vertex, lowest, marker="x", markersize=9, markeredgewidth=2, color="#000000", zorder=4)
        self.right.plot(centre, vertex, **style | {"linestyle": "none"}, zorder=3)

    def finish(self, column: str) -> None:
        ends = np.array([min(self.result.flops), max(self.result.flops)])
        self.right.plot(ends, [self.result.optimal_params(c) for c in ends], color="#000000", linewidth=1.2)
        self.left.set(xlabel="parameters N", ylabel=loss_name(column), title="Loss at equal compute")
        self.right.set(xlabel="training FLOPs C (6 N D)", ylabel="N at the lowest loss", title="Compute-optimal size")
        log_scale(self.left, "x", short)
        log_scale(self.right, "x", powers)
        log_scale(self.right, "y", short)
        if self.handles:
            legend(self.figure, self.handles, self.names, 6)


def _kind(row: Mapping) -> str:
    outer = f", {row['outer_algorithm']} x{row['outer_replicas'] or 1}" if has_outer_loop(row) else ""
    return (row["model"] or "model unnamed") + outer


def _case(row: Mapping) -> str:
    return f"{_kind(row)}, {row['layout'] or '?'}"


def _early(source: Source) -> tuple[list[Mapping], StepColumns]:
    """The runs that ended early and have losses, and their steps."""
    failed = [row for row in source.rows if row["status"] != "ok"]
    steps = source.steps(failed, OF_CURVES)
    early = [row for row in failed if row["run_id"] in steps and np.isfinite(steps[row["run_id"]]["loss"]).any()]
    return early, steps


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


def _sweep(source: Source) -> tuple[list[Mapping], str]:
    """The largest set of ok runs whose final losses may be compared, and the column of that loss."""
    needed = ("params_total", "tokens_seen", "train_flops_6n", "loss")
    sets: dict[tuple, list[Mapping]] = {}
    for row in source.ok:
        if not has_outer_loop(row) and all(row[name] for name in needed):
            sets.setdefault(tuple(row[name] for name in SAME), []).append(row)
    if not sets:
        return [], "loss"
    rows = max(sets.values(), key=len)
    return rows, loss_column(rows)


def law_rows(rows: Sequence[Mapping], column: str, roles: Mapping[str, str]) -> Rows:
    """Rows for a fit; roles: role -> column of `runs`. Runs that agree in all of these and in the loss are one run."""
    columns = {role: [row[name] for row in rows] for role, name in roles.items()}
    loss = np.array([row[column] for row in rows], float)
    same = np.unique(np.column_stack([*columns.values(), loss]), axis=0, return_inverse=True)[1].ravel()
    return Rows({name: np.array(v, float) for name, v in columns.items()}, loss, same, np.arange(len(rows)))


def _law(table: Rows) -> tuple[Fit | None, str]:
    """The Chinchilla law, or why the table does not determine it."""
    params, tokens = (len(set(table.columns[name])) for name in ("params", "tokens"))
    points = len(set(zip(table.columns["params"], table.columns["tokens"], strict=True)))
    if min(params, tokens) < 3 or points < 8:
        return None, (
            f"Chinchilla's law needs 8 different (N, D), 3 sizes and 3 token counts; there are {points}, "
            f"{params} and {tokens}"
        )
    try:
        law = with_profiles(fit(get_law("chinchilla"), table, bootstrap_draws=DRAWS))
        unidentified = [one.name for one in law.profiles if not one.identified]
        if unidentified:
            return None, f"the table does not identify {', '.join(unidentified)} of Chinchilla's law"
        middle = float(np.median(6 * table.columns["params"] * table.columns["tokens"]))
        if not np.isfinite(optimum(law, middle).loss or np.nan):
            return None, "the fitted law has no optimum"
    except ValueError as error:
        return None, str(error)
    return law, ""


def loss_column(rows: Sequence[Mapping]) -> str:
    """The loss by which these rows may be compared: the held-out one if all have it, of the same sequences."""
    return "val_loss" if all(row["val_loss"] for row in rows) and not refusal(rows) else "loss"


def loss_name(column: str) -> str:
    return "held-out loss, nats per token" if column == "val_loss" else "training loss (last tenth), nats per token"
