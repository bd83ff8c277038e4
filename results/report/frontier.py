"""The final loss against compute with a fitted frontier, and the losses of models of several sizes at equal compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..laws.base import get_law
from ..laws.fit import Fit, fit, with_profiles
from ..laws.isoflop import Frontier, budgets, isoflop
from ..laws.optimum import Optimum, optimum
from ..laws.table import Rows
from ..schema.rows import distinct, values_in
from .comparable import comparable, law_rows, loss_name
from .drawing import (
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
from .source import Source

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

ROLES = {"params": "params_total", "tokens": "tokens_seen"}
CONVENTION = "C = 6 N D, N all parameters (train_flops_6n)"
DRAWS = 400


def final_loss(source: Source) -> Figures:
    title = "Final loss against compute"
    rows, column = comparable(source)
    points = len(set(zip(values_in(rows, "params_total"), values_in(rows, "tokens_seen"), strict=True)))
    if points < 3:
        return [
            Undrawn(
                title,
                "runs without outer loop of three different (parameters, tokens) on one data set "
                f"(there are {points}): see studies/ladder.toml",
            )
        ]
    table = law_rows(rows, column, ROLES)
    chart = _Compute(np.array(values_in(rows, "train_flops_6n")), table)
    law, why = _law(table)
    text, interval = f"No law is drawn: {why}.", "none"
    if law is not None:
        text, interval = chart.add_frontier(law)
    chart.finish(column)
    return [Drawn("loss-compute", title, chart.figure, len(rows), interval, CONVENTION, f"One point a run. {text}")]


class _Compute:
    """Loss over compute, a point a run, in the look of its size, and the frontier.

    compute: (runs,) training FLOPs
    """

    def __init__(self, compute: np.ndarray, table: Rows) -> None:
        self.compute, self.table = compute, table
        self.figure, (self.axes,) = new_figure(7.2, 4.4)
        sizes = np.unique(table.columns["params"]).tolist()
        looks, self.shades = size_looks(sizes)
        self.handles: list[Line2D] = []
        self.names: list[str] = []
        for size, style in zip(sizes, looks, strict=True):
            self._add_size(size, style)

    def _add_size(self, size: float, style: dict[str, Any]) -> None:
        here = self.table.columns["params"] == size
        style = style | {"linestyle": "none"} | dense(len(self.compute))
        points = self.axes.plot(self.compute[here], self.table.y[here], **style, zorder=3)[0]
        if self.shades is None:
            self.handles.append(points)
            self.names.append(f"N = {short(size)}")

    def add_frontier(self, law: Fit) -> tuple[str, str]:
        """The lowest loss of the law at each C. Returns what the line is, and its interval."""
        grid = np.geomspace(self.compute.min(), self.compute.max(), 24)
        best = [optimum(law, float(flops)) for flops in grid]
        losses = np.array([one.loss for one in best], float)
        self.handles += self.axes.plot(grid, losses, color="#000000", linewidth=1.6, zorder=2)
        self.names.append("fitted frontier")
        return _frontier_text(law, best[-1]), self._add_band(law, grid, best)

    def _add_band(self, law: Fit, grid: np.ndarray, best: Sequence[Optimum]) -> str:
        bands = [one.loss_interval for one in best if one.loss_interval]
        if len(bands) < len(best) or law.draws is None:
            return law.no_draws
        low, high = zip(*bands, strict=True)
        self.axes.fill_between(grid, low, high, color="#000000", alpha=0.15, linewidth=0)
        return f"band: {law.level:.0%} of the law by {len(law.draws)} resamples of runs, without a run's noise"

    def finish(self, column: str) -> None:
        if self.shades is not None:
            size_scale(self.figure, [self.axes], self.shades)
        self.axes.set_ylim(self.table.y.min() / 1.03, self.table.y.max() * 1.03)
        log_scale(self.axes, "x", powers)
        log_scale(self.axes, "y", lambda value, _: f"{value:.3g}")
        self.axes.set(xlabel="training FLOPs C (6 N D)", ylabel=loss_name(column))
        if self.handles:
            legend(self.figure, self.handles, self.names, 6)


def _frontier_text(law: Fit, largest: Optimum) -> str:
    """largest: at the most compute that was measured"""
    values = ", ".join(f"{name} = {value:.4g}" for name, value in law.natural.items())
    share = float(np.sqrt(np.mean(law.residuals**2)))
    assert largest.params is not None, "_law refuses laws without an optimum"
    return (
        f"Frontier: {law.law.equation} at the best N and D of each C, {law.law.name}, {values}; rms log residual "
        f"{share:.2%}; at C = {largest.flops:.3g} N* = {short(largest.params)}, N* ~ C^{largest.exponent:.2f}. "
        "Only over the compute measured."
    )


def isoflop_curves(source: Source) -> Figures:
    title = "IsoFLOP curves"
    rows, column = comparable(source)
    needs = "two compute budgets or more (equal to 15%), each with four model sizes or more around its lowest loss"
    if len(distinct(rows, "params_total")) < 4:
        return [Undrawn(title, needs)]
    table = law_rows(rows, column, ROLES)
    params, flops = table.columns["params"], np.array(values_in(rows, "train_flops_6n"))
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
    return [_isoflop_figure(result, chart, title, len(rows))]


def _isoflop_figure(result: Frontier, chart: _IsoFlops, title: str, runs: int) -> Drawn:
    bounds = result.exponent_interval
    span = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
    left_out = f" Left out: {'; '.join(result.left_out)}." if result.left_out else ""
    return Drawn(
        "isoflop",
        title,
        chart.figure,
        runs,
        "exponent: 95% by resampling runs within budgets" if bounds else "none: two budgets only",
        f"{CONVENTION}. Runs of a budget share C to 15%",
        f"Parabolas in ln N, crosses at their lowest points. N* ~ C^{result.exponent:.3f}{span}.{left_out}",
    )


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


def _law(table: Rows) -> tuple[Fit | None, str]:
    """The Chinchilla law, or why the table does not determine it."""
    params, tokens = table.columns["params"], table.columns["tokens"]
    sizes, counts, points = len(set(params)), len(set(tokens)), len(set(zip(params, tokens, strict=True)))
    if min(sizes, counts) < 3 or points < 8:
        return None, (
            f"Chinchilla's law needs 8 different (N, D), 3 sizes and 3 token counts; there are {points}, "
            f"{sizes} and {counts}"
        )
    try:
        law = with_profiles(fit(get_law("chinchilla"), table, bootstrap_draws=DRAWS))
        why = _undetermined(law, float(np.median(6 * params * tokens)))
    except ValueError as error:
        return None, str(error)
    return (None, why) if why else (law, "")


def _undetermined(law: Fit, middle: float) -> str | None:
    """Why the law says nothing of an optimum. middle: FLOPs"""
    unidentified = [one.name for one in law.profiles if not one.identified]
    if unidentified:
        return f"the table does not identify {', '.join(unidentified)} of Chinchilla's law"
    return None if np.isfinite(optimum(law, middle).loss or np.nan) else "the fitted law has no optimum"
