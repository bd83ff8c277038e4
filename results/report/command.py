"""`scalade report`: from a table to one HTML page and the figures of a paper. The CLI only parses and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..gate.compare import Comparison, compare
from ..gate.formats import summary
from ..table.held_out import refusal
from ..table.read import printable
from ..wording import count_of
from . import gate, layouts, losses, outer, outer_law, published, scaling
from .drawing import Drawn, Undrawn, encoded, style
from .page import fastest_lines, rendered
from .source import MODES, Source, read_source

Progress = Callable[[str, float], None]
FORMATS = ("svg", "png")
FIGURES: tuple[Callable[[Source], list[Drawn | Undrawn]], ...] = (
    scaling.scaling,
    layouts.mfu,
    published.published,
    layouts.time_breakdown,
    layouts.memory,
    losses.curves,
    losses.final_loss,
    losses.isoflop_curves,
    outer.diloco,
    outer_law.diloco_law,
    layouts.predicted,
)


@dataclass(frozen=True)
class ReportFiles:
    """What was written. undrawn: figures for which the table has no data, and what they would need."""

    html: Path
    figures: tuple[Path, ...]
    drawn: tuple[str, ...]
    undrawn: tuple[Undrawn, ...]
    runs: int
    gate: str | None = None  # its verdict, where a baseline was given
    fastest: tuple[str, ...] = ()  # of each workload, a line each
    refused: str | None = None  # why held-out losses are not set side by side

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


def report(
    path: str | Path,
    out: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    where: str | None = None,
    mode: str | None = None,
    base: str | None = None,
    allow: Sequence[str] = (),
    convention: str = "mfu_palm",
    level: float = 0.95,
    title: str | None = None,
    baseline: str | Path | None = None,
    progress: Progress | None = None,
) -> ReportFiles:
    """Write the report of the runs at `path` (a results folder, or a Parquet file that `export` wrote).

    out: the HTML file, self-contained; default: report.html in the results folder, or beside the exported file.
    figures: folder of the figures; default: `<out without suffix>-figures`. formats: of `svg` and `png`; () for none.
    where: a filter on the runs. mode, base, allow: of the scaling figures, as in `efficiency`; mode None: both.
    convention: `mfu_6n`, `mfu_palm` or `mfu_causal`; level: of the intervals over runs.
    baseline: results that the regression gate holds these against, at its defaults (see `compare`).
    progress(stage, fraction) is called while work is long.

    Raises
    ------
    ValueError: a mistake of the user's, in one line
    """
    for name, value, known in (
        ("mode", mode, (None, *MODES)),
        ("convention", convention, tuple(layouts.CONVENTIONS)),
        *(("format", one, FORMATS) for one in formats),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r}: allowed are {', '.join(k for k in known if k)}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level:g}")
    path = Path(path)
    out = Path(out) if out is not None else (path if path.is_dir() else path.parent) / "report.html"
    if out.is_dir():
        raise ValueError(f"out {printable(out)} is a folder: name the HTML file to write")
    folder = Path(figures) if figures is not None else out.with_name(f"{out.stem}-figures")
    tell = progress or (lambda stage, fraction: None)
    tell("reading", 0.0)
    source = read_source(path, where, (mode,) if mode else MODES, base, allow, convention, level)
    verdict = compare(baseline, path, where=where) if baseline is not None else None
    drawn: list[tuple[Drawn, bytes]] = []
    undrawn: list[Undrawn] = []
    written: list[Path] = []
    with style():
        for made in _each(source, verdict, tell):
            if isinstance(made, Undrawn):
                undrawn.append(made)
                continue
            svg = encoded(made.figure, "svg")
            drawn.append((made, svg))
            for format in formats:
                file = folder / f"{made.name}.{format}"
                _write(
                    file, svg if format == "svg" else encoded(made.figure, format), folder if figures else out.parent
                )
                written.append(file)
    tell("writing", 0.95)
    _write(out, rendered(source, drawn, undrawn, title, verdict).encode())
    tell("done", 1.0)
    return ReportFiles(
        out,
        tuple(written),
        tuple(one.name for one, _ in drawn),
        tuple(undrawn),
        len(source.rows),
        verdict and summary(verdict),
        tuple(fastest_lines(source)),
        refusal(source.ok),
    )


def _each(source: Source, verdict: Comparison | None, tell: Progress) -> Iterator[Drawn | Undrawn]:
    if verdict is not None:
        yield from gate.figures(verdict)
    for number, draw in enumerate(FIGURES):
        tell(draw.__name__.replace("_", " "), 0.1 + 0.85 * number / len(FIGURES))
        yield from draw(source)


def _write(file: Path, content: bytes, below: Path | None = None) -> None:
    """Whole or not at all: written aside and renamed. below: the folder that the user named (files.py)."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, content, below, sync=False)
    except OSError as error:
        raise ValueError(f"cannot write {printable(file)}: {error.strerror or error}") from None
