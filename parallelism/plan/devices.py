"""What to say where no layout fills the devices: why, and which counts near them work."""

from __future__ import annotations

from dataclasses import replace

from .question import Question
from .space import Refusals, blocks

FARTHEST = 4096  # from the count that was asked for


def no_layout(question: Question, refusals: Refusals) -> str:
    """One line."""
    reason, _ = refusals.counts()[0]
    near = [count for count in (_nearest(question, -1), _nearest(question, 1)) if count]
    works = f"; {' and '.join(f'{count:,}' for count in near)} work" if near else ""
    return f"no layout of {question.engine} fills {question.devices:,} devices ({reason}){works}"


def _nearest(question: Question, direction: int) -> int | None:
    """The next count of devices in that direction that some layout fills, memory aside."""
    for distance in range(1, FARTHEST):
        count = question.devices + direction * distance
        if count < 1:
            return None
        if next(blocks(replace(question, devices=count), Refusals()), None) is not None:
            return count
    return None
