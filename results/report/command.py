"""`scalade report`: from a table to one HTML page and the figures of a paper. The CLI only parses and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

from .. import files
from ..efficiency.series import MODES
from ..gate.compare import Comparison, compare
from ..gate.formats import summary
from ..table.held_out import refusal
from ..table.read import printable
from ..wording import count_of
from . import frontier, gate, layouts, losses, outer, outer_law, predicted, published, scaling
from .drawing import Drawn, Figures, Undrawn, encoded, style
from .page import fastest_lines, rendered
from .source import Source, read_source

Progress = Callable[[str, float], None]
FORMATS = ("svg", "png")
FIGURES: tuple[Callable[[Source], Figures], ...] = (
    scaling.scaling,
    layouts.mfu,
    published.published,
    layouts.time_breakdown,
    layouts.memory,
    losses.curves,
    frontier.final_loss,
    frontier.isoflop_curves,
    outer.diloco,
    outer_law.diloco_law,
    predicted.predicted,
)


@dataclass(frozen=True)
class ReportFiles:
    """The files that were written. undrawn: figures for which the table has no data, and what they would need."""

    html: Path
    figures: tuple[Path, ...]
    drawn: tuple[str, ...]
    undrawn: tuple[Undrawn, ...]
    runs: int
    gate: str | None = None  # its verdict, with a baseline
    fastest: tuple[str, ...] = ()  # a line for each workload
    refused: str | None = None  # why held-out losses are not compared

    def to_dict(self) -> dict:
        return {
            "html": str(self.html),
            "figures": [str(path) for path in self.figures],
            "drawn": list(self.drawn),
            "not_drawn": [{"title": one.title, "needs": one.needs} for one in self.undrawn],
            "runs": self.runs,
            "gate": self.gate,
            "fastest": list(self.fastest),
            "refused": self.refused,
        }

    def to_text(self) -> str:
        lines = [f"{self.html}: {count_of(self.runs, 'run')}, {count_of(len(self.drawn), 'figure')}"]
        lines += [line for line in (self.gate, self.refused) if line]
        lines += [f"fastest layout of {line}" for line in self.fastest]
        if self.figures:
            lines.append(f"{self.figures[0].parent}: {count_of(len(self.figures), 'file')}")
        return "\n".join(lines + [f"not drawn: {one.title}: needs {one.needs}" for one in self.undrawn])


class ReportKeywords(TypedDict, total=False):
    """The keywords of `report`: the fields of ReportOptions."""

    figures: str | Path | None
    formats: Sequence[str]
    where: str | None
    mode: str | None
    base: str | None
    allow: Sequence[str]
    convention: str
    level: float
    title: str | None
    baseline: str | Path | None
    progress: Progress | None


@dataclass(frozen=True)
class ReportOptions:
    """What to draw and how; the defaults of `report`, which documents each.

    Raises
    ------
    ValueError: a value that is not allowed
    """

    figures: str | Path | None = None
    formats: Sequence[str] = FORMATS
    where: str | None = None
    mode: str | None = None
    base: str | None = None
    allow: Sequence[str] = ()
    convention: str = "mfu_palm"
    level: float = 0.95
    title: str | None = None
    baseline: str | Path | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        checks: list[tuple[str, str | None, Sequence[str]]] = [
            ("mode", self.mode, MODES),
            ("convention", self.convention, tuple(layouts.CONVENTIONS)),
            *(("format", one, FORMATS) for one in self.formats),
        ]
        for name, value, allowed in checks:
            if value not in allowed and (name, value) != ("mode", None):
                raise ValueError(f"{name} {value!r}: allowed are {', '.join(allowed)}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level:g}")

    def report_stage(self, stage: str, fraction: float) -> None:
        if self.progress is not None:
            self.progress(stage, fraction)


def report(path: str | Path, out: str | Path | None = None, **keywords: Unpack[ReportKeywords]) -> ReportFiles:
    """Write the report of the runs at `path` (a results folder, or a Parquet file that `export` wrote).

    out: the HTML file, self-contained; default: report.html in the results folder, or beside the exported file.
    All further arguments are keywords:

    figures: folder of the figures; default: `<out without suffix>-figures`. formats: of `svg` and `png`; () for none.
    where: a filter on the runs. mode, base, allow: of the scaling figures, as in `efficiency`; mode None: both.
    convention: `mfu_6n`, `mfu_palm` or `mfu_causal`; level: of the intervals over runs; title: of the page.
    baseline: results with which the regression gate compares these, at its defaults (see `compare`).
    progress(stage, fraction) is called during the work.

    Raises
    ------
    ValueError: a mistake of the user's, in one line
    """
    options = ReportOptions(**keywords)
    path = Path(path)
    out = _page_of(path) if out is None else Path(out)
    if out.is_dir():
        raise ValueError(f"out {printable(out)} is a folder: name the HTML file to write")
    options.report_stage("reading", 0.0)
    modes = (options.mode,) if options.mode else MODES
    source = read_source(path, options.where, modes, options.base, options.allow, options.convention, options.level)
    gate_result = None if options.baseline is None else compare(options.baseline, path, where=options.where)
    pictures = _Pictures()
    with style():
        for figure in _each(source, gate_result, options):
            pictures.add(figure, out, options)
    options.report_stage("writing", 0.95)
    _write(out, rendered(source, pictures.drawn, pictures.undrawn, options.title, gate_result).encode())
    options.report_stage("done", 1.0)
    return ReportFiles(
        html=out,
        figures=tuple(pictures.files),
        drawn=tuple(one.name for one, _ in pictures.drawn),
        undrawn=tuple(pictures.undrawn),
        runs=len(source.rows),
        gate=None if gate_result is None else summary(gate_result),
        fastest=tuple(fastest_lines(source)),
        refused=refusal(source.ok),
    )


def _page_of(path: Path) -> Path:
    """In the results folder, or beside the exported file."""
    return (path if path.is_dir() else path.parent) / "report.html"


@dataclass
class _Pictures:
    """The figures so far: drawn, each with its SVG; without data; and the files written."""

    drawn: list[tuple[Drawn, bytes]] = field(default_factory=list)
    undrawn: list[Undrawn] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def add(self, figure: Drawn | Undrawn, out: Path, options: ReportOptions) -> None:
        if isinstance(figure, Undrawn):
            self.undrawn.append(figure)
            return
        svg = encoded(figure.figure, "svg")
        self.drawn.append((figure, svg))
        self.files += _write_figure(figure, svg, out, options)


def _each(source: Source, gate_result: Comparison | None, options: ReportOptions) -> Iterator[Drawn | Undrawn]:
    if gate_result is not None:
        yield from gate.figures(gate_result)
    for number, draw in enumerate(FIGURES):
        options.report_stage(draw.__name__.replace("_", " "), 0.1 + 0.85 * number / len(FIGURES))
        yield from draw(source)


def _write_figure(figure: Drawn, svg: bytes, out: Path, options: ReportOptions) -> list[Path]:
    """The files of the figure, one for each format."""
    default = out.with_name(f"{out.stem}-figures")
    folder = default if options.figures is None else Path(options.figures)
    below = folder if options.figures else out.parent
    written = []
    for format in options.formats:
        file = folder / f"{figure.name}.{format}"
        _write(file, svg if format == "svg" else encoded(figure.figure, format), below)
        written.append(file)
    return written


def _write(file: Path, content: bytes, below: Path | None = None) -> None:
    """Whole or not at all: to a temporary file, then renamed. below: the folder that the user named (files.py)."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, content, below, sync=False)
    except OSError as error:
        raise ValueError(f"cannot write {printable(file)}: {error.strerror or error}") from None
