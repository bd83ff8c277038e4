"""Where runs are written: one folder per run, one sub-folder per attempt, whole or not there at all.

    <results>/runs/<run_id>/a<attempt>/run.json      the row of `runs`: one JSON object, every column
                                       steps.arrow   the rows of `steps` (Arrow IPC file), where there are any
                                       evals.arrow   the rows of `evals`
                                       comm.arrow    the rows of `comm`
                                       ops.arrow     the rows of `ops`
                            /...                     what a run keeps beside its attempts (run_folder.py)

An attempt is written aside in the run's folder, synced to the disk, and renamed into place: a process killed at any
moment leaves a finished attempt or none. Nothing is rewritten: of two writers of one attempt the first wins. The row
carries SHA-256s of itself and of the other files (digests.py). The folder may belong to another user: no link in it is
followed, and only regular files are opened (files.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from .attempt_files import MeasuredRows, row_alone
from .packed import PackedRuns
from .run_folder import Claim, RunFolder, doing

if TYPE_CHECKING:
    import pyarrow as pa


class RunStore:
    """The results folder as its writers see it. Reading needs no store: see read.py.

    `run(run_id)` gives one run; the methods that take a run_id are its methods of the same names.

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

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.folder, run_id, self._packed)

    def attempts(self, run_id: str) -> list[int]:
        return self.run(run_id).attempts()

    def row(self, run_id: str) -> dict[str, Any] | None:
        return self.run(run_id).row()

    def finished(self, run_id: str) -> str | None:
        """Status of the run's last attempt; None: it has to run."""
        return self.run(run_id).status()

    def claim(self, run_id: str) -> Claim | None:
        return self.run(run_id).claim()

    def scratch(self, run_id: str) -> Path:
        return self.run(run_id).scratch()

    def clean_scratch(self, run_id: str, keep: Iterable[str] = ()) -> None:
        self.run(run_id).clean_scratch(keep)

    def run_folder(self, run_id: str) -> Path:
        """Where the run's attempts lie; it need not be there yet."""
        return self.run(run_id).path

    def begun(self) -> set[str]:
        """The runs that have a folder or a finished attempt."""
        return {*files.names(self.runs, self.folder), *self._packed.run_ids()}

    def damaged_parts(self) -> dict[str, str]:
        """Name of a part that cannot be read -> why; its runs count as if they had never run."""
        return self._packed.damaged()

    def write_run(
        self,
        row: Mapping[str, object],
        steps: MeasuredRows | pa.Table | None = None,
        evals: MeasuredRows | pa.Table | None = None,
        comm: MeasuredRows | pa.Table | None = None,
        ops: MeasuredRows | pa.Table | None = None,
    ) -> Path:
        """Write one attempt of one run. Returns its folder, which is complete and on the disk.

        row: columns of `runs`; schema_version and the counts of rows are filled in, attempt where it is missing (one
            past the last). A number that is not finite becomes null (an `ok` run's loss must not be).
        steps, evals, comm, ops: equally long sequences by column; columns that are missing are null, run_id and
            attempt are the row's.

        Raises
        ------
        SchemaError: a column that is not in the schema, or a value of another type; names it
        FileExistsError: this attempt was written already
        OSError: the disk is full or refuses; nothing is left of the attempt
        """
        return self.run(str(row["run_id"])).write(row, steps, evals, comm, ops)

    def write_rows(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write an attempt of many runs that have a row and nothing else: those never begun in one part, at once.

        rows: as write_run. A run that has finished, or is claimed, is left alone: another process was faster.

        Raises
        ------
        SchemaError, OSError: as write_run
        """
        from .packing import pack_rows, table_lock

        full = [row_alone({**row, "attempt": 1}) for row in rows]
        if not full:
            return
        with doing("write rows", self.folder), table_lock(self.folder):
            begun = self.begun()
            pack_rows(self.folder, [row for row in full if row["run_id"] not in begun])
        for row in full:
            if row["run_id"] in begun:
                self._write_if_unfinished(row)

    def _write_if_unfinished(self, row: dict[str, object]) -> None:
        claim = self.claim(str(row["run_id"]))
        if claim is None:
            return
        with claim:
            if claim.run.status() is None:
                claim.run.write(row | {"attempt": claim.attempt})

    def compact(self, at_least: int = 1) -> None:
        """Move finished attempts into parts, where so many runs have folders, and no other process is at it. A disk
        that has no room for that leaves them where they are."""
        from .packing import compact

        if len(files.names(self.runs, self.folder)) >= at_least:
            with suppress(OSError):
                compact(self.folder, wait=False)
