"""What the message on a wrong study file says: file, key, what was found, what is allowed, the nearest known key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...results import wording

SHOWN = 30  # problems of one file printed at once
LINE = 500  # characters of a problem
LONGEST = 60  # characters of a value or a key that are shown


class StudyError(ValueError):
    """A mistake in a study file; the text is all a user needs."""

    def __init__(self, path: Path | str, problems: Sequence[str]) -> None:
        self.path, self.problems = Path(path), tuple(problems)
        lines = [shorten(line, LINE) for line in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"and {len(problems) - SHOWN} more")
        where = shorten(str(path), LINE)
        super().__init__(f"{where}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{where}:", *lines]))


def shorten(text: str, limit: int = LONGEST) -> str:
    """One printable line of bounded length."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object) -> str:
    """A value as the user wrote it, in TOML's terms."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return shorten(json.dumps(value, ensure_ascii=False))
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print integers of 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    return shorten(str(value))


def dotted(parts: Iterable[str | int]) -> str:
    """`("layout", 1, "tp")` as `layout[1].tp`."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (shorten(part) if plain else shown(part))
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like a misspelt one; None where nothing is near."""
    return next(iter(wording.nearest(word[:LONGEST], known)), None)


def unknown(word: str, known: Iterable[str], what: str = "key") -> str:
    """`unknown key; did you mean "lr"?`, or all that is allowed where nothing is near."""
    known = list(known)
    near = nearest(word, known)
    return f"unknown {what}; " + (f"did you mean {near}?" if near else f"allowed are {', '.join(known)}")
