"""What an engine asks of a layout: pairs of whether it holds and why not. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

Check = tuple[bool, str]


def first_refusal(checks: Iterable[Check]) -> str | None:
    """The reason of the first check that does not hold, or None."""
    return next((reason for ok, reason in checks if not ok), None)
