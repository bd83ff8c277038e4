"""Named tensors in the safetensors format: as a file, hashed as it is written and again as it is read; as bytes.

The format holds numbers and their names, and no code: https://huggingface.co/docs/safetensors, "Format". It is written
here, from the tensors' own memory; it is read by the library, from the mapped file. Of a large file the hash is a
thread's work (hashlib lets go of the interpreter), beside the writing and the disk, and beside the copying.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..results import files

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
THREAD_BYTES = 2**20  # from here on a thread hashes: 0.5 ms of work, where its start takes 0.1
PIECE_BYTES = 2**20  # read and hashed at a time: stays in the cache


class Digest(NamedTuple):
    """What a file is known by."""

    size_bytes: int
    sha256: str


class HashedFile:
    """A new file, on the disk when it is closed; a link or a file of its name is replaced and not written through.

    Written buffers must not change until `catch_up` or `close`: they are hashed beside the writing.
    """

    def __init__(self, path: Path, below: Path) -> None:
        files.remove(path, below)
        self._file = os.fdopen(files.open_file(path, below, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=0)
        self._hash, self._size = hashlib.sha256(), 0
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content).cast("B")
        self._size += len(view)
        if self._thread is None and len(view) >= THREAD_BYTES:
            self._thread = ThreadPoolExecutor(1, "hash")
        if self._thread is None:
            self._hash.update(view)
        else:
            self._last = self._thread.submit(self._hash.update, view)
        while view:
            view = view[self._file.write(view) :]

    def catch_up(self) -> None:
        """Return when all that was written is hashed, and no longer needed."""
        if self._last is not None:
            self._last.result()

    def close(self) -> Digest:
        os.fsync(self._file.fileno())
        self._file.close()
        self.catch_up()
        return Digest(self._size, self._hash.hexdigest())

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


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
                tensor = tensors[name].detach()
                flat = tensor.cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
                if flat.data_ptr() != tensor.data_ptr():  # a copy: of these there is one at a time
                    file.catch_up()
        return file.close()


@contextmanager
def _opened(path: Path, below: Path, digest: Digest) -> Iterator[BinaryIO]:
    """Raises ValueError: missing, no regular file, or of another size than `digest` says; the message names it."""
    try:
        descriptor = files.open_file(path, below)
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        if size != digest.size_bytes:
            raise ValueError(f"{path.name} has {size} bytes of {digest.size_bytes}")
        yield file


def _verify(sha256: str, path: Path, digest: Digest) -> None:
    if sha256 != digest.sha256:
        raise ValueError(f"{path.name} is not what was written: its SHA-256 differs")


def _check(descriptor: int, path: Path, digest: Digest) -> None:
    """Raises ValueError: the open file's content is another than `digest` says."""
    sha256, piece, at = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES)), 0
    while count := os.preadv(descriptor, [piece], at):
        sha256.update(piece[:count])
        at += count
    _verify(sha256.hexdigest(), path, digest)


@contextmanager
def _checking(descriptor: int, path: Path, digest: Digest) -> Iterator[None]:
    """Check the open file, a small one before the block, a large one beside it. Where the content is another, that is
    the error raised, whatever error the block had.

    Raises
    ------
    ValueError: it is another, before the block or at its end
    """
    if digest.size_bytes < THREAD_BYTES:
        _check(descriptor, path, digest)
        yield
        return
    with ThreadPoolExecutor(1, "hash") as thread:
        check = thread.submit(_check, descriptor, path, digest)
        try:
            yield
        except Exception:
            if error := check.exception():
                raise error from None
            raise
        check.result()


def read_bytes(path: Path, below: Path, digest: Digest, limit_bytes: int) -> bytes:
    """Its content.

    Raises
    ------
    ValueError: it is missing, no regular file, another than `digest` says, or larger than `limit_bytes`
    """
    if digest.size_bytes > limit_bytes:
        raise ValueError(f"{path.name} has {digest.size_bytes} bytes, {limit_bytes} are read at most")
    with _opened(path, below, digest) as file:
        content = file.read(digest.size_bytes)
    _verify(hashlib.sha256(content).hexdigest(), path, digest)
    return content


class Tensors:
    """An open file. Its tensors are views of the mapped file: copy those to keep."""

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
    """Tensors read are valid only once the block has ended without an error: a large file is checked beside it.

    Raises
    ------
    ValueError: as of `read_bytes`, or it is no such file; before the block or at its end
    """
    from safetensors import SafetensorError, safe_open

    with _opened(path, below, digest) as file, _checking(file.fileno(), path, digest):
        try:
            # By the descriptor: the file that is checked, whatever bears its name now.
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
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"a message of tensors cannot be read: {error}") from None
    kinds, wanted = ({name: (each.dtype, each.shape) for name, each in of.items()} for of in (tensors, like))
    wrong = sorted(name for name in kinds.keys() | wanted.keys() if kinds.get(name) != wanted.get(name))
    if wrong:
        raise ValueError(
            f"a message of tensors has {wrong[0]!r:.100} as {kinds.get(wrong[0])}, wanted {wanted.get(wrong[0])}"
        )
    return {name: tensor.to(like[name].device) for name, tensor in tensors.items()}
