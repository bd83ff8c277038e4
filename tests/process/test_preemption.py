"""A scheduler warns: the run stops with a checkpoint, the sweep asks to be queued again, and one row comes of it."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from preempted_study import FAKE, write_study

from scalade import read_runs, read_steps
from scalade.launch.host.signals import signal_names
from scalade.launch.process.preemption import REQUEUE_STATUS, STOP_FILE
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study
from scalade.results.store.store import RunStore

SWEEP = """
import sys
from pathlib import Path
from scalade.launch.run import to_text, run_study
command = {"command": sys.argv[3:]} if sys.argv[3:] else {}
summary, folder = run_study(Path(sys.argv[1]), Path(sys.argv[2]), quiet=True, **command)
print("\\n".join(to_text(summary, folder)))
sys.exit(summary.exit_code)
"""


def start_sweep(path, results, *command, **env):
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(path), str(results), *command],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(results, step, process):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for file in results.glob("runs/*/scratch/step"):
            if int(file.read_bytes() or 0) >= step:
                return
        time.sleep(0.01)
    raise AssertionError(f"step {step} never came: {process.communicate()}")


def starts_of(results):
    (file,) = results.glob("runs/*/starts.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_signal_stops_with_a_checkpoint_and_one_row_comes_at_the_end(tmp_path):
    path, results = write_study(tmp_path, repeats=2), tmp_path / "r"
    first = start_sweep(path, results, *FAKE, FAKE_STEP_S="0.02")
    wait_for_step(results, 5, first)
    first.send_signal(signal.SIGUSR1)
    out, err = first.communicate(timeout=30)
    assert first.returncode == REQUEUE_STATUS, err
    assert "1 preempted" in out and "stopped by SIGUSR1, with a checkpoint at step" in out and "start it again" in out
    assert len(read_runs(results)) == 0
    done = starts_of(results)[1]
    assert done["cause"] == "preempted" and done["steps_done"] >= 5

    again = start_sweep(path, results, *FAKE, FAKE_STEP_S="0")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    rows = read_runs(results, all_attempts=True)
    assert list(rows["status"]) == ["ok", "ok"] and list(rows["attempt"]) == [1, 1]
    assert sorted(rows["restarts"]) == [0, 1] and set(rows["lost_steps"]) == {0}


def test_a_file_stops_it_where_no_signal_gets_through(tmp_path):
    path, results = write_study(tmp_path), tmp_path / "r"
    process = start_sweep(path, results, *FAKE, **{STOP_FILE: str(tmp_path / "stop now"), "FAKE_STEP_S": "0.02"})
    wait_for_step(results, 1, process)
    (tmp_path / "stop now").touch()
    out, err = process.communicate(timeout=30)
    assert process.returncode == REQUEUE_STATUS, err
    assert "stop now, with a checkpoint at step" in out


@pytest.mark.slow
def test_ranks_that_do_not_stop_are_ended_after_the_grace(tmp_path):
    path, results = write_study(tmp_path, grace_s=0.5, requeue_signals="usr1,TERM"), tmp_path / "r"
    process = start_sweep(path, results, *FAKE, FAKE_RANK="0:hang@3,1:hang@3")
    wait_for_step(results, 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == REQUEUE_STATUS, err
    assert "stopped by SIGTERM: no new checkpoint within 0.5 s at step 3" in out


def test_a_warning_between_two_runs_and_one_after_the_last(tmp_path, monkeypatch):
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "stop"))
    path = write_study(tmp_path, steps=2)
    (tmp_path / "stop").touch()
    summary, _ = run_study(path, tmp_path / "r", quiet=True, command=FAKE)
    assert summary.exit_code == REQUEUE_STATUS and not summary.outcomes
    (tmp_path / "stop").unlink()
    assert run_study(path, tmp_path / "r", quiet=True, command=FAKE)[0].exit_code == 0
    (tmp_path / "stop").touch()
    assert run_study(path, tmp_path / "r", quiet=True, command=FAKE)[0].exit_code == 0  # nothing is left to do


@pytest.mark.parametrize("text, names", [("", ()), ("usr1", ("SIGUSR1",)), ("USR2, SIGTERM", ("SIGUSR2", "SIGTERM"))])
def test_names_of_signals(text, names):
    assert signal_names(text) == names


def test_a_signal_that_cannot_warn_is_a_mistake_in_the_study(tmp_path):
    with pytest.raises(ValueError, match="requeue_signals = .*KILL.*is not one of USR1, USR2, TERM"):
        load_study(write_study(tmp_path, requeue_signals="KILL"))


@pytest.mark.slow
def test_a_real_run_stopped_anywhere_ends_bitwise_as_one_that_was_not(tmp_path):
    """Real gloo ranks under FSDP, three times warned at a random step, with no checkpoints asked for in the study."""
    path, whole, results = write_study(tmp_path, steps=24), tmp_path / "whole", tmp_path / "r"
    assert start_sweep(path, whole).communicate(timeout=120) and len(read_runs(whole)) == 1
    rng, stops = random.Random(7), 0
    for _ in range(10):
        process = start_sweep(path, results)
        step = rng.randrange(2, 8)
        try:
            wait_for_step(results, (starts_of(results)[-1]["steps_done"] if stops else 0) + step, process)
            process.send_signal(signal.SIGUSR1)
        except AssertionError:
            pass  # it has ended before
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == REQUEUE_STATUS
        stops += 1
    assert stops >= 2
    one, many = read_runs(whole).iloc[0], read_runs(results, all_attempts=True).iloc[0]
    assert many["restarts"] == stops and many["lost_steps"] == 0 and many["attempt"] == 1
    assert 0 < many["effective_training_time"] <= many["goodput"] < one["goodput"] < 1
    assert many["val_loss"] == one["val_loss"]
    mine, theirs = read_steps(results), read_steps(whole)
    assert list(mine["loss"]) == list(theirs["loss"]) and list(mine["step"]) == list(range(24))
    assert RunStore(results).finished(many["run_id"]) == "ok"
