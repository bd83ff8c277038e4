"""What the bytes of a token file say about its dtype: which readings are impossible. Looks at a sample of the file.

A reading (a dtype) is impossible where in the sample
- a value is outside the vocabulary, or, of floats, no whole number;
- NONZERO tokens or more are not 0, and all of them lie in the same half, or less, of every 8 bytes, and wider numbers
  are possible: the rest are their upper or lower parts. Tokens in any order do that with a chance of at most 2^-40;
- NONZERO tokens or more are not 0, and every one is a multiple of 256: bytes in the other order;
- it holds EQUAL tokens or more, all of them the same: a file that was made large and never filled;
- as float32 or float64 it holds whole numbers only, NONZERO or more of them not 0: other bytes do not.

What is possible may still be wrong: fewer tokens than these, or another vocabulary of the same size, say nothing.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .spec import HOLDS

BLOCKS, BLOCK_BYTES = 64, 32 << 10  # evenly spread, the first and the last among them
WORD = 8  # bytes of the widest dtype: blocks begin and end at multiples of it
NONZERO, EQUAL = 40, 1024
AUTO = ("uint16", "uint32", "int64")  # what `auto` chooses from, in this order
READABLE = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "int64": "<i8"}
OTHERS = {
    "float32": "<f4",
    "float64": "<f8",
    "big-endian uint16": ">u2",
    "big-endian uint32": ">u4",
    "big-endian int64": ">i8",
}
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Witness:
    """Why a reading is impossible."""

    what: str  # in words, after the name of the file
    outside: bool = False  # a value is outside the vocabulary


def sample(raw: np.ndarray) -> np.ndarray:
    """Bytes of the file, all or 64 blocks of 32 KiB: (n,) uint8, n a multiple of 8 unless there are fewer."""
    whole = len(raw) // WORD * WORD or len(raw)
    if whole <= BLOCKS * BLOCK_BYTES:
        return np.asarray(raw[:whole])
    starts = [(whole - BLOCK_BYTES) * i // (BLOCKS - 1) // WORD * WORD for i in range(BLOCKS)]
    return np.concatenate([raw[start : start + BLOCK_BYTES] for start in starts])


def _read_as(kind: np.dtype, some: np.ndarray) -> np.ndarray:
    return some[: len(some) // kind.itemsize * kind.itemsize].view(kind)


def impossible(some: np.ndarray, kind: np.dtype, vocab: int) -> Witness | None:
    """Why `some` bytes (of `sample`) are no tokens of this dtype; None: they may be. vocab 0: not known."""
    values = _read_as(kind, some)
    if not len(values):
        return None
    witness = _wrong_values(values, kind, vocab)
    if witness is not None:
        return witness
    nonzero = values != 0
    if np.count_nonzero(nonzero) < NONZERO:
        return None
    witness = _parts_of_wider(some, kind, vocab, nonzero)
    if witness is not None or kind.kind not in "iu":
        return witness
    if any(_whole(some, code, vocab) for code in ("<f4", "<f8")):
        return Witness(f"read as {kind.name} it is possible, and as floats it holds whole numbers only")
    if kind.itemsize > 1 and _turned_round(values, nonzero):
        return Witness(f"read as {kind.name}, every token is a multiple of 256: bytes in the other order")
    return None


def _turned_round(values: np.ndarray, nonzero: np.ndarray) -> bool:
    """Whether several different values all have a low byte of 0."""
    different = np.unique(values[nonzero][: 4 * EQUAL])
    return len(different) > 3 and not (values & 255).any()


def _wrong_values(values: np.ndarray, kind: np.dtype, vocab: int) -> Witness | None:
    """Numbers that are not whole, a token outside the vocabulary, or one token all over."""
    if kind.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        return Witness("holds numbers that are not whole")
    low, high = values.min(), values.max()
    if low < 0 or (vocab and high >= vocab):
        token = int(low if low < 0 else high)
        return Witness(f"token {token} is outside the vocabulary, data.vocab = {vocab}", outside=True)
    if low == high and len(values) >= EQUAL and vocab != 1:
        return Witness(f"all {len(values)} tokens looked at are {int(low)}: no text, but a file that was never filled")
    return None


def _parts_of_wider(some: np.ndarray, kind: np.dtype, vocab: int, nonzero: np.ndarray) -> Witness | None:
    """Zeros in the same half, or more, of every 8 bytes."""
    places = WORD // kind.itemsize
    if places == 1:
        return None
    used = nonzero[: len(nonzero) // places * places].reshape(-1, places).any(axis=0)
    if not used.any() or 2 * np.count_nonzero(used) > places or not any(_wider(some, kind, vocab)):
        return None
    zeros = np.count_nonzero(~used)
    every = "every second token is 0" if 2 * zeros == places else f"{zeros} of every {places} tokens are 0"
    return Witness(f"read as {kind.name}, {every}, always in the same places: parts of wider numbers")


def _wider(some: np.ndarray, kind: np.dtype, vocab: int) -> Iterator[str]:
    """The readings as wider numbers that are possible, and not all of them one number: 0 1 0 1 is a text of its own."""
    for name, code in (READABLE | OTHERS).items():
        other = np.dtype(code)
        if other.itemsize > kind.itemsize and len(some) >= other.itemsize and impossible(some, other, vocab) is None:
            values = _read_as(other, some)
            if values.min() != values.max():
                yield name


def _whole(some: np.ndarray, code: str, vocab: int) -> bool:
    """Whether the bytes are whole floats that are tokens, of some variety."""
    kind = np.dtype(code)
    values = _read_as(kind, some)
    nonzero = values[values != 0]
    return len(nonzero) >= NONZERO and len(np.unique(nonzero[:EQUAL])) > 3 and not impossible(some, kind, vocab)


def chosen(some: np.ndarray, size: int, vocab: int) -> str:
    """The dtype that `auto` means: the narrowest that is possible; where none is, the narrowest for the vocabulary."""
    able = [name for name in AUTO if HOLDS[name] >= vocab]
    for name in able:
        kind = np.dtype(READABLE[name])
        if size % kind.itemsize == 0 and impossible(some, kind, vocab) is None:
            return name
    return able[0]


def refuse(some: np.ndarray, size: int, kind: np.dtype, vocab: int, where: str, own_header: bool = False) -> None:
    """Refuse a reading that is impossible, with the one that is not, where there is one.

    some: of `sample`; size: bytes of all tokens; own_header: the file says its dtype itself

    Raises
    ------
    ValueError: one line that begins with `where`
    """
    holds = HOLDS.get(kind.name, 2 ** (8 * kind.itemsize - (kind.kind == "i")))
    if vocab > holds:
        declared = ("holds" if own_header else "data.dtype =") + f" {kind.name}"
        raise ValueError(
            f"{where}: {declared}, whose tokens end at {holds - 1}; data.vocab = {vocab} needs {_able(vocab)}"
            + _instead(some, size, kind, vocab, own_header)
        )
    witness = impossible(some, kind, vocab)
    if witness is None:
        return
    other = _instead(some, size, kind, vocab, own_header) or _negative(some, size, vocab)
    if not other and witness.outside:
        other = _too_large(some, size, vocab) or "; this, the file or data.dtype is wrong"
        if vocab == 256 and kind.itemsize > 1:  # nothing speaks against bytes, whatever they are
            other += "; if every byte is a token, write data.dtype = 'uint8'"
    raise ValueError(f"{where}: {witness.what}{other}")


def _instead(some: np.ndarray, size: int, kind: np.dtype, vocab: int, own_header: bool) -> str:
    """What the bytes look like, and what to write for it."""
    for name, code in (READABLE | OTHERS).items():
        other = np.dtype(code)
        holds = vocab if other.kind == "f" else 2 ** (8 * other.itemsize)
        narrow = holds < vocab or (name == "uint8" and vocab >= 256)  # every byte is below 256: no evidence
        if other == kind or narrow or size % other.itemsize or impossible(some, other, vocab):
            continue
        if own_header:
            return f"; what follows looks like {name}"
        if name in OTHERS:
            return f"; it looks like {name}: write it again, as with tokens.astype('{_able(vocab)}').tofile(path)"
        return f"; it looks like {name}: write data.dtype = '{name}'"
    return ""


def _negative(some: np.ndarray, size: int, vocab: int) -> str:
    """What to say of a file of tokens and marks such as -1 or -100."""
    for code in ("<i2", "<i4", "<i8"):
        kind = np.dtype(code)
        if not size % kind.itemsize:
            values = _read_as(kind, some)
            low, tokens = int(values.min()), np.ascontiguousarray(np.maximum(values, 0)).view(np.uint8)
            if -1000 <= low < 0 and impossible(tokens, kind, vocab) is None:
                return f"; as {kind.name} it holds negative numbers ({low}), which are no tokens"
    return ""


def _too_large(some: np.ndarray, size: int, vocab: int) -> str:
    """What to say of a file of uint16 where the vocabulary is larger; any bytes make tokens up to about 65,535."""
    if vocab <= HOLDS["uint16"] or size % 2 or impossible(some, np.dtype("<u2"), 0):
        return ""
    largest = int(some[: len(some) // 2 * 2].view("<u2").max())
    if largest > 0.95 * HOLDS["uint16"]:
        return ""
    return (
        f"; as uint16, too narrow for that, its largest token is {largest}: is data.vocab too large? "
        f"If not, write the file again, as with tokens.astype('{_able(vocab)}').tofile(path)"
    )


def _able(vocab: int) -> str:
    return next(name for name in AUTO if HOLDS[name] >= vocab)


def looks_like_text(raw: np.ndarray) -> str | None:
    """How the file begins where its first 64 KiB are UTF-8 text; None: they are not."""
    start = raw[: 1 << 16].tobytes()
    if len(start) < 64 or len(set(start)) < 8 or not set(start) & set(b" \n,"):
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) == len(raw))
    except UnicodeDecodeError:
        return None
    return None if CONTROL.search(text) else text[:20]
