"""What to say where no layout fills the devices: why, and which counts near them work."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import numpy as np

from .question import Question
from .space import Refusals, blocks, divisors

MOST_TRIED = 50  # counts on either side


def no_layout(question: Question, refusals: Refusals) -> str:
    """One line."""
    reason, _ = refusals.counts()[0]
    counts = _products(question)
    below = counts[counts < question.devices][::-1]
    near = [count for count in (_works(question, below), _works(question, counts[counts > question.devices])) if count]
    works = f"; {' and '.join(f'{count:,}' for count in near)} would work" if near else ""
    return f"no layout of {question.engine} fills {question.devices:,} devices ({reason}){works}"


def _products(question: Question) -> np.ndarray:
    """Counts of devices that degrees allow which the model and the batch can be cut by, ascending."""
    shape = question.shape
    heads = gcd(shape.heads, shape.kv_heads, shape.ffn, shape.vocab)
    degrees = [divisors(question.global_batch), divisors(heads), np.arange(1, shape.layers + 1)]
    if question.engine == "torch" and shape.seq_len % 2 == 0:
        degrees.append(divisors(shape.seq_len // 2))
    counts = np.ones(1, int)
    for each in degrees:
        counts = np.unique(np.outer(counts, each))
    return counts


def _works(question: Question, counts: np.ndarray) -> int | None:
    """The first of these counts that some layout fills, memory aside."""
    for count in map(int, counts[:MOST_TRIED]):
        if next(blocks(replace(question, devices=count), Refusals()), None) is not None:
            return count
    return None
