"""One way to wrap the documentation: prose at 120 columns, filled; tables, code and generated parts as they are.

A table or a list that follows a paragraph has a blank line before it: GitHub needs none, MkDocs' Markdown does.

python docs/hooks/wrap_lines.py            rewrites the pages
python docs/hooks/wrap_lines.py --check    names the pages that are not so, and exits with 1
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 120
ITEM = re.compile(r"( *)((?:[-*+]|\d+[.)]) +)(?=\S)")
QUOTE = re.compile(r"( *(?:> ?)+)(.*)")
FENCE = re.compile(r" *(```+|~~~+)")
AS_IS = re.compile(r" *(\||#{1,6} |<|:::|---$|!\[)|!!! |    ")  # tables, headings, HTML, directives, rules, code
GENERATED, END = re.compile(r"<!-- .*\bgenerated\b"), re.compile(r"<!-- end of ")
WORD = re.compile(r"(?:(?P<ticks>`+).+?(?P=ticks)(?!`)|\S)+", re.S)  # code between backticks is not parted
BLOCK_START = re.compile(r"[-*+#>|]|\d+[.)]$|#{1,6}$|:::")  # a word that must not come to stand first in a line


def pages() -> list[Path]:
    """The pages that are held to this."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


INTERRUPTS = re.compile(r" *(\||#{1,6} |<!--|:::)")  # a paragraph


def filled(words: list[str], first: str, rest: str) -> list[str]:
    """The words in lines of WIDTH, the first after `first`, the others after `rest`."""
    lines, line = [], first
    for number, word in enumerate(words):
        following = words[number + 1] if number + 1 < len(words) else ""
        tail = len(f" {following}") if BLOCK_START.fullmatch(following) else 0  # keep it in this line
        started = line not in (first, rest) or (not lines and line != first)
        if started and len(line) + 1 + len(word) + tail > WIDTH and not BLOCK_START.fullmatch(word):
            lines.append(line)
            line, started = rest, False
        line += f" {word}" if started else word
    return [*lines, line]


class _Page:
    """A page on its way through the wrapper: the lines so far, and the paragraph that is being read."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.paragraph: list[str] = []
        self.first = self.rest = ""  # what the paragraph's first line and its others begin with
        self.in_list = False

    def flush(self) -> None:
        if self.paragraph:
            words = [" ".join(word[0].split()) for word in WORD.finditer("\n".join(self.paragraph))]
            self.out.extend(filled(words, self.first, self.rest))
            self.paragraph.clear()

    def add(self, line: str) -> None:
        """A line of prose, or one that stays as it is between paragraphs."""
        item = ITEM.match(line)
        if not line.strip():
            self.flush()
            self.in_list = False
            self.out.append(line)
        elif item:
            self._begin_item(line, item[0])
        elif (INTERRUPTS if self.paragraph else AS_IS).match(line):
            self.flush()
            self._add_as_it_is(line)
        else:
            self._continue(line)

    def _begin_item(self, line: str, mark: str) -> None:
        self.flush()
        if not self.in_list and self.out and self.out[-1].strip():
            self.out.append("")
        self.in_list = True
        self.first, self.rest = mark, " " * len(mark)
        self.paragraph.append(line[len(mark) :])

    def _add_as_it_is(self, line: str) -> None:
        before = self.out[-1].strip() if self.out else ""
        if line.lstrip().startswith("|") and before and not before.startswith("|"):
            self.out.append("")  # MkDocs needs it before a table
        self.out.append(line)

    def _continue(self, line: str) -> None:
        quote = QUOTE.match(line)
        if not self.paragraph:
            self.first = self.rest = quote[1] if quote else " " * (len(line) - len(line.lstrip()))
        self.paragraph.append(quote[2] if quote else line)


def _untouched(lines: list[str]) -> list[bool]:
    """Which lines belong to the front matter, to a fenced block or to a generated one."""
    marks, fence, generated, front = [], "", False, lines[:1] == ["---"]
    for number, line in enumerate(lines):
        opening = FENCE.match(line)
        marks.append(bool(front or generated or fence or opening or GENERATED.match(line)))
        if front:
            front = number == 0 or line != "---"
        elif generated:
            generated = not END.match(line)
        elif fence:
            fence = "" if opening and opening[1].startswith(fence) and line.strip() == opening[1] else fence
        elif opening:
            fence = opening[1]
        else:
            generated = bool(GENERATED.match(line))
    return marks


def wrapped(text: str) -> str:
    """The page, wrapped."""
    page, lines = _Page(), text.splitlines()
    for line, untouched in zip(lines, _untouched(lines), strict=True):
        if untouched:
            page.flush()
            page.out.append(line)
        else:
            page.add(line)
    page.flush()
    return "\n".join(page.out) + "\n"


def main(check: bool) -> int:
    stale = [page for page in pages() if wrapped(page.read_text()) != page.read_text()]
    for page in stale:
        if not check:
            page.write_text(wrapped(page.read_text()))
        print(f"{'not wrapped' if check else 'wrapped'}: {page.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
