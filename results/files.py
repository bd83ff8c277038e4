"""Files of a results folder that another may have written: opened without following links, read within a limit.

A results folder is data, often somebody else's: unpacked from an archive, or shared with other users. So

    the folder that the user names may be a symbolic link; a link anywhere below it is refused, never followed
    only regular files are read and written: no device, no named pipe, no folder in a file's place
    no more is read than a limit, however large the file says it is, or becomes while it is read
    a file replaced is replaced whole: written aside, renamed
    a folder removed loses what is in it, never what a link in it points to

Every function takes a path and, as `below`, the folder that is trusted (the results folder): each part of the path
under it is opened relative to the part before (openat with O_NOFOLLOW), so that swapping a folder for a link between
two steps gains nothing. Without `below` the path's parent is trusted, and only its last part is looked at.

Errors are OSErrors with one plain line in `strerror` and the path in `filename`: Refused for what is there and is not
taken (a link, a pipe, a file too large), the system's own for all else. Standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20
LIMIT = 16 * MIB  # of a file that is read as a whole, bytes: JSON of this size is some 400 MB of Python objects at most
ASIDE = ".writing-"  # begins the names of files and folders not finished yet
_PART = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_KINDS = (
    (stat.S_ISLNK, "a symbolic link, and links below a results folder are not followed"),
    (stat.S_ISDIR, "a folder, not a file"), (stat.S_ISFIFO, "a named pipe, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"), (stat.S_ISREG, "a file, not a folder"),
)  # fmt: skip


class Refused(OSError):
    """What is there is not taken: a link, no regular file, or larger than what is read of its kind."""

    def __init__(self, path: str | Path, why: str, number: int = errno.EINVAL):
        super().__init__(number, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def open_folder(folder: str | Path, below: str | Path | None = None, make: bool = False, mode: int = 0o777) -> int:
    """File descriptor of the folder, for listing, syncing, and as dir_fd. The caller closes it.

    make: make it where it is missing, with this mode, and the folders between `below` and it

    Raises
    ------
    Refused: it, or a folder between `below` and it, is a link or no folder
    """
    with _parent(folder, below, make) as (parent, name):
        if make:
            _make(parent, name, mode)
        return _open_part(name, parent, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_file(file: str | Path, below: str | Path | None = None, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """File descriptor of a regular file. The caller closes it. Never waits, whatever lies there.

    flags: as os.open; O_TRUNC empties the file once it is known to be one. A file with several names (hard links) is
        not opened to be emptied or appended to: another of its names may lie elsewhere.

    Raises
    ------
    Refused: a link, a folder, a device, a pipe; or between `below` and it, what is no folder
    """
    truncate, flags = flags & os.O_TRUNC, flags & ~os.O_TRUNC
    with _parent(file, below) as (parent, name):
        descriptor = _open_part(
            name, parent, file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode
        )
    try:
        _regular(descriptor, file, in_place=bool(truncate or flags & os.O_APPEND))
        if truncate:
            os.ftruncate(descriptor, 0)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def read(file: str | Path, below: str | Path | None = None, limit: int = LIMIT) -> bytes:
    """The content of a regular file.

    Raises
    ------
    FileNotFoundError: there is none
    Refused: as open_file; or more than `limit` bytes
    """
    return _content(open_file(file, below), file, limit)


def read_named(file: str | Path, limit: int = LIMIT) -> bytes:
    """The content of a file that the user named (a study, a CSV): as `read`, but links lead to it."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _regular(descriptor, file)
    except BaseException:
        os.close(descriptor)
        raise
    return _content(descriptor, file, limit)


def read_json(file: str | Path, below: str | Path | None = None, limit: int = LIMIT) -> object:
    """The content of a JSON file, as `read`.

    Raises
    ------
    ValueError: it is not JSON, is nested too deeply, or holds a number too long to be one
    """
    return parse_json(read(file, below, limit))


def parse_json(content: str | bytes) -> object:
    """json.loads whose every failure is a ValueError of one line."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def names(folder: str | Path, below: str | Path | None = None) -> list[str]:
    """What is in the folder, sorted; nothing where there is no folder. Refused: a link, or a file in its place."""
    try:
        descriptor = open_folder(folder, below)
    except FileNotFoundError:
        return []
    try:
        return sorted(os.listdir(descriptor))
    finally:
        os.close(descriptor)


def look(path: str | Path, below: str | Path | None = None) -> os.stat_result | None:
    """What is at the path, the link itself where it is one (os.lstat); None: nothing."""
    try:
        with _parent(path, below) as (parent, name):
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _with_path(error, path) from None


def is_file(path: str | Path, below: str | Path | None = None) -> bool:
    """Whether a regular file is there, not through a link."""
    try:
        found = look(path, below)
    except Refused:
        return False
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: str | Path, below: str | Path | None = None) -> bool:
    """Whether a folder is there, not through a link."""
    try:
        found = look(path, below)
    except Refused:
        return False
    return found is not None and stat.S_ISDIR(found.st_mode)


def make_folder(folder: str | Path, below: str | Path | None = None, mode: int = 0o777) -> None:
    """Make the folder where it is missing, and those between `below` and it. Refused: a link or a file is there."""
    os.close(open_folder(folder, below, make=True, mode=mode))


def write(file: str | Path, content: str | bytes, below: str | Path | None = None, sync: bool = True) -> None:
    """Write or replace a file: readers see the old content or the new, never a part, whoever is killed when.

    A link at the path is replaced, never followed.
    sync: on the disk before this returns; False: for files that die with the run.
    """
    content = content.encode() if isinstance(content, str) else content
    with _parent(file, below) as (parent, name):
        aside = _aside(name)
        try:
            _write_new(aside, content, parent, sync)
            os.replace(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException as error:
            _unlink(aside, parent)
            raise _with_path(error, file) from None
        if sync:
            _sync(parent)


def write_folder(folder: str | Path, contents: Mapping[str, bytes], below: str | Path | None = None) -> None:
    """A new folder of files, whole and on the disk, or none.

    Raises
    ------
    FileExistsError: something is there
    """
    with _parent(folder, below) as (parent, name):
        aside = _aside(name)
        try:
            os.mkdir(aside, dir_fd=parent)
            inside = os.open(aside, _PART & ~getattr(os, "O_PATH", 0), dir_fd=parent)
            try:
                for file, content in contents.items():
                    _write_new(file, content, inside, True)
                os.fsync(inside)
            finally:
                os.close(inside)
            os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)  # refused where a full folder stands
        except BaseException as error:
            _remove(aside, parent)
            there = _there(name, parent) and isinstance(error, OSError)
            number = errno.EEXIST if there else getattr(error, "errno", None)
            raise _with_path(error, folder, number) from None
        _sync(parent)


def remove(path: str | Path, below: str | Path | None = None) -> None:
    """Remove a file, a link (never what it points to) or a folder with all that is in it. Nothing there: nothing done.

    However deep the folder is, four descriptors and no recursion.
    """
    try:
        with _parent(path, below) as (parent, name):
            _remove(name, parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _with_path(error, path) from None


def sync_folder(folder: str | Path, below: str | Path | None = None) -> None:
    """The names in the folder, on the disk."""
    descriptor = open_folder(folder, below)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _parent(path: str | Path, below: str | Path | None, make: bool = False) -> Iterator[tuple[int, str]]:
    """(descriptor of the folder that holds the path, the path's name in it)."""
    path = Path(path)
    trusted = path.parent if below is None else Path(below)
    *between, name = path.relative_to(trusted).parts or (".",)  # the trusted folder itself
    assert ".." not in (*between, name), f"{path} is not below {trusted}"
    descriptor = os.open(trusted, _PART & ~os.O_NOFOLLOW)
    try:
        for at, part in enumerate(between, 1):
            if make:
                _make(descriptor, part)
            inner = _open_part(part, descriptor, trusted.joinpath(*between[:at]), _PART)
            os.close(descriptor)
            descriptor = inner
        yield descriptor, name
    finally:
        os.close(descriptor)


def _make(parent: int, name: str, mode: int = 0o777) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:  # a folder, or what opening it then refuses
        pass


def _open_part(name: str, parent: int, path: str | Path, flags: int, mode: int = 0o666) -> int:
    """os.open relative to the parent; what cannot be opened for what it is is Refused, by its kind."""
    try:
        return os.open(name, flags, mode, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EMLINK):
            raise _refusal(path, os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode) from None
        raise _with_path(error, path) from None


def _regular(descriptor: int, path: str | Path, in_place: bool = False) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(path, found.st_mode)
    if in_place and found.st_nlink > 1:
        raise Refused(path, "a file with several names (hard links) is not changed in place: put a copy there")


def _refusal(path: str | Path, mode: int) -> Refused:
    what = next((what for kind, what in _KINDS if kind(mode)), "a device, not a file")
    return Refused(path, what, errno.ELOOP if stat.S_ISLNK(mode) else errno.EINVAL)


def _content(descriptor: int, path: str | Path, limit: int) -> bytes:
    """What is in the open file, which is closed; as much is asked for as it says it holds."""
    with os.fdopen(descriptor, "rb", buffering=0) as handle:
        size, parts, total = os.fstat(descriptor).st_size, [], 0
        while size <= limit and (part := handle.read(max(size - total, 0) + 1)):
            parts.append(part)
            total += len(part)
            size = max(size, total)  # it may grow while it is read
    if size > limit:
        raise Refused(path, f"{size} bytes, and no more than {limit} are read", errno.EFBIG)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _aside(name: str) -> str:
    return f"{ASIDE}{name[:100]}-{os.getpid()}-{os.urandom(4).hex()}"


def _write_new(name: str, content: bytes, parent: int, sync: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o666, dir_fd=parent), "wb") as handle:
        handle.write(content)
        handle.flush()
        if sync:
            os.fsync(handle.fileno())


def _sync(parent: int) -> None:
    """The names in a folder that is held for passing through, on the disk."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _there(name: str, parent: int) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


def _unlink(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _with_path(error: BaseException, path: str | Path, number: int | None = None) -> BaseException:
    """An OSError that names the path, and the error itself where it is another."""
    if not isinstance(error, OSError) or isinstance(error, Refused):
        return error
    number = number or error.errno
    return error if number is None else OSError(number, os.strerror(number), str(path))


def _remove(name: str, parent: int) -> None:
    """One name with what is below it. The folders in a folder that is not empty are moved up until none is deep."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return os.unlink(name, dir_fd=parent)
        top = os.open(name, _PART & ~getattr(os, "O_PATH", 0), dir_fd=parent)
    except FileNotFoundError:
        return None
    try:
        moved = 0
        while inside := os.listdir(top):
            for each in inside:
                moved = _flatten(each, top, moved)
    finally:
        os.close(top)
    return os.rmdir(name, dir_fd=parent)


def _flatten(name: str, top: int, moved: int) -> int:
    """Remove one entry of the folder `top`; folders in it move into `top`. Returns how many were moved so far."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=top)
            return moved
        inner = os.open(name, _PART & ~getattr(os, "O_PATH", 0), dir_fd=top)
    except FileNotFoundError:
        return moved
    try:
        for each in os.listdir(inner):
            if stat.S_ISDIR(os.stat(each, dir_fd=inner, follow_symlinks=False).st_mode):
                moved += 1
                os.rename(each, f"{ASIDE}{os.getpid()}-{os.urandom(4).hex()}-{moved}", src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(each, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
    return moved
