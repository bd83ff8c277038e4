"""Where runs are written: one folder per run, one sub-folder per attempt, whole or not there at all.

    <results>/runs/<run_id>/a<attempt>/run.json      the row of `runs`: one JSON object, every column
                                       steps.arrow   the rows of `steps` (Arrow IPC file), where there are any
                                       evals.arrow   the rows of `evals`
                                       comm.arrow    the rows of `comm`
                                       ops.arrow     the rows of `ops`
                            /lock                    held (flock) by the process that runs this run
                            /scratch/                what the running attempt keeps for itself
                            /reserve                 room on the disk for its row

An attempt is written aside in the run's folder, synced to the disk, and renamed into place: a process killed at any
moment leaves a finished attempt or none. Nothing is rewritten: of two writers of one attempt the first wins. The row
carries SHA-256s of itself and of the other files (digests.py). The folder may be somebody else's: no link in it is
followed, and only regular files are opened (files.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..schema.columns import TABLES
from ..schema.schema import SCHEMA_VERSION, SchemaError, arrow_schema, checked, checked_row, columns, refuse_unknown
from ..wording import count_of
from . import digests
from .packed import PackedRuns

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
ATTEMPT = re.compile(r"a([1-9][0-9]{0,8})")
IN_FOLDER = ("run_id", "attempt")  # columns of the other tables that the folder says
FULL = (errno.ENOSPC, errno.EDQUOT)
STARTS = "starts.jsonl"  # in the run's folder: launch/process/goodput.py
RESERVE = "reserve"  # in the run's folder: room for its row


@dataclass(frozen=True)
class Claim:
    """This process runs this run until the claim is released or the process dies, however it dies."""

    run_id: str
    attempt: int  # the number that the row to be written will carry
    lock_fd: int

    def release(self) -> None:
        os.close(self.lock_fd)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error) -> None:
        self.release()


class RunStore:
    """The results folder as its writers see it. Reading needs no store: see read.py.

    Raises
    ------
    ValueError: the folder cannot be: it is a file, or it may not be written
    OSError: later, when the disk is full or the folder went away; one line that says what was being written
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ValueError(f"results folder {str(folder)!r}: it, or a part of its path, is a file") from None
        except OSError as error:
            raise ValueError(f"results folder {str(folder)!r} cannot be made: {error.strerror}") from None
        os.close(files.open_folder(self.runs, self.folder))
        if not os.access(self.runs, os.W_OK | os.X_OK):
            raise ValueError(f"results folder {str(folder)!r} may not be written by this user")
        self._packed = PackedRuns(self.folder)

    def attempts(self, run_id: str) -> list[int]:
        """Finished attempts of the run, in order, in its folder or in a part; a damaged one in its folder counts."""
        loose = attempts_in(self.run_folder(run_id), self.folder)  # before the parts: attempts move from here to there
        packed = self._packed.attempts(run_id)
        return sorted({*loose, *packed}) if packed else loose

    def row(self, run_id: str) -> dict | None:
        """The row of the run's last attempt; None: it has none, or it is damaged."""
        attempts = self.attempts(run_id)
        if not attempts:
            return None
        try:
            file = self.run_folder(run_id) / f"a{attempts[-1]}" / "run.json"
            return digests.unsealed(files.read(file, self.folder))
        except FileNotFoundError:
            place = self._packed.attempts(run_id).get(attempts[-1])
            return None if place is None else self._packed.row(place)
        except (OSError, ValueError):
            return None

    def finished(self, run_id: str) -> str | None:
        """Status of the run's last attempt; None: it has to run."""
        return known_status(self.brief(run_id, ("status",)) or {})

    def begun(self) -> set[str]:
        """The runs that have a folder or a finished attempt."""
        return {*files.names(self.runs, self.folder), *self._packed.run_ids()}

    def damaged_parts(self) -> dict[str, str]:
        """Name of a part that cannot be read -> why; its runs count as if they had never run."""
        return self._packed.damaged()

    def in_part(self, run_id: str) -> bool:
        """Whether the run's last attempt lies in a part, whose files were verified when it was first looked at."""
        packed = self._packed.attempts(run_id)
        return bool(packed) and max(packed) > max(attempts_in(self.run_folder(run_id), self.folder), default=0)

    def lost(self, run_id: str) -> str | None:
        """What a damaged part lost of the run's last attempt, which does not count then; None: nothing."""
        lost = self._packed.lost(run_id)
        return lost[1] if lost and lost[0] > max(self.attempts(run_id), default=0) else None

    def brief(self, run_id: str, names: tuple[str, ...]) -> Mapping[str, object] | None:
        """As `row`, for who asks about many runs: of a run in a part these columns only."""
        if self.lost(run_id):
            return None
        if not self.in_part(run_id):
            return self.row(run_id)
        packed = self._packed.attempts(run_id)
        return self._packed.brief(packed[max(packed)], names)

    def claim(self, run_id: str) -> Claim | None:
        """Claim the run for this process; None: another holds it.

        The kernel releases the claim when the process ends. A child started by exec does not inherit it; one made
        by a bare fork holds it too, until it ends.
        """
        folder = self.run_folder(run_id)
        with _said(f"claim run {run_id}", folder):
            lock_fd = self._locked(folder)
            if lock_fd is None:
                return None
            try:
                for name in files.names(folder, self.folder):
                    if name.startswith(files.ASIDE):  # left behind by a killed writer
                        files.remove(folder / name, self.folder)
                if os.fstat(lock_fd).st_nlink == 1:  # not another's file
                    os.truncate(lock_fd, 0)
                    os.write(lock_fd, f"{socket.gethostname()} {os.getpid()}\n".encode())  # for people who look
                starts = self._packed.starts(run_id)
                if starts and files.look(folder / STARTS, self.folder) is None:
                    files.write(folder / STARTS, starts, self.folder)
            except BaseException:
                os.close(lock_fd)
                raise
        return Claim(run_id, max(self.attempts(run_id), default=0) + 1, lock_fd)

    def _locked(self, folder: Path) -> int | None:
        """The run's lock; None: another holds it. A packing removes the folder and the lock of a run that is done, so
        what was locked has to be what still lies there."""
        while True:
            files.make_folder(folder, self.folder)
            try:
                lock_fd = files.open_file(folder / "lock", self.folder, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there, held = files.look(folder / "lock", self.folder), os.fstat(lock_fd)
                if there is not None and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                    return lock_fd
            except BlockingIOError:
                os.close(lock_fd)
                return None
            except BaseException:
                os.close(lock_fd)
                raise
            os.close(lock_fd)

    def scratch(self, run_id: str) -> Path:
        """Folder of the running attempt, for this user alone: progress, error reports, checkpoints. Not part of the
        table."""
        folder = self.run_folder(run_id) / "scratch"
        with _said(f"make the scratch folder of run {run_id}", folder):
            files.make_private_folder(folder, self.folder)
        return folder

    def has_scratch(self, run_id: str) -> bool:
        folder = self.run_folder(run_id)
        return any(files.look(folder / name, self.folder) is not None for name in ("scratch", RESERVE))

    def clean_scratch(self, run_id: str, keep: Iterable[str] = ()) -> None:
        """Empty the scratch folder, but for the names in `keep` (a checkpoint, say). For who holds the claim."""
        keep = set(keep)
        folder = self.run_folder(run_id) / "scratch"
        for name in files.names(folder, self.folder):
            if name not in keep:
                files.remove(folder / name, self.folder)
        if not keep:
            files.remove(folder, self.folder)

    def write_run(
        self,
        row: Mapping[str, object],
        steps: Mapping[str, object] | pa.Table | None = None,
        evals: Mapping[str, object] | pa.Table | None = None,
        comm: Mapping[str, object] | pa.Table | None = None,
        ops: Mapping[str, object] | pa.Table | None = None,
    ) -> Path:
        """Write one attempt of one run. Returns its folder, which is complete and on the disk.

        row: columns of `runs`; schema_version and the counts of rows are filled in, attempt where it is missing (one
            past the last). A number that is not finite becomes null (an `ok` run's loss must not be).
        steps, evals, comm, ops: equally long sequences by column; columns not given are null, run_id and attempt are
            the row's.

        Raises
        ------
        SchemaError: a column that is not in the schema, or a value of another type; names it
        FileExistsError: this attempt was written already
        OSError: the disk is full or refuses; nothing is left of the attempt
        """
        run_id = str(row["run_id"])
        folder = self.run_folder(run_id)
        attempt = row.get("attempt") or max(self.attempts(run_id), default=0) + 1
        given = {"steps": steps, "evals": evals, "comm": comm, "ops": ops}
        tables = {name: _rows(name, rows) for name, rows in given.items()}
        contents = {name: arrow_bytes(table) for name, table in tables.items() if len(table)}
        counts = {rows_column(name): len(table) for name, table in tables.items()}
        full = _full({**row, "attempt": attempt, digests.TABLES: digests.of_tables(contents), **counts})
        contents = {"run.json": digests.sealed(full)} | {f"{name}.arrow": each for name, each in contents.items()}
        final = folder / f"a{attempt}"
        with _said(f"write the row of run {run_id}", folder):
            try:
                if attempt in self._packed.attempts(run_id):
                    raise FileExistsError
                self._place(folder, final, contents)
            except FileExistsError:
                raise FileExistsError(f"attempt {attempt} of run {run_id} was written already: {final}") from None
            except OSError as error:
                if error.errno not in FULL or files.look(folder / RESERVE, self.folder) is None:
                    raise
                files.remove(folder / RESERVE, self.folder)
                files.write_folder(final, contents, self.folder)
            files.sync_folder(self.runs, self.folder)
        return final

    def _place(self, folder: Path, final: Path, contents: Mapping[str, bytes]) -> None:
        """The attempt's folder; a packing may take the run's folder away, while it is empty, from who has no claim."""
        while True:
            files.make_folder(folder, self.folder)
            try:
                return files.write_folder(final, contents, self.folder)
            except FileNotFoundError:
                if not self.runs.is_dir():
                    raise

    def write_rows(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write an attempt of many runs that have a row and nothing else: those never begun in one part, at once.

        rows: as write_run. A run that has finished, or is claimed, is left alone: somebody was faster.

        Raises
        ------
        SchemaError, OSError: as write_run
        """
        from .packing import pack_rows, table_lock

        counts = {rows_column(name): 0 for name in TABLES if name != "runs"}
        fulls = [_full({**row, "attempt": 1, **counts}) for row in rows]
        if not fulls:
            return
        with _said("write rows", self.folder), table_lock(self.folder):
            begun = self.begun()
            pack_rows(self.folder, [full for full in fulls if full["run_id"] not in begun])
        for full in fulls:
            if full["run_id"] in begun and (claim := self.claim(full["run_id"])):
                with claim:
                    if self.finished(full["run_id"]) is None:
                        self.write_run(full | {"attempt": claim.attempt})

    def compact(self, at_least: int = 1) -> None:
        """Move finished attempts into parts, where so many runs have folders, and no other process is at it. A disk
        that has no room for that leaves them where they are."""
        from .packing import compact

        if len(files.names(self.runs, self.folder)) >= at_least:
            with suppress(OSError):
                compact(self.folder, wait=False)

    def reserve(self, run_id: str, size_bytes: int) -> None:
        """Set room on the disk aside for the run's row: what was measured is not lost where others fill the disk.

        For who holds the claim. Raises OSError where there is no such room.
        """
        with _said(f"reserve {size_bytes} bytes for the row of run {run_id}", self.run_folder(run_id)):
            self.release(run_id)
            self._set_aside(self.run_folder(run_id) / RESERVE, size_bytes)

    def release(self, run_id: str) -> None:
        """Give back what `reserve` set aside."""
        files.remove(self.run_folder(run_id) / RESERVE, self.folder)

    def has_room(self, run_id: str, size_bytes: int = 2**16) -> bool:
        """Whether the disk takes so much more, beside what is reserved."""
        probe = self.run_folder(run_id) / f"{files.ASIDE}probe"
        files.remove(probe, self.folder)
        try:
            self._set_aside(probe, size_bytes)
        except OSError as error:
            return error.errno not in FULL
        finally:
            files.remove(probe, self.folder)
        return True

    def _set_aside(self, file: Path, size_bytes: int) -> None:
        descriptor = files.open_file(file, self.folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)

    def run_folder(self, run_id: str) -> Path:
        """Where the run's attempts lie; it need not be there yet."""
        assert RUN_ID.fullmatch(run_id), f"not a run_id: {run_id!r}"
        return self.runs / run_id


def _full(row: Mapping[str, object]) -> dict[str, object]:
    """The row with every column, as it is written. Raises SchemaError: as write_run."""
    full = checked_row("runs", {**row, "schema_version": SCHEMA_VERSION})
    ok, run_id = full["status"] == "ok", full["run_id"]
    if ok != (full["reason"] is None):
        raise SchemaError(f"run {run_id}: {full['status']} with reason {full['reason']!r}; all but ok have one")
    for name in ("loss", "val_loss"):
        if ok and row.get(name) is not None and full[name] is None:
            raise SchemaError(f"run {run_id} is ok with {name} = {row[name]}: its status is diverged")
    return full


def known_status(row: Mapping[str, object]) -> str | None:
    """Status of a run's last attempt, given its row; None: it has to run."""
    status = row.get("status")
    return status if status in columns("runs")["status"].values else None


def rows_column(table: str) -> str:
    """Column of `runs` that counts a run's rows in another table."""
    return f"{table.removesuffix('s')}_rows"


def attempts_in(run_folder: Path, below: Path | None = None) -> list[int]:
    """Numbers of the finished attempts in a run's folder, in order. No folder: none.

    below: the folder that the user named (files.py). OSError: it is a link, or cannot be read.
    """
    names = files.names(run_folder, below)
    return sorted(int(match[1]) for name in names if (match := ATTEMPT.fullmatch(name)))


def _rows(table: str, given: Mapping[str, object] | pa.Table | None) -> pa.Table:
    """The given columns as the file holds them: all of the table's but run_id and attempt, which the folder says."""
    import pyarrow as pa

    schema = arrow_schema(table)
    given = {} if given is None else given
    names = given.column_names if isinstance(given, pa.Table) else list(given)
    refuse_unknown(table, names)
    rows = max((len(given[name]) for name in names), default=0)
    arrays = {}
    for name, column in columns(table).items():
        if name in IN_FOLDER:
            continue
        if name in names:
            values = given[name]
            values = [checked(column, v) for v in (values.to_pylist() if hasattr(values, "to_pylist") else values)]
            if len(values) != rows:
                raise SchemaError(f"column {name} of {table} has {count_of(len(values), 'row')}, another has {rows}")
        else:
            values = [checked(column, "model" if name == "kind" else None)] * rows if rows else []
        arrays[name] = pa.array(values, schema.field(name).type)
    return pa.table(arrays)


def arrow_bytes(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@contextmanager
def _said(doing: str, where: Path) -> Iterator[None]:
    """Turns an OSError inside into one line that says what was being done and where."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        found = error.filename if isinstance(error, files.Refused) else where
        raise OSError(error.errno, f"cannot {doing}: {error.strerror}", str(found)) from None
