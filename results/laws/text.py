"""Formatting of numbers, intervals and tables in a report."""

from __future__ import annotations

import math

from ..terminal import aligned


def number(x: float | None, digits: int = 4) -> str:
    """A number for a table: plain between 0.001 and a million, else with an exponent; a dash for none."""
    if x is None or not math.isfinite(x):
        return "-"
    if x != 0 and not 1e-3 <= abs(x) < 1e6:
        return f"{x:.{digits - 1}e}"
    return f"{x:.{max(digits - 1 - math.floor(math.log10(abs(x))), 0) if x else 0}f}"


def span(pair) -> str:
    if pair is None:
        return "-"
    low, high = pair
    return f"[{'open' if low is None else number(low)}, {'open' if high is None else number(high)}]"


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return aligned([head, *body], indent="  ")
