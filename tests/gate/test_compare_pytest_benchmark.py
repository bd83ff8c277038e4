"""Runs as pytest-benchmark's JSON, read by the real pytest-benchmark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from gate_rows import run, runs, stored
from hypothesis import given
from hypothesis import strategies as st
from pytest_benchmark.stats import Stats

from scalade.results.table.pytest_benchmark import export_pytest_benchmark, stats, to_pytest_benchmark

HOSTILE = "a|b`\x1b[31m\n[x]"


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=25))
def test_the_statistics_are_pytest_benchmarks(data):
    theirs = Stats()
    for value in data:
        theirs.update(value)
    ours = stats(data)
    assert set(ours) == {*theirs.as_dict(), "data", "iterations"}
    for name, value in theirs.as_dict().items():
        if name not in ("outliers", "stddev_outliers"):  # a value on the edge may fall to either side
            assert ours[name] == pytest.approx(value, rel=1e-12, abs=1e-15), name


def test_outliers_are_counted_as_there():
    theirs = Stats()
    for value in (data := [1.0, 1.1, 1.05, 0.98, 1.02, 5.0, 1.03, 0.2]):
        theirs.update(value)
    assert stats(data)["outliers"] == theirs.outliers == "1;2"


def benchmark(*arguments, cwd):
    command = [sys.executable, "-m", "pytest_benchmark", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_pytest_benchmark_compares_two_exports(tmp_path):
    other = [row | {"repeat": 0} for row in runs([0.3, 0.31], "d" * 16, model=HOSTILE)[:1]]
    failed = run("c" * 16, 9, status="failed", reason="so", step_time_s=None)
    stored(tmp_path / "b", runs([0.1, 0.102, 0.104], minutes=range(3), git_commit="c0ffee") + [*other, failed])
    stored(tmp_path / "h", runs([0.2, 0.204, 0.208]) + other)
    for side in "bh":
        assert export_pytest_benchmark(tmp_path / side, tmp_path / f"{side}.json") == 2
    told = benchmark("compare", "b.json", "h.json", "--between=median,ops", "--group-by=fullname", cwd=tmp_path)
    assert told.returncode == 0 and "failed" not in (told.stdout + told.stderr).lower()
    (row,) = [line for line in told.stdout.splitlines() if line.startswith("step_time_s[night tiny fsdp2")]
    shown = ["102.0000", "204.0000", "+100.0%", "9.8039", "4.9020", "-50.0%"]
    assert re.findall(r"[\d.,+%-]+", row.split("]")[1]) == shown
    assert "\x1b" not in told.stdout
    plain = benchmark("compare", "b.json", "--columns=min,max,mean,stddev,median,iqr,outliers,ops,rounds", cwd=tmp_path)
    assert plain.returncode == 0 and len(re.findall(r"^step_time_s\[", plain.stdout, re.M)) == 2
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["commit_info"]["id"] == "c0ffee" and content["benchmarks"][0]["stats"]["rounds"] in (1, 3)


@pytest.mark.slow
def test_a_pytest_session_is_gated_by_an_export(tmp_path):
    """--benchmark-compare-fail of a real session against our file: our file is the slower one, then the faster."""
    (tmp_path / "test_it.py").write_text("def test_it(benchmark):\n    benchmark.pedantic(lambda: None, rounds=3)\n")
    for name, time, status in (("slow", 10.0, 0), ("fast", 1e-12, 1)):
        content = to_pytest_benchmark(stored(tmp_path / name, runs([time] * 3)))
        content["benchmarks"][0] |= {"name": "test_it", "fullname": "test_it.py::test_it"}  # the only pair there is
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        options = [f"--benchmark-compare={name}.json", "--benchmark-compare-fail=min:5%", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={tmp_path}", *options, "test_it.py"]
        # Under xdist this process is a worker, where pytest-benchmark measures nothing: the session is not one.
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        told = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert told.returncode == status, told.stdout + told.stderr


def test_the_users_mistakes(tmp_path):
    path = stored(tmp_path / "r", [run(status="failed", reason="so", step_time_s=None)])
    with pytest.raises(ValueError, match="no ok run with step_time_s"):
        to_pytest_benchmark(path)
    with pytest.raises(ValueError, match="times only: step_time_s, first_step_s"):
        to_pytest_benchmark(path, "loss")
    stored(path, runs([0.1], "d" * 16))
    with pytest.raises(ValueError, match="cannot write"):
        export_pytest_benchmark(path, tmp_path / "no" / "where.json")
