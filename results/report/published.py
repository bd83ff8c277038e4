"""Our figures beside published ones: a percentage under one convention on one device, or the reason for none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING

from ..efficiency.report import Compared, without_values
from ..efficiency.workload import Group
from ..published import Against
from ..wording import count_of
from .drawing import GREY, Drawn, Figures, Undrawn, legend, named_rows
from .layouts import CONVENTIONS
from .source import Source, by_size, label
from .tables import Table, number, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST = 12  # layouts of ours in the figure: the best; the table has them all
TITLE = "Beside published figures"


def published(source: Source) -> Figures:
    """Our best MFU and the published rows with which it may be compared."""
    every = source.beside_published
    ours = [_Ours(one, values[0], shares) for one in every if (values := _values(one)) and (shares := _shares(one))]
    if not ours:
        why = _refused(every)
        return [Undrawn(TITLE, f"a run whose {source.convention} a published row may be set against; refused: {why}")]
    ours.sort(key=lambda one: -one.value)
    best = ours[:MOST]
    compared = chain.from_iterable(map(_with_percent, (one.compared for one in best)))
    theirs = sorted({(each.label, each.theirs): each for each in compared}.values(), key=_published_value, reverse=True)
    middle = median(best[0].shares)
    more = f" {len(ours) - len(best)} more layouts of ours are in the table only." if len(ours) > len(best) else ""
    return [
        Drawn(
            "published",
            TITLE,
            _chart(source, best, theirs),
            sum(len(one.group.rows) for one in best),
            "none: medians over runs beside single published figures",
            f"{CONVENTIONS[source.convention]}, on both sides; the same device, precision, peak and its source, or no "
            "percentage. Models and batches may differ: it is utilisation that is compared, not speed",
            f"Best first. {label(best[0].group.where)} reaches {middle:.0f}% of the {len(theirs)} published figures in "
            f"the median.{more}",
        )
    ]


@dataclass(frozen=True)
class _Ours:
    """A layout of ours that is compared with published rows: its MFU, and what share of theirs it is."""

    compared: Compared
    value: float
    shares: list[float]

    @property
    def group(self) -> Group:
        return self.compared.group


def _values(one: Compared) -> list[float]:
    return [each.ours for each in one.against if each.ours is not None]


def _shares(one: Compared) -> list[float]:
    return [each.percent for each in one.against if each.percent is not None]


def _with_percent(one: Compared) -> list[Against]:
    return [each for each in one.against if each.percent is not None]


def _published_value(each: Against) -> float:
    assert each.theirs is not None, "a row without a value is refused"
    return each.theirs


def _chart(source: Source, ours: Sequence[_Ours], theirs: Sequence[Against]) -> Figure:
    names = [source.name(one.group) for one in ours] + [label(each.label, 64) for each in theirs]
    figure, axes = named_rows(names)
    axes.axhline(len(ours) - 0.5, color=GREY, linewidth=0.6)
    handles = axes.plot(
        [100 * one.value for one in ours], range(len(ours)), linestyle="none", marker="D", color="#0072B2"
    )
    by_origin: dict[bool, Line2D] = {}
    for y, each in enumerate(theirs, len(ours)):
        by_origin[each.derived] = axes.plot(
            100 * _published_value(each),
            y,
            linestyle="none",
            marker="o",
            color="#000000",
            markerfacecolor="none" if each.derived else "#000000",
        )[0]
    axes.set(xlabel=f"MFU, % of peak ({source.convention})", xlim=(0, axes.get_xlim()[1]))
    words = {False: "published, as printed", True: "published, computed from what is printed"}
    names = ["ours, median over runs", *(words[derived] for derived in by_origin)]
    legend(figure, [*handles, *by_origin.values()], names)
    return figure


def table(source: Source) -> Table | None:
    """Every percentage; the note counts the refusals by reason."""
    every = source.beside_published
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
        for one in sorted(every, key=lambda one: (by_size(one.group), one.group.devices, one.group.label))
        for each in _with_percent(one)
    )
    note = f"By {source.convention}: {CONVENTIONS[source.convention]}. No percentage for {_refused(every)}."
    return Table("published", TITLE, columns, rows, note) if rows else None


def _refused(every: Sequence[Compared]) -> str:
    """How many published rows each reason keeps from how many of our layouts, the commonest first."""
    kept: dict[str, tuple[set[int], set[int]]] = {}
    for layout, one in enumerate(every):
        for row, each in enumerate(one.against):
            if each.refused:
                rows, layouts = kept.setdefault(without_values(each.refused), (set(), set()))
                rows.add(row)
                layouts.add(layout)
    return "; ".join(
        f"{count_of(len(rows), 'row')} and {count_of(len(layouts), 'layout')}: {reason}"
        for reason, (rows, layouts) in sorted(kept.items(), key=lambda item: -len(item[1][0]) * len(item[1][1]))
    )
