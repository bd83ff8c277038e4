"""How all figures look, and what each must say of itself. matplotlib is imported when one is drawn.

Legible in black and white and to the colour-blind: Okabe and Ito's colours (jfly.uni-koeln.de/color), and beside the
colour always a marker, a line style or a hatch of its own.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

from ..stats.rank_intervals import Estimate
from ..wording import count_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
HATCHES = ("////", "....", "xxxx", "\\\\\\\\", "----", "||||", "")
GREY = "#767676"
PER_FIGURE = 28  # bars in one figure; more go to the next
MOST = 6  # figures of one kind
OF_MANY = 2  # of more
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
    """A figure. name: its file's; the rest is said under it: how many runs, what interval, which convention."""

    name: str
    title: str
    figure: object  # matplotlib.figure.Figure
    runs: int
    interval: str
    convention: str
    reading: str  # what is drawn and how to read it


@dataclass(frozen=True)
class Undrawn:
    """A figure for which the table has no data; needs: what it would take."""

    title: str
    needs: str


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures; also silences what matplotlib says of letters that its font does not have."""
    import matplotlib

    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield


def new_figure(width: float, height: float, columns: int = 1, **subplots):
    """(figure, [axes]) without pyplot: no state, no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **subplots)
    return figure, list(axes[0])


def encoded(figure, format: str) -> bytes:
    """The figure as SVG or PNG; the same table gives the same SVG.

    It is laid out once for all formats and drawn once for each: `savefig` lays out and draws twice every time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    if figure.get_layout_engine() is not None:
        FigureCanvasAgg(figure)
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
    figure.set_dpi(DPI)
    if format == "svg":
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(buffer, pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def look(index: int) -> dict:
    """Colour, marker and line of the n-th series: no two alike below 280."""
    return {"color": COLOURS[index % 7], "marker": MARKERS[index % 8], "linestyle": LINES[index % 5]}


def size_looks(sizes: Sequence[float]) -> tuple[list[dict], object | None]:
    """Looks of models by their size. Up to ten each its own; of more, shade and a scale for it (light is large)."""
    if len(sizes) <= 10:
        return [look(i) for i in range(len(sizes))], None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    norm, shades = LogNorm(min(sizes), max(sizes)), colormaps["cividis"]
    looks = [{"color": shades(0.92 * norm(size)), "marker": "o", "linestyle": "-"} for size in sizes]
    return looks, ScalarMappable(LogNorm(min(sizes), max(sizes) ** (1 / 0.92) * min(sizes) ** (1 - 1 / 0.92)), shades)


def size_scale(figure, axes, shades) -> None:
    """The scale of size_looks beside the axes."""
    bar = figure.colorbar(shades, ax=axes, pad=0.01, aspect=30)
    bar.set_label("parameters N")
    log_scale(bar.ax, "y")


def bar_looks(count: int) -> list[dict]:
    """Fills of stacked bars: light tints with hatches, so that neighbours differ in print too."""
    tints = ("#7db8dc", "#E69F00", "#ffffff", "#F0E442", "#CC79A7", "#66c2a5", "#ececec")
    return [
        {"facecolor": tint, "hatch": hatch, "edgecolor": "#222222", "linewidth": 0.6}
        for tint, hatch in islice(cycle(zip(tints, HATCHES, strict=True)), count)
    ]


def with_intervals(
    axes, xs: Sequence[float], estimates: Sequence[Estimate], colour: str, scale: float = 1.0, horizontal: bool = False
) -> None:
    """Intervals over runs as bars with caps; where runs are too few, the range as a thin bar without.

    xs: where each estimate stands, on the other axis than its value's; scale: of the values.
    """
    for known in (True, False):
        some = [(x, one) for x, one in zip(xs, estimates, strict=True) if (one.low is not None) == known]
        ends = [(one.low, one.high) if known else (one.least, one.most) for _, one in some]
        if not some:
            continue
        values = [one.value * scale for _, one in some]
        error = [
            [value - low * scale for value, (low, _) in zip(values, ends, strict=True)],
            [high * scale - value for value, (_, high) in zip(values, ends, strict=True)],
        ]
        error = [[max(0.0, length) for length in side] for side in error]  # of one run: nothing, but for rounding
        at = [x for x, _ in some]
        drawn = axes.errorbar(
            *((values, at) if horizontal else (at, values)),
            **{"xerr" if horizontal else "yerr": error},
            fmt="none",
            ecolor=colour,
            elinewidth=1.4 if known else 0.8,
            capsize=3 if known else 0,
        )
        for part in (*drawn[1], *drawn[2]):
            part.set_rasterized(len(some) > DENSE)


def dense(points: int) -> dict:
    """What many points are drawn with: an image in the figure, which would else be megabytes."""
    return {"rasterized": True} if points > DENSE else {}


def interval_text(estimates: Sequence[Estimate], level: float, kind: str) -> str:
    """What the bars of these points are, in words."""
    sure = sum(one.low is not None for one in estimates)
    ranged = sum(one.low is None and one.runs > 1 for one in estimates)
    single = sum(one.low is None and one.runs == 1 for one in estimates)
    points = count_of(len(estimates), "point")
    said = [f"bars with caps: {level:.0%} over runs ({kind}), {sure} of {points}"] if sure else []
    said += [f"thin bars: range from least to most, {ranged} with 2 to 5 runs"] if ranged else []
    said += [f"no bar: one run, {single} of them"] if single else []
    return "; ".join(said)


def legend(figure, handles: Sequence, names: Sequence[str], columns: int = 5) -> None:
    """Below the axes, so that it hides no point."""
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
    """1e15, for FLOPs, whose prefixes nobody reads."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def log_scale(axes, which: str, formatter: Callable = short) -> None:
    """A logarithmic axis with labels that hold no mathtext, and enough of them on a short one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    if not 0 < low < high < math.inf:  # nothing on it has a logarithm
        getattr(axes, f"set_{which}scale")("linear")
        return
    decades = math.log10(high / low)
    if decades < 0.4:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    elif decades < 0.8:
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), numticks=9))
    else:
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3 else (1.0,), numticks=7)
        )
    axis.set_major_formatter(FuncFormatter(formatter))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def device_scale(axes, counts: Sequence[int]) -> None:
    """A logarithmic axis of device counts, ticks at those that were measured."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    shown, last = [], None
    for count in sorted(counts):  # ticks that would touch are left out
        if last is None or count / last >= 1.3:
            shown.append(count)
            last = count
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{count:,}" for count in shown]))
    axes.xaxis.set_minor_locator(NullLocator())


def chunks(items: Sequence, title: str, size: int = PER_FIGURE) -> tuple[list[Sequence], list[Undrawn]]:
    """Evenly long parts of at most `size`, a figure for each; and what says that there are more than are drawn.

    MOST figures; where they do not hold all, OF_MANY: who has hundreds of layouts looks at the first, and filters.
    """
    kept = items if len(items) <= size * MOST else items[: size * OF_MANY]
    more, parts = len(items) - len(kept), math.ceil(len(kept) / size)
    length = math.ceil(len(kept) / parts) if parts else 1
    needs = f"a filter on the runs: {len(kept):,} of {len(items):,} are drawn"
    told = [Undrawn(f"{title}, {more:,} more", needs)] if more > 0 else []
    return [kept[start : start + length] for start in range(0, len(kept), length)], told


def numbered(name: str, title: str, index: int, of: int) -> tuple[str, str]:
    return (f"{name}-{index}", f"{title} ({index} of {of})") if of > 1 else (name, title)
