"""Benchmarks run with `--benchmark-only` alone; at their end one table says ours, theirs, ratio, target, met or not.

No benchmark fails on a slow machine: a figure beyond its target is printed as such.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # race.py and plain_loop.py are no tests, and no package
HEADINGS = ("figure", "ours", "theirs", "ratio", "target", "")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--benchmark-only", default=False):
        for item in items:
            if FOLDER in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="a benchmark: make bench, or --benchmark-only"))


@pytest.fixture
def figure(benchmark):
    """figure(name, measure, unit=, target=...): runs `measure` once, which gives (ours, theirs): paired samples, or
    theirs None where the target is absolute. Kept in extra_info for the table and in pytest-benchmark's JSON.

    target: of the ratio (ours / theirs) or of ours alone; at_least: more is better.
    """

    def run(name, measure, *, unit, target, at_least=False, **extra):
        found = []
        benchmark.pedantic(lambda: found.append(measure()), rounds=1, iterations=1)
        ours, theirs = found[0]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) if theirs else None
        benchmark.extra_info |= {
            "figure": name,
            "unit": unit,
            "ours": statistics.median(ours),
            "theirs": statistics.median(theirs) if theirs else None,
            "ratio": ratio,
            "target": target,
            "at_least": at_least,
            "samples": len(ours),
            **extra,
        }

    return run


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if not config.getoption("--benchmark-only", default=False) or not session or not session.benchmarks:
        return
    rows = [row for bench in session.benchmarks for row in _rows(bench)]
    widths = [max(len(row[i]) for row in [HEADINGS, *rows]) for i in range(len(HEADINGS))]
    terminalreporter.section("figures and their targets (docs/benchmarks.md)")
    for row in (HEADINGS, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        terminalreporter.write_line("  ".join(cells).rstrip())


def _rows(bench):
    """Lines of one benchmark; one without a `figure` shows its time, and its `target_s` where it names one."""
    info, name = bench.extra_info, bench.name.removeprefix("test_")
    if "figure" in info:
        judged = info["ours"] if info["ratio"] is None else info["ratio"]
        yield _row(
            info["figure"],
            info["ours"],
            info["theirs"],
            info["ratio"],
            judged,
            info["target"],
            info["unit"] if info["ratio"] is None else "x",
            info["unit"],
            info["at_least"],
        )
        return
    ours = info.get("total_s", bench.stats.min)
    yield _row(name, ours, None, None, ours, info.get("target_s"), "s", "s", False)
    if "target_rss_bytes" in info:
        ours = info["peak_rss_bytes"] / 1e6
        yield _row(f"{name}: memory", ours, None, None, ours, info["target_rss_bytes"] / 1e6, "MB", "MB", False)


def _row(name, ours, theirs, ratio, judged, target, target_unit, unit, at_least):
    met = "" if target is None else "met" if (judged >= target if at_least else judged <= target) else "NOT MET"
    bound = "" if target is None else f"{'>=' if at_least else '<='} {target:.5g} {target_unit}"
    shown = ["" if value is None else f"{value:.4g} {unit}" for value in (ours, theirs)]
    return (name, *shown, "" if ratio is None else f"{ratio:.3f}", bound, met)
