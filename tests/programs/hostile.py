"""Hostile results folders, and the commands that read them, in one process. For test_hostile_folder.py."""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

from scalade.cli.app import main
from scalade.results.store import digests
from scalade.results.store.store import RunStore

ESCAPE = "\x1b]0;owned\x07\x1b[31mred\u202e\x9b2J"
VALUES = (
    None, "", ESCAPE, "=1+1", "a" * 5000, "NaN", "[]", "{}",
    "[" * 50_000, '[{"rank": [], "host": {}}]', "[1]", '[null]',
    '{"steps": 1}', 0, 1, -1, 2**62, -(2**62), 0.5, 1e308, -1e308, 5e-324, True, False,
)  # fmt: skip
STATUSES = ("ok", "failed", "oom", "timeout", "diverged", "skipped", "cancelled")


def base_row(number: int) -> dict:
    return {
        "run_id": f"case{number % 3}-r{number // 3}", "case_id": f"case{number % 3}", "repeat": number // 3,
        "status": "ok", "world_size": 2 ** (number % 3), "layout": f"dp{2 ** (number % 3)}", "engine": "torch",
        "model": "tiny", "steps": 3, "global_batch": 8, "tokens_per_step": 1024, "step_time_s": 0.5 / (1 + number % 3),
        "tokens_per_s": 2048.0, "loss": 2.0, "val_loss": 2.5, "params_total": 1000, "tokens_seen": 4096,
        "started_at": f"2026-01-01T00:00:{number:02}Z", "ranks_json": '[{"rank": 0, "host": "h"}]',
    }  # fmt: skip


def write(folder: Path, changes: dict[int, dict], steps: dict | None = None) -> Path:
    """Nine runs, of which some have these columns changed in their file, sealed anew: what a hostile writer can do."""
    store = RunStore(folder)
    rows = steps or {"step": [0, 1, 2], "loss": [3.0, 2.5, 2.0], "step_time_s": [0.5, 0.5, 0.5]}
    for number in range(9):
        file = store.write_run(base_row(number), rows) / "run.json"
        if number in changes:
            file.write_bytes(digests.sealed(json.loads(file.read_text()) | changes[number]))
    return folder


def commands(folder: Path, out: Path) -> list[list[str]]:
    name = str(folder)
    return [
        ["show", name],
        ["show", name, "--json"],
        ["check", name],
        ["export", name, str(out / "runs.csv")],
        ["export", name, str(out / "steps.parquet"), "--table", "steps"],
        ["efficiency", name],
        ["history", name],
        ["compare", name, name],
        ["fit", name],
        ["ops", name],
        ["status", name],
        ["logs", name],
        ["report", name, "--out", str(out / "report.html")],
    ]


def called(words: list[str]) -> str | None:
    """What is wrong with how the command ended; None: nothing."""
    told, before = io.StringIO(), sys.argv
    sys.argv = ["scalade", *words]
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            main()
    except SystemExit as done:
        if done.code not in (0, 1, 2, None):
            return f"{' '.join(words)}: exit status {done.code}"
    except BaseException:
        return f"{' '.join(words)}: {traceback.format_exc()}"
    finally:
        sys.argv = before
    text = told.getvalue()
    for sign in ("\x1b", "\x07", "\x9b", "\u202e", "Traceback"):
        if sign in text:
            at = text.index(sign)
            return f"{' '.join(words)}: printed {text[max(0, at - 100) : at + 100]!r}"
    return None
