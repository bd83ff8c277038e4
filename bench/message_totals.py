"""Sums of counted messages, by collective and by dimension of the mesh: one form of what was measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping

Totals = dict[str, dict[str, dict[str, int]]]
"""{"collective" | "dim": {name: {"bytes", "calls"}}}"""


def totals(nbytes: Mapping[tuple[str, str], int], calls: Mapping[tuple[str, str], int]) -> Totals:
    """From bytes and calls by (collective, dimension)."""
    return {
        axis: {
            name: {
                "bytes": sum(n for key, n in nbytes.items() if key[place] == name),
                "calls": sum(n for key, n in calls.items() if key[place] == name),
            }
            for name in sorted({key[place] for key in calls})
        }
        for place, axis in enumerate(("collective", "dim"))
    }
