"""Ours beside what has been published: a percentage under one convention on one device, or the reason for none."""

from __future__ import annotations

import re
from statistics import median

from ..efficiency.report import Compared
from ..wording import count_of
from .drawing import GREY, Drawn, Undrawn, legend, new_figure
from .layouts import CONVENTIONS
from .source import Source, by_size, label
from .tables import Table, number, text

MOST = 12  # layouts of ours in the figure: the best; the table has them all
TITLE = "Beside published figures"


def published(source: Source) -> list[Drawn | Undrawn]:
    """Our best MFU and the published rows that it may be set against."""
    found = source.beside_published
    ours = [one for one in found if any(each.percent is not None for each in one.against)]
    if not ours:
        why = _refused(found)
        return [Undrawn(TITLE, f"a run whose {source.convention} a published row may be set against; refused: {why}")]
    ours.sort(key=lambda one: -(one.against[0].ours or 0))
    best = ours[:MOST]
    rows = {(each.label, each.theirs): each for one in best for each in one.against if each.percent is not None}
    theirs = sorted(rows.values(), key=lambda each: -each.theirs)
    figure, (axes,) = new_figure(8.6, 1.3 + 0.27 * (len(best) + len(theirs)))
    names = [source.name(one.group) for one in best] + [label(each.label, 64) for each in theirs]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.axhline(len(best) - 0.5, color=GREY, linewidth=0.6)
    handles = axes.plot(
        [100 * one.against[0].ours for one in best], range(len(best)), linestyle="none", marker="D", color="#0072B2"
    )
    said = {}
    for y, each in enumerate(theirs, len(best)):
        said[each.derived] = axes.plot(
            100 * each.theirs,
            y,
            linestyle="none",
            marker="o",
            color="#000000",
            markerfacecolor="none" if each.derived else "#000000",
        )[0]
    axes.set(xlabel=f"MFU, % of peak ({source.convention})", xlim=(0, axes.get_xlim()[1]))
    words = {False: "published, as printed", True: "published, computed from what is printed"}
    legend(figure, [*handles, *said.values()], ["ours, median over runs", *(words[derived] for derived in said)])
    middle = median(each.percent for each in best[0].against if each.percent is not None)
    more = f" {len(ours) - len(best)} more layouts of ours are in the table only." if len(ours) > len(best) else ""
    return [
        Drawn(
            "published",
            TITLE,
            figure,
            sum(len(one.group.rows) for one in best),
            "none: medians over runs beside single published figures",
            f"{CONVENTIONS[source.convention]}, on both sides; the same device, precision, peak and its source, or no "
            "percentage. Models and batches may differ: it is utilisation that is compared, not speed",
            f"Best first. {label(best[0].group.where)} reaches {middle:.0f}% of the {len(theirs)} published figures in "
            f"the median.{more}",
        )
    ]


def table(source: Source) -> Table | None:
    """Every percentage; the note says how often each reason refused one."""
    found = source.beside_published
    columns = (
        ("ours", ""),
        ("published", "model, devices, source"),
        ("dated", ""),
        ("MFU ours", source.convention),
        ("MFU published", source.convention),
        ("% of published", ""),
        ("computed", "from what the source prints, under our convention"),
    )
    rows = tuple(
        (
            text(source.name(one.group)),
            text(each.label),
            text(each.published["published_date"]),
            number(each.ours, "{:.2f} %", 100),
            number(each.theirs, "{:.2f} %", 100),
            number(each.percent, "{:.1f}"),
            text("computed" if each.derived else "printed"),
        )
        for one in sorted(found, key=lambda one: (by_size(one.group), one.group.devices, one.group.label))
        for each in one.against
        if each.percent is not None
    )
    note = f"By {source.convention}: {CONVENTIONS[source.convention]}. No percentage for {_refused(found)}."
    return Table("published", TITLE, columns, rows, note) if rows else None


def _refused(found: tuple[Compared, ...]) -> str:
    """How many published rows each reason keeps from how many of our layouts, the commonest first."""
    why: dict[str, tuple[set, set]] = {}
    for one in found:
        for row, each in enumerate(one.against):
            if each.refused:
                rows, layouts = why.setdefault(re.sub(r" \(ours [^)]*\)", "", each.refused), (set(), set()))
                rows.add(row)
                layouts.add(id(one))
    return "; ".join(
        f"{count_of(len(rows), 'row')} and {count_of(len(layouts), 'layout')}: {reason}"
        for reason, (rows, layouts) in sorted(why.items(), key=lambda item: -len(item[1][0]) * len(item[1][1]))
    )
