"""Layout beside layout: MFU, where the time of a step went, memory, and what had been predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..efficiency.breakdown import RESIDUAL_FLAG, Breakdown
from ..efficiency.workload import Group
from ..stats.rank_intervals import Estimate, median
from ..wording import count_of
from .drawing import (
    GREY,
    Drawn,
    Undrawn,
    bar_looks,
    chunks,
    dense,
    interval_text,
    legend,
    log_scale,
    look,
    new_figure,
    numbered,
    short,
    with_intervals,
)
from .source import Source, by_size, label, positive

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


def mfu(source: Source) -> list[Drawn | Undrawn]:
    column = source.convention
    told = {id(g): values for g in source.groups if len(values := positive(g.rows, column)) == len(g.rows)}
    some = [group for group in source.groups if id(group) in told]
    if not some:
        return [Undrawn("MFU by layout", "a known peak of the device: measure.peak_matmul = true measures it")]
    some.sort(key=lambda g: (by_size(g), -np.median(told[id(g)])))
    parts, found = chunks(some, "MFU by layout")
    for index, part in enumerate(parts, 1):
        estimates = [median(told[id(group)], source.level) for group in part]
        figure, axes = _rows(source, part)
        every = 100 * np.concatenate([told[id(group)] for group in part])
        at = np.repeat(np.arange(len(part)), [len(told[id(group)]) for group in part])
        axes.plot(every, at, linestyle="none", marker="|", color=GREY, markersize=9, **dense(len(every)))
        with_intervals(axes, range(len(part)), estimates, "#000000", 100, horizontal=True)
        axes.plot(
            [100 * estimate.value for estimate in estimates],
            range(len(part)),
            linestyle="none",
            marker="D",
            color="#0072B2",
            zorder=3,
        )
        axes.set(xlabel=f"MFU, % of peak ({column})", xlim=(0, max(1e-9, axes.get_xlim()[1])))
        name, title = numbered("mfu", "MFU by layout", index, len(parts))
        found.append(
            Drawn(
                name,
                title,
                figure,
                sum(len(group.rows) for group in part),
                interval_text(estimates, source.level, "order statistics"),
                f"{CONVENTIONS[column]}, times tokens/s of one device, over its peak: "
                + _peaks([row for group in part for row in group.rows]),
                "Diamond: median over runs; grey ticks: each run. Best first within a model.",
            )
        )
    return found


def time_breakdown(source: Source) -> list[Drawn | Undrawn]:
    title = "Where the time of a step went"
    split = [(group, source.breakdown(group)) for group in source.groups]
    split = [
        (g, b)
        for g, b in split
        if any(v is not None for v in (b.compute_s, b.optimizer_s, b.exposed_comm_s, b.outer_s, b.comm_unhidden_s))
    ]
    if not split:
        return [Undrawn(title, "compute_time_s, optimizer_time_s or comm_time_s of a run")]
    split.sort(key=lambda pair: (by_size(pair[0]), pair[1].step_s))
    parts, found = chunks(split, title)
    for index, part in enumerate(parts, 1):
        figure, axes = _rows(source, [group for group, _ in part])
        looks = dict(zip(PARTS, bar_looks(len(PARTS)), strict=True))
        used, flagged, probed, theory = {}, 0, None, None
        for y, (_, b) in enumerate(part):
            left = 0.0
            for name in PARTS:
                seconds = _rest(b) if name == "rest_s" else getattr(b, name)
                if seconds is None or seconds <= 0:
                    continue
                share = 100 * seconds / b.step_s
                used[name] = axes.barh(y, share, left=left, height=0.7, **looks[name])
                left += share
            axes.text(101, y, f"{b.step_s * 1e3:,.1f} ms", va="center", fontsize=8, clip_on=False)
            flagged += bool(b.residual_flagged)
            if b.comm_unhidden_s:
                x = min(100 * b.comm_unhidden_s / b.step_s, 100)
                probed = axes.plot(
                    x,
                    y,
                    linestyle="none",
                    marker="D",
                    markersize=6,
                    markerfacecolor="white",
                    markeredgecolor="black",
                    zorder=4,
                    clip_on=False,
                )[0]
            if b.bubble_share_theory is not None:
                whole = [b.compute_s, b.exposed_comm_s or 0, b.bubble_s or 0]  # forward and backward
                before = (b.compute_s or 0) + (b.exposed_comm_s or 0) if b.bubble_s is not None else 0
                share = 1 if b.compute_s is None else sum(whole) / b.step_s
                x = 100 * (before / b.step_s + b.bubble_share_theory * share)
                theory = axes.plot(
                    x, y, linestyle="none", marker="|", markersize=13, markeredgewidth=2, color="#D55E00", zorder=4
                )[0]
        axes.set(xlabel="share of the step, %", xlim=(0, 100))
        axes.grid(visible=False)
        handles, names = [used[n] for n in PARTS if n in used], [PARTS[n] for n in PARTS if n in used]
        if probed is not None:
            handles, names = [*handles, probed], [*names, "all collectives, each waited for"]
        if theory is not None:
            handles, names = [*handles, theory], [*names, "bubble by formula: its end"]
        legend(figure, handles, names)
        name, shown = numbered("time-breakdown", title, index, len(parts))
        unknown = [PARTS[n] for n in ("compute_s", "exposed_comm_s", "optimizer_s") if n not in used]
        found.append(
            Drawn(
                name,
                shown,
                figure,
                sum(len(group.rows) for group, _ in part),
                "none: each part is its median over runs",
                "parts of the median step of the slowest rank, which is written at the right. "
                "Diamonds: the communication "
                "of one probed step with every collective waited for, the most that can be exposed; "
                "at 100% it was as long "
                "as a step or longer. Exposed communication and bubble: what was waited for, slower "
                "ranks in it, mean over "
                "the ranks. The bubble by formula, (p-1)/(vm+p-1) of forward and backward, is marked "
                "at its end: it begins "
                "where the measured one does, or at 0 where none was",
                "Fastest first within a model. "
                + (f"Not measured, so not split off: {', '.join(unknown)}. " if unknown else "")
                + (
                    f"{flagged} layout{' has' if flagged == 1 else 's have'} more than "
                    f"{RESIDUAL_FLAG:.0%} in no measured "
                    "part."
                    if flagged
                    else ""
                ),
            )
        )
    return found


def memory(source: Source) -> list[Drawn | Undrawn]:
    title = "Memory of the fullest rank"
    column = (
        "peak_memory_bytes"
        if any(positive(g.rows, "peak_memory_bytes") for g in source.groups)
        else "peak_host_memory_bytes"
    )
    some = [group for group in source.groups if len(positive(group.rows, column)) == len(group.rows)]
    if not some:
        return [Undrawn(title, "peak_memory_bytes or peak_host_memory_bytes of a run")]
    some.sort(key=lambda g: (by_size(g), np.median(positive(g.rows, column))))
    parts, found = chunks(some, title)
    for index, part in enumerate(parts, 1):
        figure, axes = _rows(source, part)
        estimates = [median(positive(group.rows, column), source.level) for group in part]
        dots = axes.plot(
            [e.value / MIB for e in estimates],
            range(len(part)),
            linestyle="none",
            marker="o",
            color="#0072B2",
            zorder=3,
        )[0]
        with_intervals(axes, range(len(part)), estimates, "#000000", 1 / MIB, horizontal=True)
        guessed = [
            (y, group["predicted_memory_bytes"]) for y, group in enumerate(part) if group["predicted_memory_bytes"]
        ]
        handles, names = [dots], ["measured"]
        if guessed:
            ys, bytes_ = zip(*guessed, strict=True)
            handles += axes.plot(
                np.array(bytes_) / MIB,
                ys,
                linestyle="none",
                marker="D",
                markerfacecolor="none",
                color="#D55E00",
                zorder=3,
            )
            names.append("predicted before the run")
        log_scale(axes, "x", lambda value, _: f"{value:,.4g}")
        axes.set_xlabel("MiB, logarithmic")
        legend(figure, handles, names)
        host = column == "peak_host_memory_bytes"
        name, shown = numbered("memory", title, index, len(parts))
        found.append(
            Drawn(
                name,
                shown,
                figure,
                sum(len(group.rows) for group in part),
                interval_text(estimates, source.level, "order statistics"),
                "measured: peak resident memory of the process, interpreter and libraries included, "
                "which the prediction "
                "leaves out"
                if host
                else "measured: peak allocated on the device",
                "Circle: median over runs. "
                + ("Diamond: predicted for a rank." if guessed else "Nothing was predicted."),
            )
        )
    return found


def predicted(source: Source) -> list[Drawn | Undrawn]:
    """Predicted against measured, where both are there and of one kind."""
    title = "Predicted against measured"
    pairs = (
        ("predicted_step_time_s", "step_time_s", "step time, ms", 1e3),
        ("predicted_memory_bytes", "peak_memory_bytes", "device memory, MiB", 1 / MIB),
    )
    panels = []
    for guess, column, unit, scale in pairs:
        both = [
            (g, g[guess], median(positive(g.rows, column), source.level))
            for g in source.groups
            if (g[guess] or 0) > 0 and len(positive(g.rows, column)) == len(g.rows)
        ]
        if both:
            panels.append((unit, scale, both))
    if not panels:
        return [
            Undrawn(
                title, "predicted_step_time_s beside step_time_s, or predicted_memory_bytes beside peak_memory_bytes"
            )
        ]
    figure, some_axes = new_figure(4.3 * len(panels) + (0.8 if len(panels) == 1 else 0), 4.2, len(panels))
    families = list(dict.fromkeys(group.family for *_, both in panels for group, *_ in both))
    words, handles = [], {}
    for axes, (unit, scale, both) in zip(some_axes, panels, strict=True):
        values = np.array([[guess * scale, estimate.value * scale] for _, guess, estimate in both])
        ends = np.array([values.min() / 1.3, values.max() * 1.3])
        axes.plot(ends, ends, color=GREY, linestyle=(0, (1, 1)))
        axes.fill_between(ends, ends / 1.2, ends * 1.2, color=GREY, alpha=0.15, linewidth=0)
        for index, family in enumerate(families):
            some = [(guess * scale, estimate) for group, guess, estimate in both if group.family == family]
            if some:
                xs, estimates = zip(*some, strict=True)
                one = look(index) | {"linestyle": "none"} | dense(len(some))
                handles[family] = axes.plot(xs, [e.value * scale for e in estimates], **one, zorder=3)[0]
                with_intervals(axes, xs, estimates, one["color"], scale)
        axes.set(xlim=ends, ylim=ends, xlabel=f"predicted {unit}", ylabel=f"measured {unit}")
        log_scale(axes, "x", lambda value, _: f"{value:,.4g}")
        log_scale(axes, "y", lambda value, _: f"{value:,.4g}")
        off = values[:, 0] / values[:, 1]
        within = np.mean(np.abs(np.log(off)) <= np.log(1.2))
        words.append(
            f"{unit.split(',')[0]}: {within:.0%} of {count_of(len(off), 'layout')} within 20%, "
            "predicted/measured "
            f"{np.median(off):.2f} in the median, {off.min():.2f} to {off.max():.2f}"
        )
    legend(figure, list(handles.values()), list(map(label, handles)))
    every = [estimate for *_, both in panels for *_, estimate in both]
    return [
        Drawn(
            "predicted",
            title,
            figure,
            len({row["run_id"] for *_, both in panels for g, *_ in both for row in g.rows}),
            interval_text(every, source.level, "order statistics"),
            "predicted before the run from shape and layout; measured as in the table",
            "Dotted: equal; band: 20% either way. " + "; ".join(words) + ".",
        )
    ]


def throughput_estimate(source: Source, group: Group) -> Estimate:
    return median(group.rates, source.level)


def _peaks(rows: Sequence[dict]) -> str:
    """The peaks of these runs by where they are from; each run's MFU is over its own."""
    by_origin: dict[str, list[float]] = {}
    for row in rows:
        if row["peak_flops"] is not None:
            by_origin.setdefault(str(row["peak_flops_source"]), []).append(row["peak_flops"])
    return "; ".join(
        f"{origin}, {short(min(peaks))}" + (f" to {short(max(peaks))}" if max(peaks) > min(peaks) else "") + " FLOP/s"
        for origin, peaks in sorted(by_origin.items())
    )


def _rows(source: Source, groups: Sequence[Group]):
    """A figure with one named row for each group, the first on top."""
    figure, (axes,) = new_figure(8.6, 1.3 + 0.27 * len(groups))
    axes.set_yticks(range(len(groups)), [source.name(group) for group in groups], fontsize=8)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    models = [group["model"] for group in groups]
    if 2 * len(set(models)) <= len(models):  # models are set apart, where each has several rows
        for y in range(1, len(models)):
            if models[y] != models[y - 1]:
                axes.axhline(y - 0.5, color=GREY, linewidth=0.6)
    return figure, axes


def _rest(b: Breakdown) -> float:
    """What no measured part holds; the residual where there is one."""
    if b.residual_s is not None:
        return b.residual_s
    return b.step_s - sum(value or 0.0 for value in (b.exposed_comm_s, b.bubble_s, b.data_s, b.optimizer_s, b.outer_s))


FIGURES: tuple[Callable[[Source], list[Drawn | Undrawn]], ...] = (mfu, time_breakdown, memory, predicted)
