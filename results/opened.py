"""Opening what lies below a trusted folder part by part, without following a link: files.py and trees.py use it.

Each part of a path is opened relative to the part before (openat with O_NOFOLLOW), so that swapping a folder for a link
between two steps gains nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)  # to pass through
FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDONLY  # to list and to sync
_KINDS = (
    (stat.S_ISLNK, "a symbolic link, and links below a results folder are not followed"),
    (stat.S_ISDIR, "a folder, not a file"),
    (stat.S_ISFIFO, "a named pipe, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISREG, "a file, not a folder"),
)


class Refused(OSError):
    """What is there is not taken: a link, no regular file, or larger than what is read of its kind."""

    def __init__(self, path: str | Path, why: str, number: int = errno.EINVAL):
        super().__init__(number, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


@contextmanager
def parent_of(path: str | Path, below: str | Path | None, make: bool = False) -> Iterator[tuple[int, str]]:
    """(descriptor of the folder that holds the path, the path's name in it)."""
    path = Path(path)
    trusted = path.parent if below is None else Path(below)
    here, start = path.parts, len(trusted.parts)
    if here[:start] != trusted.parts:
        raise ValueError(f"{str(path)!r} is not in the subpath of {str(trusted)!r}")
    assert ".." not in here[start:], f"{path} is not below {trusted}"
    *between, name = here[start:] or (".",)  # the trusted folder itself
    descriptor = os.open(trusted, PART & ~os.O_NOFOLLOW)
    try:
        for at, part in enumerate(between, 1):
            if make:
                make_part(descriptor, part)
            try:
                inner = os.open(part, PART, dir_fd=descriptor)
            except OSError as error:
                raise _refused_or_named(error, part, descriptor, trusted.joinpath(*between[:at])) from None
            os.close(descriptor)
            descriptor = inner
        yield descriptor, name
    finally:
        os.close(descriptor)


def make_part(parent: int, name: str, mode: int = 0o777) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:  # a folder, or what opening it then refuses
        pass


def open_part(name: str, parent: int, path: str | Path, flags: int, mode: int = 0o666) -> int:
    """os.open relative to the parent; what cannot be opened for what it is is Refused, by its kind."""
    try:
        return os.open(name, flags, mode, dir_fd=parent)
    except OSError as error:
        raise _refused_or_named(error, name, parent, path) from None


def _refused_or_named(error: OSError, name: str, parent: int, path: str | Path) -> BaseException:
    """Why this could not be opened, with its path."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EMLINK):
        return refusal(path, os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    return with_path(error, path)


def refuse_special(descriptor: int, path: str | Path, in_place: bool = False) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, status.st_mode)
    if in_place and status.st_nlink > 1:
        raise Refused(path, "a file with several names (hard links) is not changed in place: put a copy there")


def refusal(path: str | Path, mode: int) -> Refused:
    what = next((what for kind, what in _KINDS if kind(mode)), "a device, not a file")
    return Refused(path, what, errno.ELOOP if stat.S_ISLNK(mode) else errno.EINVAL)


def with_path(error: BaseException, path: str | Path, number: int | None = None) -> BaseException:
    """An OSError that names the path, and the error itself where it is another."""
    if not isinstance(error, OSError) or isinstance(error, Refused):
        return error
    number = number or error.errno
    return error if number is None else OSError(number, os.strerror(number), str(path))
