"""The common look of all figures, and the facts that each must state. matplotlib is imported when one is drawn.

Legible in black and white and to the colour-blind: the colours of Okabe and Ito (jfly.uni-koeln.de/color), and beside
the colour always a separate marker, line style or hatch.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..stats.rank_intervals import Estimate
from ..wording import count_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

Item = TypeVar("Item")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
HATCHES = ("////", "....", "xxxx", "\\\\\\\\", "----", "||||", "")
GREY = "#767676"
PER_FIGURE = 28  # bars in one figure; more go to the next
MOST = 6  # figures of one kind; if they do not hold all items, only OF_MANY are drawn
OF_MANY = 2
DENSE = 400  # points of one kind; more are drawn as an image in the figure
DPI = 200
LEGEND = 14  # names in one legend

RC = {
    "text.parse_math": False,  # names hold `$`
    "svg.fonttype": "path",
    "svg.hashsalt": "scalade",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d8d8d8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.5,
    "figure.dpi": 100,
    "errorbar.capsize": 0,
}


@dataclass(frozen=True)
class Drawn:
    """A figure. name: of its file; below it stand the number of runs, the kind of interval, and the convention."""

    name: str
    title: str
    figure: Figure
    runs: int
    interval: str
    convention: str
    reading: str  # what is drawn and how to read it


@dataclass(frozen=True)
class Undrawn:
    """A figure for which the table has no data; needs: the data that it would take."""

    title: str
    needs: str


Figures = list[Drawn | Undrawn]


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures; also silences the warnings of matplotlib for letters that its font does not have."""
    import matplotlib

    with matplotlib.rc_context(RC), warnings.catch_warnings():  # type: ignore[arg-type]  # keys are a literal of 300
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield


def new_figure(width: float, height: float, columns: int = 1, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """(figure, [axes]) without pyplot: no state, no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **subplots)
    return figure, list(axes[0])


def named_rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one named row for each item, the first on top."""
    figure, (axes,) = new_figure(8.6, 1.3 + 0.27 * len(names))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return figure, axes


def encoded(figure: Figure, format: str) -> bytes:
    """The figure as SVG or PNG; the same table gives the same SVG.

    It is laid out once for all formats and drawn once for each: `savefig` lays out and draws twice each time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    layout = figure.get_layout_engine()
    if layout is not None:
        FigureCanvasAgg(figure)
        layout.execute(figure)
        figure.set_layout_engine("none")
    figure.set_dpi(DPI)
    if format == "svg":
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(buffer, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the n-th series: the first 280 differ."""
    return {"color": COLOURS[index % 7], "marker": MARKERS[index % 8], "linestyle": LINES[index % 5]}


def size_looks(sizes: Sequence[float]) -> tuple[list[dict[str, Any]], ScalarMappable | None]:
    """Looks of models by their size. Up to ten differ; of more, the shade shows the size, on a scale (light: large)."""
    if len(sizes) <= 10:
        return [look(i) for i in range(len(sizes))], None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    norm, shades = LogNorm(min(sizes), max(sizes)), colormaps["cividis"]
    looks = [{"color": shades(0.92 * norm(size)), "marker": "o", "linestyle": "-"} for size in sizes]
    return looks, ScalarMappable(LogNorm(min(sizes), max(sizes) ** (1 / 0.92) * min(sizes) ** (1 - 1 / 0.92)), shades)


def size_scale(figure: Figure, axes: list[Axes], shades: ScalarMappable) -> None:
    """The scale of size_looks beside the axes."""
    bar = figure.colorbar(shades, ax=axes, pad=0.01, aspect=30)
    bar.set_label("parameters N")
    log_scale(bar.ax, "y")


def bar_looks(count: int) -> list[dict[str, Any]]:
    """Fills of stacked bars: light tints with hatches, so that neighbours differ in print too."""
    tints = ("#7db8dc", "#E69F00", "#ffffff", "#F0E442", "#CC79A7", "#66c2a5", "#ececec")
    return [
        {"facecolor": tint, "hatch": hatch, "edgecolor": "#222222", "linewidth": 0.6}
        for tint, hatch in islice(cycle(zip(tints, HATCHES, strict=True)), count)
    ]


def with_intervals(
    axes: Axes,
    places: Iterable[float],
    estimates: Sequence[Estimate],
    colour: str,
    scale: float = 1.0,
    horizontal: bool = False,
) -> None:
    """Intervals over runs as bars with caps; for too few runs, the range as a thin bar without caps.

    places: of the estimates, on the axis that is not that of their values; scale: of the values.
    """
    pairs = list(zip(places, estimates, strict=True))
    capped = [_Bar(place, one.value, *one.interval) for place, one in pairs if one.interval is not None]
    ranges = [_Bar(place, one.value, one.least, one.most) for place, one in pairs if one.interval is None]
    for bars, width, cap in ((capped, 1.4, 3), (ranges, 0.8, 0)):
        if bars:
            drawn = _error_bars(axes, bars, scale, horizontal, ecolor=colour, elinewidth=width, capsize=cap)
            for part in drawn:
                part.set_rasterized(len(bars) > DENSE)


class _Bar(NamedTuple):
    place: float
    value: float
    low: float
    high: float


def _error_bars(axes: Axes, bars: Sequence[_Bar], scale: float, horizontal: bool, **looks: Any) -> list[Artist]:
    places = [bar.place for bar in bars]
    values = [bar.value * scale for bar in bars]
    below = [max(0.0, bar.value * scale - bar.low * scale) for bar in bars]  # of one run 0, but for rounding
    above = [max(0.0, bar.high * scale - bar.value * scale) for bar in bars]
    if horizontal:
        drawn = axes.errorbar(values, places, xerr=[below, above], fmt="none", **looks)
    else:
        drawn = axes.errorbar(places, values, yerr=[below, above], fmt="none", **looks)
    return [*drawn[1], *drawn[2]]


def dense(points: int) -> dict[str, Any]:
    """Many points are drawn as an image in the figure, which would otherwise have megabytes."""
    return {"rasterized": True} if points > DENSE else {}


def interval_text(estimates: Sequence[Estimate], level: float, kind: str) -> str:
    """What the bars of these points are."""
    capped = sum(one.interval is not None for one in estimates)
    single = sum(one.interval is None and one.runs == 1 for one in estimates)
    ranges = len(estimates) - capped - single
    points = count_of(len(estimates), "point")
    texts = [f"bars with caps: {level:.0%} over runs ({kind}), {capped} of {points}"] if capped else []
    texts += [f"thin bars: range from least to most, {ranges} with 2 to 5 runs"] if ranges else []
    texts += [f"no bar: one run, {single} of them"] if single else []
    return "; ".join(texts)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], columns: int = 5) -> None:
    """A legend below the axes, where it hides no point."""
    handles, names = list(handles), list(names)
    if len(names) > LEGEND:
        from matplotlib.lines import Line2D

        more = len(names) - LEGEND
        handles = [*handles[:LEGEND], Line2D([], [], linestyle="none")]
        names = [*names[:LEGEND], f"and {more} more"]
    width = max((len(name) for name in names), default=1)
    fits = max(1, min(columns, int(figure.get_figwidth() * 13 // (width + 7))))
    figure.legend(handles, names, loc="outside lower center", ncols=fits, handlelength=3)


def short(value: float, _position: object = None) -> str:
    """1,234 as 1.23k, for axes and captions."""
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-3 <= size < 1e15:
        return f"{value:.3g}"
    for factor, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor * 0.9995:
            return f"{value / factor:.3g}{name}"
    return f"{value:.3g}"


def powers(value: float, _position: object = None) -> str:
    """1e15, for FLOPs, whose prefixes few people know."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def log_scale(axes: Axes, which: str, formatter: Callable[[float, object], str] = short) -> None:
    """A logarithmic axis, `x` or `y`, with labels without mathtext, and enough of them on a short axis."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    if not 0 < low < high < math.inf:  # nothing on it has a logarithm
        getattr(axes, f"set_{which}scale")("linear")
        return
    axis.set_major_locator(_log_locator(math.log10(high / low)))
    axis.set_major_formatter(FuncFormatter(formatter))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _log_locator(decades: float) -> Locator:
    from matplotlib.ticker import LogLocator, MaxNLocator

    if decades < 0.4:
        return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
    if decades < 0.8:
        return LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), numticks=9)
    if decades < 1.7:
        return LogLocator(subs=(1.0, 2.0, 5.0), numticks=7)
    return LogLocator(subs=(1.0, 3.0) if decades < 3 else (1.0,), numticks=7)


def device_scale(axes: Axes, counts: Sequence[int]) -> None:
    """A logarithmic axis of device counts, ticks at those that were measured."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    shown: list[int] = []
    for count in sorted(counts):  # ticks that would touch are left out
        if not shown or count / shown[-1] >= 1.3:
            shown.append(count)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{count:,}" for count in shown]))
    axes.xaxis.set_minor_locator(NullLocator())


def in_parts(
    items: Sequence[Item], name: str, title: str, draw: Callable[[Sequence[Item], str, str], Drawn]
) -> Figures:
    """A figure for each part of the items, drawn of its items, name and title."""
    parts, more = chunks(items, title)
    return [*more, *(draw(part, *numbered(name, title, at, len(parts))) for at, part in enumerate(parts, 1))]


def chunks(items: Sequence[Item], title: str, size: int = PER_FIGURE) -> tuple[list[Sequence[Item]], list[Undrawn]]:
    """Equally long parts of at most `size`, a figure for each; and a note if not all items are drawn.

    At most MOST figures; if they do not hold all items, OF_MANY: with hundreds of layouts a reader looks at the first,
    and filters.
    """
    kept = items if len(items) <= size * MOST else items[: size * OF_MANY]
    more, parts = len(items) - len(kept), math.ceil(len(kept) / size)
    length = math.ceil(len(kept) / parts) if parts else 1
    needs = f"a filter on the runs: {len(kept):,} of {len(items):,} are drawn"
    undrawn = [Undrawn(f"{title}, {more:,} more", needs)] if more > 0 else []
    return [kept[start : start + length] for start in range(0, len(kept), length)], undrawn


def numbered(name: str, title: str, index: int, of: int) -> tuple[str, str]:
    """The name and title of a figure that is one of several."""
    return (f"{name}-{index}", f"{title} ({index} of {of})") if of > 1 else (name, title)
