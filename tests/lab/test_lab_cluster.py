"""A real lab: two hosts of this machine with shaped links, a study over them, and nothing left afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from scalade.launch.lab import lab as labs
from scalade.launch.lab import network, state
from scalade.launch.process.guard import MARK
from scalade.results.table.read import read_comm, read_runs, read_steps

NAME = f"t{os.getpid() % 100_000}"
WHY = network.missing() or network.no_switch()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(WHY is not None, reason=str(WHY))]
MPIRUN = pytest.param("mpirun", marks=pytest.mark.mpi)
STUDY = """
name = "two"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 4
[budget]
steps = 6
[layout]
dp_replicate = 2
[measure]
warmup_steps = 2
eval_sequences = 8
[run]
launcher = "{launcher}"
max_ranks = 2
time_limit_s = 200
"""


def scalade(*arguments, check=True):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scalade", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def processes_with(text):
    """Ids of processes whose command line or environment has it, but this one and its parents."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (os.getpid(), os.getppid()):
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def assert_nothing_left(name=NAME):
    assert state.namespaces(name) == [] and not (state.ROOT / name).exists()
    assert processes_with(f"{state.PREFIX}{name}-") == [] and processes_with(f"scalade-lab/{name}/") == []
    devices = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert devices == DEVICES


DEVICES = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout if WHY is None else ""


@pytest.fixture
def take_down():
    yield
    try:
        labs.down(NAME)
    except ValueError:
        pass
    assert_nothing_left()


@pytest.mark.parametrize(("link", "rate", "trip"), [("100mbit,20ms", 1e8, (0.02, 0.026)), ("200mbit", 2e8, (0, 0.004))])
def test_links_are_what_was_asked_for(take_down, link, rate, trip):
    """Measured three times, the best counts: other work on this machine can only slow a link."""
    told = json.loads(scalade("lab", "up", "--name", NAME, "--nodes", 3, "--link", link, "--json").stdout)
    assert told["up"] and told["nodes"] == 3 and told["processes"] == bool(trip[0])
    found = labs.find(NAME)
    measured = [found.state, *(found.measured_again().state for _ in range(2))]
    assert max(one.rate_measured_bits_per_s for one in measured) == pytest.approx(rate, rel=0.15)
    assert trip[0] <= min(one.rtt_measured_s for one in measured) <= trip[1]
    second = scalade("lab", "up", "--name", NAME, check=False)
    assert second.returncode == 2
    assert f"is up already (3 nodes, {link}): `scalade lab down --name {NAME}` takes it down" in second.stderr
    assert sorted(scalade("lab", "run", "--name", NAME, "--", "hostname").stdout.split()) == ["n0", "n1", "n2"]
    bad = ["sh", "-c", 'exit "$SCALADE_LAB_NODE"']
    failing = scalade("lab", "run", "--name", NAME, "--node", 1, "--", *bad, check=False)
    assert failing.returncode == 1
    scalade("lab", "down", "--name", NAME)
    assert_nothing_left()
    gone = scalade("run", "x.toml", "--lab", NAME, check=False)
    assert gone.returncode == 2 and f"no lab {NAME!r} is up" in gone.stderr


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The losses of the study on this host, without a lab."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.toml").write_text(STUDY.format(launcher="local"))
    scalade("run", folder / "plain.toml", "--results", folder / "r")
    assert read_runs(folder / "r").iloc[0]["nodes"] == 1 and read_runs(folder / "r")["lab"].isna().all()
    return list(read_steps(folder / "r")["loss"])


@pytest.mark.parametrize("launcher", ["local", "torchrun", MPIRUN])
def test_a_study_gives_the_same_losses_by_every_launcher(take_down, tmp_path, plain, launcher):
    scalade("lab", "up", "--name", NAME, "--link", "100mbit,10ms")
    study = tmp_path / f"{launcher}.toml"
    study.write_text(STUDY.format(launcher=launcher))
    told = scalade("run", study, "--results", tmp_path / launcher, "--lab", NAME).stderr
    assert "cannot be retrieved" not in told, "torch found no name for a node's address"
    (row,) = read_runs(tmp_path / launcher).to_dict("records")
    assert row["status"] == "ok" and row["launcher"] == launcher and row["nodes"] == 2 and row["lab"] == NAME
    assert [rank["host"] for rank in json.loads(row["ranks_json"])] == ["n0", "n1"]
    assert row["link_rate_asked_bits_per_s"] == 1e8 and row["link_rtt_asked_s"] == 0.01
    assert 5e7 < row["link_rate_measured_bits_per_s"] < 1.15e8 and row["link_rtt_measured_s"] >= 0.01
    assert list(read_steps(tmp_path / launcher)["loss"]) == plain


@pytest.mark.parametrize("backend", ["gloo", pytest.param("mpi", marks=pytest.mark.mpi)])
def test_what_comm_sends_goes_over_the_link(take_down, tmp_path, backend):
    """UCX and the like find memory that both nodes share, if they are let."""
    scalade("lab", "up", "--name", NAME, "--link", "100mbit,10ms")
    scalade("comm", "--lab", NAME, "--backend", backend, "--collective", "send_recv", "--min-bytes", "1M",
            "--max-bytes", "1M", "--iterations", "3", "--results", tmp_path / "comm")  # fmt: skip
    (one,) = read_comm(tmp_path / "comm").to_dict("records")
    assert one["busbw_bytes_per_s"] < 1.15e8 / 8 and one["time_s"] > 2**20 * 8 / 1.15e8


def test_kill_9_at_any_moment_and_down_leaves_nothing(take_down):
    """`up` is killed while it makes the lab, and once it is up, with work on its nodes and its switch dead."""
    for seconds in (0.0, 0.03, 0.1, 0.3, 1.0):
        command = [sys.executable, "-m", "scalade", "lab", "up", "--name", NAME, "--link", "50mbit,4ms"]
        making = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while not (state.ROOT / NAME).exists() and making.poll() is None:
            time.sleep(0.001)
        time.sleep(seconds)
        os.killpg(making.pid, signal.SIGKILL)
        making.wait()
        assert "is half up" in scalade("lab", "up", "--name", NAME, check=False).stderr
        (about,) = [lab for lab in json.loads(scalade("lab", "status", "--json").stdout)["labs"] if lab["name"] == NAME]
        assert not about["up"]
        scalade("lab", "down", "--name", NAME)
        assert_nothing_left()
    scalade("lab", "up", "--name", NAME, "--link", "50mbit,4ms")
    found = labs.find(NAME)
    at_work = subprocess.Popen(found.enter(1, ["sleep", "1000"]), start_new_session=True)
    (switch,) = labs.marked(found.state.mark)
    os.kill(switch, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while labs.marked(found.state.mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(ValueError, match="is broken: its switch is gone"):
        labs.find(NAME)
    scalade("lab", "down", "--name", NAME)
    assert at_work.wait(5) == -signal.SIGKILL
    assert_nothing_left()


def test_one_of_two_labs_goes_whoever_made_it_and_the_other_stays(take_down):
    """One is of another version, which knows more of a lab and calls a node otherwise; its switch was killed, and one
    of its namespaces is a plain file, as after a start of the machine that kept /run."""
    other = f"{NAME}-b"
    try:
        scalade("lab", "up", "--name", other, "--link", "50mbit")
        scalade("lab", "up", "--name", NAME, "--link", "50mbit,4ms")
        plan = labs.find(NAME).state
        plan.file.write_text(json.dumps(json.loads(plan.file.read_text()) | {"version": 9, "routes": []}))
        subprocess.run(["ip", "netns", "add", f"{state.PREFIX}{NAME}-x7"], check=True)
        (state.NETNS / f"{state.PREFIX}{NAME}-n7").touch()
        (at_work := subprocess.Popen(["sleep", "1000"], env={MARK: plan.mark}, start_new_session=True)).poll()
        again = scalade("lab", "up", "--name", NAME, check=False)
        assert again.returncode == 2 and again.stderr.count("\n") == 1 and "is half up" in again.stderr
        used = scalade("run", "x.toml", "--lab", NAME, check=False)
        assert used.returncode == 2 and f"no lab {NAME!r} is up (there is: {other})" in used.stderr
        assert "or another version made" in scalade("lab", "status").stdout
        scalade("lab", "down", "--name", NAME)
        assert at_work.wait(5) == -signal.SIGKILL
        assert_nothing_left()
        assert sorted(scalade("lab", "run", "--name", other, "--", "hostname").stdout.split()) == ["n0", "n1"]
        plain = state.NETNS / labs.find(other).state.nodes[1]["namespace"]
        subprocess.run(["umount", str(plain)], check=True)
        with pytest.raises(ValueError, match="is broken: the namespace of n1 is gone"):
            labs.find(other)
    finally:
        labs.down(other)
    assert_nothing_left(other)
    scalade("lab", "up", "--name", NAME, "--link", "50mbit")


def test_the_switch_ends_with_the_lab_however_that_ends(take_down):
    scalade("lab", "up", "--name", NAME, "--link", "4ms")
    found = labs.find(NAME)
    assert labs.marked(found.state.mark)
    found.state.file.unlink()  # as if /run had been cleaned
    deadline = time.monotonic() + 10
    while labs.marked(found.state.mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not labs.marked(found.state.mark)
    scalade("lab", "down", "--name", NAME)
    assert MARK not in os.environ


@pytest.mark.parametrize("launcher", ["local", "torchrun", MPIRUN])
def test_kill_9_of_a_sweep_leaves_no_rank_in_the_lab(take_down, tmp_path, launcher):
    scalade("lab", "up", "--name", NAME)
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(launcher=launcher).replace("steps = 6", "steps = 1000000"))
    command = [sys.executable, "-m", "scalade", "run", str(study), "--lab", NAME, "--results", str(tmp_path / "r")]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("r/runs/*/scratch/progress.json")) and time.monotonic() < deadline:
        assert sweep.poll() is None
        time.sleep(0.05)

    def inside():
        return next(lab["processes"] for lab in labs.status() if lab["name"] == NAME)

    assert inside() >= 2
    sweep.kill()
    sweep.wait()
    deadline = time.monotonic() + 20
    while inside() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert inside() == 0


@pytest.mark.parametrize("launcher", ["torchrun", MPIRUN])
def test_a_host_that_crashes_costs_a_restart_and_nothing_else(take_down, tmp_path, launcher):
    """Every process of the second host is killed at once, after a checkpoint. Started again, the run resumes."""
    scalade("lab", "up", "--name", NAME)
    study, results = tmp_path / "study.toml", tmp_path / "r"
    text = STUDY.format(launcher=launcher).replace("steps = 6", "steps = 400")
    study.write_text(text.replace("warmup_steps = 2", "warmup_steps = 2\ncheckpoint_every = 20"))
    again = [sys.executable, "-m", "scalade", "run", str(study), "--lab", NAME, "--results", str(results)]
    sweep = subprocess.Popen(again, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not any(int(file.read_bytes() or 0) >= 25 for file in results.glob("runs/*/scratch/step")):
        assert sweep.poll() is None and time.monotonic() < deadline, sweep.poll()
        time.sleep(0.02)
    (world,) = results.glob("runs/*/scratch/world.json")
    for rank in json.loads(world.read_text()):  # so that the run does not end before its host does
        os.kill(rank["pid"], signal.SIGSTOP)
    host = labs.find(NAME).state.nodes[1]["namespace"]
    while inside := labs.processes_in([host]):
        for pid in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    out, err = sweep.communicate(timeout=150)
    assert sweep.returncode == 75 and "ended early" in out and "Traceback" not in out, (out, err)
    assert not list(results.glob("runs/*/a*")), "no row"
    scalade("run", study, "--lab", NAME, "--results", results)
    (row,) = read_runs(results, all_attempts=True).to_dict("records")
    assert (row["status"], row["restarts"]) == ("ok", 1) and 20 <= row["resumed_from_step"] < 400
    (tmp_path / "plain.toml").write_text(text.replace(f'launcher = "{launcher}"', 'launcher = "local"'))
    scalade("run", tmp_path / "plain.toml", "--results", tmp_path / "plain")
    assert list(read_steps(results)["loss"]) == list(read_steps(tmp_path / "plain")["loss"])


def test_a_replica_whose_link_goes_down_is_left_out(take_down, tmp_path):
    """No connection ends: nothing comes any more. With a quorum the others train on."""
    scalade("lab", "up", "--name", NAME, "--nodes", "3", "--link", "100mbit,2ms")
    outer = '[outer]\nalgorithm = "diloco"\nreplicas = 3\nsync_every = 10\nquorum = 2\nquorum_timeout_s = 3'
    text = STUDY.format(launcher="local").replace("dp_replicate = 2", "dp_replicate = 1")
    text = text.replace("steps = 6", "steps = 400").replace("global_batch = 4", "global_batch = 6")
    text = text.replace("max_ranks = 2", "max_ranks = 3")
    (tmp_path / "study.toml").write_text(text + outer)
    command = [sys.executable, "-m", "scalade", "run", str(tmp_path / "study.toml"), "--lab", NAME]
    sweep = subprocess.Popen([*command, "--results", str(tmp_path / "r")], stdout=subprocess.DEVNULL)
    while not any(int(file.read_bytes() or 0) >= 15 for file in tmp_path.glob("r/runs/*/scratch/step")):
        assert sweep.poll() is None
        time.sleep(0.02)
    last = labs.find(NAME).state.nodes[2]["namespace"]
    subprocess.run(["ip", "netns", "exec", last, "ip", "link", "set", "eth0", "down"], check=True)
    assert sweep.wait(timeout=150) == 0
    (row,) = read_runs(tmp_path / "r").to_dict("records")
    present = read_steps(tmp_path / "r")["replicas_present"].dropna()
    assert row["status"] == "ok" and present.iloc[0] == 3 and set(present.iloc[10:]) == {2}
    assert row["quorum_missed"] == (present == 2).sum() >= 30
