"""Pages that name things of the code name things that are there: messages, columns, study keys."""

import ast
import re

import pytest
from places import ROOT

from scalade.launch.study.schema import KEYS
from scalade.results.schema.columns import TABLES

FOLDERS = ("bench", "cli", "launch", "parallelism", "results")
GAP = "\0"  # where a message has something that varies
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
COLUMNS = {column.name for groups in TABLES.values() for group in groups.values() for column in group} | set(TABLES)


def text_of(node):
    """A string of the code as it is printed, GAP for each value put in; None: it is no string."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


def strings():
    """Every string of the package."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield from filter(None, map(text_of, ast.walk(ast.parse(file.read_text()))))


SAID = "\n".join(strings())


def rows(page):
    """The cells of all tables of a page, less their heads."""
    for line in page.splitlines():
        if line.startswith("| ") and not re.match(r"\| (message|reason|term) \|", line):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def entries():
    """The messages of the catalogue."""
    return [code for row in rows(TROUBLES) for code in re.findall(r"`([^`]+)`", row[0])]


def parts(entry):
    return [part.strip() for part in entry.split("…") if len(part.strip(" :;,()'")) > 3]


@pytest.mark.parametrize("entry", entries())
def test_every_message_of_the_catalogue_is_in_the_code(entry):
    assert parts(entry), f"{entry}: nothing of it is fixed"
    absent = [part for part in parts(entry) if part not in SAID]
    assert not absent, f"{entry}: the code says no {absent}"


def test_the_catalogue_is_large_and_a_wrong_entry_would_be_seen():
    assert len(entries()) > 150
    assert "this message is nowhere" not in SAID


@pytest.mark.parametrize("error", ["WorldError", "SchedulerError"])
def test_every_failure_to_meet_or_to_be_submitted_is_in_the_catalogue(error):
    known = [part for entry in entries() for part in parts(entry)]
    missing = []
    for file in sorted((ROOT / "launch").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == error and node.args):
                continue
            message = text_of(node.args[0]) or ""
            fixed = [part for part in message.split(GAP) if len(part.strip(" :;,()")) > 8]
            if fixed and not any(part in message for part in known):
                missing.append(f"{file.relative_to(ROOT)}: {message.replace(GAP, '…')}")
    assert not missing, missing


@pytest.mark.parametrize("row", list(rows(GLOSSARY)), ids=lambda row: row[0])
def test_the_glossary_names_columns_and_keys_that_are_there(row):
    _, _, columns, keys = (re.findall(r"`([^`]+)`", cell) for cell in row)
    assert set(columns) <= COLUMNS, set(columns) - COLUMNS
    assert set(keys) <= {key.dotted for key in KEYS.values()}, keys


def test_the_words_for_contributors_are_in_the_glossary():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Words")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([^|]+?) \|", table, re.M)[2:]
    terms = " | ".join(row[0] for row in rows(GLOSSARY))
    missing = [word for phrase in words for word in phrase.split(", ") if word not in terms]
    assert len(words) > 10 and not missing, missing


NOT_OURS = ("train.py", "make_runs.py", "megatron/training/training.py", "torchtitan/models/utils.py")  # of an example


@pytest.mark.parametrize("page", sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")))
def test_files_of_the_code_that_a_page_names_are_there(page):
    files = [
        f"/{file.relative_to(ROOT)}"
        for folder in (*FOLDERS, "kernels", "tests", "docs")
        for file in (ROOT / folder).rglob("*.py")
    ]
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / page).read_text())) - set(NOT_OURS)
    gone = [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
    assert not gone, f"{page}: {gone}"
