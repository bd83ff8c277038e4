"""One run of a results folder, for the process that runs it: its claim, its scratch folder, its starts and its row.

    <results>/runs/<run_id>/a<attempt>/   a finished attempt (attempt_files.py)
                            lock          held (flock) by the process that runs this run
                            scratch/      what the running attempt keeps for itself
                            reserve       room on the disk for its row
                            starts.jsonl  the log of its starts

An attempt may also lie in a part (part.py), to which a packing moved it: `attempts` and `row` look at both places.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..opened import Refused
from . import digests
from .attempt_files import MeasuredRows, attempt_files
from .attempts import ROW_FILE, RUN_ID, STARTS, attempts_in, known_status
from .damage import damage
from .packed import PackedRuns

if TYPE_CHECKING:
    import pyarrow as pa

FULL = (errno.ENOSPC, errno.EDQUOT)
LOCK, SCRATCH, RESERVE = "lock", "scratch", "reserve"  # in the run's folder


@dataclass(frozen=True)
class Claim:
    """This process runs this run until the claim is released or the process dies, however it dies."""

    run: RunFolder
    attempt: int  # the number that the row to be written will carry
    lock_fd: int

    @property
    def run_id(self) -> str:
        return self.run.run_id

    def release(self) -> None:
        os.close(self.lock_fd)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


class RunFolder:
    """A run by its id. Neither the folder nor an attempt has to be there yet.

    path: the run's folder; results: the results folder
    """

    __slots__ = ("results", "run_id", "_packed", "_path")

    def __init__(self, results: Path, run_id: str, packed: PackedRuns) -> None:
        assert RUN_ID.fullmatch(run_id), f"not a run_id: {run_id!r}"
        self.results, self.run_id, self._packed = results, run_id, packed
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        if self._path is None:  # a plan of many runs asks for few of them
            self._path = self.results / "runs" / self.run_id
        return self._path

    # The attempts and their rows.

    def attempts(self) -> list[int]:
        """Finished attempts, in order, in the folder or in a part; a damaged one in the folder counts."""
        loose = attempts_in(self.path, self.results)  # before the parts: attempts move from here to there
        packed = self._packed.attempts(self.run_id)
        return sorted({*loose, *packed}) if packed else loose

    def last_attempt(self) -> int:
        """0: it has none."""
        return max(self.attempts(), default=0)

    def row(self) -> dict[str, Any] | None:
        """The row of the last attempt; None: it has none, or it is damaged."""
        last = self.last_attempt()
        if not last:
            return None
        try:
            return digests.unsealed(files.read(self.path / f"a{last}" / ROW_FILE, self.results))
        except FileNotFoundError:
            place = self._packed.attempts(self.run_id).get(last)
            return None if place is None else self._packed.row(place)
        except (OSError, ValueError):
            return None

    def brief(self, names: tuple[str, ...]) -> Mapping[str, Any] | None:
        """As `row`, for callers that look at many runs: of a run in a part these columns only."""
        if self.lost():
            return None
        if not self.in_part():
            return self.row()
        packed = self._packed.attempts(self.run_id)
        return self._packed.brief(packed[max(packed)], names)

    def status(self) -> str | None:
        """Status of the last attempt; None: the run has to run."""
        return known_status(self.brief(("status",)) or {})

    def in_part(self) -> bool:
        """Whether the last attempt lies in a part, whose files were verified when it was first looked at."""
        packed = self._packed.attempts(self.run_id)
        return bool(packed) and max(packed) > max(attempts_in(self.path, self.results), default=0)

    def lost(self) -> str | None:
        """What a damaged part lost of the last attempt, which does not count then; None: nothing."""
        lost = self._packed.lost(self.run_id)
        return lost[1] if lost and lost[0] > self.last_attempt() else None

    def damage(self) -> str | None:
        """What of the last attempt in the run's folder is not as it was written; None: nothing, or it is elsewhere."""
        return None if self.in_part() else damage(self.path, self.results)

    # For the process that runs it.

    def claim(self) -> Claim | None:
        """Claim the run for this process; None: another holds it.

        The kernel releases the claim when the process ends. A child started by exec does not inherit it; one made
        by a bare fork holds it too, until it ends.
        """
        with doing(f"claim run {self.run_id}", self.path):
            lock_fd = self._locked()
            if lock_fd is None:
                return None
            try:
                self._prepare(lock_fd)
            except BaseException:
                os.close(lock_fd)
                raise
        return Claim(self, self.last_attempt() + 1, lock_fd)

    def _prepare(self, lock_fd: int) -> None:
        """What a new holder of the claim finds: no rest of a killed writer, its own name, the log of starts."""
        for name in files.names(self.path, self.results):
            if name.startswith(files.ASIDE):
                files.remove(self.path / name, self.results)
        if os.fstat(lock_fd).st_nlink == 1:  # not another's file
            os.truncate(lock_fd, 0)
            os.write(lock_fd, f"{socket.gethostname()} {os.getpid()}\n".encode())  # for people
        starts = self._packed.starts(self.run_id)
        if starts and files.look(self.path / STARTS, self.results) is None:
            files.write(self.path / STARTS, starts, self.results)

    def _locked(self) -> int | None:
        """The run's lock; None: another holds it. A packing removes the folder and the lock of a run that is done, so
        what was locked has to be what still lies there."""
        while True:
            files.make_folder(self.path, self.results)
            try:
                lock_fd = files.open_file(self.path / LOCK, self.results, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there, held = files.look(self.path / LOCK, self.results), os.fstat(lock_fd)
                if there is not None and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                    return lock_fd
            except BlockingIOError:
                os.close(lock_fd)
                return None
            except BaseException:
                os.close(lock_fd)
                raise
            os.close(lock_fd)

    def scratch(self) -> Path:
        """Folder of the running attempt, for this user alone: progress, error reports, checkpoints. Not part of the
        table."""
        folder = self.path / SCRATCH
        with doing(f"make the scratch folder of run {self.run_id}", folder):
            files.make_private_folder(folder, self.results)
        return folder

    def has_scratch(self) -> bool:
        return any(files.look(self.path / name, self.results) is not None for name in (SCRATCH, RESERVE))

    def clean_scratch(self, keep: Iterable[str] = ()) -> None:
        """Empty the scratch folder, except for the names in `keep` (a checkpoint, for example). Call only while
        holding the run's claim."""
        keep = set(keep)
        folder = self.path / SCRATCH
        for name in files.names(folder, self.results):
            if name not in keep:
                files.remove(folder / name, self.results)
        if not keep:
            files.remove(folder, self.results)

    # Its row, and room on the disk for it.

    def write(
        self,
        row: Mapping[str, object],
        steps: MeasuredRows | pa.Table | None = None,
        evals: MeasuredRows | pa.Table | None = None,
        comm: MeasuredRows | pa.Table | None = None,
        ops: MeasuredRows | pa.Table | None = None,
    ) -> Path:
        """Write one attempt. Arguments and errors: as RunStore.write_run. Returns its folder."""
        attempt = row.get("attempt") or self.last_attempt() + 1
        tables = {"steps": steps, "evals": evals, "comm": comm, "ops": ops}
        contents = attempt_files({**row, "attempt": attempt}, tables)
        final = self.path / f"a{attempt}"
        with doing(f"write the row of run {self.run_id}", self.path):
            try:
                if attempt in self._packed.attempts(self.run_id):
                    raise FileExistsError
                self._place(final, contents)
            except FileExistsError:
                raise FileExistsError(f"attempt {attempt} of run {self.run_id} was written already: {final}") from None
            except OSError as error:
                if error.errno not in FULL or files.look(self.path / RESERVE, self.results) is None:
                    raise
                files.remove(self.path / RESERVE, self.results)
                files.write_folder(final, contents, self.results)
            files.sync_folder(self.path.parent, self.results)
        return final

    def _place(self, final: Path, contents: Mapping[str, bytes]) -> None:
        """Write the attempt's folder; a packing may remove the run's folder, while it is empty, under a writer that
        has no claim."""
        while True:
            files.make_folder(self.path, self.results)
            try:
                return files.write_folder(final, contents, self.results)
            except FileNotFoundError:
                if not self.path.parent.is_dir():
                    raise

    def reserve(self, size_bytes: int) -> None:
        """Set room on the disk aside for the run's row: what was measured is not lost where others fill the disk.

        Call only while holding the run's claim. Raises OSError where there is no such room.
        """
        with doing(f"reserve {size_bytes} bytes for the row of run {self.run_id}", self.path):
            self.release_reserve()
            self._allocate(self.path / RESERVE, size_bytes)

    def release_reserve(self) -> None:
        """Give back what `reserve` set aside."""
        files.remove(self.path / RESERVE, self.results)

    def has_room(self, size_bytes: int = 2**16) -> bool:
        """Whether the disk takes so much more, beside what is reserved."""
        probe = self.path / f"{files.ASIDE}probe"
        files.remove(probe, self.results)
        try:
            self._allocate(probe, size_bytes)
        except OSError as error:
            return error.errno not in FULL
        finally:
            files.remove(probe, self.results)
        return True

    def _allocate(self, file: Path, size_bytes: int) -> None:
        descriptor = files.open_file(file, self.results, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)


@contextmanager
def doing(action: str, where: Path) -> Iterator[None]:
    """Turns an OSError inside into one line that says what was being done and where."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        path = error.filename if isinstance(error, Refused) else where
        raise OSError(error.errno, f"cannot {action}: {error.strerror}", str(path)) from None
