"""`isolation = "pool"`: warm ranks run one case after the other, compute what fresh ones compute, and hide no fault."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fault_lab import Lab
from places import PROGRAMS

from scalade import read_runs, read_steps
from scalade.launch.rank.reset import Before
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study

FAKE = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 32
tied = false
[recipe]
global_batch = 4
[budget]
steps = 4
[measure]
eval_sequences = 4
{layout}
[run]
max_ranks = 4
repeats = {repeats}
isolation = "{isolation}"
hang_limit_s = 4
"""
TWO_AND_ONE = "[layout]\ndp_replicate = [2, 1]"
KEYS = ("dp_shard = 2", "tp = 2", "dp_replicate = 2", "pp = 2\nmicrobatches = 2")
LAYOUTS = "".join(f"[[layout]]\n{keys}\n" for keys in KEYS)


def write_study(folder, layout=TWO_AND_ONE, repeats=3, isolation="pool"):
    path = folder / f"{isolation}.toml"
    path.write_text(STUDY.format(layout=layout, repeats=repeats, isolation=isolation))
    return path


def pids(row):
    return tuple(rank["pid"] for rank in json.loads(row["ranks_json"]))


@pytest.mark.parametrize(
    "hurt, status",
    [
        ("1/r1:raise@2", "failed"),
        pytest.param("", None, marks=pytest.mark.slow),
        pytest.param("1/r1:kill@1", "failed", marks=pytest.mark.slow),
        pytest.param("1/r1:stop@1", "timeout", marks=pytest.mark.slow),
    ],
)
def test_ranks_stay_until_a_run_fails(tmp_path, monkeypatch, hurt, status):
    monkeypatch.setenv("FAKE_RANK", hurt)
    monkeypatch.setenv("FAKE_SYNC", "1")
    summary, results = run_study(write_study(tmp_path), tmp_path / "r", quiet=True, command=FAKE)
    assert [outcome.status for outcome in summary.outcomes.values()] == ["ok"] * 4 + [status or "ok"] + ["ok"]
    assert [run_id[-2:] for run_id in summary.outcomes] == ["r0", "r1", "r2"] * 2  # a size after the other
    rows = {row["run_id"]: row for _, row in read_runs(results).iterrows()}
    worlds = [pids(rows[run_id])[0] for run_id in summary.outcomes]
    one, two = set(worlds[:3]), [worlds[3], worlds[5]]
    assert len(one) == 1 and (two[0] == two[1]) == (status is None)
    assert {row["isolation"] for row in rows.values()} == {"pool"}
    assert not [pid for pid in worlds if Path(f"/proc/{pid}/cmdline").exists()]


@pytest.mark.slow
def test_sigkill_of_the_supervisor_ends_warm_ranks(tmp_path):
    lab = Lab(tmp_path, 3, repeats=3)
    lab.isolation = "pool"
    lab._write(60)
    try:
        process = lab.sweep()
        while not list(lab.results.glob("runs/*/a1")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lab.finish()
    finally:
        lab.close()


@pytest.mark.slow
def test_what_a_case_left_behind_is_put_back_or_found():
    import torch

    before = Before()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    os.environ["LEFT"] = "1"
    assert before.put_back() is None
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled() and "LEFT" not in os.environ
    linear = torch.nn.functional.linear
    torch.nn.functional.linear = lambda *arguments: linear(*arguments)
    try:
        assert before.put_back() == "torch.nn.functional.linear is not what it was"
    finally:
        torch.nn.functional.linear = linear
    over = threading.Event()
    threading.Thread(target=over.wait, name="helper", daemon=False).start()
    assert before.put_back() == "thread helper runs on"
    over.set()


@pytest.mark.parametrize(
    "layout, why",
    [
        pytest.param(
            "[layout]\nengine = 'deepspeed'\ndp_shard = 2",
            "replaces torch.nn.functional.linear",
            marks=pytest.mark.engines,
        ),
        ("[layout]\ncompile = true", "keeps what it compiled"),
    ],
)
def test_what_changes_its_process_is_refused(tmp_path, layout, why):
    (case,) = load_study(write_study(tmp_path, layout)).cases()
    assert why in case.skip_reason and "'fresh'" in case.skip_reason


def test_another_isolation_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="run.isolation = .*warm.*allowed are fresh, pool"):
        load_study(write_study(tmp_path, isolation="warm"))


@pytest.mark.slow
def test_warm_ranks_compute_what_fresh_ones_compute(tmp_path):
    """Four layouts in turns over the same two ranks, bitwise; and the start of a warm run is a fraction."""
    for isolation in ("fresh", "pool"):
        path = write_study(tmp_path, LAYOUTS, 2 if isolation == "pool" else 1, isolation)
        command = [sys.executable, "-m", "scalade", "run", str(path), "--results", str(tmp_path / isolation), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done
    fresh, warm = read_runs(tmp_path / "fresh"), read_runs(tmp_path / "pool")
    assert len({pids(row) for _, row in warm.iterrows()}) == 1, "a pool that did not last"
    ordered = warm.sort_values("started_at")
    assert ordered["startup_s"].iloc[1:].max() < 0.5 * fresh["startup_s"].min()
    assert (ordered["peak_host_memory_bytes"] > 2**27).all()
    for _, row in warm.iterrows():
        same = fresh[fresh["case_id"] == row["case_id"]].iloc[0]
        assert row["val_loss"] == same["val_loss"]
        mine = read_steps(tmp_path / "pool", [row["run_id"]])["loss"].tolist()
        assert mine == read_steps(tmp_path / "fresh", [same["run_id"]])["loss"].tolist()
