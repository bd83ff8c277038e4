"""Loss against tokens, FLOPs and device-hours; the final loss with a fitted frontier; isoFLOP curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..laws.base import get_law
from ..laws.fit import Fit, fit, with_profiles
from ..laws.isoflop import budgets, isoflop
from ..laws.optimum import optimum
from ..laws.table import Rows
from ..table.held_out import refusal
from ..table.step_columns import StepColumns, Steps
from ..table.work import work_of
from ..wording import count_of
from .drawing import (
    GREY,
    Drawn,
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

FEW = 8  # cases that have each its own line and name; of more, a model has
CURVES = 60  # drawn at most; the legend says of how many
EARLY = 12  # runs that did not come to their end, drawn at most
POINTS = 160  # of one curve, evenly spaced in the logarithm of its steps
DRAWS = 400
SMOOTHED = 0.05
OF_CURVES = ("tokens_seen", "loss", "step_time_s")  # columns of `steps`
SAME = ("data_hash", "data_vocab", "model_vocab", "model_seq_len")  # losses are of one kind where these agree
ROLES = {"params": "params_total", "tokens": "tokens_seen"}
CONVENTION = "C = 6 N D, N all parameters (train_flops_6n)"


def curves(source: Source) -> list[Drawn | Undrawn]:
    title = "Loss against tokens, FLOPs and device-hours"
    cases: dict[str, list[Mapping]] = {}
    for row in source.ok:
        if source.may_have_steps(row) and work_of(row):
            cases.setdefault(row["case_id"], []).append(row)
    some = sorted(cases.values(), key=lambda rows: (rows[0]["params_total"] or 0, rows[0]["tokens_seen"] or 0))
    drawn = [some[i] for i in np.unique(np.linspace(0, len(some) - 1, min(CURVES, len(some))).round().astype(int))]
    steps = source.steps([row for rows in drawn for row in rows], OF_CURVES)
    drawn = [kept for rows in drawn if (kept := [row for row in rows if row["run_id"] in steps])]
    if not drawn:
        return [Undrawn(title, "the steps of a run with status ok: a results folder, not an exported file of runs")]
    kind = _case if len(drawn) <= FEW else _kind
    sizes = {kind(rows[0]): rows[0]["params_total"] or 1 for rows in drawn}
    looks, shades = size_looks(list(sizes.values()))
    styles = dict(zip(sizes, looks, strict=True))
    figure, axes = new_figure(9.4, 3.9, 3, sharey=True)
    handles, runs = {}, 0
    longest = max(
        (row["step_time_s"] or 0) * (row["steps"] or 0) * (row["world_size"] or 0) for rows in drawn for row in rows
    )
    unit, clock = (3600, "device-hours") if longest > 360 else (1, "device-seconds")
    for rows in drawn:
        loss, wait, at = _mean_curve([steps[row["run_id"]] for row in rows])
        if not len(at):
            continue
        runs += len(rows)
        row, style = rows[0], styles[kind(rows[0])] | {"marker": None, "linewidth": 1.1}
        tokens = (at + 1) * float(work_of(row).tokens)
        flops = row["flops_per_token_6n"]
        hours = wait * (row["world_size"] or np.nan) / unit
        for one, x in zip(axes, (tokens, tokens * flops if flops else None, hours), strict=True):
            if x is not None:
                handles.setdefault(kind(row), one.plot(x, loss, **style)[0])
    if not handles:
        return [Undrawn(title, "losses in `steps`")]
    early, steps = _early(source)
    for row in early[:EARLY]:
        loss, wait, at = _mean_curve([steps[row["run_id"]]])
        tokens = steps[row["run_id"]]["tokens_seen"][at.astype(int)]
        flops, hours = tokens * 6 * (row["params_total"] or np.nan), wait * (row["world_size"] or np.nan) / unit
        for one, x in zip(axes, (tokens, flops, hours), strict=True):
            handles["ended early"] = one.plot(
                x, loss, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), marker="x", markevery=[-1]
            )[0]
    for one, name in zip(axes, ("tokens", "training FLOPs (6 N per token)", clock), strict=True):
        one.set_xlabel(name)
        if one.lines:
            log_scale(one, "x", powers if "FLOPs" in name else short)
    axes[0].set_ylabel("training loss, nats per token")
    log_scale(axes[0], "y", lambda value, _: f"{value:.3g}")
    if shades is None:
        legend(figure, list(handles.values()), [label(name) for name in handles])
    else:
        size_scale(figure, axes, shades)
    less = (
        f" {len(drawn)} of {count_of(len(cases), 'case')} are drawn, spread by size." if len(drawn) < len(cases) else ""
    )
    some = f"{EARLY} of {len(early)}" if len(early) > EARLY else len(early)
    less += f" Dashed, to a cross: runs that were not ok, as far as they came ({some})." if early else ""
    shared = "" if kind is _case else "; all layouts of a model share its colour and line"
    return [
        Drawn(
            "loss-curves",
            title,
            figure,
            runs,
            "none: a line is the mean over the runs of a case",
            f"training loss over the global batch, before the update. {clock.capitalize()}: step times of the slowest "
            "rank, warm-up counted, times ranks; start-up, evaluations not counted. FLOPs: 6 N per "
            "token, N all parameters",
            f"One line a case, each step the mean of the last {SMOOTHED:.0%} of the steps so far{shared}. "
            f"Left and middle, layouts that compute the same lie on each other.{less}",
        )
    ]


def final_loss(source: Source) -> list[Drawn | Undrawn]:
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
    given = law_rows(rows, column, ROLES)
    compute = np.array([row["train_flops_6n"] for row in rows])
    figure, (axes,) = new_figure(7.2, 4.4)
    sizes = sorted({row["params_total"] for row in rows})
    looks, shades = size_looks(sizes)
    handles, names = [], []
    for size, style in zip(sizes, looks, strict=True):
        here = given.columns["params"] == size
        style = style | {"linestyle": "none"} | dense(len(rows))
        points = axes.plot(compute[here], given.y[here], **style, zorder=3)[0]
        if shades is None:
            handles.append(points)
            names.append(f"N = {short(size)}")
    law, why = _law(given)
    said, interval = f"No law is drawn: {why}.", "none"
    if law is not None:
        grid = np.geomspace(compute.min(), compute.max(), 24)
        best = [optimum(law, float(c)) for c in grid]
        handles.append(axes.plot(grid, [o.loss for o in best], color="#000000", linewidth=1.6, zorder=2)[0])
        names.append("fitted frontier")
        known = all(o.loss_interval for o in best)
        if known:
            axes.fill_between(
                grid, *zip(*(o.loss_interval for o in best), strict=True), color="#000000", alpha=0.15, linewidth=0
            )
        interval = (
            f"band: {law.level:.0%} of the law by {len(law.draws)} resamples of runs, without a run's noise"
            if known
            else law.no_draws
        )
        values = ", ".join(f"{name} = {value:.4g}" for name, value in law.natural.items())
        share = float(np.sqrt(np.mean(law.residuals**2)))
        n, a = short(best[-1].params), best[-1].exponent
        said = (
            f"Frontier: {law.law.equation} at the best N and D of each C, {law.law.name}, {values}; rms log "
            f"residual {share:.2%}; at C = {compute.max():.3g} N* = {n}, N* ~ C^{a:.2f}. "
            "Only over the compute measured."
        )
    if shades is not None:
        size_scale(figure, axes, shades)
    axes.set_ylim(given.y.min() / 1.03, given.y.max() * 1.03)
    log_scale(axes, "x", powers)
    log_scale(axes, "y", lambda value, _: f"{value:.3g}")
    axes.set(xlabel="training FLOPs C (6 N D)", ylabel=loss_name(column))
    if handles:
        legend(figure, handles, names, 6)
    return [Drawn("loss-compute", title, figure, len(rows), interval, CONVENTION, f"One point a run. {said}")]


def isoflop_curves(source: Source) -> list[Drawn | Undrawn]:
    title = "IsoFLOP curves"
    rows, column = _sweep(source)
    needs = "two compute budgets or more (equal to 15%), each with four model sizes or more around its lowest loss"
    if len({row["params_total"] for row in rows}) < 4:
        return [Undrawn(title, needs)]
    given = law_rows(rows, column, ROLES)
    params, flops = given.columns["params"], np.array([row["train_flops_6n"] for row in rows])
    try:
        found = isoflop(params, flops, given.y)
    except ValueError as error:
        return [Undrawn(title, f"{needs} ({error})")]
    figure, (left, right) = new_figure(9.0, 4.2, 2)
    group = budgets(flops)
    handles, names = [], []
    for i in range(group.max() + 1):
        here = group == i
        if len(set(params[here])) < 2:  # no curve; the text says what is left out
            continue
        style = look(len(names))
        centre = float(np.exp(np.log(flops[here]).mean()))
        points = style | {"linestyle": "none"} | dense(len(rows))
        handles.append(left.plot(params[here], given.y[here], **points, zorder=3)[0])
        names.append(f"C = {powers(float(f'{centre:.1e}'))}")
        vertex = [n for c, n in zip(found.flops, found.params, strict=True) if abs(c / centre - 1) < 1e-9]
        if vertex:
            u = np.log(params[here])
            parabola = np.polyfit(u - u.mean(), given.y[here], 2)
            grid = np.linspace(u.min(), u.max(), 60)
            left.plot(
                np.exp(grid), np.polyval(parabola, grid - u.mean()), color=style["color"], linestyle=style["linestyle"]
            )
            at = np.polyval(parabola, np.log(vertex[0]) - u.mean())
            left.plot(vertex[0], at, marker="x", markersize=9, markeredgewidth=2, color="#000000", zorder=4)
            right.plot(centre, vertex[0], **style | {"linestyle": "none"}, zorder=3)
    ends = np.array([min(found.flops), max(found.flops)])
    right.plot(ends, [found.optimal_params(c) for c in ends], color="#000000", linewidth=1.2)
    left.set(xlabel="parameters N", ylabel=loss_name(column), title="Loss at equal compute")
    right.set(xlabel="training FLOPs C (6 N D)", ylabel="N at the lowest loss", title="Compute-optimal size")
    for axes, which, form in ((left, "x", short), (right, "x", powers), (right, "y", short)):
        log_scale(axes, which, form)
    if handles:
        legend(figure, handles, names, 6)
    bounds = found.exponent_interval
    interval = "exponent: 95% by resampling runs within budgets" if bounds else "none: two budgets only"
    out = f" Left out: {'; '.join(found.left_out)}." if found.left_out else ""
    return [
        Drawn(
            "isoflop",
            title,
            figure,
            len(rows),
            interval,
            f"{CONVENTION}. Runs of a budget share C to 15%",
            f"Parabolas in ln N, crosses at their lowest points. N* ~ C^{found.exponent:.3f}"
            + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
            + f".{out}",
        )
    ]


def _kind(row: Mapping) -> str:
    outer = row["outer_algorithm"] or "none"
    return (row["model"] or "model unnamed") + ("" if outer == "none" else f", {outer} x{row['outer_replicas'] or 1}")


def _case(row: Mapping) -> str:
    return f"{_kind(row)}, {row['layout'] or '?'}"


def _early(source: Source) -> tuple[list[Mapping], StepColumns]:
    """The runs that did not come to their end and have losses, and their steps."""
    bad = [row for row in source.rows if row["status"] != "ok"]
    steps = source.steps(bad, OF_CURVES)
    return [row for row in bad if row["run_id"] in steps and np.isfinite(steps[row["run_id"]]["loss"]).any()], steps


def _mean_curve(columns: Sequence[Steps]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over the runs whose steps these are: loss, seconds since step 0 and index of a step, each (points,).

    The loss of step i is the mean of the last SMOOTHED share of the i + 1 steps: as wide everywhere on a log axis.
    """
    length = min(len(one["loss"]) for one in columns)
    loss = np.mean([one["loss"][:length] for one in columns], axis=0)
    seconds = np.mean([np.cumsum(one["step_time_s"][:length]) for one in columns], axis=0)
    at = np.flatnonzero(np.isfinite(loss) & (loss > 0))
    if len(at) == length:
        total = np.concatenate([[0.0], np.cumsum(loss)])
        end = np.arange(1, length + 1)
        width = np.maximum(1, (end * SMOOTHED).astype(int))
        loss = (total[end] - total[end - width]) / width
    if len(at) > POINTS:
        at = at[np.unique(np.geomspace(1, len(at), POINTS).round().astype(int) - 1)]
    return loss[at], seconds[at], at.astype(float)


def _sweep(source: Source) -> tuple[list[Mapping], str]:
    """The largest set of ok runs whose final losses are of one kind, and the column of that loss."""
    able = [
        r
        for r in source.ok
        if (r["outer_algorithm"] or "none") == "none"
        and all(r[n] for n in ("params_total", "tokens_seen", "train_flops_6n", "loss"))
    ]
    kinds = Counter(tuple(row[name] for name in SAME) for row in able)
    if not kinds:
        return [], "loss"
    most = kinds.most_common(1)[0][0]
    rows = [row for row in able if tuple(row[name] for name in SAME) == most]
    return rows, loss_column(rows)


def law_rows(rows: Sequence[Mapping], column: str, roles: Mapping[str, str]) -> Rows:
    """Rows of a fit: role -> column of `runs`; runs that are alike in all of it and in the loss are one."""
    columns = {role: [row[name] for row in rows] for role, name in roles.items()}
    loss = np.array([row[column] for row in rows], float)
    same = np.unique(np.column_stack([*columns.values(), loss]), axis=0, return_inverse=True)[1].ravel()
    return Rows({name: np.array(v, float) for name, v in columns.items()}, loss, same, np.arange(len(rows)))


def _law(given: Rows) -> tuple[Fit | None, str]:
    """The Chinchilla law, or why the table does not say it."""
    params, tokens = (len(set(given.columns[name])) for name in ("params", "tokens"))
    points = len(set(zip(given.columns["params"], given.columns["tokens"], strict=True)))
    if min(params, tokens) < 3 or points < 8:
        return None, (
            f"Chinchilla's law needs 8 different (N, D), 3 sizes and 3 token counts; there are {points}, "
            f"{params} and {tokens}"
        )
    try:
        law = with_profiles(fit(get_law("chinchilla"), given, bootstrap_draws=DRAWS))
        lost = [one.name for one in law.profiles if not one.identified]
        if lost:
            return None, f"the table does not identify {', '.join(lost)} of Chinchilla's law"
        if not np.isfinite(optimum(law, float(np.median(6 * given.columns["params"] * given.columns["tokens"]))).loss):
            return None, "the fitted law has no optimum"
    except ValueError as error:
        return None, str(error)
    return law, ""


def loss_column(rows: Sequence[Mapping]) -> str:
    """The loss that these rows may be compared by: the held-out one where all have it, of the same sequences."""
    return "val_loss" if all(row["val_loss"] for row in rows) and not refusal(rows) else "loss"


def loss_name(column: str) -> str:
    return "held-out loss, nats per token" if column == "val_loss" else "training loss (last tenth), nats per token"
