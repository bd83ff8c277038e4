"""What is known of a lab: one folder for each under /run, gone with the machine's next start, as the lab itself is.

/run/scalade-lab/NAME/state.json    below; written before anything is made, so whatever a killed `up` left is known
                      hosts         /etc/hosts of the nodes
                      rsh           enters a node, for mpirun
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ...results import files
from ..host.link import Link

ROOT = Path("/run/scalade-lab")
NETNS = Path("/run/netns")
PREFIX = "scalade-lab-"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
MAX_NODES = 32


@dataclass(frozen=True)
class State:
    name: str
    nodes: tuple[dict, ...]  # {"name", "namespace", "address"}
    rate_bits_per_s: float | None
    rtt_s: float | None
    mark: str  # in the environment of the lab's own processes
    up: bool = False  # False: it is being made, or its making was cut off
    rate_measured_bits_per_s: float | None = None
    rtt_measured_s: float | None = None

    @property
    def link(self) -> Link:
        return Link(self.rate_bits_per_s, self.rtt_s)

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def file(self) -> Path:
        return self.folder / "state.json"

    @property
    def hub(self) -> str:
        """Namespace of the bridge."""
        return f"{PREFIX}{self.name}-sw"

    def write(self) -> None:
        files.write(self.file, json.dumps(asdict(self), indent=1), sync=False)


def plan(name: str, nodes: int, link: Link, mark: str) -> State:
    checked_name(name)
    if not 2 <= nodes <= MAX_NODES:
        raise ValueError(f"--nodes {nodes}: must be from 2 to {MAX_NODES}")
    each = tuple(
        {"name": f"n{i}", "namespace": f"{PREFIX}{name}-n{i}", "address": f"10.99.0.{i + 1}"} for i in range(nodes)
    )
    return State(name, each, link.rate_bits_per_s, link.rtt_s, mark)


def checked_name(name: str) -> str:
    """The name, if it is one that a lab may have: it becomes part of paths and of namespaces' names.

    Raises
    ------
    ValueError
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"lab name {name!r}: lower-case letters, digits and dashes, at most 20")
    return name


def read_state(name: str) -> State | None:
    """None: there is no such lab, or its file is not whole."""
    try:
        content = json.loads((ROOT / checked_name(name) / "state.json").read_text())
        return State(**content | {"nodes": tuple(content["nodes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def marks(name: str) -> list[str]:
    """Of the processes of a lab, also of one whose state another version wrote."""
    try:
        content = json.loads((ROOT / checked_name(name) / "state.json").read_text())
        return [content["mark"]] if isinstance(content["mark"], str) and content["mark"] else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def is_namespace(namespace: str) -> bool:
    """Whether one is there: the file that stands for it, left where no file system forgets, is none by itself."""
    try:
        return os.stat(NETNS / namespace).st_dev != os.stat(NETNS).st_dev
    except OSError:
        return False


def names() -> list[str]:
    """Of all labs there is anything of."""
    found = {entry.name for entry in ROOT.iterdir()} if ROOT.is_dir() else set()
    return sorted(found | {match[1] for match in map(_owner, namespaces()) if match})


def namespaces(name: str | None = None) -> list[str]:
    """Network namespaces that are a lab's: of this one, or of any."""
    there = sorted(os.listdir(NETNS)) if NETNS.is_dir() else []
    return [each for each in there if (owner := _owner(each)) and name in (None, owner[1])]


def _owner(namespace: str) -> re.Match | None:
    """Its lab: of any version, whatever that calls its nodes."""
    return re.fullmatch(rf"{PREFIX}({NAME.pattern})-[a-z0-9]+", namespace)


@contextmanager
def locked() -> Iterator[None]:
    """One `up` or `down` at a time on this machine. The folder goes with the last lab."""
    ROOT.mkdir(mode=0o755, exist_ok=True)
    fd = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        ROOT.mkdir(mode=0o755, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            ROOT.rmdir()
        os.close(fd)
