"""The studies that ship with Scalade, and the folder to start from that `scalade init` writes.

The folder gets a commented first study (first.toml) and, in studies/, a copy of every other study that ships. A file
that is already there with other content is replaced only on request; without it nothing at all is written.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...results import files
from ...results.wording import count_of

PACKAGED = Path(__file__).parents[2] / "studies"  # package data of `scalade`: setup.cfg
FIRST = "first.toml"
EXAMPLES = "studies"  # the docs and the help texts say studies/quickstart.toml


@dataclass(frozen=True)
class ShippedStudy:
    """One study file of the package."""

    path: Path

    @cached_property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def name(self) -> str:
        return tomllib.loads(self.content.decode())["name"]

    @property
    def question(self) -> str:
        """The first sentence of the comment that opens the file."""
        comment = [line.lstrip("# ") for line in self.content.decode().partition("\n\n")[0].splitlines()]
        return re.split(r"(?<=[.?])\s", " ".join(comment), maxsplit=1)[0]

    @property
    def place(self) -> Path:
        """Its path in the folder that is written."""
        return Path(FIRST) if self.path.name == FIRST else Path(EXAMPLES, self.path.name)


@dataclass(frozen=True)
class StarterFolder:
    """The folder as it stands: the files written now, and those that already had this content."""

    folder: Path
    written: tuple[Path, ...]
    unchanged: tuple[Path, ...]


def shipped_studies() -> list[ShippedStudy]:
    """The first study, then the others by name."""
    studies = [ShippedStudy(path) for path in PACKAGED.glob("*.toml")]
    return sorted(studies, key=lambda study: (study.path.name != FIRST, study.path.name))


def write_starter_folder(folder: Path, *, force: bool = False) -> StarterFolder:
    """Write the first study and the examples into a folder, which is made where it is missing.

    Raises
    ------
    ValueError: a file with other content is there and force is not set, or a file stands where a folder is needed
    OSError: the folder cannot be made or written to, or a folder stands where a file is needed
    """
    contents = {folder / study.place: study.content for study in shipped_studies()}
    current = {path: _content(path) for path in contents}
    changed = [path for path in contents if current[path] not in (None, contents[path])]
    if changed and not force:
        others = f" and {count_of(len(changed) - 1, 'other file')}" if len(changed) > 1 else ""
        raise ValueError(
            f"{changed[0]}{others} would be replaced, so nothing was written: --force replaces, or name another folder"
        )
    written = [path for path in contents if current[path] != contents[path]]
    _make_folder(folder / EXAMPLES)
    for path in written:
        files.write(path, contents[path])
    return StarterFolder(folder, tuple(written), tuple(path for path in contents if path not in written))


def _content(path: Path) -> bytes | None:
    """What a file holds; None where there is none.

    Raises
    ------
    OSError: a folder or something else that is no file stands there
    """
    try:
        return files.read_named(path)
    except FileNotFoundError:
        return b"" if path.is_symlink() else None  # a link to nowhere is somebody's, too
    except NotADirectoryError:
        return None  # _make_folder says which part of the path is no folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        found = next(part for part in (folder, *folder.parents) if part.is_symlink() or part.exists())
        raise ValueError(f"{found} is a file: a folder is needed there; name another folder") from None


def list_as_json() -> dict[str, list[dict[str, str]]]:
    return {"studies": [{"name": study.name, "question": study.question} for study in shipped_studies()]}


def list_as_text() -> list[str]:
    """A line for each study, its name first."""
    studies = shipped_studies()
    width = max(len(study.name) for study in studies)
    return [f"{study.name:{width}}  {study.question}" for study in studies]


def to_text(starter: StarterFolder) -> list[str]:
    """What was written, what was left, and the next command."""
    lines = [f"wrote {path}" for path in starter.written]
    if starter.unchanged:
        lines.append(f"{count_of(len(starter.unchanged), 'file')} already there, unchanged")
    return [*lines, f"next: {shlex.join(_next_command(starter))}"]


def to_dict(starter: StarterFolder) -> dict[str, object]:
    return {
        "folder": str(starter.folder),
        "written": list(map(str, starter.written)),
        "unchanged": list(map(str, starter.unchanged)),
        "next": _next_command(starter),
    }


def _next_command(starter: StarterFolder) -> list[str]:
    return ["scalade", "run", str(starter.folder / FIRST)]
