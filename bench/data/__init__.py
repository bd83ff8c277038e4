"""Training data: named sources of token sequences, the same global batch whatever the layout.

A sequence is known by its position in the run: step * global_batch + row. What stands there depends on the spec, the
sequence length and the seed only, so any rank of any layout can ask for its own rows and no data is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .spec import SOURCES, UNLIMITED, DataSpec, vocab_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SOURCES", "DataSpec", "Source", "open_source", "unusable", "vocab_of"]


class Source(Protocol):
    """What `open_source` gives. Positions count sequences over the whole run; rows are (stop - start, seq_len + 1)
    int64: the inputs are row[:-1], the targets row[1:]."""

    vocab: int  # every token is below it
    val_windows: int | None  # held-out sequences there are; None: unlimited

    def train_rows(self, start: int, stop: int) -> np.ndarray:
        """The training sequences of positions start..stop-1.

        Raises
        ------
        ValueError: the data holds a token outside the vocabulary
        """

    def val_rows(self, start: int, stop: int) -> np.ndarray:
        """Held-out sequences in an order that is the same for every seed. Never wraps. Rows n..n-1 ask whether there
        are n.

        Raises
        ------
        ValueError: fewer than `stop` there are (the message says how many), or a token outside the vocabulary
        """

    def unique_tokens(self, sequences: int) -> int:
        """Different training tokens (as targets) that positions 0..sequences-1 touch."""

    def columns(self) -> dict[str, object]:
        """data_hash: of the content, wherever it lies; data_tokens: training tokens of one epoch, None when unlimited;
        data_entropy_nats: the exact entropy rate in nats/token, None when unknown."""


def open_source(spec: DataSpec, seq_len: int, seed: int) -> Source:
    """The source that `spec` names, for sequences of seq_len tokens in the order of `seed`.

    Raises
    ------
    ValueError: the data is missing, of another format, damaged, or too short for one sequence
    """
    return spec.module().open_source(spec, seq_len, seed)


def unusable(spec: DataSpec, seq_len: int, eval_sequences: int) -> str | None:
    """Why no run can train on this data here and be evaluated on as many held-out sequences; None: one can. Opens the
    data, but not one of unlimited sequences; imports no torch."""
    if spec.source in UNLIMITED:
        return None
    try:
        open_source(spec, seq_len, 0).val_rows(eval_sequences, eval_sequences)
    except ValueError as error:
        return str(error)
    return None
