"""Files of a results folder that another may have written: opened without following links, read within a limit.

A results folder is data, often from others: unpacked from an archive, or shared with other users. So

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
from typing import BinaryIO

from .opened import FOLDER, Refused, make_part, open_part, parent_of, refuse_special, with_path
from .trees import copy_into, remove_name

MIB = 2**20
LIMIT = 16 * MIB  # of a file that is read as a whole, bytes: JSON of this size is some 400 MB of Python objects at most
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # never waits, whatever lies there
ASIDE = ".writing-"  # begins the names of files and folders not finished yet


def open_folder(folder: str | Path, below: str | Path | None = None, make: bool = False, mode: int = 0o777) -> int:
    """File descriptor of the folder, for listing, syncing, and as dir_fd. The caller closes it.

    make: make it where it is missing, with this mode, and the folders between `below` and it

    Raises
    ------
    Refused: it, or a folder between `below` and it, is a link or no folder
    """
    with parent_of(folder, below, make) as (parent, name):
        if make:
            make_part(parent, name, mode)
        return open_part(name, parent, folder, FOLDER)


def open_file(file: str | Path, below: str | Path | None = None, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """File descriptor of a regular file. The caller closes it. Never waits, whatever lies there.

    flags: as os.open; O_TRUNC empties the file once it is known to be one. A file with several names (hard links) is
        not opened to be emptied or appended to: another of its names may lie elsewhere.

    Raises
    ------
    Refused: a link, a folder, a device, a pipe; or between `below` and it, what is no folder
    """
    truncate, flags = flags & os.O_TRUNC, flags & ~os.O_TRUNC
    with parent_of(file, below) as (parent, name):
        descriptor = open_part(name, parent, file, flags | SAFE, mode)
    try:
        refuse_special(descriptor, file, in_place=bool(truncate or flags & os.O_APPEND))
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


def read_in(descriptor: int, folder: Path, name: str, limit: int = LIMIT) -> bytes:
    """As `read`, of a file in a folder that is open: one system call to open it, however deep it lies."""
    file = open_part(name, descriptor, folder / name, os.O_RDONLY | SAFE)
    return _content(_regular(file, folder / name), folder / name, limit)


def open_named(file: str | Path) -> int:
    """File descriptor of a regular file that the user named (a study, an exported table): links lead to it.

    The caller closes it. Refused: a folder, a device, a pipe.
    """
    return _regular(os.open(file, os.O_RDONLY | SAFE & ~os.O_NOFOLLOW), file)


def read_named(file: str | Path, limit: int = LIMIT) -> bytes:
    """The content of a file that the user named. Refused: as open_named, or more than `limit` bytes."""
    return _content(open_named(file), file, limit)


def read_end(file: str | Path, below: str | Path | None = None, most: int = 2**14) -> bytes:
    """The last `most` bytes of a regular file, of a log, say. Errors as open_file."""
    with os.fdopen(open_file(file, below), "rb", buffering=0) as handle:
        handle.seek(max(0, os.fstat(handle.fileno()).st_size - most))
        return handle.read(most)


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
        with parent_of(path, below) as (parent, name):
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise with_path(error, path) from None


def is_file(path: str | Path, below: str | Path | None = None) -> bool:
    """Whether a regular file is there, not through a link."""
    try:
        status = look(path, below)
    except Refused:
        return False
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: str | Path, below: str | Path | None = None) -> bool:
    """Whether a folder is there, not through a link."""
    try:
        status = look(path, below)
    except Refused:
        return False
    return status is not None and stat.S_ISDIR(status.st_mode)


def make_folder(folder: str | Path, below: str | Path | None = None, mode: int = 0o777) -> None:
    """Make the folder where it is missing, and those between `below` and it. Refused: a link or a file is there."""
    os.close(open_folder(folder, below, make=True, mode=mode))


def make_private_folder(folder: str | Path, below: str | Path | None = None) -> None:
    """Make the folder where it is missing, for this user alone; one that is there is made so (mode 0700).

    Raises
    ------
    Refused: a link or a file is there, or a folder of another user's; root takes it as it is
    """
    descriptor = open_folder(folder, below, make=True, mode=0o700)
    try:
        about = os.fstat(descriptor)
        if os.geteuid() not in (0, about.st_uid):
            raise Refused(folder, f"belongs to user {about.st_uid}, who could read and change what is in it: remove it")
        if stat.S_IMODE(about.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(file: str | Path, below: str | Path | None = None, sync: bool = True) -> Iterator[BinaryIO]:
    """Write or replace a file: readers see the old content or the new, never a part, even if a process is killed.

    A link at the path is replaced, never followed. What the block raises leaves the file of before.
    sync: on the disk when the block has ended; False: for files that die with the run, which are this user's alone.
    """
    with parent_of(file, below) as (parent, name):
        aside = _aside(name)
        try:
            with os.fdopen(_open_new(aside, parent, 0o666 if sync else 0o600), "wb") as stream:
                yield stream
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            os.replace(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException as error:
            _unlink(aside, parent)
            raise with_path(error, file) from None
        if sync:
            _sync(parent)


def write(file: str | Path, content: str | bytes, below: str | Path | None = None, sync: bool = True) -> None:
    """As `replacing`, of content that is there."""
    with replacing(file, below, sync) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def stream(file: str | Path, below: str | Path | None = None, append: bool = False) -> BinaryIO:
    """A file to write to as a run goes on, unbuffered: emptied first, and then this user's alone; or appended to.
    Refused: as open_file."""
    flags, mode = os.O_WRONLY | os.O_CREAT, 0o666 if append else 0o600
    descriptor = open_file(file, below, flags | (os.O_APPEND if append else os.O_TRUNC), mode)
    if not append:
        os.fchmod(descriptor, mode)
    return os.fdopen(descriptor, "wb", buffering=0)


def write_folder(folder: str | Path, contents: Mapping[str, bytes], below: str | Path | None = None) -> None:
    """A new folder of files, whole and on the disk, or none.

    Raises
    ------
    FileExistsError: something is there
    """
    with parent_of(folder, below) as (parent, name):
        aside = _aside(name)
        try:
            os.mkdir(aside, dir_fd=parent)
            inside = os.open(aside, FOLDER, dir_fd=parent)
            try:
                for file, content in contents.items():
                    _write_new(file, content, inside, True)
                os.fsync(inside)
            finally:
                os.close(inside)
            os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)  # refused where a full folder stands
        except BaseException as error:
            remove_name(aside, parent)
            there = _there(name, parent) and isinstance(error, OSError)
            number = errno.EEXIST if there else getattr(error, "errno", None)
            raise with_path(error, folder, number) from None
        _sync(parent)


def copy_folder(
    source: str | Path,
    target: str | Path,
    *,
    below: str | Path | None = None,
    target_below: str | Path | None = None,
    leave: tuple[str, ...] = (),
) -> None:
    """A new folder with copies of the regular files and folders in another, on the disk.

    leave: names at its top that are left out
    Raises FileExistsError where the target is there; Refused where the source holds a link or a special file.
    """
    descriptor = open_folder(source, below)
    try:
        with parent_of(target, target_below) as (parent, name):
            copy_into(descriptor, parent, name, Path(source), leave)
    except OSError as error:
        raise with_path(error, target) from None
    finally:
        os.close(descriptor)


def remove(path: str | Path, below: str | Path | None = None) -> None:
    """Remove a file, a link (never what it points to) or a folder with all that is in it. Nothing there: nothing done.

    However deep the folder is, four descriptors and no recursion.
    """
    try:
        with parent_of(path, below) as (parent, name):
            remove_name(name, parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise with_path(error, path) from None


def remove_file(file: str | Path, below: str | Path | None = None) -> None:
    """Remove a file or a link, never a folder. Nothing there: nothing done."""
    try:
        with parent_of(file, below) as (parent, name):
            _unlink(name, parent)
    except OSError as error:
        raise with_path(error, file) from None


def sync_folder(folder: str | Path, below: str | Path | None = None) -> None:
    """The names in the folder, on the disk."""
    descriptor = open_folder(folder, below)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _regular(descriptor: int, path: str | Path) -> int:
    """The descriptor, of a regular file; of anything else it is closed, and Refused."""
    try:
        refuse_special(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


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


def _write_new(name: str, content: bytes, parent: int, sync: bool) -> None:
    with os.fdopen(_open_new(name, parent), "wb") as handle:
        handle.write(content)
        handle.flush()
        if sync:
            os.fsync(handle.fileno())


def _open_new(name: str, parent: int, mode: int = 0o666) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)


def _aside(name: str) -> str:
    return f"{ASIDE}{name[:100]}-{os.getpid()}-{os.urandom(4).hex()}"


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
