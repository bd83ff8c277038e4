"""What mkdocstrings reads for the page on Python: the package under its own name, and its docstrings as Markdown.

The checkout is the package `scalade` itself, whatever its folder is called, so a folder of that name is made of links.
Docstrings are plain text: `name: meaning` for an argument, and a `Raises` underlined as in numpy's. Here they become
lists, and the heading a bold word.
"""

from __future__ import annotations

import re
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "build" / "package" / "scalade"
LINKED = ("__init__.py", "results")  # of this folder every documented function is
NAMED = re.compile(r"^((?:\w+(?:, )?)+|\w+\(.*?\)): ")


def on_startup(command, dirty) -> None:
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if not (PACKAGE / name).is_symlink():
            (PACKAGE / name).symlink_to(ROOT / name)


def as_markdown(text: str) -> str:
    """A docstring of this code base as Markdown."""
    text = re.sub(r"^(\w+)\n-{3,}$", r"**\1**\n", text, flags=re.M)
    return "\n\n".join(map(_paragraph, re.split(r"\n\s*\n", text)))


def _line(line: str) -> str:
    name, colon, meaning = line.partition(":")
    shown = f"- `{name}`{colon}{meaning}" if NAMED.match(line) else line.strip()
    return re.sub(r"<(?=[^`]*(`[^`]*`[^`]*)*$)", "&lt;", shown)


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if lines[0].startswith("    "):
        return text  # code
    return "\n".join(map(_line, lines))


class MarkdownDocstrings(griffe.Extension):
    """Gives mkdocstrings the docstrings as Markdown."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
