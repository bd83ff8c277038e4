"""Made-up runs for the tests of the gate: rows of `runs`, in memory or in a results folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from unittest import mock

from scalade.results.schema.schema import columns
from scalade.results.store.store import RunStore

START = datetime(2026, 1, 1, tzinfo=UTC)
EMPTY = dict.fromkeys(columns("runs"))


def run(case_id="c" * 16, repeat=0, step_time_s=0.1, minute=None, **more):
    """One ok run; minute: when it started."""
    started = None if minute is None else (START + timedelta(minutes=minute)).isoformat()
    row = EMPTY | {
        "run_id": f"{case_id}-r{repeat}",
        "case_id": case_id,
        "repeat": repeat,
        "attempt": 1,
        "status": "ok",
        "study": "night",
        "model": "tiny",
        "layout": "fsdp2",
        "started_at": started,
        "step_time_s": step_time_s,
    }
    return row | more


def runs(times, case_id="c" * 16, minutes=None, **more):
    minutes = [None] * len(times) if minutes is None else minutes
    return [run(case_id, k, t, minute, **more) for k, (t, minute) in enumerate(zip(times, minutes, strict=True))]


def stored(folder, rows):
    store = RunStore(folder)
    with mock.patch("os.fsync"):  # what the disk is asked for is test_table_store's
        for row in rows:
            store.write_run({name: value for name, value in row.items() if value is not None})
    return folder
