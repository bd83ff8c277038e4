"""Throughput and efficiency against devices: ideal lines, intervals over runs, fitted laws of systems."""

from __future__ import annotations

import numpy as np

from ..efficiency.series import Point, Series
from ..efficiency.workload import TOKENS
from .drawing import (
    GREY,
    Drawn,
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

WORDS = {
    "strong": "total work fixed: the same tokens a step on more devices",
    "weak": "work per device fixed: the tokens of a step grow with the devices",
}


def scaling(source: Source) -> list[Drawn | Undrawn]:
    """One figure for each workload and mode."""
    found: list[Drawn | Undrawn] = []
    for mode, some in source.series.items():
        by_work: dict[tuple, list[Series]] = {}
        for one in some:
            by_work.setdefault((one.base.group.match_key, one.base.group.level("strong")), []).append(one)
        most = sorted(by_work.values(), key=lambda members: -sum(len(one.points) for one in members))
        parts, more = chunks(most, f"{mode.capitalize()} scaling", 1)
        found += more
        for index, (members,) in enumerate(parts, 1):
            found.append(_figure(source, mode, members, index, len(parts)))
        if not some:
            grows = "with the same tokens a step" if mode == "strong" else "with the same tokens a step per device"
            needs = f"runs of one model, recipe and engine on two device counts or more {grows}"
            found.append(Undrawn(f"{mode.capitalize()} scaling", needs + _in_the_way(source, mode)))
    return found


def _in_the_way(source: Source, mode: str) -> str:
    """What alone keeps runs from being compared; a user may allow it."""
    other = {TOKENS} if mode == "weak" else set()
    columns = sorted({name for one in source.refused for name in one.columns if set(one.columns) - other} - other)
    names = ", ".join(columns[:3]) + (f" and {len(columns) - 3} more" if len(columns) > 3 else "")
    return f"; the runs that are there differ in {names} (`allow` compares them all the same)" if columns else ""


def _figure(source: Source, mode: str, members: list[Series], index: int, of: int) -> Drawn:
    figure, (left, right) = new_figure(8.6, 4.1, 2)
    counts = sorted({point.group.devices for one in members for point in one.points})
    curved, straight, alone, handles = [], [], [], []
    points: dict[int, Point] = {id(p.group): p for one in members for p in one.points}
    base = members[0].base
    ends = np.array([base.group.devices, counts[-1]])
    ideal = left.plot(
        ends,
        base.tokens_per_s.value * ends / base.group.devices,
        color=GREY,
        linestyle=(0, (1, 1)),
        linewidth=1.2,
        zorder=1,
    )[0]
    right.axhline(1, color=GREY, linestyle=(0, (1, 1)), linewidth=1.2, zorder=1)
    for i, one in enumerate(members):
        fits = sorted((f for f in one.laws if not f.refused), key=lambda f: f.rms_relative_error)
        style = look(i)
        dodge = 2 ** (0.07 * (i - (len(members) - 1) / 2))  # families on as many devices stand side by side
        devices = np.array([p.group.devices for p in one.points])
        rates = np.array([p.tokens_per_s.value for p in one.points])
        efficiency = np.array([1.0 if p.is_base else p.efficiency.value for p in one.points])
        dots = style | {"linestyle": "none"}
        for axes, values in ((left, rates), (right, efficiency)):
            axes.plot(devices * dodge, values, **dots, zorder=3)
        with_intervals(left, devices * dodge, [p.tokens_per_s for p in one.points], style["color"])
        others = [p for p in one.points if not p.is_base]
        at = [p.group.devices * dodge for p in others]
        with_intervals(right, at, [p.efficiency for p in others], style["color"])
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.2, "zorder": 2}
        several = len(set(devices.tolist())) > 2
        if fits:
            grid = np.geomspace(devices.min(), devices.max(), 60)
            fitted = np.array([fits[0].throughput(n) for n in grid])
            left.plot(grid, fitted, **line)
            right.plot(grid, fitted / grid * base.group.devices / one.base.tokens_per_s.value, **line)
            curved.append(f"{one.family} ({fits[0].law.name}, rms error {fits[0].rms_relative_error:.1%})")
        elif several:
            best = {n: max(r for m, r in zip(devices, rates, strict=True) if m == n) for n in sorted(set(devices))}
            left.plot(list(best), list(best.values()), **line)
            right.plot(list(best), [best[n] / n * one.base.group.devices / best[devices[0]] for n in best], **line)
            straight.append(one.family)
        else:
            alone.append(one.family)
        handles.append(left.plot([], [], **(style if several or fits else dots))[0])
    log_scale(left, "y")
    left.set(xlabel="devices (ranks)", ylabel="tokens/s", title="Throughput")
    right.set(
        xlabel="devices (ranks)",
        ylabel="efficiency",
        title="Efficiency against the base",
        ylim=(0, max(1.1, right.get_ylim()[1])),
    )
    for axes in (left, right):
        device_scale(axes, counts)
        axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    engines = {one.engine for one in members}
    names = [label(one.family + (f", {one.engine}" if len(engines) > 1 else "")) for one in members]
    legend(figure, [ideal, *handles], ["ideal", *names])
    lines = [f"Curves: fitted laws of {', '.join(curved)}."] if curved else []
    lines += [f"Lines between medians: {', '.join(straight)} (too few device counts for a law)."] if straight else []
    lines += [f"Points only, two device counts are no trend: {', '.join(alone)}."] if alone else []
    where = base.group.where
    absolute = f"{base.tokens_per_s.value:,.0f} tokens/s, {base.step_time_s.value * 1e3:,.1f} ms a step"
    name, title = numbered(f"scaling-{mode}", f"{mode.capitalize()} scaling", index, of)
    low = [p for p in points.values() if not p.is_base]
    return Drawn(
        name,
        f"{title}: {work_name(base.group)}",
        figure,
        sum(len(p.group.rows) for p in points.values()),
        "throughput: "
        + interval_text([p.tokens_per_s for p in points.values()], source.level, "order statistics")
        + ". Efficiency: "
        + interval_text([p.efficiency for p in low], source.level, "Hodges-Lehmann ratio"),
        f"{WORDS[mode]}. Efficiency = device-seconds per token of the base over those of the point. "
        f"Base of 1: {where}, {absolute}. Throughput is tokens_per_step over the median step time of the slowest rank; "
        "where steps differ in tokens, all tokens over all time",
        "Dotted grey: ideal. Points that share a device count are set side by side. " + " ".join(lines),
    )
