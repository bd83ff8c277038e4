"""The real rendezvous and gloo under the supervisor: two ranks that meet, and what is blamed when one goes."""

import json
import os
import sys
import time

import pytest
from places import PROGRAMS

from scalade.launch.process.progress import INTERVAL_S, Reporter, read_progress
from scalade.launch.run import run_study
from scalade.results.store.store import RunStore

COMMAND = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 12
[budget]
steps = 20
[layout]
dp_replicate = 2
[run]
time_limit_s = {limit}
max_ranks = 2
"""


def run(tmp_path, monkeypatch, fake, step_s="0.02", limit=100):
    monkeypatch.setenv("FAKE_TORCH", "1")
    monkeypatch.setenv("FAKE_RANK", fake)
    monkeypatch.setenv("FAKE_STEP_S", step_s)
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(limit=limit))
    summary, folder = run_study(path, tmp_path / "r", quiet=True, command=COMMAND)
    ((run_id, outcome),) = summary.outcomes.items()
    return outcome, RunStore(folder).row(run_id), RunStore(folder).scratch(run_id)


def test_two_ranks_meet_and_the_row_says_who_they_were(tmp_path, monkeypatch):
    outcome, row, _ = run(tmp_path, monkeypatch, "")
    assert outcome.status == "ok"
    ranks = json.loads(row["ranks_json"])
    assert [(rank["rank"], rank["local_rank"], rank["device"]) for rank in ranks] == [(0, 0, "cpu"), (1, 1, "cpu")]
    assert ranks[0]["pid"] != ranks[1]["pid"] and os.getpid() not in {rank["pid"] for rank in ranks}
    assert row["nodes"] == 1 and row["backend"] == "gloo" and row["attempt"] == 1


@pytest.mark.parametrize(
    "fake, reason",
    [
        ("1:kill@5", "rank 1 was killed by SIGKILL at step 5 of 20"),
        pytest.param("0:raise@5", "rank 0: KeyError: 'no such thing'", marks=pytest.mark.slow),
        pytest.param("1:raise@5", "rank 1: KeyError: 'no such thing'", marks=pytest.mark.slow),
    ],
)
def test_the_rank_that_failed_is_named_not_the_peer_that_noticed(tmp_path, monkeypatch, fake, reason):
    outcome, row, _ = run(tmp_path, monkeypatch, fake)
    assert outcome.status == row["status"] == "failed"
    assert outcome.reason == row["reason"] == reason
    assert row["wall_s"] < 60


@pytest.mark.slow
def test_a_rank_that_hangs_in_front_of_a_collective(tmp_path, monkeypatch):
    outcome, row, scratch = run(tmp_path, monkeypatch, "1:stop@5", limit=15)
    assert outcome.status == "timeout" and outcome.reason == "time limit 15 s reached at step 5 of 20"
    assert "all_reduce" in (scratch / "rank-0.stack").read_text()


def test_progress_keeps_the_last_step_and_writes_rarely(tmp_path):
    reporter = Reporter(tmp_path, 1000, active=True)
    reporter.phase("training")
    writes, last, begun = 0, None, time.monotonic()
    for step in range(200):
        reporter.step(step + 1, loss=2.0 if step == 0 else None)
        now = (tmp_path / "progress.json").stat().st_mtime_ns
        writes, last = writes + (now != last), now
    assert read_progress(tmp_path).step == 200 and read_progress(tmp_path).loss == 2.0
    assert writes <= 3 + (time.monotonic() - begun) / INTERVAL_S
    Reporter(tmp_path / "none", 10, active=False).step(1)  # other ranks need no folder
    assert read_progress(tmp_path / "none") is None
