"""Links that leave docs/ work on the site as they do in the repository: each file they name becomes a page of its own.

A page may link `../parallelism/tensor.py` or `../tests/programs`. The site has no such files, so every one that some
page links is added under source/: code as a highlighted block, Markdown as Markdown, a folder as the list of its files.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"(^```.*?^```)", re.M | re.S)
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".json": "json", ".yml": "yaml", ".cfg": "ini"}
HEAD = "---\nsearch:\n  exclude: true\n---\n\n"


def prose_parts(markdown: str) -> list[str]:
    """The text cut at its code blocks: even parts are prose, odd ones code."""
    return FENCE.split(markdown)


def targets(markdown: str, page: str) -> set[str]:
    """Paths in the repository, outside of docs/, that a page links; `page` is its own path in the repository."""
    found = set()
    for prose in prose_parts(markdown)[::2]:
        for _, path, _, _ in LINK.findall(prose):
            target = normpath(join(dirname(page), path))
            if "://" not in path and not target.startswith("docs/") and (ROOT / target).exists():
                found.add(target)
    return found


def site_path(target: str) -> str:
    """Where a repository path is among the site's Markdown files."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    shown = re.sub(r"(^|/)\.", r"\1dot-", target)  # MkDocs leaves out what begins with a dot
    return f"source/{shown}" if target.endswith(".md") else f"source/{shown}.md"


def rewritten(markdown: str, page: str) -> str:
    """The page with its links out of docs/ pointing at their pages under source/."""

    def one(match: re.Match) -> str:
        opening, path, anchor, closing = match.groups()
        target = normpath(join(dirname(page), path))
        known = target.startswith("docs/") or (ROOT / target).exists()
        if "://" in path or not known or (page.startswith("docs/") and target.startswith("docs/")):
            return match[0]
        to = relpath(site_path(target), dirname(site_path(page)) or ".")
        return f"{opening}{to}{anchor or ''}{closing}"

    parts = prose_parts(markdown)
    return "".join(part if number % 2 else LINK.sub(one, part) for number, part in enumerate(parts))


@lru_cache
def source_page(target: str) -> str:
    """One file or folder of the repository as Markdown."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if not name.startswith((".", "__pycache__")))
        return f"{HEAD}# {target}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = path.read_text()
    if path.suffix == ".md":
        return HEAD + text
    return f"{HEAD}# {target}\n\n`````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n`````\n"


def on_files(files, config):
    """Adds a page for every file that is linked from a page, and from the Markdown files among those."""
    from mkdocs.structure.files import File

    waiting = []
    for file in list(files.documentation_pages()):
        page = f"docs/{file.src_uri}"
        waiting += targets((ROOT / page).read_text(), page)
    known = set()
    while waiting:
        target = waiting.pop()
        if target in known:
            continue
        known.add(target)
        files.append(File.generated(config, site_path(target), content=source_page(target)))
        if target.endswith(".md"):
            waiting += targets((ROOT / target).read_text(), target)
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    path = page.file.src_uri
    repository = path.removeprefix("source/") if path.startswith("source/") else f"docs/{path}"
    if path.startswith("source/") and not (ROOT / repository).exists():
        return markdown  # code, in a block
    return rewritten(markdown, repository)
