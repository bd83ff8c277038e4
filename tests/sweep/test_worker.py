"""Supervisors that a launcher started: they agree, run, fail and end together. Real processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_worlds import FAKE, by_hand, finish, free_port, nothing_left, rows, write_study

from scalade.launch import run
from scalade.launch.host.launchers import LAUNCHERS, Torchrun
from scalade.launch.sweep import under_launcher


def test_a_failed_run_ends_on_all_and_the_next_one_starts(tmp_path):
    results = tmp_path / "r"
    study = write_study(tmp_path, ranks="[2, 3]", repeats=2, steps=40)
    # rank 1 is killed in the first run only: its second finds the mark that the first left
    fake = {"FAKE_RANK": f"1:kill-once-{tmp_path / 'killed'}@3", "FAKE_STEP_S": "0.05"}
    codes, said = finish(by_hand(study, results, [0, 1], 2, free_port(), **fake))
    assert codes == [1, 1], said
    assert [(row["status"], row["launcher"]) for row in rows(results)] == [("failed", "torchrun"), ("ok", "torchrun")]
    failed, ok = rows(results)
    assert failed["reason"].startswith("rank 1 was killed by SIGKILL at step") and failed["wall_s"] < 20
    assert [each["rank"] for each in json.loads(ok["ranks_json"])] == [0, 1]
    assert "1 case for a world of 3 left alone" in said[0]
    assert nothing_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_supervisor_is_killed_the_others_end_and_say_so(tmp_path, victim):
    results = tmp_path / "r"
    study = write_study(tmp_path, steps=10_000)
    workers = by_hand(study, results, [0, 1], 2, free_port(), FAKE_STEP_S="0.05")
    deadline = time.monotonic() + 60
    while not list(results.glob("runs/*/scratch/progress.json")):
        assert time.monotonic() < deadline and all(worker.poll() is None for worker in workers), finish(workers)
        time.sleep(0.05)
    workers[victim].kill()
    codes, said = finish(workers)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 75, said
    if victim == 1:
        assert "ended early: the supervisor of rank 1" in said[0] and "is gone at step" in said[0]
    else:
        assert "is gone" in said[1]
    assert nothing_left(tmp_path) and not list(results.glob("runs/*/a*")), "no row: it is no fault of the run"
    (log,) = results.glob("runs/*/starts.jsonl")
    assert ('"cause": "host gone"' in log.read_text()) == (victim == 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, where",
    [
        ("torchrun", "make_plan"),
        *(pytest.param("mpirun", where, marks=pytest.mark.mpi) for where in ("make_plan", "listen")),
    ],
)
def test_an_error_of_rank_0_s_supervisor_ends_all_of_them(tmp_path, launcher, where):
    study, results = write_study(tmp_path, steps=40, launcher=launcher), tmp_path / "r"
    command = LAUNCHERS[launcher].command(2, ["-c", BROKEN, "worker", str(study), "--results", str(results)])
    if launcher == "torchrun":
        (tmp_path / "broken.py").write_text(BROKEN)
        command[command.index("-c") : command.index("worker")] = [str(tmp_path / "broken.py")]
    began = time.monotonic()
    env = os.environ | {"OMP_NUM_THREADS": "1", "BROKEN": where}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode and time.monotonic() - began < 60  # else what waits has 120 s
    told = {line for line in done.stderr.splitlines() if line.startswith("scalade: ")}
    what = "cannot serve the rendezvous" if where == "listen" else "supervisor failed"
    assert len(told) == 1 and f"{what}: KeyError: 'no such thing'" in told.pop(), done.stderr
    assert not (launcher == "mpirun" and "Traceback" in done.stderr) and nothing_left(tmp_path)


BROKEN = """
import os
from scalade.cli.app import main
from scalade.launch.sweep import join, worker

def broken(*arguments, **more):
    raise KeyError("no such thing")

where = os.environ["BROKEN"]
setattr(join if where == "listen" else worker, where, broken)
main()
"""


@pytest.mark.slow
def test_a_supervisor_that_is_cut_off_ends_its_ranks_and_itself(tmp_path):
    """Its question to the store is never answered: the process that serves it is stopped."""
    results = tmp_path / "r"
    first, second = by_hand(write_study(tmp_path, steps=10_000), results, [0, 1], 2, free_port(), FAKE_STEP_S="0.05")
    while not list(results.glob("runs/*/scratch/progress.json")):
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGSTOP)
    out, err = second.communicate(timeout=30)
    assert second.returncode == 75 and "the store that the supervisors share has not answered for 4 s" in err
    os.kill(first.pid, signal.SIGCONT)
    codes, said = finish([first])
    assert codes == [75] and "the supervisor of rank 1" in said[0]
    assert nothing_left(tmp_path) and not list(results.glob("runs/*/a*"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_supervisor_cancels_on_all(tmp_path, victim):
    results = tmp_path / "r"
    study = write_study(tmp_path, steps=10_000)
    workers = by_hand(study, results, [0, 1], 2, free_port(), FAKE_STEP_S="0.05")
    while not list(results.glob("runs/*/scratch/progress.json")):
        time.sleep(0.05)
    sent = time.monotonic()
    workers[victim].send_signal(signal.SIGTERM)
    codes, said = finish(workers)
    assert time.monotonic() - sent < 30  # it would run for 500 s
    assert all(codes), said
    assert [row["status"] for row in rows(results)] == ["cancelled"]
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_a_doubled_rank_stops_all_with_what_was_found(tmp_path):
    study = write_study(tmp_path, ranks="[3]")
    codes, said = finish(by_hand(study, tmp_path / "r", [0, 1, 1], 3, free_port()))
    assert codes == [1, 1, 1]
    assert all("rank 1 came more than once and rank 2 is missing" in each for each in said), said


@pytest.mark.slow
def test_a_split_world_stops_with_what_was_found(tmp_path):
    study = write_study(tmp_path)
    halves = [by_hand(study, tmp_path / "r", [rank], 2, free_port(), FAKE_JOIN_S="3")[0] for rank in (0, 1)]
    codes, said = finish(halves)
    assert codes == [1, 1]
    assert "a world of 2 ranks was asked for and 1 came: found rank 0" in said[0]
    assert "rank 1 could not reach rank 0 at 127.0.0.1" in said[1]


@pytest.mark.slow
def test_another_jobs_port(tmp_path):
    """Rank 0 of another job serves there: its world is not joined."""
    study, port = write_study(tmp_path), free_port()
    one = by_hand(study, tmp_path / "one", [0], 2, port, TORCHELASTIC_RUN_ID="one", FAKE_JOIN_S="5")
    two = by_hand(study, tmp_path / "two", [1], 2, port, TORCHELASTIC_RUN_ID="two")
    codes, said = finish(one + two)
    assert codes == [1, 1]
    assert "refused a connection from 127.0.0.1" in said[0] and "2 ranks was asked for and 1 came" in said[0], said
    assert "it belongs to another run, or does not know this one's secret" in said[1], said


@pytest.mark.slow
def test_two_whole_jobs_on_one_port(tmp_path):
    """Each has all of its ranks. One at most runs, with its own ranks only; the other says what it met."""
    port, results = free_port(), [tmp_path / "one", tmp_path / "two"]
    jobs = []
    for folder in results:
        folder.mkdir()
        job = {"TORCHELASTIC_RUN_ID": folder.name, "TORCHELASTIC_RESTART_COUNT": "0", "FAKE_JOIN_S": "4"}
        jobs.append(by_hand(write_study(folder), folder, [0, 1], 2, port, **job))
    codes, said = finish([process for job in jobs for process in job])
    finished = [folder for folder in results if (folder / "runs").is_dir() and rows(folder)]
    assert len(finished) <= 1 and codes.count(0) == 2 * len(finished), said
    for folder in finished:
        (row,) = rows(folder)
        mine = {process.pid for process in jobs[results.index(folder)]}
        assert row["status"] == "ok" and [each["rank"] for each in json.loads(row["ranks_json"])] == [0, 1] and mine
    told = (
        "could not serve the rendezvous",
        "came more than once",
        "already whole",
        "went away while supervisors came together",
        "could not reach rank 0",
        "has left without a word",
    )
    wrong = [text for code, text in zip(codes, said, strict=True) if code]
    assert len(wrong) >= 2 and all(any(words in text for words in told) for text in wrong), said
    assert not any("Traceback" in text for text in wrong)


@pytest.mark.slow
def test_supervisors_stop_together_when_the_job_is_warned(tmp_path):
    """By a signal to all, as srun hands it on, and by the file; the run then goes on from its checkpoint."""
    results, study = tmp_path / "r", write_study(tmp_path, steps=1000)
    for number in range(2):
        env = {"FAKE_STEP_S": "0.1", "SCALADE_STOP_FILE": str(tmp_path / f"stop-{number}")}
        workers = by_hand(study, results, [0, 1], 2, free_port(), **env)
        deadline = time.monotonic() + 120
        while not [
            file
            for file in results.glob("runs/*/scratch/step")
            if file.read_bytes() and (file.parents[1] / "starts.jsonl").read_text().count('"start"') == number + 1
        ]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for worker in workers if number == 0 else ():
            worker.send_signal(signal.SIGUSR1)
        if number:
            (tmp_path / "stop-1").touch()
        codes, said = finish(workers)
        assert codes == [75, 75] and "with a checkpoint at step" in said[0], said
        assert not list(results.glob("runs/*/a1"))
    codes, said = finish(by_hand(study, results, [0, 1], 2, free_port(), FAKE_STEP_S="0"))
    assert codes == [0, 0], said
    (row,) = rows(results)
    assert (row["status"], row["attempt"], row["restarts"], row["lost_steps"]) == ("ok", 1, 2, 0)
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_supervisors_keep_warm_ranks(tmp_path):
    results = tmp_path / "r"
    study = write_study(tmp_path, repeats=4, more="isolation = 'pool'")
    codes, said = finish(by_hand(study, results, [0, 1], 2, free_port(), FAKE_RANK="1/r1:raise@2", FAKE_TORCH="1"))
    assert codes == [1, 1], said
    found = rows(results)
    assert [row["status"] for row in found] == ["ok", "failed", "ok", "ok"]
    worlds = [tuple(rank["pid"] for rank in json.loads(row["ranks_json"])) for row in found]
    assert worlds[0] == worlds[1] and worlds[2] == worlds[3] and not set(worlds[0]) & set(worlds[2])
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_a_port_on_which_something_else_listens(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        codes, said = finish(by_hand(write_study(tmp_path), tmp_path / "r", [0, 1], 2, port, FAKE_JOIN_S="3"))
    assert codes == [1, 1]
    assert "rank 0 could not serve the rendezvous" in said[0] and "rank 1 could not reach rank 0" in said[1], said


@pytest.mark.slow
@pytest.mark.mpi
def test_mpirun_starts_workers(tmp_path):
    results = tmp_path / "r"
    study = write_study(tmp_path, repeats=2, steps=40, launcher="mpirun")
    command = LAUNCHERS["mpirun"].command(2, [str(FAKE), str(study), str(results)])
    env = os.environ | {"FAKE_RANK": f"1:kill-once-{tmp_path / 'killed'}@3", "FAKE_STEP_S": "0.05"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert [(row["status"], row["launcher"]) for row in rows(results)] == [("failed", "mpirun"), ("ok", "mpirun")], done
    assert "rank 1 was killed by SIGKILL" in done.stderr and done.returncode == 1
    assert nothing_left(tmp_path)


@pytest.mark.mpi
@pytest.mark.slow
def test_an_mpirun_of_another_mpi_is_found(tmp_path):
    """Two worlds of one, of which mpirun says that they are one of two."""
    env = os.environ | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "scalade", "worker", str(write_study(tmp_path, launcher="mpirun"))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2
    assert "mpirun says rank 0 of 2" in done.stderr and "says rank 0 of 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_no_mpi_library_is_one_line(tmp_path):
    env = os.environ | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    command = [sys.executable, "-m", "scalade", "worker", str(write_study(tmp_path, launcher="mpirun"))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "mpi4py cannot be imported (cannot load MPI library" in done.stderr and "pip install" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("mpirun", marks=pytest.mark.mpi)])
def test_run_starts_the_launcher_itself_once_for_each_world_size(tmp_path, launcher):
    study, results = write_study(tmp_path, ranks="[1, 2, 5]", launcher=launcher), tmp_path / "r"
    command = [sys.executable, "-m", "scalade", "run", str(study), "--results", str(results), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    told = json.loads(done.stdout)
    assert [run["status"] for run in told["runs"]] == ["ok", "ok"] and told["skipped"] == 1
    found = rows(results)
    assert sorted((row["status"], row["world_size"]) for row in found) == [("ok", 1), ("ok", 2), ("skipped", 5)]
    assert {row["launcher"] for row in found if row["status"] == "ok"} == {launcher}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("mpirun", marks=pytest.mark.mpi)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_run_ends_early(tmp_path, launcher, number):
    study, results = write_study(tmp_path, steps=100_000, launcher=launcher), tmp_path / "r"
    command = [sys.executable, "-m", "scalade", "run", str(study), "--results", str(results)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(results.glob("runs/*/scratch/step")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == (128 + number if number == signal.SIGINT else -number), err
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_a_launcher_that_stays_behind_is_ended(tmp_path, monkeypatch):
    class Staying(Torchrun):
        def command(self, ranks, program):
            return ["sh", "-c", '"$@"; sleep 600', "sh", *super().command(ranks, program)]

    monkeypatch.setitem(LAUNCHERS, "torchrun", Staying())
    monkeypatch.setattr(under_launcher, "LEAVE_S", 1.0)
    summary, _ = run.run_study(write_study(tmp_path, ranks="[1]"), tmp_path / "r", quiet=True)
    assert summary.interrupted == "torchrun with 1 rank had not ended 1 s after rank 0's supervisor"
    assert [row["status"] for row in rows(tmp_path / "r")] == ["ok"] == list(summary.counts)
    assert nothing_left(tmp_path) and os.listdir(tmp_path / "r") == ["runs"]


@pytest.mark.slow
def test_the_real_torchrun(tmp_path):
    torchrun = shutil.which("torchrun", path=str(Path(sys.executable).parent))
    study, results = write_study(tmp_path, repeats=1), tmp_path / "r"
    command = [torchrun, "--nproc-per-node", "2", "-m", "scalade", "worker", str(study), "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    assert [row["status"] for row in rows(results)] == ["ok"]
