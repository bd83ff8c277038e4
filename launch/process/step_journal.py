"""The steps that a run has taken so far, written while it runs, so that a run that does not finish still has them.

    scratch/taken.jsonl    one line each time losses come to the host: {"steps": [row, ...], "evals": [row, ...]}

Rank 0 appends between steps, so at most measure.log_every steps are missing. The sweep that writes the row of a run
without a result takes them into the table; a line that is cut off, and all after it, is left out.
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
STORE_KEYS = {"run_id": "r", "attempt": 1}  # what the store adds to every row


class StepJournal:
    """Writes them; on ranks other than 0 it does nothing."""

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
    """{"steps": columns, "evals": columns} as RunStore.write_run takes them, as far as the file can be read."""
    tables: dict[str, list[dict[str, Any]]] = {"steps": [], "evals": []}
    try:
        lines = files.read(folder / STEP_JOURNAL, limit=LIMIT).split(b"\n")[:-1]
    except OSError:
        lines = []
    for line in lines:
        try:
            content = json.loads(line)
            rows = {name: [checked_row(name, row | STORE_KEYS) for row in content[name]] for name in tables}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SchemaError):
            break
        for name in tables:
            tables[name] += rows[name]
    return {name: _columns(rows) for name, rows in tables.items()}


def _columns(rows: Sequence[dict]) -> dict[str, list[Any]]:
    names = [name for name in (rows or [{}])[0] if name not in STORE_KEYS]
    return {name: [row[name] for row in rows] for name in names}
