"""Writing: whole attempts or none, one holder of a run, and a full or wrong disk that says so."""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import scalade
from scalade.results import files
from scalade.results.schema.schema import SchemaError
from scalade.results.store.store import RunStore


def row(run_id="c0ffee-r0", **more):
    return {"run_id": run_id, "case_id": "c0ffee", "repeat": 0, "status": "ok", "loss": 2.5} | more


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(tmp_path):
    store = RunStore(tmp_path / "results")
    steps = {"step": [0, 1, 2], "loss": np.array([3.0, 2.5, 2.25], np.float32), "warmup": [True, False, False]}
    folder = store.write_run(row(tokens_seen=96, git_dirty=False, study="a"), steps, {"step": [3], "val_loss": [2.4]})
    assert files_of(folder) == ["evals.arrow", "run.json", "steps.arrow"]
    runs = scalade.read_runs(tmp_path / "results")
    assert runs.loc[0, ["run_id", "attempt", "tokens_seen", "step_rows", "eval_rows"]].tolist() == [
        "c0ffee-r0",
        1,
        96,
        3,
        1,
    ]
    assert runs["git_dirty"].tolist() == [False] and runs["val_loss"].isna().all()
    read = scalade.read_steps(tmp_path / "results")
    assert read["loss"].tolist() == [3.0, 2.5, 2.25] and read["warmup"].tolist() == [True, False, False]
    assert read["run_id"].tolist() == ["c0ffee-r0"] * 3 and read["comm_bytes"].isna().all()
    assert scalade.read_evals(tmp_path / "results")["kind"].tolist() == ["model"]
    arrow = pa.table({"step": [0, 1], "loss": [1.0, None]})
    store.write_run(row("c0ffee-r1", repeat=1), arrow)
    assert scalade.read_steps(tmp_path / "results", ["c0ffee-r1"])["loss"].tolist()[0] == 1.0


def test_attempts_follow_each_other_and_none_is_replaced(tmp_path):
    store = RunStore(tmp_path)
    assert store.attempts("c0ffee-r0") == [] and store.finished("c0ffee-r0") is None and store.row("c0ffee-r0") is None
    store.write_run(row(status="oom", reason="rank 1: out of memory", loss=None))
    assert store.finished("c0ffee-r0") == "oom"
    store.write_run(row())
    assert store.attempts("c0ffee-r0") == [1, 2] and store.finished("c0ffee-r0") == "ok"
    before = files_of(tmp_path)
    with pytest.raises(FileExistsError, match="attempt 2 of run c0ffee-r0 was written already"):
        store.write_run(row(attempt=2, loss=9.0))
    assert files_of(tmp_path) == before and store.row("c0ffee-r0")["loss"] == 2.5
    (tmp_path / "runs/c0ffee-r0/a2/run.json").write_text("{")
    assert store.finished("c0ffee-r0") is None and store.claim("c0ffee-r0").attempt == 3


def test_numbers_that_are_not_finite(tmp_path):
    store = RunStore(tmp_path)
    store.write_run(
        row(status="diverged", reason="loss NaN at step 1", loss=math.nan, tokens_per_s=math.inf),
        {"step": [0, 1, 2], "loss": [3.0, math.nan, math.inf], "step_time_s": [0.1, math.nan, 0.2]},
    )
    text = (tmp_path / "runs/c0ffee-r0/a1/run.json").read_text()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert written["loss"] is None and written["tokens_per_s"] is None
    stored = pa.ipc.open_file(tmp_path / "runs/c0ffee-r0/a1/steps.arrow").read_all()
    assert stored["loss"].null_count == 0 and math.isnan(stored["loss"][1].as_py())
    assert stored["step_time_s"].to_pylist() == [0.1, None, 0.2]
    with pytest.raises(SchemaError, match="loss = nan"):
        store.write_run(row("c0ffee-r1", loss=math.nan))


@pytest.mark.parametrize(
    ("wrong", "steps", "named"),
    [
        ({"losss": 1.0}, None, "losss"),
        ({"loss": "low"}, None, "loss"),
        ({"status": "failed"}, None, "reason"),
        ({"reason": "why"}, None, "reason"),
        ({}, {"step": [0], "los": [1.0]}, "los"),
        ({}, {"step": [0.5]}, "step"),
        ({}, {"step": [0, 1], "loss": [1.0]}, "loss of steps has 1 row"),
        ({}, {"loss": [1.0]}, "step"),
    ],
)
def test_our_own_mistakes_are_named_and_leave_nothing(tmp_path, wrong, steps, named):
    store = RunStore(tmp_path)
    with pytest.raises(SchemaError, match=named):
        store.write_run(row(**wrong), steps)
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "../x", "a\nb", ".hidden", "a" * 300, "$(x)"])
def test_a_run_id_is_a_plain_name(tmp_path, run_id):
    with pytest.raises(AssertionError, match="not a run_id"):
        RunStore(tmp_path).write_run(row(run_id))


def test_a_run_is_claimed_by_one(tmp_path):
    first, second = RunStore(tmp_path), RunStore(tmp_path)
    with first.claim("c0ffee-r0") as claim:
        assert claim.attempt == 1
        assert first.claim("c0ffee-r0") is None and second.claim("c0ffee-r0") is None
        with second.claim("c0ffee-r1"):
            pass
        first.write_run(row())
    with second.claim("c0ffee-r0") as claim:
        assert claim.attempt == 2


def test_the_kernel_frees_a_killed_claim_and_the_next_sweeps(tmp_path):
    code = (
        "import sys, time, subprocess; from scalade.results.store.store import RunStore\n"
        "claim = RunStore(sys.argv[1]).claim('c0ffee-r0')\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], close_fds=False)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        store = RunStore(tmp_path)
        assert store.claim("c0ffee-r0") is None
        left = tmp_path / "runs/c0ffee-r0/.writing-1-ab"
        left.mkdir()
        (left / "run.json").write_text("{}")
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # a child that outlives the holder does not keep its claim
        with store.claim("c0ffee-r0"):
            assert not left.exists()
    finally:
        holder.kill()
        holder.wait()
        os.kill(child, signal.SIGKILL)


def test_many_claimers_one_holder(tmp_path):
    code = (
        "import os, sys, time; from scalade.results.store.store import RunStore\n"
        "store, mark, won = RunStore(sys.argv[1]), sys.argv[1] + '/inside', 0\n"
        "while won < 100:\n"
        "    claim = store.claim('c0ffee-r0')\n"
        "    if claim:\n"
        "        with claim:\n"
        "            fd = os.open(mark, os.O_CREAT | os.O_EXCL); os.close(fd)  # fails where another is inside\n"
        "            os.sched_yield(); os.unlink(mark); won += 1\n"
        "print(won)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) for _ in range(3)]
    won = [int(one.communicate()[0]) for one in both]
    assert all(one.returncode == 0 for one in both) and won == [100] * 3


def test_scratch_is_kept_until_cleaned(tmp_path):
    store = RunStore(tmp_path)
    scratch = store.scratch("c0ffee-r0")
    (scratch / "progress.json").write_text("{}")
    (scratch / "checkpoint").mkdir()
    (scratch / "checkpoint" / "weights").write_text("w")
    (scratch / "loop").symlink_to("loop")
    store.write_run(row())
    store.clean_scratch("c0ffee-r0", keep=["checkpoint"])
    assert files_of(scratch) == ["checkpoint/weights"] and not (scratch / "loop").is_symlink()
    store.clean_scratch("c0ffee-r0")
    store.clean_scratch("c0ffee-r9")
    assert not scratch.exists() and len(scalade.read_runs(tmp_path)) == 1


def test_a_results_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ValueError, match="is a file") as error:
            RunStore(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be made"):
        RunStore("/proc/scalade-results")


@pytest.mark.parametrize("failing", ["_write_new", "fsync", "rename"])
def test_a_full_disk_leaves_no_half_row_and_says_so(tmp_path, monkeypatch, failing):
    store = RunStore(tmp_path)
    store.write_run(row(status="failed", reason="rank 0 was killed", loss=None))

    def full(*args, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = files if failing == "_write_new" else os
    with monkeypatch.context() as patch:
        patch.setattr(where, failing, full)
        with pytest.raises(OSError, match="cannot write the row of run c0ffee-r0: No space left") as error:
            store.write_run(row(), {"step": [0]})
    assert error.value.errno == errno.ENOSPC and "\n" not in str(error.value)
    assert store.attempts("c0ffee-r0") == [1] and files_of(tmp_path) == ["runs/c0ffee-r0/a1/run.json"]
    store.write_run(row(), {"step": [0]})
    assert store.finished("c0ffee-r0") == "ok"


def test_everything_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, os.rename

    def noted_fsync(fd):
        events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def noted_rename(source, target, **folders):
        events.append("rename")
        rename(source, target, **folders)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    RunStore(tmp_path).write_run(row(), {"step": [0]}, {"step": [1]})
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert sorted(before[:-1]) == ["evals.arrow", "run.json", "steps.arrow"]
    assert before[-1].startswith(".writing-") and after == ["c0ffee-r0", "runs"]


def test_a_file_too_large_for_the_disk_leaves_nothing(tmp_path):
    """A write refused by the kernel half way (here by the limit on file sizes) and not by a stand-in."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "from scalade.results.store.store import RunStore\n"
        "row = {'run_id': 'c0ffee-r0', 'case_id': 'c', 'repeat': 0, 'status': 'ok'}\n"
        "try: RunStore(sys.argv[1]).write_run(row, {'step': list(range(5000))})\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "cannot write the row of run c0ffee-r0: File too large" in done.stdout
    assert files_of(tmp_path) == []


WRITER = """
import sys
from scalade.results.store.store import RunStore
store, tag = RunStore(sys.argv[1]), sys.argv[2]
for n in range(10_000):
    run_id = f"{tag}{n}-r0"
    with store.claim(run_id):
        row = {"run_id": run_id, "case_id": tag, "repeat": 0, "status": "ok", "tokens_seen": n}
        store.write_run(row, {"step": list(range(n % 50 + 1)), "loss": [1.0] * (n % 50 + 1)}, {"step": [n]})
    print(n, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_leaves_whole_rows_only(tmp_path, kills):
    chance, acknowledged = random.Random(0), {}
    for kill in range(kills):
        tag = f"k{kill}x"
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, tag], stdout=subprocess.PIPE, text=True)
        said = [writer.stdout.readline() for _ in range(chance.randrange(1, 6))]
        time.sleep(chance.uniform(0, 0.01))  # a row takes about 4 ms: anywhere in one
        writer.kill()
        acknowledged[tag] = len(said) + len(writer.stdout.readlines())
        writer.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not one damaged file
        runs, steps = scalade.read_runs(tmp_path), scalade.read_steps(tmp_path)
        evals = scalade.read_evals(tmp_path)
    for tag, count in acknowledged.items():
        seen = runs[runs["case_id"] == tag]["tokens_seen"].sort_values().tolist()
        assert seen in (list(range(count)), list(range(count + 1)))  # one more: killed before it could say so
    assert (runs["step_rows"] == runs["tokens_seen"] % 50 + 1).all()
    assert steps.groupby("run_id").size().to_dict() == dict(zip(runs["run_id"], runs["step_rows"], strict=True))
    assert sorted(evals["run_id"]) == sorted(runs["run_id"])


def test_reading_while_two_write(tmp_path):
    RunStore(tmp_path)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, tag], stdout=subprocess.PIPE, text=True)
        for tag in ("a", "b")
    ]
    try:
        for writer in writers:
            writer.stdout.readline()
        counts = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(10):
                runs, steps = scalade.read_runs(tmp_path), scalade.read_steps(tmp_path)
                counts.append(len(runs))
                assert steps[steps["run_id"].isin(runs["run_id"])].shape[0] == runs["step_rows"].sum()
        assert counts == sorted(counts) and counts[0] < counts[-1]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
