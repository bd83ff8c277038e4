"""The order of the package's folders and rooms: no import climbs, no two modules import each other.

import-linter reads a package that lies in a folder of its own name; here the package's root is the checkout itself, so
its imports are read here. All of them count, those in functions and under TYPE_CHECKING too: a reader follows them.

A room is a folder or a single file directly in launch/ or results/. Each layer below lists what stands side by side;
a module imports from its own room and from the layers before it.
"""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

FOLDERS = ({"kernels", "results"}, {"bench"}, {"parallelism"}, {"launch"}, {"cli"})
ROOMS = {
    "results": (
        {"opened", "out_of_memory", "stats", "terminal", "wording"},
        {"trees"},
        {"files"},
        {"schema"},
        {"store"},
        {"table"},
        {"gate", "laws", "links", "op_profile", "published"},
        {"efficiency"},
        {"check"},
        {"report"},
    ),
    "launch": (
        {"host"},
        {"store"},
        {"study"},
        {"predict", "trace"},
        {"process"},
        {"rank", "schedulers"},
        {"sweep"},
        {"cluster", "doctor", "lab", "verify"},
        {"run", "interleave", "torchrun"},
        {"dry_run"},
        {"comm"},
        {"calibrate"},
    ),
}
# The laws can be taken out and used on any table: these are all that they import of the rest.
LAWS_IMPORT = {"terminal", "files", "wording", "table.filter", "table.held_out", "store.parquet_file"}


@dataclass(frozen=True)
class Import:
    where: str  # file:line
    source: str  # dotted, without the package's own name
    target: str

    def __str__(self) -> str:
        return f"{self.where}: {self.source} imports {self.target}"


MODULES = {
    ".".join(parts[:-1] if parts[-1] == "__init__" else parts): file
    for folder in set().union(*FOLDERS)
    for file in (ROOT / folder).rglob("*.py")
    if (parts := file.relative_to(ROOT).with_suffix("").parts)
}


def imports_of(name: str, file: Path) -> Iterator[Import]:
    """`from ..x import y` imports the module x.y where there is one, else x; an absolute one of ours is `scalade`."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ())]
            full = {".".join([*base, alias.name]) for alias in node.names}
            targets = {target if target in MODULES else ".".join(base) for target in full}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            targets = {"scalade" for module in names if module and module.split(".")[0] == "scalade"}
        else:
            continue
        for target in sorted(targets - {name, ""}):
            yield Import(f"{file.relative_to(ROOT)}:{node.lineno}", name, target)


IMPORTS = [each for name, file in sorted(MODULES.items()) for each in imports_of(name, file)]


def climbs(each: Import) -> str | None:
    """What is wrong with an import, and what would be right; None: it goes down, or stays in its room."""
    source, target, place, layers = each.source.split("."), each.target.split("."), "", FOLDERS
    if source[0] == target[0]:
        if source[0] not in ROOMS or source[1:2] == target[1:2]:
            return None
        place, layers = f"{source[0]}/", ROOMS[source[0]]
        source, target = source[1:], target[1:]
    level = next((i for i, layer in enumerate(layers) if source and source[0] in layer), 0)
    below = sorted(set().union(*layers[:level]))
    if target and target[0] in below:
        return None
    return f"{each}; {place}{''.join(source[:1])} may import {', '.join(below) or 'nothing of ours'}"


@functools.cache
def reached(name: str) -> frozenset[str]:
    """The modules that a module imports, and those that they import."""
    found: set[str] = set()
    new = {name}
    while new:
        new = {each.target for each in IMPORTS if each.source in new} - found
        found |= new
    return frozenset(found)


def test_no_import_climbs():
    assert [found for found in map(climbs, IMPORTS) if found] == []


def test_no_two_modules_import_each_other():
    """What one of them gives the other goes into a third, below both; or is handed in by the caller."""
    assert [f"{each}, which imports it" for each in IMPORTS if each.source in reached(each.target)] == []


def test_the_laws_stand_alone():
    laws = "results.laws"
    outside = [each for each in IMPORTS if each.source.startswith(laws) and not each.target.startswith(laws)]
    assert [str(each) for each in outside if each.target.removeprefix("results.") not in LAWS_IMPORT] == []


def test_every_room_has_its_place():
    for folder, layers in ROOMS.items():
        rooms = {name.split(".")[1] for name in MODULES if name.startswith(f"{folder}.")}
        assert set().union(*layers) == rooms, f"the order of {folder}/ in {Path(__file__).name}"
