"""The documentation as a site: the navigation reaches every page, links resolve, and CI builds it strictly."""

import importlib
import importlib.util
import re
from posixpath import dirname, join, normpath

import pytest
import typer
from places import ROOT

from scalade.cli.app import app

DOCS = ROOT / "docs"
PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
CONFIG = (ROOT / "mkdocs.yml").read_text()


def hook(name):
    """A module of docs/hooks, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(text):
    """A page without its code."""
    text = re.sub(r"^ *(```+)[^`\n]*\n.*?^ *\1 *$", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(text):
    """The anchors that a page's headings have, here as on the site."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", re.sub(r"^ *(```+).*?^ *\1 *$", "", text, flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def test_the_navigation_reaches_every_page_once():
    reached = re.findall(r"^ +- .+: (\S+\.md)$", CONFIG.partition("\nnav:\n")[2], re.M)
    assert {page for page in reached if page.startswith("source/")} == {"source/CONTRIBUTING.md", "source/CHANGELOG.md"}
    reached = [page for page in reached if not page.startswith("source/")]
    assert sorted(reached) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve_in_the_repository(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose((ROOT / page).read_text())):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = ROOT / (normpath(join(dirname(page), path)) if path else page)
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            wrong.append(f"{link}: no such heading")
    assert not wrong, f"{page}: {wrong}"


def test_ci_builds_the_site_strictly():
    assert re.search(r"^make docs$", (ROOT / ".ci" / "run").read_text(), re.M)
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert "mkdocs build --strict" in recipe


def test_nothing_is_fetched_when_the_site_is_read():
    assert re.search(r"^  font: false", CONFIG, re.M)
    assert "extra_javascript" not in CONFIG and "extra_css" not in CONFIG and "http" not in CONFIG


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_wrapped_one_way(page):
    text = (ROOT / page).read_text()
    assert hook("wrap_lines").wrapped(text) == text, "run: python docs/hooks/wrap_lines.py"


@pytest.mark.parametrize(
    "text, wrapped",
    [
        ("one\ntwo\n", "one two\n"),
        ("- one\n  two\n- three\n", "- one two\n- three\n"),
        ("> one\n> two\n", "> one two\n"),
        ("text\n- one\n- two\n", "text\n\n- one\n- two\n"),
        ("text\n| a |\n|---|\n| b |\n", "text\n\n| a |\n|---|\n| b |\n"),
        ("| a |\n|---|\nafter\n\n```\none\ntwo\n```\n", "| a |\n|---|\nafter\n\n```\none\ntwo\n```\n"),
        ("a " * 59 + "b - c\n", "a " * 58 + "a\nb - c\n"),
        ("a " * 58 + "`b c`\n", "a " * 57 + "a\n`b c`\n"),
        (
            "<!-- x: generated -->\none\ntwo\n<!-- end of x -->\n",
            "<!-- x: generated -->\none\ntwo\n<!-- end of x -->\n",
        ),
    ],
)
def test_wrapping(text, wrapped):
    assert hook("wrap_lines").wrapped(text) == wrapped


def test_links_out_of_docs_become_pages_of_the_site():
    pages = hook("source_pages")
    text = "[a](../parallelism/tensor.py) [b](table.md#x) `[c](../README.md)`\n"
    assert pages.targets(text, "docs/engines.md") >= {"parallelism/tensor.py"}
    assert pages.rewritten(text, "docs/engines.md").startswith("[a](source/parallelism/tensor.py.md) [b](table.md#x)")
    assert "def " in pages.source_page("parallelism/tensor.py")


def test_every_experiment_has_its_date():
    entries = re.findall(r"^\*\*(.{60})", (DOCS / "experiments.md").read_text(), re.M)
    undated = [entry for entry in entries if not re.match(r"20\d\d-\d\d-\d\d\. ", entry)]
    assert len(entries) > 50 and not undated


def test_the_page_of_commands_has_every_command_that_the_help_lists():
    page = hook("command_reference").all_commands()

    def names(group, path):
        for name, command in group.commands.items():
            if not command.hidden:
                yield f"{path} {name}"
                yield from names(command, f"{path} {name}") if hasattr(command, "commands") else ()

    every = list(names(typer.main.get_command(app), "scalade"))
    assert re.findall(r"^#+ (scalade .*) \{#", page, re.M) == every and len(every) > 20
    assert "| `--retry-failed` |  | " in page and "| `--seed` `INTEGER` | `0` | " in page and "[[" not in page


def test_the_page_of_python_names_what_can_be_imported():
    paths = re.findall(r"^::: (\S+)$", (DOCS / "reference" / "python.md").read_text(), re.M)
    assert len(paths) > 12
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(path), path
