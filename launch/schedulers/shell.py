"""Shell text from data. Whatever a name, a path or a value holds, the shell reads it as one word and runs none of it.

No quoted word spans lines: a value with a line end cannot make a line that a scheduler takes for a directive.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ..host.launchers import Raw

WIDTH = 110


def quote(word: str) -> str:
    """One word of bash on one line; Raw stands as it is.

    Raises
    ------
    ValueError: it holds a zero byte, which no command can
    """
    if "\0" in word:
        raise ValueError(f"no command can hold a zero byte: {word!r}")
    if isinstance(word, Raw):
        return str(word)
    if word.isprintable():
        return shlex.quote(word)
    # ANSI-C quoting, byte by byte what is not plain; a lone surrogate is a byte of a path that is not UTF-8
    bytes_ = word.encode(errors="surrogateescape")
    return "$'" + "".join(chr(b) if 0x20 <= b < 0x7F and chr(b) not in "\\'" else f"\\x{b:02x}" for b in bytes_) + "'"


def command(words: Iterable[str], indent: str = "") -> str:
    """A command, broken over lines where it is long, but not between an option and its value."""
    lines, line, before = [], indent, "-"
    for word in words:
        text = quote(word)
        if len(line) + len(text) > WIDTH and (text.startswith("-") or not before.startswith("-")):
            lines.append(line + "\\")
            line = indent + "    "
        line, before = line + text + " ", text
    return "\n".join([*lines, line.rstrip()])


def comment(text: str) -> list[str]:
    """Comment lines, in which nothing can end the comment."""
    return [f"# {''.join(c if c.isprintable() else '?' for c in line)}".rstrip() for line in text.split("\n")]
