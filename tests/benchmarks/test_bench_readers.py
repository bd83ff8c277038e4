"""`scalade efficiency` of 100,000 runs of 20,000 layouts, from an exported Parquet file: under 5 s of CPU and 1 GB.

`pytest tests/benchmarks/test_bench_readers.py --benchmark-only`. Each round is a fresh process, imports and the
printing of the text included; CPU-seconds are user and system, the peak is that process's.
"""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from efficiency_table import run

from scalade.results.schema.schema import SCHEMA_VERSION, arrow_schema
from scalade.results.table.read import EXPORT_KEY

RUNS, REPEATS = 100_000, 5
TARGET_S, TARGET_BYTES = 5.0, 10**9
LAYOUTS = [("dp", n) for n in (1, 2, 4, 8, 16, 32, 64)] + [("fsdp", n) for n in (2, 4, 8, 16, 32, 64)]


def rows():
    """Five models, 13 layouts, as many learning rates as it takes."""
    for case in range(RUNS // REPEATS):
        width, (kind, n) = 32 * (1 + case % 5), LAYOUTS[case // 5 % len(LAYOUTS)]
        more = {"model": f"w{width}", "model_width": width, "lr": 1e-3 * 1.01 ** (case // 65), "layout": f"{kind}{n}"}
        more |= {"dp_replicate": n if kind == "dp" else 1, "dp_shard": n if kind == "fsdp" else 1}
        for repeat in range(REPEATS):
            seconds = 0.4 / n**0.8 * (1 + 0.01 * repeat)
            yield run(n, seconds, repeat, case_id=f"{case:016x}", seed=repeat, schema_version=SCHEMA_VERSION, **more)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    file = tmp_path_factory.mktemp("readers") / "runs.parquet"
    about = {EXPORT_KEY: json.dumps({"table": "runs", "schema_version": SCHEMA_VERSION})}
    table = pa.Table.from_pylist(list(rows()), arrow_schema("runs"))
    pq.write_table(table.replace_schema_metadata(about), file, compression="zstd")
    return file


@pytest.mark.slow
def test_efficiency_of_a_hundred_thousand_runs(benchmark, exported):
    found = []

    def read():
        command = [sys.executable, "-m", "scalade", "efficiency", str(exported), "--mode", "strong"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        text = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0 and "series are shown, those of most layouts" in text
        found.append({"cpu_s": used.ru_utime + used.ru_stime, "peak_rss_bytes": used.ru_maxrss * 1024})

    benchmark.pedantic(read, rounds=3)
    middle = sorted(found, key=lambda one: one["cpu_s"])[1]
    benchmark.extra_info |= middle | {"target_s": TARGET_S, "target_rss_bytes": TARGET_BYTES}
