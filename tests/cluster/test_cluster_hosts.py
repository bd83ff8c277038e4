"""Hosts that crash: every process of a node of a real Slurm is killed at once, amid runs by every launcher."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cluster_desk import LONG, REPLICAS, Desk, ended
from slurm_cluster import Cluster, missing

from scalade.results.table.read import read_steps

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(420),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
STEPS, CRASH_AT, CHECKPOINT = 120, 25, 20
TRAINING = LONG.format(steps=STEPS)
LAUNCHERS = ["srun", "torchrun", pytest.param("mpirun", marks=pytest.mark.mpi)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm"), slurmd_timeout=5, cpus=8) as started:
        yield started


class Job:
    """A study of one run, in a job that shares its nodes with others."""

    def __init__(self, cluster, folder, study, options, profile=""):
        folder.mkdir()
        self.desk = Desk(cluster, folder, study, per_node=1)
        site = folder / "site.toml"
        site.write_text("exclusive = false\n" + profile + site.read_text())
        self.name, self.stopped = folder.name, []
        (self.id,) = self.desk.submit(*options)["jobs"]

    def hold(self, step):
        """Stop its ranks as soon as it has done so many steps; whether they are."""
        for file in [] if self.stopped else self.desk.results.glob("runs/*/scratch/step"):
            if int(file.read_bytes() or b"0") >= step:
                ranks = json.loads((file.parent / "world.json").read_text())
                self.hosts = [rank["host"] for rank in ranks]
                self.stopped = [rank["pid"] for rank in ranks]
                for pid in self.stopped:
                    os.kill(pid, signal.SIGSTOP)
        return bool(self.stopped)

    def go_on(self):
        for pid in self.stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def starts(self):
        (log,) = self.desk.results.glob("runs/*/starts.jsonl")
        return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def jobs(cluster, tmp_path):
    made = []

    def make(name, *arguments, **more):
        made.append(Job(cluster, tmp_path / name, *arguments, **more))
        return made[-1]

    cluster.run("scontrol", "update", "partitionname=debug", "state=down")  # until all are submitted
    yield make
    cluster.run("scontrol", "update", "partitionname=debug", "state=up")
    for job in made:
        job.go_on()
        job.desk.scalade("cancel", str(job.desk.results))
    cluster.wait(lambda: not cluster.run("squeue", "-h").strip(), 30, "an empty queue")
    for job in made:
        job.desk.nothing_left()


def hold(cluster, all_, step=CRASH_AT, timeout_s=240):
    """Let the jobs start, until every run has done so many steps; those that come first wait there."""
    cluster.run("scontrol", "update", "partitionname=debug", "state=up")
    deadline = time.monotonic() + timeout_s
    while not all([job.hold(step) for job in all_]):
        late = [job for job in all_ if not job.stopped]
        assert time.monotonic() < deadline, [(job.name, job.desk.logs()) for job in late] + [cluster.story()]
        time.sleep(0.05)


def crash(cluster, all_, node):
    """All of these runs have ranks on the node."""
    assert all(node in job.hosts for job in all_), [(job.name, job.hosts) for job in all_]
    cluster.crash(node)
    for job in all_:
        job.go_on()


def wait_until_ended(cluster, all_, timeout_s=240):
    deadline, seen = time.monotonic() + timeout_s, {}
    while not all(ended(seen[job.name]) for job in all_ if job.name in seen) or len(seen) < len(all_):
        for job in all_:
            seen[job.name] = job.desk.look()
            counts = seen[job.name][0]["runs"]
            assert set(counts) <= {"missing", "ok"}, (job.name, seen[job.name])
        late = {job.name: job.desk.logs() for job in all_ if not ended(seen[job.name])}
        assert time.monotonic() < deadline, (late, cluster.story())
        time.sleep(0.3)
    return {job.name: job.desk.status() for job in all_}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The losses of the same run, on this host and to its end at once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "study.toml").write_text(TRAINING)
    command = [sys.executable, "-m", "scalade", "run", str(folder / "study.toml"), "--results", str(folder / "r")]
    subprocess.run([*command, "--quiet"], check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return list(read_steps(folder / "r")["loss"])


@pytest.mark.parametrize("launchers", [("srun", "torchrun"), pytest.param(("mpirun",), marks=pytest.mark.mpi)])
def test_a_host_that_crashes_costs_a_restart_and_nothing_else(jobs, cluster, undisturbed, launchers):
    """By every launcher, as an array and packed; and one whose first host it is, with rank 0 and the batch script.
    The node comes back in the end."""
    all_ = [
        jobs(f"{launcher}-{mode}", TRAINING, ["--launcher", launcher, "--mode", mode, *more])
        for launcher in launchers
        for mode, more in (("array", ()), ("packed", ("--nodes", "3")))
    ]
    if "srun" in launchers:
        profile = 'options = ["--exclude=n1"]\n'
        all_.append(jobs("first", TRAINING, ["--launcher", "srun"], profile=profile))
    hold(cluster, all_)
    crash(cluster, all_, "n2")
    for name, lines in wait_until_ended(cluster, all_).items():
        assert [line["state"] for line in lines] == ["done"], (name, lines)
    for job in all_:
        (row,) = job.desk.rows()
        about = job.name, row, job.starts(), job.desk.logs()
        assert (row["status"], row["rows"], row["restarts"]) == ("ok", 1, 1), about
        assert row["resumed_from_step"] >= CHECKPOINT and row["lost_steps"] >= 0 and row["nodes"] == 2, about
        assert list(read_steps(job.desk.results)["loss"]) == undisturbed, job.name
        assert "n2" not in {rank["host"] for rank in json.loads(row["ranks_json"])}
        job.desk.nothing_left()
    cluster.power_on("n2")
    # Its state may stay "mixed": Slurm forgets to give back cores of a packed job that went on without the node.
    there = ("srun", "--immediate=10", "--nodelist=n2", "--nodes=1", "--ntasks=1", "hostname")
    cluster.wait(lambda: cluster.run(*there).strip() == "n2", 60, "n2 again")


def keeps_the_rendezvous(job):
    """The node of torchrun's agent that serves it: any, since all of these nodes have one address."""
    agents = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if job.desk._mine(pid)]
    command = next(words for words in map(words_of, agents) if "--rdzv-endpoint" in words)
    port = command[command.index("--rdzv-endpoint") + 1].rpartition(":")[2]
    told = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    env = Path(f"/proc/{re.search('pid=([0-9]+)', told)[1]}/environ").read_text().split("\0")
    return next(each for each in env if each.startswith("SLURMD_NODENAME=")).partition("=")[2]


def words_of(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def test_with_a_quorum_a_run_goes_on_without_a_host_that_crashed(jobs, cluster):
    """By srun and by torchrun, as mpirun cannot. Neither the first node, nor that of rank 0 or of the rendezvous."""
    study = REPLICAS.format(steps=400).replace("replicas = 3", "replicas = 4")
    all_ = [jobs(f"{launcher}-quorum", study, ["--launcher", launcher]) for launcher in ("srun", "torchrun")]
    hold(cluster, all_)
    victims = {"n2", "n3", "n4"} - {keeps_the_rendezvous(all_[1]), *(job.hosts[0] for job in all_)}
    crash(cluster, all_, max(victims))
    for name, lines in wait_until_ended(cluster, all_).items():
        assert [line["state"] for line in lines] == ["done"], (name, lines)
    for job in all_:
        (row,) = job.desk.rows()
        assert (row["status"], row["rows"], row["restarts"]) == ("ok", 1, 0), (job.name, row, job.desk.logs())
        assert 0 < row["quorum_missed"] < row["outer_steps"] == 40
    cluster.power_on(max(victims))
