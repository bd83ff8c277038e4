"""What the entropy of single tokens says of a held-out loss: which losses are impossible.

The entropy of single tokens, H1 = -sum p ln p over a sample, is the loss of the best predictor without a context. A
model that has learned something of text is below it, after some ten thousand bytes already. But where no token of the
sample tells anything of those after it, no model can be below it, and none is below the entropy rate of a source that
knows it. A loss that is so low all the same was measured on text that is in the training text, or repeats far apart.

Dependence is looked for with a G-test of pairs of tokens, dealt to at most 64 classes, at distances of 1 to 4:
G = 2 sum O ln(O / E), about chi-squared with (r - 1)(c - 1) degrees of freedom where there is none. Pairs are dependent
from SIGMAS standard deviations above that mean.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from . import Source

SAMPLE = 1 << 18  # tokens
CLASSES, PER_CELL = 64, 20  # pairs that a cell of the test has on average, at least
SIGMAS = 6.0
DISTANCES = (1, 2, 3, 4)


def entropy(tokens: np.ndarray) -> tuple[float, float]:
    """(H1, standard deviation of -ln p of a token), in nats, of tokens as counted: a little too low in few of them."""
    counts = np.unique(tokens, return_counts=True)[1]
    p = counts / counts.sum()
    surprise = -np.log(p)
    mean = float(p @ surprise)
    return mean, math.sqrt(max(0.0, float(p @ surprise**2) - mean**2))


def independent(rows: np.ndarray) -> bool:
    """Whether no token of (sequences, length) tells anything of the few after it; false also where there are too few
    tokens to say so."""
    classes = min(CLASSES, int(math.sqrt(rows.size / PER_CELL)))
    if classes < 4 or rows.shape[1] <= max(DISTANCES):
        return False
    few = int(rows.max()) < classes
    dealt = rows if few else ((rows.astype(np.uint64) * np.uint64(2654435761)) >> np.uint64(13)) % np.uint64(classes)
    dealt = dealt.astype(np.int64)
    for distance in DISTANCES:
        pairs = np.bincount((dealt[:, :-distance] * classes + dealt[:, distance:]).ravel(), minlength=classes**2)
        counts = pairs.reshape(classes, classes).astype(float)
        counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
        expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
        some = counts > 0
        g = 2 * float((counts[some] * np.log(counts[some] / expected[some])).sum())
        freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
        if freedom and g > freedom + SIGMAS * math.sqrt(2 * freedom):
            return False
    return True


def believed(
    source: Source, seq_len: int, val_loss: float, val_tokens: int, rate: float | None = None
) -> tuple[float, str | None]:
    """(H1 of a sample of the training text in nats, why val_loss cannot be, or None).

    val_tokens: that val_loss is the mean over; rate: entropy rate of a source that knows it, in nats
    """
    count = max(1, min(SAMPLE, source.unique_tokens(SAMPLE)) // seq_len)
    rows = source.train_rows(0, count)[:, 1:]
    h1, spread = entropy(rows)
    slack = 0.01 * h1 + 5 * spread / math.sqrt(max(1, min(val_tokens, rows.size)))
    if rate is not None and val_loss < rate - slack:
        what = f"{rate:.4f}, the entropy rate of the source, which nothing can beat"
    elif val_loss < h1 - slack and independent(rows):
        what = (
            f"{h1:.4f}, the entropy of single tokens, and no token of the text predicts the next: what is held out is "
            "in the training text, too, or the file is no text of these tokens"
        )
    else:
        return h1, None
    return h1, f"val_loss {val_loss:.4f} is below {what}"
