"""Runs end soon, whole and with a reason, whatever happens to their processes. Real processes, no torch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import PROGRAMS

from scalade.launch.process.guard import MARK
from scalade.launch.run import run_study
from scalade.results.store.store import RunStore

FAKE = PROGRAMS.joinpath("fake_rank.py")
COMMAND = [sys.executable, str(FAKE)]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 12
[budget]
steps = {steps}
[layout]
dp_replicate = {ranks}
[run]
max_ranks = 4
time_limit_s = {limit}
repeats = {repeats}
"""
SWEEP = """
import sys
from pathlib import Path
from scalade.launch.run import to_text, run_study
summary, folder = run_study(Path(sys.argv[1]), Path(sys.argv[2]), quiet=True, command=sys.argv[3:])
print("\\n".join(to_text(summary, folder)))
sys.exit(summary.exit_code)
"""


def write_study(folder, ranks="[2]", steps=5, limit=120, repeats=1):
    path = folder / "study.toml"
    path.write_text(STUDY.format(ranks=ranks, steps=steps, limit=limit, repeats=repeats))
    return path


def sweep(tmp_path, monkeypatch=None, fake="", **study):
    os.environ["FAKE_RANK"] = fake
    try:
        summary, folder = run_study(write_study(tmp_path, **study), tmp_path / "r", quiet=True, command=COMMAND)
    finally:
        del os.environ["FAKE_RANK"]
    return summary, RunStore(folder)


def only(summary):
    (outcome,) = summary.outcomes.values()
    return outcome


def processes_of(text):
    """Ids of live processes that carry `text` in their command line or environment, zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                content = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(text).encode() in content:
                found.append(int(entry.name))
    return found


def wait_until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def start_sweep(path, results, **env):
    command = [sys.executable, "-c", SWEEP, str(path), str(results), *COMMAND]
    return subprocess.Popen(
        command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def scratch_of(results):
    return next((results / "runs").glob("*/scratch"), None) if (results / "runs").is_dir() else None


def progress_of(results):
    folder = scratch_of(results)
    file = folder / "progress.json" if folder else None
    return json.loads(file.read_text()) if file and file.exists() else None


@pytest.mark.parametrize(
    "fake, status, reason",
    [
        ("", "ok", None),
        ("1:kill@2", "failed", "rank 1 was killed by SIGKILL"),
        ("1:segv@2", "failed", "rank 1 was killed by SIGSEGV"),
        ("1:raise@2", "failed", "rank 1: KeyError: 'no such thing'"),
        ("1:exit@0", "failed", "rank 1 ended with status 7 and no report"),
        ("1:oom@2", "oom", "rank 1: RuntimeError: [enforce fail"),
        ("0:nan@2", "diverged", "rank 0: FloatingPointError: loss is not finite"),
    ],
)
def test_an_ending_becomes_a_status_and_a_reason(tmp_path, monkeypatch, fake, status, reason):
    if fake:
        monkeypatch.setenv("FAKE_STEP_S", "1")  # the other rank would go on for long
        fake += ",0:hang@3" if fake.startswith("1") else ",1:hang@3"
        fake = fake.replace("@2", "@0")
    begun = time.monotonic()
    summary, store = sweep(tmp_path, fake=fake)
    took_s = time.monotonic() - begun
    outcome = only(summary)
    assert outcome.status == status
    assert outcome.reason == reason if reason is None else outcome.reason.startswith(reason)
    row = store.row(next(iter(summary.outcomes)))
    assert (row["status"], row["reason"]) == (outcome.status, outcome.reason)
    assert row["world_size"] == 2 and row["launcher"] == "local" and row["wall_s"] > 0
    assert took_s < 15.0  # the other rank would have hung for 600 s
    assert not processes_of(tmp_path)
    assert summary.exit_code == (0 if status == "ok" else 1)


def test_the_next_run_starts_after_a_failed_one(tmp_path):
    summary, _ = sweep(tmp_path, fake="1:kill@1", ranks="[2, 1]")
    assert [outcome.status for outcome in summary.outcomes.values()] == ["failed", "ok"]


def test_time_limit_names_the_step_and_leaves_stacks(tmp_path):
    summary, store = sweep(tmp_path, fake="0:hang@3,1:hang@3", steps=9, limit=4)
    assert only(summary).status == "timeout"
    assert only(summary).reason == "time limit 4 s reached at step 3 of 9"
    stack = (store.scratch(next(iter(summary.outcomes))) / "rank-0.stack").read_text()
    assert "misbehave" in stack


def test_a_stopped_rank_is_ended_at_the_time_limit(tmp_path):
    summary, _ = sweep(tmp_path, fake="1:stop@0,0:hang@0", limit=1)
    assert only(summary).status == "timeout"
    assert not processes_of(tmp_path)


def test_grandchildren_in_their_own_session_are_ended(tmp_path):
    summary, store = sweep(tmp_path, fake="0:grandchild@0,1:await-grandchild@0,1:kill@1")
    assert only(summary).status == "failed"
    pid = int((store.scratch(next(iter(summary.outcomes))) / "grandchild").read_text())
    assert not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b""


def test_sigkill_of_the_supervisor_ends_everything_and_the_sweep_resumes(tmp_path):
    results = tmp_path / "r"
    path = write_study(tmp_path, ranks="[2]", repeats=2, steps=20)
    killed = start_sweep(path, results, FAKE_RANK="1:grandchild@0,0:kill-supervisor@10,0:hang@11", FAKE_STEP_S="0.02")
    assert killed.wait(60) == -signal.SIGKILL
    wait_until(lambda: not processes_of(results))
    assert not list((results / "runs").glob("*/a*"))
    pid = int(next(results.glob("runs/*/scratch/grandchild")).read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())

    again = start_sweep(path, results)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "runs: 2 ok" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_run_promptly(tmp_path, number):
    results = tmp_path / "r"
    path = write_study(tmp_path, repeats=2, steps=1000)
    process = start_sweep(path, results, FAKE_STEP_S="0.05")
    wait_until(lambda: (progress_of(results) or {}).get("step", 0) >= 1)
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 8.0  # it would have run for 50 s
    assert process.returncode == 128 + number, err
    assert not processes_of(results)
    store = RunStore(results)
    (row,) = (store.row(entry.name) for entry in (results / "runs").iterdir())
    assert (row["status"], row["reason"]) == ("cancelled", f"cancelled by {number.name}")
    assert json.loads(row["ranks_json"])[1]["rank"] == 1
    # what was cancelled counts as missing
    os.environ.pop(MARK, None)
    summary, store = sweep(tmp_path, steps=1000, repeats=2, fake="0:raise@0")
    assert len(summary.outcomes) == 2
    assert sorted(store.row(run_id)["attempt"] for run_id in summary.outcomes) == [1, 2]


def test_a_rank_that_never_ends_is_ended_when_the_others_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr("scalade.launch.process.supervisor.LINGER_S", 0.5)
    summary, _ = sweep(tmp_path, fake="1:hang@4")
    assert only(summary).status == "ok"  # rank 0 had written its row: what was measured stands


def test_a_watchdog_waits_for_what_is_slow_and_barks_at_what_stopped(tmp_path, monkeypatch):
    from scalade.launch.process import watchdog
    from scalade.launch.process.progress import Reporter

    now = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    reporter = Reporter(tmp_path, 99, active=True)
    dog = watchdog.Watchdog(tmp_path, 10.0)

    def after(seconds):
        now[0] += seconds
        return dog.hung_s()

    assert after(119) is None  # the start has two minutes
    reporter.begin()
    assert after(1) is None
    reporter.step(1)
    assert after(50) is None
    assert after(9) is None and after(2) == 11.0  # no step for longer than the limit
    reporter.step(2)
    assert after(1) is None  # which took 12 s
    assert after(100) is None and after(30) == 130.0  # ten times that
    reporter.phase("writing")
    assert after(1) is None
    assert watchdog.Watchdog(tmp_path, 0.0).hung_s() is None


def test_a_rank_that_is_done_ends_well_whatever_the_interpreter_s_farewell_would_do():
    """Gloo's threads abort in it; what was registered for the end is done all the same."""
    code = (
        "import atexit, os, sys\nfrom scalade.launch.rank import main as rank\n"
        "class Last:\n    def __del__(self, abort=os.abort):\n        abort()\n"
        "rank._one, sys.last = lambda *arguments: None, Last()\n"
        "atexit.register(print, 'registered', end='')\n"
    )
    plain, ours = (
        subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, timeout=60)
        for end in ("", "rank.main(['spec.json'])\n")
    )
    assert plain.returncode == -signal.SIGABRT
    assert (ours.returncode, ours.stdout) == (0, "registered"), ours.stderr
