"""The checkpoints of a run on disk: which there are, what each is made of, and that no half or foreign one counts.

    scratch/checkpoint/step-<N>/    the last whole one and the one before it
                      /writing-<N>/ aside until it is whole: every file synced, the index last, then renamed
                      /damaged-<N>/ set aside; kept until the next whole one

    index.json     {"format", "run_id", "step", "files": {name: [bytes, SHA-256]}}: nothing else in the folder is read
    history.json   the rows measured so far, and which checkpoints were damaged

All of it is rank 0's work; what the engines write beside it is bench.saved's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bench.checkpoint_files import Outgoing, Saved
from ...bench.tensor_file import Digest
from ...results import files
from ..process.scratch import CHECKPOINT, CHECKPOINT_STEP, checkpoint_folder

INDEX, HISTORY = "index.json", "history.json"
FORMAT = 2  # 1: torch.distributed.checkpoint's files, which are pickles in part
INDEX_LIMIT_BYTES = 64 * files.MIB
KEPT = 2  # the last one, and the one before it for when that is damaged
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Content:
    """Of a checkpoint, by its index and its history."""

    files: dict[str, Digest]
    steps: list[dict[str, Any]]  # the rows measured so far
    evals: list[dict[str, Any]]
    damaged: list[tuple[int, str]]  # checkpoints of earlier starts: step, and what was wrong
    unknown: list[str]  # files that the index does not list

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Content:
        """From `vars`, which may have been sent as JSON."""
        digests = {name: Digest(*entry) for name, entry in content["files"].items()}
        return cls(**content | {"files": digests})


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is there: its content, or what is wrong with it."""

    step: int
    content: Content | None = None
    problem: str | None = None


class Shelf:
    """The checkpoints of one run; a checkpoint of another run in the same folder counts as damaged."""

    def __init__(self, scratch: Path, run_id: str) -> None:
        self.scratch, self.run_id, self.folder = scratch, run_id, scratch / CHECKPOINT

    def path(self, step: int) -> Path:
        return checkpoint_folder(self.scratch, step)

    def clear(self) -> list[int]:
        """Remove what is no checkpoint: what a killed attempt was writing, links. Gives the steps of the damaged."""
        if files.look(self.folder, self.scratch) and not files.is_folder(self.folder, self.scratch):
            files.remove(self.folder, self.scratch)
        damaged = []
        for name in files.names(self.folder, self.scratch):
            kind, step = _step_of(name)
            if kind not in ("step", "damaged") or not files.is_folder(self.folder / name, self.scratch):
                files.remove(self.folder / name, self.scratch)
            elif kind == "damaged":
                damaged.append(step)
        return sorted(damaged)

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, the last one first."""
        named = map(_step_of, files.names(self.folder, self.scratch))
        return sorted((step for kind, step in named if kind == "step"), reverse=True)

    def newest(self) -> Candidate | None:
        """The last checkpoint, its index and its history read and checked; None: there is none."""
        for step in self.steps():
            try:
                return Candidate(step, self._content(step))
            except (OSError, ValueError) as error:
                text = getattr(error, "strerror", None) or str(error)
                return Candidate(step, problem=(text.splitlines() or [type(error).__name__])[0][:300])
        return None

    def _content(self, step: int) -> Content:
        folder = self.path(step)
        if not files.is_file(folder / INDEX, self.scratch):
            is_old = files.is_file(folder / HISTORY, self.scratch)
            why = ": an older version wrote it, whose files are not read" if is_old else ""
            raise ValueError(f"{INDEX} is missing{why}")
        content = files.read(folder / INDEX, self.scratch, INDEX_LIMIT_BYTES)
        try:
            index = files.parse_json(content)
        except ValueError as error:
            raise ValueError(f"{INDEX} is no JSON: {error}") from None
        digests = self._digests(index, step)
        inside = list(_files_in(folder, self.scratch))
        self._check_sizes(folder, digests)
        history = Saved(folder, self.scratch, digests).json(HISTORY)
        problem = history_problem(history, step)
        if problem:
            raise ValueError(f"{HISTORY}: {problem}")
        unknown = [name for name in inside if name not in digests and name != INDEX]
        damaged = [(at, why) for at, why in history["damaged"]]
        return Content(digests, history["steps"], history["evals"], damaged, unknown)

    def _check_sizes(self, folder: Path, digests: dict[str, Digest]) -> None:
        for name, digest in digests.items():
            there = files.look(folder / name, self.scratch)
            if there is None or there.st_size != digest.size_bytes:
                what = "no file" if there is None else f"{there.st_size} bytes"
                raise ValueError(f"{name} is cut off or missing: {what}, of {digest.size_bytes} bytes")

    def _digests(self, index: object, step: int) -> dict[str, Digest]:
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise ValueError(f"{INDEX} is no index of format {FORMAT}")
        if index.get("run_id") != self.run_id or index.get("step") != step:
            run, at = str(index.get("run_id"))[:80], str(index.get("step"))[:20]
            raise ValueError(f"{INDEX} is of run {run} at step {at}, not of this one at step {step}")
        listed = index.get("files")
        if not isinstance(listed, dict):
            raise ValueError(f"{INDEX} lists no files")
        return {name: _digest(name, entry) for name, entry in listed.items()}

    def set_aside(self, step: int) -> str:
        """Gives its new name."""
        aside = self.folder / f"damaged-{step}"
        files.remove(aside, self.scratch)
        os.replace(self.path(step), aside)
        return aside.name

    def outgoing(self, step: int) -> Outgoing:
        return Outgoing(self.folder / f"writing-{step}", self.scratch)

    def put(self, out: Outgoing, step: int, digests: dict[str, Digest], history: dict[str, Any]) -> None:
        """Make what all ranks have written, with `history`, the last checkpoint."""
        out.json(HISTORY, history)
        listed = dict(sorted((digests | out.digests).items()))
        index = {"format": FORMAT, "run_id": self.run_id, "step": step, "files": listed}
        for folder in {(out.top / name).parent for name in listed} - {out.top}:
            files.sync_folder(folder, self.scratch)
        files.write(out.top / INDEX, json.dumps(index), self.scratch)  # and all names beside it
        files.remove(self.path(step), self.scratch)
        os.replace(out.top, self.path(step))
        files.sync_folder(self.folder, self.scratch)
        kept = [f"{CHECKPOINT_STEP}{each}" for each in self.steps() if each <= step][:KEPT]
        for name in files.names(self.folder, self.scratch):
            if name not in kept:
                files.remove(self.folder / name, self.scratch)


def history_problem(history: object, step: int) -> str | None:
    """Why this cannot be the history of a run after `step` steps, or None."""
    if not isinstance(history, dict):
        return "no history"
    rows: Any = history.get("steps")
    evals, damaged = history.get("evals"), history.get("damaged")
    if not _are_rows(rows) or not _are_rows(evals):
        return "its steps and evals are no rows of numbers"
    if [row.get("step") for row in rows] != list(range(step)):
        return f"its rows are not those of steps 0 to {step - 1}"
    if not isinstance(damaged, list) or not all(_is_damage(each) for each in damaged):
        return "its damaged checkpoints are no steps and reasons"
    return None


def _digest(name: str, entry: Any) -> Digest:
    if not (_NAME.fullmatch(name) and _is_digest(entry)):
        raise ValueError(f"{INDEX} lists {name[:80]!r} as no file can be")
    return Digest(*entry)


def _is_digest(entry: object) -> bool:
    """Bytes, and a SHA-256 in hexadecimal."""
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    size, sha256 = entry
    return type(size) is int and size >= 0 and isinstance(sha256, str) and _SHA256.fullmatch(sha256) is not None


def _are_rows(rows: object) -> bool:
    if not isinstance(rows, list):
        return False
    return all(isinstance(row, dict) and all(map(_is_plain, row.values())) for row in rows)


def _is_plain(value: object) -> bool:
    return abs(value) < 2**63 if isinstance(value, int) else isinstance(value, str | float | None)


def _is_damage(each: object) -> bool:
    return isinstance(each, list) and len(each) == 2 and type(each[0]) is int and isinstance(each[1], str)


def _step_of(name: str) -> tuple[str | None, int]:
    """("step", "writing" or "damaged", N) of a folder's name; (None, 0) of any other."""
    match = re.fullmatch(r"(step|writing|damaged)-(0|[1-9][0-9]{0,17})", name)
    return (match[1], int(match[2])) if match else (None, 0)


def _files_in(folder: Path, below: Path, prefix: str = "") -> Iterator[str]:
    """Names of all that is in it but folders, links among them, relative to it; two levels, as there are no more."""
    for name in files.names(folder, below):
        if files.is_folder(folder / name, below) and prefix.count("/") < 2:
            yield from _files_in(folder / name, below, f"{prefix}{name}/")
        else:
            yield prefix + name
