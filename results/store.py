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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import digests, files
from .schema import SCHEMA_VERSION, SchemaError, arrow_schema, checked, checked_row, columns, refuse_unknown

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
ATTEMPT = re.compile(r"a([1-9][0-9]{0,8})")
IN_FOLDER = ("run_id", "attempt")  # columns of the other tables that the folder says
FULL = (errno.ENOSPC, errno.EDQUOT)
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

    def attempts(self, run_id: str) -> list[int]:
        """Finished attempts of the run, in order; a damaged one counts."""
        return attempts_in(self.run_folder(run_id), self.folder)

    def row(self, run_id: str) -> dict | None:
        """The row of the run's last attempt; None: it has none, or it is damaged."""
        attempts = self.attempts(run_id)
        try:
            file = self.run_folder(run_id) / f"a{attempts[-1]}" / "run.json"
            return digests.unsealed(files.read(file, self.folder))
        except (IndexError, OSError, ValueError):
            return None

    def finished(self, run_id: str) -> str | None:
        """Status of the run's last attempt; None: it has to run."""
        return known_status(self.row(run_id) or {})

    def claim(self, run_id: str) -> Claim | None:
        """Claim the run for this process; None: another holds it.

        The kernel releases the claim when the process ends. A child started by exec does not inherit it; one made
        by a bare fork holds it too, until it ends.
        """
        folder = self.run_folder(run_id)
        with _said(f"claim run {run_id}", folder):
            files.make_folder(folder, self.folder)
            lock_fd = files.open_file(folder / "lock", self.folder, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for name in files.names(folder, self.folder):
                    if name.startswith(files.ASIDE):  # left behind by a killed writer
                        files.remove(folder / name, self.folder)
                if os.fstat(lock_fd).st_nlink == 1:  # not another's file
                    os.truncate(lock_fd, 0)
                    os.write(lock_fd, f"{socket.gethostname()} {os.getpid()}\n".encode())  # for people who look
            except BlockingIOError:
                os.close(lock_fd)
                return None
            except BaseException:
                os.close(lock_fd)
                raise
        return Claim(run_id, max(self.attempts(run_id), default=0) + 1, lock_fd)

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
        contents = {name: _arrow_bytes(table) for name, table in tables.items() if len(table)}
        full = checked_row("runs", {
            **row, "attempt": attempt, "schema_version": SCHEMA_VERSION, digests.TABLES: digests.of_tables(contents),
            **{rows_column(name): len(table) for name, table in tables.items()},
        })  # fmt: skip
        ok = full["status"] == "ok"
        if ok != (full["reason"] is None):
            raise SchemaError(f"run {run_id}: {full['status']} with reason {full['reason']!r}; all but ok have one")
        for name in ("loss", "val_loss"):
            if ok and row.get(name) is not None and full[name] is None:
                raise SchemaError(f"run {run_id} is ok with {name} = {row[name]}: its status is diverged")
        contents = {"run.json": digests.sealed(full)} | {f"{name}.arrow": each for name, each in contents.items()}
        final = folder / f"a{attempt}"
        with _said(f"write the row of run {run_id}", folder):
            files.make_folder(folder, self.folder)
            try:
                files.write_folder(final, contents, self.folder)
            except FileExistsError:
                raise FileExistsError(f"attempt {attempt} of run {run_id} was written already: {final}") from None
            except OSError as error:
                if error.errno not in FULL or files.look(folder / RESERVE, self.folder) is None:
                    raise
                files.remove(folder / RESERVE, self.folder)
                files.write_folder(final, contents, self.folder)
            files.sync_folder(self.runs, self.folder)
        return final

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
                raise SchemaError(f"column {name} of {table} has {len(values)} rows, another has {rows}")
        else:
            values = [checked(column, "model" if name == "kind" else None)] * rows if rows else []
        arrays[name] = pa.array(values, schema.field(name).type)
    return pa.table(arrays)


def _arrow_bytes(table: pa.Table) -> bytes:
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
