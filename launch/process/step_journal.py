"""The steps that a run has taken, kept while it runs: what is left of one that does not come to its end.

    scratch/taken.jsonl    one line each time losses come to the host: {"steps": [row, ...], "evals": [row, ...]}

Rank 0 appends between steps, so at most measure.log_every steps are missing. Who writes the row of a run that came to
nothing brings them into the table; a line that is cut off, and what follows it, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results import files
from ...results.schema.schema import SchemaError, checked_row
from .scratch import STEP_JOURNAL

if TYPE_CHECKING:
    from ...bench.loop import Training

LIMIT = 2**28  # of the file, bytes: some million steps
OF_STORE = {"run_id": "r", "attempt": 1}  # what the store adds to every row


class StepJournal:
    """Keeps them; on ranks other than 0 it does nothing."""

    def __init__(self, folder: Path, active: bool) -> None:
        self._file = files.stream(folder / STEP_JOURNAL) if active else None  # open as long as the run
        self._kept = {"steps": 0, "evals": 0}

    def append(self, training: Training) -> None:
        """Append what is new. After a resume that is all that the checkpoint carried, too."""
        if self._file is None:
            return
        tables = {"steps": training.steps.rows, "evals": training.evals}
        new = {name: rows[self._kept[name] :] for name, rows in tables.items()}
        if not any(new.values()):
            return
        line = json.dumps(new).encode() + b"\n"
        try:
            whole = self._file.write(line) == len(line)
        except OSError:
            whole = False
        if whole:
            self._kept = {name: len(rows) for name, rows in tables.items()}
        else:  # a full disk ends a run where its results are written, not here
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_journal(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """{"steps": columns, "evals": columns} as RunStore.write_run takes them, as far as the file is whole and ours."""
    found: dict[str, list[dict]] = {"steps": [], "evals": []}
    try:
        lines = files.read(folder / STEP_JOURNAL, limit=LIMIT).split(b"\n")[:-1]
    except OSError:
        lines = []
    for line in lines:
        try:
            content = json.loads(line)
            rows = {name: [checked_row(name, row | OF_STORE) for row in content[name]] for name in found}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SchemaError):
            break
        for name in found:
            found[name] += rows[name]
    return {name: _columns(rows) for name, rows in found.items()}


def _columns(rows: Sequence[dict]) -> dict[str, list[Any]]:
    names = [name for name in (rows or [{}])[0] if name not in OF_STORE]
    return {name: [row[name] for row in rows] for name in names}
