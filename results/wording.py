"""How counts are said: `1 run`, `2 runs`, `10,000 runs`."""

from __future__ import annotations


def count_of(count: int, one: str, many: str | None = None) -> str:
    """The count with the words for it. many: of more than one, or none; default: `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
