"""Rows of text as aligned columns, for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


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
