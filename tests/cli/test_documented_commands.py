"""Every command line that the README, docs/, the help and the studies show is one that the command line takes.

In blocks and epilogs a line must parse whole; in a sentence (`scalade compare --interleave`) arguments may be missing.
"""

import re
import shlex
from importlib.util import find_spec

import pyarrow as pa
import pytest
import typer
from places import ROOT

from scalade.cli.app import UserError, app
from scalade.launch.schedulers import SCHEDULERS
from scalade.results.laws.base import get_law
from scalade.results.schema.schema import arrow_schema, known_column
from scalade.results.table.filter import mask

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LAUNCHERS = ("torchrun", "mpirun", "mpiexec", "srun", "nice", "sudo", "time", "do")
PLAIN = ("", "sh", "bash", "console", "text")  # languages of blocks that may hold commands


def split(line):
    """The simple commands of a shell line, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    found = [[]]
    for word in lexer:
        if set(word) <= set(";&|<>"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def ours(words):
    """What comes after `scalade` where these words start it; None: they start something else."""
    while words and (re.fullmatch(r"[A-Z_]+=\S*", words[0]) or words[0] in ("sudo", "time", "do", "nice")):
        words = words[1:]
    if "scalade" not in words:
        return None
    at = words.index("scalade")
    return words[at + 1 :] if at == 0 or words[0] in LAUNCHERS or words[at - 1] == "-m" else None


def of_block(text):
    """Command lines of a block: those after a prompt where there is one, with what a backslash goes on to."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    for line in prompted or lines:
        try:
            yield from filter(None, map(ours, split(line.strip())))
        except ValueError:  # prose and output need not close their quotes
            continue


def shown():
    """(where, words, whole) of every command line."""
    for page in PAGES:
        text = page.read_text()
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
            if language in PLAIN:
                yield from ((page.name, words, True) for words in of_block(block))
        for code in re.findall(r"`(scalade [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
            yield from ((page.name, words, False) for words in map(ours, split(" ".join(code.split()))) if words)
    for study in sorted((ROOT / "studies").glob("*.toml")):
        comments = "\n".join(
            line.lstrip("# ").removeprefix("Run it:") for line in study.read_text().splitlines() if line.startswith("#")
        )
        yield from ((study.name, words, True) for words in of_block(comments))
        for code in re.findall(r"`(scalade [^`]+)`", comments):
            yield from ((study.name, words, False) for words in map(ours, split(code)) if words)
    for name, command in commands(typer.main.get_command(app)):
        for line in (command.epilog or "").removeprefix("Example: ").splitlines():
            yield from ((f"scalade {name} --help", words, True) for words in filter(None, map(ours, split(line))))


def commands(group, path=""):
    for name, command in group.commands.items():
        yield f"{path}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")


def parsed(words, whole=True):
    """(name, parameters) of a command line; None: it is a sentence's mention of one. AssertionError: not taken."""
    command, name, rest = typer.main.get_command(app), [], list(words)
    while hasattr(command, "commands"):
        if rest and rest[0].startswith("-") and not name:
            return None  # scalade --help, --version
        assert rest or not whole, f"{' '.join(words)}: which of {', '.join(command.commands)}?"
        if not rest:
            return None
        assert rest[0] in command.commands, f"no command {rest[0]!r}"
        name, command = [*name, rest[0]], command.commands[rest[0]]
        rest = rest[1:]
    if {"-h", "--help"} & set(rest):
        return None
    try:
        return " ".join(name), command.make_context(name[-1], rest).params
    except UserError as error:
        said = error.format_message()
        assert not whole and (type(error).__name__ == "MissingParameter" or "requires an argument" in said), said
        return None


def names_that_exist(name, given):
    """AssertionError or ValueError where a parameter names a study, a law, a column or a scheduler that is none."""
    for value in given.values():
        for one in value if isinstance(value, list | tuple) else [value]:
            if str(one).startswith("studies/") and "*" not in str(one):
                assert (ROOT / str(one)).exists(), f"{one}: no such study"
    if name == "fit":
        for law in [given["law"], *(given["compare"] or "").split(",")]:
            assert law in ("", "none") or get_law(law)
        return
    table = given.get("table") or "runs"
    if given.get("where") and name != "ops":
        mask(pa.Table.from_pylist([], arrow_schema(table)), table, given["where"])
    for names in (given.get("columns"), (given.get("sort") or "").removeprefix("-")):
        for column in (names or "").split(","):
            assert column in ("", "all") or known_column("runs", column.strip())
    assert (given.get("scheduler") or "slurm") in SCHEDULERS


SHOWN = list(dict.fromkeys((where, tuple(words), whole) for where, words, whole in shown()))


@pytest.mark.parametrize("page", sorted({where for where, *_ in SHOWN}))
def test_every_command_line_that_is_shown_is_taken(page):
    wrong = []
    for where, words, whole in SHOWN:
        if where == page:
            try:
                found = parsed(words, whole)
                if found is not None:
                    names_that_exist(*found)
            except (AssertionError, ValueError) as error:
                wrong.append(f"scalade {shlex.join(words)}\n    {error}")
    assert not wrong, "\n".join(["", *wrong])


def test_they_are_found():
    """None is lost in silence: the pages that show commands, a line of each kind, and every command's help."""
    pages = [where for where, *_ in SHOWN]
    assert len(SHOWN) > 120 and {"README.md", "gate.md", "table.md", "lab.md", "clusters.md", "laws.md"} <= set(pages)
    words = {words for _, words, _ in SHOWN}
    assert ("worker", "mine.toml", "--results", "mpirun-results") in words  # behind a launcher
    assert ("lab", "run", "--", "hostname") in words
    helped = {where.removeprefix("scalade ").removesuffix(" --help") for where in pages if where.startswith("scalade ")}
    every = {name for name, command in commands(typer.main.get_command(app)) if not hasattr(command, "commands")}
    assert helped == {*every, "lab"} - {"pack"}  # pack is what a batch script calls


@pytest.mark.parametrize(
    "line, why",
    [
        ("scalade export results --out x.parquet", "No such option: --out"),
        ("scalade shwo results", "no command 'shwo'"),
        ("scalade export results", "Missing argument 'OUT'"),
        ("scalade report results --level high", "Invalid value for '--level'"),
        ("scalade run studies/quikstart.toml", "no such study"),
        ("scalade fit x.csv --law chinchila", "chinchilla"),
        ("scalade show x --filter 'tokns_per_s > 1'", "tokens_per_s"),
        ("scalade show x --columns layout,tokns_per_s", "tokens_per_s"),
    ],
)
def test_a_wrong_line_would_be_seen(line, why):
    (words,) = map(ours, split(line))
    with pytest.raises((AssertionError, ValueError), match=re.escape(why)):
        names_that_exist(*parsed(words))


def test_modules_and_tests_that_are_named_exist():
    for page in PAGES:
        text = page.read_text()
        for module in re.findall(r"python -m (scalade[\w.]*)", text):
            assert find_spec(module), f"{page.name}: {module}"
        for path in re.findall(r"\btests/[\w/]+\.py\b", text):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"{page.name}: make {target}"
