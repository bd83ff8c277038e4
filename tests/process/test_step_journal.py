"""What is left of a run that does not come to its end: the steps it had taken, with their losses."""

import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import PROGRAMS

from scalade.launch.process.scratch import STEP_JOURNAL
from scalade.launch.process.step_journal import StepJournal, read_journal
from scalade.launch.run import run_study
from scalade.results.store.store import RunStore
from scalade.results.table.read import read_runs, read_steps

FAKE = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 4
[budget]
steps = {steps}
[layout]
dp_replicate = 2
[measure]
log_every = 3
eval_every = 12
eval_sequences = 4
[run]
max_ranks = 2
threads_per_rank = 1
"""


def training(steps, evals=()):
    return SimpleNamespace(steps=SimpleNamespace(rows=list(steps)), evals=list(evals))


def step(i, **more):
    return {"step": i, "warmup": i < 2, "loss": 4.0 - i, "step_time_s": 0.5} | more


def evaluation(i):
    return {"step": i, "tokens_seen": 64 * i, "kind": "model", "val_loss": 3.0, "val_sequences": 4}


def test_what_is_kept_is_what_was_taken(tmp_path):
    journal, now = StepJournal(tmp_path, active=True), training([step(0), step(1, loss=math.nan)])
    journal.append(now)
    journal.append(now)  # nothing new
    now.steps.rows.append(step(2, outer_step=1.0))
    now.evals.append(evaluation(3))
    journal.append(now)
    found = read_journal(tmp_path)
    assert len((tmp_path / STEP_JOURNAL).read_text().splitlines()) == 2
    assert found["steps"]["step"] == [0, 1, 2] and found["steps"]["outer_step"] == [None, None, True]
    assert math.isnan(found["steps"]["loss"][1]) and found["evals"]["val_loss"] == [3.0]
    store = RunStore(tmp_path / "r")
    row = {"run_id": "a-r0", "case_id": "a", "repeat": 0, "status": "failed", "reason": "x"}
    store.write_run(row, **found)
    assert (store.row("a-r0")["step_rows"], store.row("a-r0")["eval_rows"]) == (3, 1)
    assert list(read_steps(tmp_path / "r")["loss"])[0::2] == [4.0, 2.0]


@settings(deadline=None, max_examples=50)
@given(kept=st.integers(0, 5), cut=st.integers(0, 2000), rest=st.binary(max_size=40))
def test_a_file_cut_off_or_overwritten_gives_its_whole_lines(kept, cut, rest):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal, now = StepJournal(folder, active=True), training([])
        for i in range(kept):
            now.steps.rows.append(step(i))
            journal.append(now)
        content = (folder / STEP_JOURNAL).read_bytes()
        (folder / STEP_JOURNAL).write_bytes(content[:cut] + rest)
        whole = content[:cut].count(b"\n")
        steps = read_journal(folder)["steps"].get("step", [])
        assert steps[:whole] == list(range(whole)) and len(steps) <= whole + 1


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "1",
        "{}",
        '{"steps": 3, "evals": []}',
        '{"steps": [[]], "evals": []}',
        "[" * 99_999,
        '{"steps": [{"step": "one"}], "evals": []}',
        '{"steps": [{"steep": 1}], "evals": []}',
    ],
)
def test_what_is_no_row_ends_the_reading(tmp_path, line):
    good = json.dumps({"steps": [step(0)], "evals": []})
    (tmp_path / STEP_JOURNAL).write_text(f"{good}\n{line}\n{good}\n")
    assert read_journal(tmp_path)["steps"]["step"] == [0]


def test_other_ranks_keep_nothing_and_no_file_is_no_steps(tmp_path):
    StepJournal(tmp_path, active=False).append(training([step(0)]))
    assert not os.listdir(tmp_path)
    assert read_journal(tmp_path) == {"steps": {}, "evals": {}}


def test_a_full_disk_does_not_end_the_run(tmp_path):
    journal = StepJournal(tmp_path, active=True)
    journal._file.close()
    journal._file = open("/dev/full", "wb", buffering=0)
    journal.append(training([step(0)]))
    journal.append(training([step(0), step(1)]))
    assert read_journal(tmp_path)["steps"] == {}


def test_a_failed_run_shows_how_far_it_came(tmp_path, monkeypatch):
    (tmp_path / "study.toml").write_text(STUDY.format(steps=9))
    monkeypatch.setenv("FAKE_RANK", "0:raise@4,1:hang@4")
    run_study(tmp_path / "study.toml", tmp_path / "r", quiet=True, command=FAKE)
    row = read_runs(tmp_path / "r").iloc[0]
    steps = read_steps(tmp_path / "r")
    assert (row["status"], row["step_rows"], row["steps"]) == ("failed", 4, 9)
    assert list(steps["step"]) == [0, 1, 2, 3] and steps["loss"].tolist() == [1.0, 1 / 2, 1 / 3, 1 / 4]


@pytest.mark.slow
def test_a_killed_training_leaves_its_loss_curve_and_its_evaluations(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.format(steps=1_000_000))

    def kill_rank_1():
        while (
            not (ranks := list(tmp_path.glob("r/runs/*/scratch/taken.jsonl")))
            or not read_journal(ranks[0].parent)["evals"]
        ):
            time.sleep(0.02)
        world = json.loads((ranks[0].parent / "world.json").read_text())
        os.kill(world[1]["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill_rank_1, daemon=True)
    thread.start()
    run_study(tmp_path / "study.toml", tmp_path / "r", quiet=True)
    row, steps = read_runs(tmp_path / "r").iloc[0], read_steps(tmp_path / "r")
    assert row["status"] == "failed" and row["eval_rows"] >= 1 and row["step_rows"] == len(steps) >= 12
    assert steps["step"].tolist() == list(range(len(steps)))
    assert steps["loss"].notna().all() and steps["loss"].iloc[-1] < steps["loss"].iloc[0]
    assert steps["tokens_seen"].iloc[-1] == 4 * 64 * len(steps)
