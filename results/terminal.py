"""Tables and lines on a person's screen; whatever is in a name or a reason, it is printed as text and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
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
