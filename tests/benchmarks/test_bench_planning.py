"""A study of 100,000 cases, planned by each command that plans: target 10 CPU-seconds and 1 GB.

`pytest tests/benchmarks/test_bench_planning.py --benchmark-only`. Each is a process of its own, whose CPU time and peak
memory are what the kernel counted, imports included.
"""

import os
import subprocess
import sys
import time

import pytest
from study_text import BASE, MANY

TARGET_S, TARGET_BYTES = 10.0, 10**9
VERIFY = """
import sys
from scalade.launch.verify import command as verify
from scalade.launch.study.study import load_study
study = load_study(sys.argv[1])
verify.prepare(study, verify.checks_of(study))
"""
RULES = "".join(f'[[exclude]]\n"recipe.lr" = {n // 10 / 1e6}\n"recipe.seed" = {n % 10}\n' for n in range(10, 8010))
EXCLUDES = (
    BASE.replace(
        "global_batch = 8", f"global_batch = 8\nlr = {[n / 1e6 for n in range(1, 1001)]}\nseed = {list(range(10))}"
    )
    + RULES
)
COMMANDS = {
    "run --dry-run": (MANY, ["-m", "scalade", "run", "STUDY", "--results", "RESULTS", "--dry-run"]),
    "submit --dry-run": (
        MANY,
        ["-m", "scalade", "submit", "STUDY", "--results", "RESULTS", "--scheduler", "slurm", "--dry-run"],
    ),
    "verify, what it would run": (MANY, ["-c", VERIFY, "STUDY"]),
    "10,000 cases, 8,000 excludes": (EXCLUDES, ["-m", "scalade", "run", "STUDY", "--results", "RESULTS", "--dry-run"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_planning(benchmark, tmp_path, name):
    text, command = COMMANDS[name]
    (tmp_path / "study.toml").write_text(text)
    places = {"STUDY": str(tmp_path / "study.toml"), "RESULTS": str(tmp_path / "r")}
    found = []

    def plan():
        begun = time.perf_counter()
        with open(tmp_path / "told", "wb") as told:
            process = subprocess.Popen([sys.executable, *(places.get(w, w) for w in command)], stdout=told, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, (tmp_path / "told").read_text()[-2000:]
        found.append((used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, time.perf_counter() - begun))

    benchmark.pedantic(plan, rounds=3, iterations=1)
    cpu_s, peak_bytes, wall_s = min(found)
    benchmark.extra_info |= {
        "total_s": cpu_s,
        "target_s": TARGET_S,
        "peak_rss_bytes": peak_bytes,
        "target_rss_bytes": TARGET_BYTES,
        "wall_s": wall_s,
    }
