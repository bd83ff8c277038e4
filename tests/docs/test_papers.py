"""CONTRIBUTING, docs/architecture.md and the other papers: every file, name and command in them is there."""

import ast
import importlib.util
import re
from functools import cache

import pytest
from places import ROOT

from scalade import __version__

GUIDES = ("CONTRIBUTING.md", "docs/architecture.md")
SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"\.?[\w<>-]+(?:/[\w.<>-]+)*/?(?:\.\w+)?")
TOPS = ("bench", "cli", "docs", "kernels", "launch", "parallelism", "results", "studies", "tests", ".ci")
ITEM = r"`[A-Za-z_]\w*(?:\.\w+)?`"
NAMES = re.compile(rf"`([\w/]+\.py)`\s+\(({ITEM}(?:,\s+{ITEM})*)")  # a file, and in brackets what is in it


def text_of(page: str) -> str:
    """A page without its blocks of code and pictures."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)


def paths(page: str) -> list[str]:
    """What stands in backticks and begins with a folder of ours, and the files at the top."""
    spans = SPAN.findall(text_of(page))
    return [one for one in spans if PATH.fullmatch(one) and (one.split("/")[0] in TOPS and "/" in one)]


@cache
def defined(path: str) -> frozenset[str]:
    """Names at the top of a module, and `Class.member`."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return frozenset(found)


@pytest.mark.parametrize("page", GUIDES)
def test_every_file_that_is_named_exists(page):
    """In a placeholder, as parallelism/<engine>/engine.py, the part before it does."""
    named = paths(page)
    missing = [path for path in named if not (ROOT / path.partition("<")[0].rpartition("/")[0] / "").exists()]
    missing += [path for path in named if "<" not in path and not (ROOT / path).exists()]
    assert len(named) > 25 and missing == []


@pytest.mark.parametrize("page", GUIDES)
def test_every_name_in_brackets_behind_a_file_is_defined_there(page):
    found = NAMES.findall(text_of(page))
    wrong = [(path, name) for path, names in found for name in SPAN.findall(names) if name not in defined(path)]
    assert len(found) > 10 and wrong == []


@pytest.mark.parametrize("page", GUIDES)
def test_every_module_and_target_that_is_called_exists(page):
    text = (ROOT / page).read_text()
    modules = re.findall(r"python -m (scalade[\w.]*)", text)
    files = [ROOT.joinpath(*module.split(".")[1:]) for module in modules]
    assert [f for f in files if not (f.with_suffix(".py").exists() or (f / "__main__.py").exists())] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert [name for name in re.findall(r"`?\bmake ([a-z-]+)`", text) if name not in targets] == []


@pytest.mark.parametrize("page", GUIDES)
def test_every_folder_of_tests_that_is_run_exists(page):
    words = " ".join(re.findall(r"pytest ([^`]+)`", (ROOT / page).read_text())).split()
    assert [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", text_of(page))
    assert links and [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_picture_has_every_folder_of_code_and_every_room():
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    rooms = {f"{path.name}/" for top in ("launch", "results") for path in (ROOT / top).iterdir() if path.is_dir()}
    rooms |= {f"{top}/" for top in TOPS if (ROOT / top / "__init__.py").exists()}
    assert [room for room in sorted(rooms) if room not in picture and "__pycache__" not in room] == []


@pytest.mark.parametrize("folder", ["launch", "results"])
def test_the_arrows_of_the_picture_point_down(folder):
    """The order is that of tests/cli/test_import_order.py: a room imports what stands behind it."""
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    (box,) = [part for part in re.split(r"^\+-", picture, flags=re.M) if f"| {folder}/" in part]
    drawn = " ".join(re.findall(r"^\|     ([^|]+?) *\|", box, re.M)).split(" -> ")
    groups = [[room.removesuffix(".py").rstrip("/") for room in group.split()] for group in drawn]
    source = ast.parse((ROOT / "tests" / "cli" / "test_import_order.py").read_text())
    (rooms,) = [node.value for node in source.body if ast.unparse(node).startswith("ROOMS = ")]
    layers = ast.literal_eval(rooms)[folder]
    height = {room: level for level, rooms in enumerate(layers) for room in rooms}
    heights = [{height[room] for room in group} for group in groups]
    assert len(groups) > 4 and all(min(left) > max(right) for left, right in zip(heights, heights[1:], strict=False))


def test_the_changelog_has_the_version_and_the_usual_headings():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", text, re.M)[0] == "Unreleased" and f"## [{__version__}] - 20" in text
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= kinds


def test_the_citation_names_the_version_and_the_license():
    pairs = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert pairs["version"] == __version__ and pairs["license"] == "Apache-2.0" and pairs["cff-version"] == "1.2.0"
    assert (ROOT / "LICENSE").read_text().split("\n")[1].strip() == "Apache License"


def test_the_hooks_of_pre_commit_fetch_nothing_and_are_the_checks_of_make_lint():
    config, makefile = (ROOT / ".pre-commit-config.yaml").read_text(), (ROOT / "Makefile").read_text()
    assert re.findall(r"repo: (\S+)", config) == ["local"] and set(re.findall(r"language: (\S+)", config)) == {"system"}
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)[1]
    tools = set(re.findall(r"-m (ruff check|ruff format|mypy -p scalade)", config))
    assert tools == set(re.findall(r"-m (ruff check|ruff format|mypy -p scalade)", lint)) and len(tools) == 3


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_the_papers_are_wrapped_as_the_docs_are(page):
    spec = importlib.util.spec_from_file_location("wrap_lines", ROOT / "docs" / "hooks" / "wrap_lines.py")
    wrap_lines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wrap_lines)
    text = (ROOT / page).read_text()
    assert wrap_lines.wrapped(text) == text
