"""Named tensors in the safetensors format: as a file, hashed as it is written and checked before it is read; as bytes.

The format holds numbers and their names, and no code: https://huggingface.co/docs/safetensors, "Format". It is written
here, tensor by tensor, so that the hash costs no second reading and no copy of the whole; it is read by the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..results import files

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
CHUNK_BYTES = 8 * 2**20


class Digest(NamedTuple):
    """What a file is known by."""

    size_bytes: int
    sha256: str


class HashedFile:
    """A new file, on the disk when it is closed; a link or a file of its name is replaced and not written through."""

    def __init__(self, path: Path, below: Path) -> None:
        files.remove(path, below)
        self._file = os.fdopen(files.open_file(path, below, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=0)
        self._hash, self._size = hashlib.sha256(), 0

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content).cast("B")
        for at in range(0, len(view), CHUNK_BYTES):  # what is hashed is still in the cache when it is written
            chunk = view[at : at + CHUNK_BYTES]
            self._hash.update(chunk)
            while chunk:
                chunk = chunk[self._file.write(chunk) :]
        self._size += len(view)

    def close(self) -> Digest:
        os.fsync(self._file.fileno())
        self._file.close()
        return Digest(self._size, self._hash.hexdigest())

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_bytes(path: Path, below: Path, content: bytes) -> Digest:
    with HashedFile(path, below) as file:
        file.write(content)
        return file.close()


def write_tensors(
    path: Path, below: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> Digest:
    """Write them, on the disk when this returns. Tensors elsewhere than on the CPU come to it one after the other.

    below: the folder that is trusted (results.files); about: texts that the file carries along

    Raises
    ------
    ValueError: of a type that the format does not have
    """
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # so that each begins where its type may
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    at = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in TYPES:
            raise ValueError(f"{name} is {tensor.dtype}, which {path.name} cannot hold")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with HashedFile(path, below) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            if tensors[name].numel():
                flat = tensors[name].detach().cpu().contiguous().reshape(-1)
                file.write(memoryview(flat.view(torch.uint8).numpy()))
        return file.close()


@contextmanager
def checked(path: Path, below: Path, digest: Digest) -> Iterator[BinaryIO]:
    """The file, open at its beginning, if it is the one that was written.

    Raises
    ------
    ValueError: it is missing, no regular file, or another than `digest` says; the message names it
    """
    try:
        descriptor = files.open_file(path, below)
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if size != digest.size_bytes:
            raise ValueError(f"{path.name} has {size} bytes of {digest.size_bytes}")
        if hashlib.file_digest(file, "sha256").hexdigest() != digest.sha256:
            raise ValueError(f"{path.name} is not what was written: its SHA-256 differs")
        file.seek(0)
        yield file


def read_bytes(path: Path, below: Path, digest: Digest, limit_bytes: int) -> bytes:
    """Its content; ValueError as of `checked`, and for more than `limit_bytes`."""
    if digest.size_bytes > limit_bytes:
        raise ValueError(f"{path.name} has {digest.size_bytes} bytes, {limit_bytes} are read at most")
    with checked(path, below, digest) as file:
        return file.read(limit_bytes)


class Tensors:
    """An open file. Its tensors are views of the mapped file: copy what is to stay."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self._handle, self._names = name, handle, frozenset(handle.keys())

    @property
    def about(self) -> dict[str, str]:
        return self._handle.metadata() or {}

    def get(self, name: str, box: tuple[slice, ...] | None = None) -> Tensor:
        """The tensor or a box of it, of which alone the file is read.

        Raises
        ------
        ValueError: there is none of that name
        """
        if name not in self._names:
            raise ValueError(f"{self.name} has no {name}")
        return self._handle.get_slice(name)[box] if box else self._handle.get_tensor(name)


@contextmanager
def open_tensors(path: Path, below: Path, digest: Digest) -> Iterator[Tensors]:
    """
    Raises
    ------
    ValueError: as of `checked`, or it is no such file
    """
    from safetensors import SafetensorError, safe_open

    with checked(path, below, digest) as file:
        try:
            # By the descriptor: the file that was checked, whatever bears its name now.
            with safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt") as handle:
                yield Tensors(path.name, handle)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is no file of tensors: {error}") from None


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """As a message."""
    from safetensors.torch import save

    return save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def size_limit(like: Mapping[str, Tensor]) -> int:
    """Bytes that `to_bytes` of such tensors never exceeds."""
    return sum(tensor.nbytes + 256 + 2 * len(name.encode()) + 24 * tensor.ndim for name, tensor in like.items()) + 256


def from_bytes(content: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_bytes`, on the devices of `like`, which says what has to be there.

    Raises
    ------
    ValueError: it is something else, or not of the names, shapes and types of `like`
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(content)
    except SafetensorError as error:
        raise ValueError(f"a message of tensors cannot be read: {error}") from None
    kinds, wanted = ({name: (each.dtype, each.shape) for name, each in of.items()} for of in (found, like))
    wrong = sorted(name for name in kinds.keys() | wanted.keys() if kinds.get(name) != wanted.get(name))
    if wrong:
        raise ValueError(f"a message of tensors has {wrong[0]!r:.100} as {kinds.get(wrong[0])}, "
                         f"wanted {wanted.get(wrong[0])}")  # fmt: skip
    return {name: tensor.to(like[name].device) for name, tensor in found.items()}
