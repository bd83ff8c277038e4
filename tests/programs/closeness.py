"""How far two sets of weights are apart."""

from __future__ import annotations


def worst(found: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))
