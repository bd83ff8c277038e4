"""A results folder of many runs, made quickly: `python tests/benchmarks/big_table.py FOLDER RUNS STEPS [loose]`.

Six repeats of each case, on 1 to 32 devices, each case with its own learning rate; most of the columns have a value, as
a real row's do. `loose`: as run folders, written one after the other without a sync; else in parts, as a sweep leaves
them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1] / "programs"))
from efficiency_table import run as simulated  # noqa: E402

from scalade.results.schema.columns import TABLES  # noqa: E402
from scalade.results.schema.schema import arrow_schema, checked_row, columns  # noqa: E402
from scalade.results.store import packing  # noqa: E402
from scalade.results.store.attempts import OTHERS  # noqa: E402
from scalade.results.store.part import INDEX, KEPT, KEYS, rows_schema  # noqa: E402
from scalade.results.store.snapshot import Held  # noqa: E402
from scalade.results.store.store import RunStore  # noqa: E402

REPEATS, AT_ONCE = 6, 10_000
SEALS = ("tables_sha256", "row_sha256", "superseded_columns", "superseded_reason")


def rows(runs: int, steps: int) -> Iterator[dict]:
    """Whole rows of `runs`; every run has `steps` rows of `steps` and one of `evals`."""
    chance, known = np.random.default_rng(0), columns("runs")
    filled = {
        name: 0.5
        for group in ("Machine", "Communication", "Goodput")
        for column in TABLES["runs"][group]
        for name in [column.name]
        if column.type == "float64"
    }
    filled = {name: value for name, value in filled.items() if name in known}
    for n in range(runs):
        case, repeat = divmod(n, REPEATS)
        devices, lr = 2 ** (case % 6), 1e-4 * (1 + case // 6)
        case_id = hashlib.sha256(str(case).encode()).hexdigest()[:16]
        step_time_s = float(1.1 / devices * np.exp(chance.normal(0, 0.02)))
        row = filled | simulated(
            devices,
            step_time_s,
            repeat,
            case_id=case_id,
            lr=lr,
            step_rows=steps,
            eval_rows=1,
            steps=steps,
            train_loss_last=float(3 + chance.random()),
        )
        second = f"{n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}"
        row |= {
            "started_at": f"2026-{1 + n // 86400 % 12:02d}-01T{second}Z",
            "wall_s": 12.5 + n % 7,
            "comm_rows": 0,
            "op_rows": 0,
            "loss": row["train_loss_last"],
            "val_loss": 3.25,
            "val_hash": "f00d",
            "schema_version": 2,
        }
        yield checked_row("runs", row)


def steps_table(count: int, steps: int, step_time_s: np.ndarray) -> pa.Table:
    """The steps of `count` runs, one after the other."""
    schema, whole = rows_schema("steps"), count * steps
    step = np.tile(np.arange(steps), count)
    floats = {"step_time_s": np.repeat(step_time_s, steps) * (1 + 0.1 * np.sin(step)), "loss": 5 - step / 200}
    arrays = []
    for field in schema:
        if field.name == "warmup":
            values = pa.array(step < 3)
        elif field.type == pa.bool_():
            values = pa.array(np.zeros(whole, bool))
        elif field.type == pa.string():
            values = pa.nulls(whole, pa.string())
        else:
            values = pa.array(floats.get(field.name, step), field.type)
        arrays.append(values)
    return pa.table(arrays, schema=schema)


def evals_table(count: int) -> pa.Table:
    given = {"step": [1] * count, "val_loss": [3.25] * count, "kind": ["model"] * count}
    return pa.table({f.name: pa.array(given.get(f.name, [None] * count), f.type) for f in rows_schema("evals")})


def packed(folder: Path, runs: int, steps: int) -> None:
    RunStore(folder)
    waiting = rows(runs, steps)
    for start in range(0, runs, AT_ONCE):
        some = [next(waiting) for _ in range(min(AT_ONCE, runs - start))]
        table = pa.Table.from_pylist(some, arrow_schema("runs"))
        count, nothing = len(table), pa.nulls(len(table), pa.string())
        others = {name: rows_schema(name).empty_table() for name in OTHERS}
        others |= {"steps": steps_table(count, steps, table["step_time_s"].to_numpy()), "evals": evals_table(count)}
        index = pa.table(
            [*(table[name] for name in KEYS), *(pa.array(np.full(count, len(others[n]) // count)) for n in OTHERS)],
            schema=INDEX,
        )
        with packing.table_lock(folder):
            packing.write_part(folder, Held(index, table, pa.table([nothing] * 2, schema=KEPT), others))


def loose(folder: Path, runs: int, steps: int) -> None:
    RunStore(folder)
    for row in rows(runs, steps):
        place = folder / "runs" / row["run_id"]
        (place / "a1").mkdir(parents=True)
        (place / "lock").write_text("host 1\n")
        row = {name: value for name, value in row.items() if name not in SEALS}
        (place / "a1" / "run.json").write_text(json.dumps(row, indent=1) + "\n")
        tables = {"steps": steps_table(1, steps, np.array([row["step_time_s"]])), "evals": evals_table(1)}
        for name, table in tables.items():
            with pa.ipc.new_file(place / "a1" / f"{name}.arrow", table.schema) as writer:
                writer.write_table(table)


if __name__ == "__main__":
    (loose if "loose" in sys.argv[4:] else packed)(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os.sync()
