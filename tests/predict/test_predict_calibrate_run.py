"""`scalade calibrate` on this machine, of one rank, from the command to the rows that are predicted by it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scalade.launch.predict.report import predict_study
from scalade.parallelism.predict.machine import load_machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMAND = [sys.executable, "-m", "scalade", "calibrate", "--minutes", "0.2", "--ranks", "1"]
STUDY = """
name = "calibrated"
[model]
size = "tiny-300k"
[recipe]
global_batch = 8
[budget]
steps = 4
"""


def test_a_profile_is_measured_and_predicts(tmp_path, monkeypatch):
    profile = tmp_path / "machines" / "this.toml"
    monkeypatch.setenv("SCALADE_MACHINE", str(profile))
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["profile"] == str(profile)
    found = load_machine(profile)
    assert found.device == "cpu" and found.node_ranks == 1 and 1e9 < found.peaks["fp32"] < 1e14
    assert 1e-7 < found.launch_s < 1e-4 and 0 < found.attention_forward < 1 and found.reserved_bytes > 5e7
    assert found.sources["peaks.fp32"].startswith("measured by scalade calibrate 2")
    (tmp_path / "s.toml").write_text(STUDY)
    _, (single,), _ = predict_study(tmp_path / "s.toml", None)
    row = single.columns
    assert 1e-3 < row["predicted_step_time_low_s"] < row["predicted_step_time_s"] < row["predicted_step_time_high_s"]
    assert row["predicted_by"].startswith("scalade ") and "machine this: " in row["predicted_by"]
    assert row["predicted_constant_mfu_step_time_s"] > row["predicted_bound_time_s"]


def test_a_calibration_that_is_ended_leaves_what_was_there(tmp_path, monkeypatch):
    profile = tmp_path / "this.toml"
    profile.write_text("old")
    monkeypatch.setenv("SCALADE_MACHINE", str(profile))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and "one rank" in process.stderr.readline()
    time.sleep(4)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) != 0
    assert profile.read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["this.toml", "tmp"]
