"""The secret of a run, which only its processes know: by it they recognise each other (handshake.py).

256 bits from the kernel. They are in no argument, log, row or file that another user may read:

    ranks       in the environment that their supervisor starts them with (/proc/PID/environ is its owner's alone); a
                rank takes it out before it starts anything. A warm one (warm_pool.py) gets each run's over its
                socket pair.
    supervisors SCALADE_SECRET where the user exports it to all of them, else a file of mode 0600 in the results
                folder: the first to come makes it, rank 0 removes it once all have met

A secret itself is never sent. What is used is derived from it, for one purpose each (HMAC-SHA256 as in HKDF-Expand,
RFC 5869, with one block): a step of a job, a run of a sweep, a connection.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..host.placement import SECRET, WorldError

LEAST = 32  # characters of one that a user gives: 128 bits in hexadecimal
WHOLE_S = 10.0  # for the process that made the file to fill it
STALE_S = (
    3600.0  # far longer than supervisors wait for each other (sweep/join.py, JOIN_TIMEOUT_S), or hosts' clocks differ
)
MEETING = ".meeting-"
PORTS = 8  # on which the supervisors of a job may meet
MAKES_ONE = "export SCALADE_SECRET=$(python3 -c 'import secrets; print(secrets.token_hex(32))')"


def new_secret() -> bytes:
    return secrets.token_bytes(32)


def derive(secret: bytes, *purpose: str | bytes) -> bytes:
    """32 bytes for one purpose, from which neither the secret nor those of another purpose can be computed."""
    parts = [part.encode() if isinstance(part, str) else part for part in purpose]
    return hmac.digest(secret, b"".join(len(part).to_bytes(4, "big") + part for part in parts) + b"\1", "sha256")


def ports_of(secret: bytes) -> tuple[int, ...]:
    """The ports to meet on: they follow from the secret, and lie below those that the kernel assigns by itself."""
    keys = (derive(secret, "port", str(number)) for number in range(4 * PORTS))
    ports = (10_000 + int.from_bytes(key[:4], "big") % 20_000 for key in keys)
    return tuple(dict.fromkeys(ports))[:PORTS]


def exported(env: Mapping[str, str]) -> bytes | None:
    """The one that a user or a supervisor has put into the environment.

    Raises
    ------
    WorldError: it can be guessed
    """
    secret = env.get(SECRET)
    if secret is None:
        return None
    if len(secret) < LEAST:
        raise WorldError(f"{SECRET} has {len(secret)} characters, and must have {LEAST} or more: {MAKES_ONE}")
    return secret.encode()


@contextmanager
def shared(folder: Path, name: str, first: bool, user_secret: bytes | None) -> Iterator[bytes]:
    """The secret of the supervisors that work into `folder` and know `name`, which is no secret. It is derived anew for
    the name, so that steps to which one SCALADE_SECRET was exported do not know each other's.

    first: this is rank 0, which removes the file when it leaves, and those that killed ones have left behind
    user_secret: what the user exported to all of them; None: nothing

    Raises
    ------
    WorldError: the file is not ours alone, or cannot be made
    """
    file = folder / f"{MEETING}{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    made, secret = False, user_secret
    try:
        if secret is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                while secret is None:
                    made = _make(file)
                    with suppress(FileNotFoundError):  # rank 0 has come and gone meanwhile: nobody will meet it
                        secret = _read(file)
            except OSError as error:
                why = f"{file}: {error.strerror}; or {MAKES_ONE}"
                raise WorldError(f"supervisors share their secret in the results folder, and cannot: {why}") from None
        yield derive(secret, "step", name)
    finally:
        if first or made:
            with suppress(OSError):
                file.unlink()
        if first:
            _remove_stale(folder)


def _remove_stale(folder: Path) -> None:
    """Files of supervisors that were killed while they met: this user's, and too old for a meeting that goes on."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not re.fullmatch(re.escape(MEETING) + "[0-9a-f]{24}", entry.name):
                continue
            with suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
                if ours and time.time() - about.st_mtime > STALE_S:
                    os.unlink(entry.path)


def _make(file: Path) -> bool:
    """Whether this process came first: of all that try, on all hosts, one does (open(2), O_EXCL; NFS from 3 on)."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, new_secret().hex().encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _read(file: Path) -> bytes:
    deadline = time.monotonic() + WHOLE_S
    while True:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
                whose = f"it is of mode {stat.S_IMODE(about.st_mode):o} and user {about.st_uid}"
                raise WorldError(f"{file}: {whose}, and must be a file that this user alone may read: {MAKES_ONE}")
            content = os.read(descriptor, 1024)
        finally:
            os.close(descriptor)
        if content.endswith(b"\n"):
            return content.strip()
        if time.monotonic() > deadline:
            raise WorldError(f"{file}: the process that began it did not finish; remove it")
        time.sleep(0.05)
