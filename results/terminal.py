"""Tables and lines on a person's screen. Whatever is in a name or a reason is printed as text and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console


class Cell(NamedTuple):
    text: str
    style: str = ""


def make_console() -> Console:
    """Of standard output; a pipe or a file has no edge."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def print_grid(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> None:
    """headers: one a column; `>name` is aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for header in headers:
        grid.add_column(header.lstrip(">"), justify="right" if header.startswith(">") else "left", overflow="fold")
    for row in rows:
        cells = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
        grid.add_row(*(Text(printable(cell.text), style=cell.style) for cell in cells))
    console.print(grid)


def say(console: Console, line: str, style: str = "") -> None:
    console.print(printable(line), style=style or None, markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Without control characters but for line ends: nothing in it drives the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), indent: str = "") -> list[str]:
    """A line a row, two spaces between its cells. Columns in `left` begin together, the others (numbers) end together.

    rows: of equally many cells each, a header among them as any other. Raises ValueError where they are not.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return indent + "  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(cells))

    return [line(row).rstrip() for row in rows]


def listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 5 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
