"""Studies on a real Slurm of four nodes, without accounting (`make test-cluster`). See slurm_cluster.py."""

import json
import os
import re
import signal
import socket
import time
from contextlib import ExitStack, suppress

import pytest
from cluster_desk import LONG, REPLICAS, SIX, Desk, ended
from slurm_cluster import Cluster, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(360),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def desk(cluster, tmp_path):
    desks = []

    def make(study, **more):
        desks.append(Desk(cluster, tmp_path, study, **more))
        return desks[-1]

    yield make
    for each in desks:
        if (each.results / "submissions").is_dir():
            each.scalade("cancel", str(each.results))
    cluster.wait(lambda: not cluster.run("squeue", "-h").strip(), 30, "an empty queue")
    for each in desks:
        each.nothing_left()


@pytest.fixture
def others():
    with ExitStack() as listeners:
        yield listeners


@pytest.mark.parametrize("mode", ["array", "packed"])
@pytest.mark.parametrize("launcher", ["srun", "torchrun", pytest.param("mpirun", marks=pytest.mark.mpi)])
def test_six_cases_end_right(desk, cluster, others, launcher, mode):
    user = desk(SIX)
    nodes = ("--nodes", "4") if mode == "packed" else ()
    if mode == "array":  # on the ports that the next jobs would take, somebody listens
        next_id = int(re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", cluster.run("scontrol", "show", "config"))[1])
        for job_id in range(next_id, next_id + 8):
            with suppress(OSError):  # somebody does
                others.enter_context(socket.create_server(("", 10_000 + job_id % 20_000)))
    done = user.submit("--launcher", launcher, "--mode", mode, *nodes)
    assert done["runs"] == 6 and len(done["jobs"]) == (1 if mode == "packed" else 3)
    again = user.submit("--launcher", launcher, "--mode", mode, *nodes)
    assert (again["runs"], again["active_cases"], again["jobs"]) == (0, 6, [])
    lines = user.wait(ended, 200, "the study's end")
    assert {line["state"] for line in lines} == {"done"}, (lines, user.logs())
    rows = user.rows()
    assert [(row["status"], row["rows"], row["launcher"]) for row in rows] == [("ok", 1, launcher)] * 6
    assert {(row["scheduler"], row["job_id"]) for row in rows} == {("slurm", line["job"]) for line in lines}
    by_lr = {lr: [row["loss"] for row in rows if row["lr"] == lr] for lr in (1e-3, 3e-3)}
    for losses in by_lr.values():  # every layout trained as the others did
        assert len(losses) == 3 and max(losses) - min(losses) < 1e-4
    hosts = {row["run_id"]: [rank["host"] for rank in json.loads(row["ranks_json"])] for row in rows}
    for row in rows:
        assert row["nodes"] == len(set(hosts[row["run_id"]])) == (2 if row["world_size"] == 4 else 1)
        assert set(hosts[row["run_id"]]) <= {"n1", "n2", "n3", "n4"}
    assert side_by_side(rows, hosts), "four nodes, and never two runs at once"
    assert user.submit("--launcher", launcher, "--mode", mode, *nodes)["runs"] == 0


def side_by_side(rows, hosts):
    """Pairs of runs that overlapped; they shared no node."""
    pairs = [
        (one, two)
        for number, one in enumerate(rows)
        for two in rows[:number]
        if one["started_at"] < two["finished_at"] and two["started_at"] < one["finished_at"]
    ]
    for one, two in pairs:
        assert not set(hosts[one["run_id"]]) & set(hosts[two["run_id"]]), (one["run_id"], two["run_id"])
    return pairs


def test_a_node_fails_and_the_job_is_queued_again(desk, cluster):
    user = desk(LONG.format(steps=160), per_node=1)
    (job,) = user.submit("--launcher", "srun")["jobs"]
    user.wait_for_step(45)
    cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")  # it comes back by itself
    (line,) = user.wait(ended, 250, "the second start's end")
    (row,) = user.rows()
    assert (line["state"], row["status"]) == ("done", "ok"), (line, row)
    assert row["resumed_from_step"] >= 40 and row["nodes"] == 2
    assert len(user.table()) == 1
    assert "Restarts=1" in cluster.run("scontrol", "-o", "show", "job", job)


def test_a_warned_job_writes_a_checkpoint_and_goes_on_from_it(desk, cluster):
    """The signal as Slurm sends it before a time limit or a preemption, at a moment of ours: the only checkpoint."""
    user = desk(LONG.format(steps=160).replace("checkpoint_every = 20", "checkpoint_every = 1000"), per_node=1)
    (job,) = user.submit("--launcher", "srun")["jobs"]
    user.wait_for_step(45)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    (line,) = user.wait(ended, 250, "the second start's end")
    (row,) = user.rows()
    assert line["state"] == "done" and (row["status"], row["rows"]) == ("ok", 1), (line, row, user.logs())
    assert row["resumed_from_step"] >= 45, "the warning's checkpoint"
    assert "Restarts=1" in cluster.run("scontrol", "-o", "show", "job", job)


@pytest.mark.skipif(os.getloadavg()[0] > 6, reason="this machine is too busy for a time limit of one minute")
def test_the_time_limit_comes_and_the_job_goes_on_from_its_checkpoint(desk, cluster):
    """More steps than any allocation of a minute holds; that such a job ends is the test above."""
    user = desk(LONG.format(steps=100_000), per_node=1)
    (job,) = user.submit("--launcher", "srun", "--time-limit", "00:01:00")["jobs"]
    cluster.wait(lambda: "Restarts=0" not in cluster.run("scontrol", "-o", "show", "job", job), 120, "the limit")
    stopped = int(re.search(r"with a checkpoint at step (\d+) of 100000", user.logs())[1])
    (line,) = user.status()
    assert line["state"] in ("waiting", "running") and user.rows() == []
    deadline = time.monotonic() + 100
    while True:
        found = [json.loads(file.read_text()) for file in user.results.glob("runs/*/scratch/progress.json")]
        if found and found[0].get("trained_from") == stopped and found[0]["step"] > stopped:
            break
        assert time.monotonic() < deadline, (stopped, found, user.logs())
        time.sleep(0.2)


@pytest.mark.parametrize("launcher", ["srun", "torchrun", pytest.param("mpirun", marks=pytest.mark.mpi)])
def test_a_replica_that_is_killed_ends_no_run_that_has_a_quorum(desk, launcher):
    user = desk(REPLICAS.format(steps=400), per_node=1)
    user.submit("--launcher", launcher)
    user.wait_for_step(25)
    (world,) = user.results.glob("runs/*/scratch/world.json")
    os.kill(json.loads(world.read_text())[2]["pid"], signal.SIGKILL)
    (line,) = user.wait(ended, 150, "the run's end")
    (row,) = user.rows()
    assert (line["state"], row["status"], row["nodes"]) == ("done", "ok", 3), (line, row, user.logs())
    assert row["launcher"] == launcher and 0 < row["quorum_missed"] < row["outer_steps"] == 40


def test_the_controller_restarts_and_a_cancelled_job_ends(desk, cluster):
    user = desk(LONG.format(steps=5000), per_node=1)
    (job,) = user.submit("--launcher", "srun")["jobs"]
    user.wait_for_step(25)
    cluster.stop("ctld")
    (line,) = user.status()
    assert (line["state"], line["job"]) == ("unknown", job)
    assert "squeue" in user.scalade(
        "submit", "study.toml", "--profile", "site.toml", "--results", str(user.results), fails=True
    )
    cluster.start_controller()
    cluster.wait(lambda: "RUNNING" in cluster.run("squeue", "-h", "-o", "%T"), 30, "the controller")
    (line,) = user.status()
    assert (line["state"], line["job"]) == ("running", job)
    assert "cancelled" in user.scalade("cancel", str(user.results))
    (line,) = user.wait(ended, 30, "the cancelled job's end")
    assert line["state"] == "cancelled"
    user.nothing_left()
    assert [row["status"] for row in user.rows()] in ([], ["cancelled"])


def test_a_submission_that_was_cut_off_is_found_by_name(desk, cluster):
    user = desk(LONG.format(steps=5000), per_node=1)
    cluster.run("scontrol", "update", "partitionname=debug", "state=down")  # jobs wait
    try:
        done = user.submit("--launcher", "srun")
        (record,) = user.results.glob("submissions/*/submission.json")
        content = json.loads(record.read_text())
        content["jobs"][0]["job_id"] = ""
        record.write_text(json.dumps(content))
        again = user.submit("--launcher", "srun")
        assert (again["runs"], again["active_cases"]) == (0, 1)
        (line,) = user.status()
        assert line["state"] == "waiting" and line["reason"] == "PartitionDown"
        assert line["job"] == done["jobs"][0]
        user.scalade("cancel", str(user.results))
        assert user.wait(ended, 20, "the end")[0]["state"] == "cancelled"
    finally:
        cluster.run("scontrol", "update", "partitionname=debug", "state=up")


def test_a_packed_job_goes_on_in_its_next_allocation(desk, cluster):
    """Two runs of at most 109 s on one node, 110 s in an allocation: when the first has ended the second is left.
    To start a rank and to do so many steps takes more than 1 s on any machine."""
    study = SIX.replace("dp_replicate = [1, 2]", "dp_replicate = 1").replace("[[layout]]\ndp_shard = 4\n", "")
    study = study.replace("time_limit_s = 100", "time_limit_s = 109").replace("steps = 3\n", "steps = 400\n")
    user = desk(study, signal_s=10)
    user.submit("--launcher", "srun", "--mode", "packed", "--time-limit", "00:02:00")
    (line,) = user.wait(ended, 200, "the second allocation's end")
    rows = user.rows()
    assert line["state"] == "done" and [(row["status"], row["rows"]) for row in rows] == [("ok", 1)] * 2, user.logs()
    assert user.logs().count("left to the next allocation") == 1
    assert "Restarts=1" in cluster.run("scontrol", "-o", "show", "job", line["job"])


@pytest.mark.skipif(missing(accounting=True) is not None, reason=str(missing(accounting=True)))
def test_with_accounting_an_end_is_known_after_the_controller_has_forgotten_it(tmp_path):
    """sacct of a real slurmdbd: nobody looked at the job before the controller lost all that it knew."""
    with Cluster(tmp_path / "slurm", accounting=True) as cluster:
        user = Desk(cluster, tmp_path, LONG.format(steps=1))
        profile = user.folder / "site.toml"
        profile.write_text('python = "/bin/false"\n' + profile.read_text())
        (job,) = user.submit("--launcher", "srun")["jobs"]
        cluster.wait(lambda: "FAILED" in cluster.run("sacct", "-nX", "-j", job, "-oState"), 60, "the job's end")
        cluster.stop("ctld")
        cluster.start_controller("-c")
        cluster.wait(lambda: cluster.run("scontrol", "ping").count("UP"), 30, "the controller")
        assert not cluster.run("squeue", "-h", "--states=all").strip()
        (line,) = user.status()
        assert (line["state"], line["reason"], line["where"]) == ("failed", "FAILED: exit status 1", "n1")
        assert user.submit("--launcher", "srun")["runs"] == 1
