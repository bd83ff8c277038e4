"""SHA-256 of what a run's files hold, written with them: bytes that changed since, and still parse, are seen.

    run.json      its last entry, row_sha256, is of all bytes before that entry
    *.arrow       the row's column tables_sha256 names each table's: {"steps": "9f86d0...", "evals": ...}

They show damage, not forgery: a user who can write the folder can write another digest. Rows older than these columns
have none, and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from .. import files

TABLE_LIMIT = 256 * files.MIB  # of another table's file of one run, bytes: over a million steps
ROW, TABLES = "row_sha256", "tables_sha256"  # columns of `runs`
CHANGED = "its content changed after it was written: its SHA-256 is another"
_SEAL = re.compile(rb',\n "row_sha256": "([0-9a-f]{64})"\n\}\n\Z')
_SEAL_BYTES = 100  # it is shorter


def of_tables(contents: Mapping[str, bytes]) -> str | None:
    """The column tables_sha256 for files by table name; null where there are none."""
    return json.dumps({name: _sha256(content) for name, content in contents.items()}) if contents else None


def sealed(row: Mapping[str, object]) -> bytes:
    """run.json of the row, with row_sha256 as its last entry, in place of the row's own."""
    body = json.dumps({name: value for name, value in row.items() if name != ROW}, indent=1, allow_nan=False)[:-2]
    return f'{body},\n "{ROW}": "{_sha256(body.encode())}"\n}}\n'.encode()


def unsealed(content: bytes) -> dict[str, object]:
    """The row in a run.json.

    Raises
    ------
    ValueError: it is not a JSON object, or was changed after it was written
    """
    row = files.parse_json(content)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if row.get(ROW) is not None:
        seal = _SEAL.search(content, max(0, len(content) - _SEAL_BYTES))
        if seal is None or _sha256(content[: seal.start()]) != seal[1].decode():
            raise ValueError(CHANGED)
    return row


def check_table(row: Mapping[str, object], table: str, content: bytes) -> None:
    """Raises ValueError where the row's tables_sha256 names another SHA-256 for this table's file."""
    try:
        known = json.loads(str(row.get(TABLES) or "{}"))
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise ValueError(f"{TABLES} of its row is no JSON object")
    if table in known and known[table] != _sha256(content):
        raise ValueError(CHANGED)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
