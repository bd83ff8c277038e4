"""Phrases that messages share: counts (`1 run`, `10,000 runs`), and what a misspelt name was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def count_of(count: int, one: str, many: str | None = None) -> str:
    """The count with the words for it. many: of more than one, or none; default: `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names most like a misspelt one, at most `count`, the most alike first.

    cutoff: likeness that is needed, from 0 (any) to 1 (the same); above 0 there may be none
    """
    import difflib  # only a mistake needs it

    return difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'lr' or 'lr_width'?`, or all that is known where nothing is near."""
    known = list(known)
    near = nearest(name, known, count=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there is {', '.join(known)}"
