"""The folder of a checkpoint, as engines see it: files of tensors and of JSON, each known by its size and its SHA-256.

Each rank writes files of its own and keeps their digests; the rank that completes the checkpoint collects these into
an index. Only files in the index are read. No file holds code: none is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..results import files
from .tensor_file import Digest, Tensors, open_tensors, read_bytes, write_bytes, write_tensors

JSON_LIMIT_BYTES = 2**29


@dataclass(frozen=True)
class Outgoing:
    """A checkpoint that is being written.

    top: its folder. below: the folder above it that is trusted (results.files). prefix: of the folder in it where
    names are relative to. digests: of what this rank wrote, by name relative to `top`
    """

    top: Path
    below: Path
    prefix: str = ""
    digests: dict[str, Digest] = field(default_factory=dict)

    def within(self, name: str) -> Outgoing:
        """A folder in it."""
        return replace(self, prefix=f"{self.prefix}{name}/")

    def _file(self, name: str) -> Path:
        file = self.top / self.prefix / name
        files.make_folder(file.parent, self.below)
        return file

    def tensors(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
        self.digests[self.prefix + name] = write_tensors(self._file(name), self.below, tensors, about)

    def json(self, name: str, content: Any) -> None:
        self.digests[self.prefix + name] = write_bytes(self._file(name), self.below, json.dumps(content).encode())


@dataclass(frozen=True)
class Saved:
    """A checkpoint to read. digests: of all that it has, by name relative to `top`. The rest as of Outgoing."""

    top: Path
    below: Path
    digests: Mapping[str, Digest]
    prefix: str = ""

    def within(self, name: str) -> Saved:
        return replace(self, prefix=f"{self.prefix}{name}/")

    def _digest(self, name: str) -> Digest:
        if self.prefix + name not in self.digests:
            raise ValueError(f"{self.prefix}{name} is missing")
        return self.digests[self.prefix + name]

    def has(self, name: str) -> bool:
        return self.prefix + name in self.digests

    def tensors(self, name: str) -> AbstractContextManager[Tensors]:
        """
        Raises
        ------
        ValueError: it is missing, or not what was written
        """
        return open_tensors(self.top / self.prefix / name, self.below, self._digest(name))

    def json(self, name: str) -> Any:
        """
        Raises
        ------
        ValueError: it is missing, or not what was written, or no JSON
        """
        content = read_bytes(self.top / self.prefix / name, self.below, self._digest(name), JSON_LIMIT_BYTES)
        try:
            return files.parse_json(content)
        except ValueError as error:
            raise ValueError(f"{self.prefix}{name} is no JSON: {str(error)[:100]}") from None
