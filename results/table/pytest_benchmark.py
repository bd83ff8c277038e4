"""`scalade export --format pytest-benchmark`: runs as pytest-benchmark's JSON (5.x), for its `compare` and CI actions.

One benchmark per case, one round per run: the unit of repetition is the run, so min, mean and deviation are over
runs. Names carry the case_id: pytest-benchmark pairs by name, and a renamed benchmark passes its gate unseen.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import files
from ..schema.rows import AnyRow, ok_rows, values_in
from .names import name_of
from .rank_places import hosts_of
from .read import printable, runs_table

TIMES = ("step_time_s", "first_step_s", "startup_s", "wall_s")  # pytest-benchmark knows seconds only
VERSION = "5.0.0"  # of pytest-benchmark, whose format this is
EXTRA = (
    "study",
    "model",
    "layout",
    "engine",
    "world_size",
    "tokens_per_step",
    "params_total",
    "precision",
    "device_name",
    "torch_version",
    "timed_steps",
)


def to_pytest_benchmark(path: str | Path, metric: str = "step_time_s", where: str | None = None) -> dict[str, Any]:
    """The ok runs of a table, every case with what it measured of `metric` (one of TIMES).

    machine_info and commit_info are of the newest run.

    Raises
    ------
    ValueError: nothing at the path, another metric, not a filter, or no ok run has measured it
    """
    if metric not in TIMES:
        raise ValueError(f"metric {metric!r}: pytest-benchmark compares times only: {', '.join(TIMES)}")
    ok = ok_rows(runs_table(path, where=where).to_pylist())
    rows = [row for row in ok if (row[metric] or 0) > 0]
    if not rows:
        raise ValueError(f"no ok run with {metric} at {str(path)!r}" + (f" where {where}" if where else ""))
    rows.sort(key=lambda row: (row["started_at"] or "", row["repeat"]))
    cases = defaultdict(list)
    for row in rows:
        cases[row["case_id"]].append(row)
    newest = rows[-1]
    return {
        "machine_info": _machine_info(newest),
        "commit_info": _commit_info(newest),
        "benchmarks": [_benchmark(case_id, runs, metric) for case_id, runs in cases.items()],
        "datetime": newest["started_at"] or datetime.now(UTC).isoformat(),
        "version": VERSION,
    }


def _machine_info(row: AnyRow) -> dict[str, object]:
    return {
        "node": _host(row),
        "system": row["os"],
        "release": row["kernel"],
        "processor": row["cpu_model"],
        "python_version": row["python_version"],
        "cpu": {"brand_raw": row["cpu_model"], "count": row["cpu_count"]},
        "device": row["device_name"],
        "device_count": row["device_count"],
    }


def _commit_info(row: AnyRow) -> dict[str, object]:
    return {
        "id": row["git_commit"] or "unversioned",
        "time": None,
        "author_time": None,
        "dirty": bool(row["git_dirty"]),
        "project": "scalade",
        "branch": "(unknown)",
    }


def export_pytest_benchmark(
    path: str | Path, out: str | Path, metric: str = "step_time_s", where: str | None = None
) -> int:
    """Write to_pytest_benchmark's content to a file. Returns the number of benchmarks.

    Raises
    ------
    ValueError: as to_pytest_benchmark, or the file cannot be written
    """
    content, out = to_pytest_benchmark(path, metric, where), Path(out)
    benchmarks = content["benchmarks"]
    try:
        files.write(out, json.dumps(content, indent=1, allow_nan=False) + "\n", sync=False)
    except OSError as error:
        raise ValueError(f"cannot write {printable(out)}: {error.strerror or error}") from None
    return len(benchmarks)


def _benchmark(case_id: str, rows: Sequence[AnyRow], metric: str) -> dict[str, object]:
    row = rows[-1]
    name = f"{metric}[{printable(name_of(row))} {case_id}]"
    return {
        "group": None,
        "name": name,
        "fullname": f"scalade::{name}",
        "params": {"case_id": case_id},
        "param": case_id,
        "extra_info": {column: row[column] for column in EXTRA} | {"runs": values_in(rows, "run_id")},
        "options": {
            "disable_gc": False,
            "timer": "perf_counter",
            "min_rounds": len(rows),
            "max_time": 0.0,
            "min_time": 0.0,
            "warmup": True,
        },
        "stats": stats(values_in(rows, metric)),
    }


def stats(data: Sequence[float]) -> dict[str, object]:
    """pytest-benchmark's statistics of these seconds, by its definitions (quartiles of small samples: method 2 and 3
    of Wikipedia's `Quartile`)."""
    ordered, n = sorted(data), len(data)
    mean, total = statistics.mean(data), sum(data)
    deviation = statistics.stdev(data) if n > 1 else 0
    q1, q3 = _quartile(ordered), -_quartile([-value for value in reversed(ordered)])
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    beyond_deviation = sum(abs(value - mean) > deviation for value in data)
    beyond_iqr = sum(not low <= value <= high for value in data)
    return {
        "min": ordered[0], "max": ordered[-1], "mean": mean, "stddev": deviation, "rounds": n,
        "median": statistics.median(data), "iqr": q3 - q1, "q1": q1, "q3": q3, "iqr_outliers": beyond_iqr,
        "stddev_outliers": beyond_deviation, "outliers": f"{beyond_deviation};{beyond_iqr}",
        "ld15iqr": ordered[bisect_left(ordered, low)], "hd15iqr": ordered[bisect_right(ordered, high) - 1],
        "ops": n / total, "total": total, "data": list(data), "iterations": 1,
    }  # fmt: skip


def _quartile(ordered: list[float]) -> float:
    """The lower quartile."""
    n, rest = divmod(len(ordered), 4)
    if len(ordered) == 1:
        return ordered[0]
    if rest == 1:
        return 0.25 * ordered[n - 1] + 0.75 * ordered[n]
    if rest == 3:
        return 0.75 * ordered[n] + 0.25 * ordered[n + 1]
    return statistics.median(ordered[: len(ordered) // 2])


def _host(row: AnyRow) -> str | None:
    return next(iter(hosts_of(row["ranks_json"]).values()), None)
