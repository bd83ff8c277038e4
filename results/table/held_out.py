"""Which held-out sequences a loss is the mean over, said by a hash; losses over different ones are not compared.

The hash (column `val_hash`) is the first 16 hexadecimal digits of the SHA-256 over the tokens, row by row, as
little-endian uint32, then the number of rows and of tokens a row as little-endian uint64.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from ..wording import count_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..schema.rows import AnyRow


def val_hash(sequences: np.ndarray | Iterable[np.ndarray]) -> str:
    """What the column `val_hash` holds of these sequences.

    sequences: tokens (rows, seq_len + 1), the inputs with the token after them, as an array or a CPU tensor; or an
    iterable of such arrays or of single rows, in order, where all at once are too many.

    Raises
    ------
    ValueError: no sequences, not of one length, or tokens that are no integers from 0 to 2**32 - 1
    """
    import numpy as np

    digest, rows, length = hashlib.sha256(), 0, None
    for part in [sequences] if hasattr(sequences, "shape") else sequences:
        tokens = _checked(np.asarray(part), length)
        digest.update(np.ascontiguousarray(tokens, "<u4").data)
        rows, length = rows + len(tokens), tokens.shape[1]
    if not rows:
        raise ValueError("no sequences to hash")
    digest.update(struct.pack("<QQ", rows, length))
    return digest.hexdigest()[:16]


def _checked(tokens: np.ndarray, length: int | None) -> np.ndarray:
    """(rows, length) tokens, of one sequence or several; length None: that of the first decides."""
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or length not in (None, tokens.shape[1]):
        raise ValueError(f"sequences of shape {tokens.shape}: must be (rows, seq_len + 1), all of one length")
    if tokens.dtype.kind not in "iu" or (tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**32):
        raise ValueError("tokens of sequences are integers from 0 to 2**32 - 1")
    return tokens


def refusal(rows: Sequence[AnyRow]) -> str | None:
    """Why the held-out losses of these rows of `runs` may not be set side by side, in one line; None: they may."""
    first: dict[str, AnyRow] = {}
    for row in rows:
        if row.get("val_loss") is not None and row.get("val_hash"):
            first.setdefault(row["val_hash"], row)
    if len(first) < 2:
        return None
    (one, a), (other, b), *more = first.items()
    others = f" and {len(more)} more" if more else ""
    return (
        f"held-out losses of different sequences are not compared: val_hash is {one} in {_name(a)}, {other} in "
        f"{_name(b)}{others}; keep one, as with \"val_hash == '{one}'\", or run all with the same [data], "
        "model.seq_len and measure.eval_sequences"
    )


def unknown(rows: Sequence[AnyRow]) -> str | None:
    """A note where some or all rows with a held-out loss have no val_hash; None: all have, or none has a loss."""
    evaluated = [row for row in rows if row.get("val_loss") is not None]
    unhashed = sum(not row.get("val_hash") for row in evaluated)
    if not unhashed:
        return None
    if unhashed == len(evaluated):
        return f"val_hash is null in all {count_of(unhashed, 'row')}: held-out losses may be over different sequences"
    rows_with = f"{unhashed} of {count_of(len(evaluated), 'row')}"
    return f"val_hash is null in {rows_with}: held-out losses may be over other sequences"


def unbelieved(rows: Sequence[AnyRow]) -> list[str]:
    """One line for each different val_warning of the rows, with the runs."""
    by_why: dict[str, list[str]] = {}
    for row in rows:
        if row.get("val_warning"):
            by_why.setdefault(row["val_warning"], []).append(row["run_id"])
    return [f"{', '.join(ids[:3])}{' and more' if len(ids) > 3 else ''}: {why}" for why, ids in by_why.items()]


def one_set(frame: pd.DataFrame, names: Collection[str]) -> str | None:
    """What to say of the held-out sequences behind a frame of runs, where `val_loss` is among the columns read.

    Raises
    ------
    ValueError: their losses are over different ones (`refusal`)
    """
    if "val_loss" not in names or not {"val_loss", "val_hash"} <= set(frame.columns):
        return None  # another column, or another's table
    few = frame[[name for name in ("layout", "run_id", "val_loss", "val_hash") if name in frame.columns]]
    rows = few.astype(object).where(few.notna(), None).to_dict("records")
    differ = refusal(rows)
    if differ:
        raise ValueError(differ)
    return unknown(rows)


def _name(row: AnyRow) -> str:
    """The row for people: layout and run_id, as far as it has them."""
    return " ".join(str(row[name]) for name in ("layout", "run_id") if row.get(name)) or "a row"
