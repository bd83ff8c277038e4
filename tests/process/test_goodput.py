"""What is known of a run's starts, and its goodput: over all of them, whatever became of each."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import PROGRAMS

from scalade.launch.host.clock import Moment, clock_id
from scalade.launch.process.goodput import (
    CHANCES,
    GONE,
    LOG,
    Start,
    StartLog,
    chances_used_up,
    goodput_columns,
    lost_steps,
    read_starts,
)
from scalade.launch.process.progress import Reporter
from scalade.launch.run import run_study
from scalade.results.check import clocks
from scalade.results.check.command import FAIL, check
from scalade.results.store.store import RunStore


def test_goodput_by_hand():
    """Trained 0 to 7, killed; 100 s later from the checkpoint at 5 to 9, killed while it starts; then 5 to 12."""
    starts = [
        Start(0.0, ended_at=20.0, cause=GONE, trained_from=0, trained_at=4.0, steps_done=7),
        Start(120.0, ended_at=140.0, cause="failed", trained_from=5, trained_at=126.0, steps_done=9),
        Start(140.0, ended_at=143.0, cause=GONE),
        Start(150.0, ended_at=170.0, cause="ok", trained_from=5, trained_at=155.0, steps_done=12),
    ]
    assert goodput_columns(starts, 21.0) == {
        "restarts": 3,
        "elapsed_s": 170.0,
        "held_s": 63.0,
        "restart_time_s": 6.0 + 3.0 + 5.0,
        "lost_steps": 2 + 4,
        "useful_step_time_s": 21.0,
        "goodput": 21 / 63,
        "effective_training_time": 21 / 170,
    }
    assert "goodput" not in goodput_columns(starts, None)
    assert goodput_columns(starts[:1], None)["lost_steps"] == 0
    assert goodput_columns([Start(0.0)], None) == {}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6))
def test_lost_steps_are_those_computed_more_than_once(parts):
    """Against counting: each start trains from a checkpoint that is no further than what was done."""
    starts, done, computed = [], 0, []
    for back, forth in parts:
        first = max(0, done - back)
        done = first + forth
        computed += range(first, done)
        starts.append(Start(0.0, ended_at=1.0, trained_from=first, trained_at=0.0, steps_done=done))
    tail = [step for step in set(computed) if step < done]
    assert lost_steps(starts) == len(computed) - len(tail)


def lost(cause="host gone", **more):
    return Start(0.0, ended_at=1.0, cause=cause, **({"attempt": 1, "job": "7"} | more))


@pytest.mark.parametrize(
    "starts, vain",
    [
        ([], False),
        ([lost()] * 2, False),
        ([lost()] * 3, True),
        ([lost(kept=20), lost(kept=20), lost(kept=20)], False),  # the first left a checkpoint
        ([lost(kept=20), lost(kept=20), lost(kept=20), lost(kept=20)], True),
        ([lost(kept=20), lost(kept=20), lost(kept=30), lost(kept=30), lost(kept=30)], False),
        ([lost("preempted", kept=20), lost(kept=20), lost(kept=20), lost(kept=20)], True),
        ([lost(), lost("preempted"), lost(), lost()], False),  # a warning between them
        ([lost(GONE)] * 2 + [lost()], True),
        ([lost(GONE, job="")] * 3, False),  # a person starts it again
        ([lost(GONE, job="6"), lost(GONE), lost(GONE)], False),  # another job
        ([lost(job="")] * 3, True),
        ([lost(attempt=0)] * 3, False),  # they have their row
    ],
)
def test_a_run_has_so_many_chances_on_hosts_that_go(starts, vain):
    assert (chances_used_up(starts, 1, "7" if any(start.job for start in starts) else "") is not None) == vain


@pytest.mark.parametrize("every", [0, 3])
def test_a_run_that_ends_its_host_every_time_fails_in_the_end(tmp_path, monkeypatch, every):
    """Rank 0's host: nobody is left to say so. A scheduler starts it again, and nothing comes of it."""
    study, results = tmp_path / "s.toml", tmp_path / "r"
    study.write_text(STUDY)
    for name, value in (("FAKE_CHECKPOINT", every), ("FAKE_RANK", "0:kill-supervisor@3"), ("SLURM_JOB_ID", 7)):
        monkeypatch.setenv(name, str(value))
    command = [sys.executable, "-c", SWEEP, str(study), str(results), *FAKE]
    for _ in range(CHANCES + bool(every)):
        assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
        assert not list(results.glob("runs/*/a*"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    (run_id,) = os.listdir(results / "runs")
    row = RunStore(results).row(run_id)
    how = "later than step 3" if every else "left a checkpoint;"
    assert row["status"] == "failed" and row["restarts"] == CHANCES + bool(every) - 1
    assert row["reason"].startswith("3 starts in a row ended with a lost host") and how in row["reason"]
    assert row["reason"].endswith(f"the last host: {socket.gethostname()}")
    monkeypatch.delenv("FAKE_RANK")
    summary, _ = run_study(study, results, quiet=True, retry_failed=True, command=FAKE)
    assert summary.exit_code == 0 and RunStore(results).row(run_id)["status"] == "ok"


SWEEP = """
import sys
from pathlib import Path
from scalade.launch.run import run_study
sys.exit(run_study(Path(sys.argv[1]), Path(sys.argv[2]), quiet=True, command=sys.argv[3:])[0].exit_code)
"""


def test_a_start_without_an_end_is_ended_by_the_next(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    StartLog(tmp_path, scratch).begin(Moment(100.0), 1, "")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    now = [1000.0]
    reporter = Reporter(scratch, 9, active=True, launched=Moment(100.0, 1000.0, clock_id()))
    reporter.begin(3)
    now[0] += 150.0
    monkeypatch.setattr(time, "time", lambda: 7.0)  # somebody set the clock
    reporter.step(5)
    again = StartLog(tmp_path, scratch)
    again.settle()
    again.settle()  # says it once
    again.begin(Moment(300.0), 1, "")
    first, second = read_starts(tmp_path)
    assert (first.at, first.ended_at, first.cause) == (100.0, 250.0, GONE)
    assert (first.trained_from, first.steps_done) == (3, 5)
    assert second.ended_at is None


def test_what_is_left_of_a_dead_supervisor_is_ended_first(tmp_path):
    import subprocess

    mark = f"{os.getpid()}.{os.urandom(6).hex()}"
    orphan = subprocess.Popen(["sleep", "600"], env=os.environ | {"SCALADE_SUPERVISOR": mark})
    log = StartLog(tmp_path, tmp_path)
    log.begin(Moment(100.0), 1, mark)
    log.settle()
    assert orphan.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("seed", range(5))
def test_a_log_cut_off_anywhere_costs_one_line(tmp_path, seed):
    log = StartLog(tmp_path, tmp_path)
    for number in range(3):
        log.begin(Moment(100.0 * number), 1, "")
        log.end(100.0 * number + 50, "failed")
    whole = (tmp_path / LOG).read_bytes()
    cut = random.Random(seed).randrange(len(whole))
    (tmp_path / LOG).write_bytes(whole[:cut])
    before = read_starts(tmp_path)
    log.begin(Moment(900.0), 1, "")
    assert [start.at for start in read_starts(tmp_path)] == [start.at for start in before] + [900.0]


@pytest.mark.parametrize("line", ["[]", "null", '{"event": "start"}', '{"event": "start", "at": "x"}', "[" * 9999])
def test_a_line_that_is_not_ours_is_left_out(tmp_path, line):
    (tmp_path / LOG).write_text(line + "\n")
    assert read_starts(tmp_path) == []


STUDY = """
[model]
size = "tiny-100k"
[recipe]
global_batch = 2
[budget]
steps = 4
[run]
results = "r"
"""
FAKE = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]


def test_the_row_counts_every_start(tmp_path, monkeypatch):
    """Killed, then failed, then well: one row at the end, over three starts."""
    study, results = tmp_path / "s.toml", tmp_path / "r"
    study.write_text(STUDY)
    store = RunStore(results)
    begun = time.time()
    monkeypatch.setenv("FAKE_RANK", "0:raise@2")
    (run_id,) = run_study(study, results, quiet=True, command=FAKE)[0].outcomes
    failed = store.row(run_id)
    assert (failed["status"], failed["restarts"], failed["goodput"]) == ("failed", 0, None)
    store.clean_scratch(run_id)
    log = StartLog(store.run_folder(run_id), store.scratch(run_id))
    log.begin(Moment(begun), 2, "")  # and a supervisor that was killed
    monkeypatch.delenv("FAKE_RANK")
    run_study(study, results, quiet=True, retry_failed=True, command=FAKE)
    row = store.row(run_id)
    assert (row["status"], row["attempt"], row["restarts"], row["lost_steps"]) == ("ok", 2, 2, 2)
    assert row["useful_step_time_s"] > 0
    assert row["goodput"] == pytest.approx(row["useful_step_time_s"] / row["held_s"])
    assert 0 < row["effective_training_time"] <= row["goodput"] < 1
    assert [json.loads(line)["event"] for line in (store.run_folder(run_id) / LOG).read_text().splitlines()] == [
        "start",
        "end",
    ] * 3


@pytest.mark.parametrize("step_s", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_in_mid_run_bends_no_duration(tmp_path, monkeypatch, step_s):
    """In the rank and in its supervisor, in the second of two starts: by a day, in a run of some seconds."""
    study, results = tmp_path / "s.toml", tmp_path / "r"
    study.write_text(STUDY)
    store = RunStore(results)
    monkeypatch.setenv("FAKE_RANK", "0:raise@2")
    (run_id,) = run_study(study, results, quiet=True, command=FAKE)[0].outcomes
    real, begun = time.time, time.monotonic()
    monkeypatch.setenv("FAKE_RANK", f"0:clock{step_s:+}@2")

    def started(self, run, scratch):
        monkeypatch.setattr(time, "time", lambda: real() + step_s)

    monkeypatch.setattr("scalade.launch.sweep.display.Failures.started", started)
    summary, _ = run_study(study, results, quiet=True, retry_failed=True, command=FAKE)
    most, row = time.monotonic() - begun + 60.0, store.row(run_id)
    assert (summary.exit_code, row["status"], row["restarts"]) == (0, "ok", 1)
    for name in ("wall_s", "elapsed_s", "held_s", "restart_time_s"):
        assert 0.0 < row[name] < most, name
    assert row["held_s"] <= row["elapsed_s"] and 0.0 < row["goodput"] < 1.0
    stamped = clocks.unix_s(row["finished_at"]) - clocks.unix_s(row["started_at"])
    assert stamped == pytest.approx(step_s + row["wall_s"], abs=5), "the stamps are the clock's word"
    found = check(results).clocks
    assert found.verdict == FAIL and found.run_ids == (run_id,)
    assert "finished_at - started_at is not wall_s" in found.why


def test_time_since_a_moment_is_of_its_own_clock(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 50.0)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert Moment.now() == Moment(1000.0, 50.0, clock_id()) and clock_id()
    monkeypatch.setattr(time, "time", lambda: 10.0)  # set back
    assert Moment(1000.0, 20.0, clock_id()).elapsed_s() == 30.0
    assert Moment(1000.0, 20.0, clock_id()).time_now() == 1030.0
    assert Moment(4.0, 20.0, "another host's").elapsed_s() == 6.0
    assert Moment(1000.0).elapsed_s() == 0.0


def test_a_kernel_without_time_namespaces_has_one_clock(tmp_path):
    ids, boot = clock_id.__wrapped__, tmp_path / "proc/sys/kernel/random/boot_id"
    assert ids(tmp_path) == ""
    boot.parent.mkdir(parents=True)
    boot.write_text("a-b-c\n")
    assert ids(tmp_path) == "a-b-c"
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/time").symlink_to("time:[4026531834]")
    assert ids(tmp_path) == "a-b-c time:[4026531834]"


def test_a_wait_between_two_starts_is_of_the_clock_that_both_have():
    first = Start(1000.0, ended_at=1010.0, monotonic=50.0, clock="a")
    second = Start(90_000.0, ended_at=90_005.0, monotonic=65.0, clock="a")
    assert goodput_columns([first, second], None)["elapsed_s"] == 10.0 + 5.0 + 5.0
    elsewhere = Start(1100.0, ended_at=1105.0, monotonic=65.0, clock="b")
    assert goodput_columns([first, elsewhere], None)["elapsed_s"] == 105.0


@pytest.mark.parametrize("at", [10.0, 1000.0 + 34e6])
def test_a_wait_that_no_clock_can_tell_is_null(at):
    """Over a reboot or between hosts, the clock went back, or a year on: nothing is made up."""
    first = Start(at=1000.0, ended_at=1100.0, clock="here", monotonic=5.0)
    second = Start(at=at, ended_at=at + 20.0, clock="elsewhere", monotonic=7.0)
    row = goodput_columns([first, second], 60.0)
    assert (row["elapsed_s"], row["effective_training_time"]) == (None, None)
    assert (row["held_s"], row["goodput"]) == (120.0, 0.5)
    same = goodput_columns([first, replace(second, clock="here", monotonic=125.0)], 60.0)
    assert same["elapsed_s"] == 140.0
