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


def wrapped(text: str) -> str:
    """The page, wrapped."""
    lines, out = text.splitlines(), []
    paragraph: list[str] = []
    first = rest = ""
    in_list = False

    def flush() -> None:
        if paragraph:
            words = [" ".join(word[0].split()) for word in WORD.finditer("\n".join(paragraph))]
            out.extend(filled(words, first, rest))
            paragraph.clear()

    fence, generated, front = "", False, bool(lines) and lines[0] == "---"
    for number, line in enumerate(lines):
        opening = FENCE.match(line)
        if front:
            front = number == 0 or line != "---"
        elif generated:
            generated = not END.match(line)
        elif fence:
            fence = "" if opening and opening[1].startswith(fence) and line.strip() == opening[1] else fence
        elif opening:
            flush()
            fence = opening[1]
        elif GENERATED.match(line):
            flush()
            generated = True
        elif not line.strip():
            flush()
            in_list = False
        elif (item := ITEM.match(line)) is not None:
            flush()
            if not in_list and out and out[-1].strip():
                out.append("")
            in_list = True
            first, rest = item[0], " " * len(item[0])
            paragraph.append(line[len(item[0]) :])
            continue
        elif not paragraph and AS_IS.match(line) or paragraph and re.match(r" *(\||#{1,6} |<!--|:::)", line):
            flush()
            table = line.lstrip().startswith("|")
            if table and out and out[-1].strip() and not out[-1].lstrip().startswith("|"):
                out.append("")
        else:
            quote = QUOTE.match(line)
            if not paragraph:
                first = rest = quote[1] if quote else " " * (len(line) - len(line.lstrip()))
            paragraph.append(quote[2] if quote else line)
            continue
        out.append(line)
    flush()
    return "\n".join(out) + "\n"


def main(check: bool) -> int:
    stale = [page for page in pages() if wrapped(page.read_text()) != page.read_text()]
    for page in stale:
        if not check:
            page.write_text(wrapped(page.read_text()))
        print(f"{'not wrapped' if check else 'wrapped'}: {page.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
