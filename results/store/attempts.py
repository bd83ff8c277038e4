"""How a run's folder and the attempts in it are named, and what a run's row says about its standing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .. import files
from ..schema.columns import TABLES
from ..schema.schema import columns

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
ATTEMPT = re.compile(r"a([1-9][0-9]{0,8})")
IN_FOLDER = ("run_id", "attempt")  # columns of the other tables that are not in their files: the folder's name has them
ROW_FILE = "run.json"
OTHERS = tuple(name for name in TABLES if name != "runs")  # the tables with rows of their own in each attempt
STARTS = "starts.jsonl"  # in the run's folder: the log of starts, which launch/process/goodput.py writes


def attempts_in(run_folder: Path, below: Path | None = None) -> list[int]:
    """Numbers of the finished attempts in a run's folder, in order. No folder: none.

    below: the folder that the user named (files.py). OSError: it is a link, or cannot be read.
    """
    names = files.names(run_folder, below)
    return sorted(int(match[1]) for name in names if (match := ATTEMPT.fullmatch(name)))


def known_status(row: Mapping[str, object]) -> str | None:
    """Status of a run's last attempt, by its row; None: the run has to run."""
    status = row.get("status")
    return str(status) if status in columns("runs")["status"].values else None


def rows_column(table: str) -> str:
    """Column of `runs` that counts a run's rows in another table."""
    return f"{table.removesuffix('s')}_rows"
