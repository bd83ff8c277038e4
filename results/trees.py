"""A folder with all that is in it, as one thing: removed without following a link, copied without copying one."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from .opened import FOLDER, Refused, open_part, refuse_special

DEEPEST = 20  # of a folder that is copied


def remove_name(name: str, parent: int) -> None:
    """One name with what is below it. The folders in a folder that is not empty are moved up until none is deep."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return os.unlink(name, dir_fd=parent)
        top = os.open(name, FOLDER, dir_fd=parent)
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
        inner = os.open(name, FOLDER, dir_fd=top)
    except FileNotFoundError:
        return moved
    try:
        for each in os.listdir(inner):
            if stat.S_ISDIR(os.stat(each, dir_fd=inner, follow_symlinks=False).st_mode):
                moved += 1
                free = f".removed-{os.getpid()}-{os.urandom(4).hex()}-{moved}"
                os.rename(each, free, src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(each, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
    return moved


def copy_into(source: int, parent: int, name: str, shown: Path, leave: tuple[str, ...], deep: int = 0) -> None:
    """The folder open as `source` as a new folder of this name. Raises OSError: a link or special file in it."""
    if deep > DEEPEST:
        raise Refused(shown, f"nested more than {DEEPEST} folders deep, and not copied")
    os.mkdir(name, dir_fd=parent)
    target = os.open(name, FOLDER, dir_fd=parent)
    try:
        for each in sorted(set(os.listdir(source)) - set(leave)):
            at = shown / each
            if stat.S_ISDIR(os.stat(each, dir_fd=source, follow_symlinks=False).st_mode):
                inner = open_part(each, source, at, FOLDER)
                try:
                    copy_into(inner, target, each, at, (), deep + 1)
                finally:
                    os.close(inner)
            else:
                _copy_file(each, source, target, at)
        os.fsync(target)
    finally:
        os.close(target)


def _copy_file(name: str, source: int, target: int, shown: Path) -> None:
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with os.fdopen(open_part(name, source, shown, flags), "rb") as old:
        refuse_special(old.fileno(), shown)
        with os.fdopen(os.open(name, new, 0o666, dir_fd=target), "wb") as copy:
            shutil.copyfileobj(old, copy)
            copy.flush()
            os.fsync(copy.fileno())
