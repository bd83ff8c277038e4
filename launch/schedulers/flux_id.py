"""Flux's job ids (FLUID, Flux RFC 19): 64-bit numbers, of which `flux batch` prints one form and `flux jobs --json`
gives another.

    decimal   633528662
    hex       0x25c2e156
    dotted    0000.0000.25c2.e156, with or without leading zeros; with the prefix `job.` in the KVS
    F58       ƒxyzzy, and fxyzzy where the terminal or FLUX_F58_FORCE_ASCII says so

F58 is base 58 with Bitcoin's digits, the most significant first, after a prefix. Words and emoji are two forms more,
which no command prints unless it is asked to.
"""

from __future__ import annotations

import re

DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PREFIXES = ("ƒ", "f")
LIMIT = 1 << 64
F58_MOST = 12  # digits: 58^11 is the largest power within 64 bits
DOTTED = re.compile(r"(?:job\.)?([0-9a-fA-F]{1,4})\.([0-9a-fA-F]{1,4})\.([0-9a-fA-F]{1,4})\.([0-9a-fA-F]{1,4})")


def number_of(text: str) -> int:
    """The number that an id stands for, in whichever of the four forms it is.

    Raises
    ------
    ValueError: it is none of them, or does not fit into 64 bits
    """
    text = text.strip()
    number = _number(text)
    if number is None or number >= LIMIT:
        raise ValueError(f"{text!r}: is no job id of Flux")
    return number


def _number(text: str) -> int | None:
    if dotted := DOTTED.fullmatch(text):
        return sum(int(part, 16) << shift for part, shift in zip(dotted.groups(), (48, 32, 16, 0), strict=True))
    if text.startswith(PREFIXES):
        digits = text[1:]
        if not 0 < len(digits) <= F58_MOST or not set(digits) <= set(DIGITS):
            return None
        number = 0
        for digit in digits:
            number = 58 * number + DIGITS.index(digit)
        return number
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"[0-9]+", text, re.ASCII) else None


def f58(number: int, prefix: str = "f") -> str:
    """The number as F58, by default with the ASCII prefix, which every terminal and shell takes."""
    if not 0 <= number < LIMIT:
        raise ValueError(f"{number}: does not fit into 64 bits")
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 58)
        digits = DIGITS[digit] + digits
    return prefix + digits
