"""PBS's qsub, qstat and qdel over a real Slurm (Debian's slurm-wlm-torque), and limits that a real controller enforces.

The qstat of that package knows neither -x nor -t, as a PBS without history does not help with the one; and it does not
say how a job ended. See slurm_cluster.py.
"""

import json
import shutil

import pytest
from cluster_desk import LONG, SIX, Desk, ended
from slurm_cluster import Cluster, missing

from scalade.launch.schedulers.base import Limits
from scalade.launch.schedulers.slurm import Slurm

TORQUE = ("qsub", "qstat", "qdel")
absent = [name for name in TORQUE if shutil.which(name) is None]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
torque = pytest.mark.skipif(bool(absent), reason=f"no {', '.join(absent)} here (apt-get install slurm-wlm-torque)")
MOST = 3  # tasks of an array


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm"), most_tasks=MOST) as started:
        yield started


@pytest.fixture
def desk(cluster, tmp_path):
    desks = []

    def make(study, profile):
        user = Desk(cluster, tmp_path, study)
        (user.folder / "site.toml").write_text(
            f'{profile}\n[environment]\nFI_TCP_IFACE = "lo"\nSCALADE_TEST = "{user.token}"\n'
        )
        desks.append(user)
        return user

    yield make
    for user in desks:
        user.scalade("cancel", str(user.results))
    cluster.wait(lambda: not cluster.run("squeue", "-h").strip(), 30, "an empty queue")
    for user in desks:
        user.nothing_left()


@torque
@pytest.mark.mpi
def test_a_job_of_qsub_is_seen_running_is_not_submitted_twice_and_is_cancelled(desk, cluster):
    user = desk(LONG.format(steps=5000).replace("dp_replicate = 2", "dp_replicate = 1"), 'scheduler = "pbs"')
    (job,) = user.submit()["jobs"]
    user.wait_for_step(5)
    (line,) = user.status()
    assert (line["state"], line["job"], line["where"]) == ("running", job, "n1")
    again = user.submit()
    assert (again["jobs"], again["runs"], again["active_cases"]) == ([], 0, 1)
    (record,) = user.results.glob("submissions/*/submission.json")
    content = json.loads(record.read_text())
    content["jobs"][0]["job_id"] = ""  # submitting was cut off before the id was written down
    record.write_text(json.dumps(content))
    assert user.submit()["active_cases"] == 1 and user.status()[0]["job"] == job, "found by its name"
    cluster.stop("ctld")
    (line,) = user.status()
    assert line["state"] == "unknown"
    assert "--resubmit" in user.scalade(
        "submit", "study.toml", "--profile", "site.toml", "--results", str(user.results), fails=True
    )
    cluster.start_controller()
    cluster.wait(lambda: "RUNNING" in cluster.run("squeue", "-h", "-o", "%T"), 30, "the controller")
    assert user.scalade("cancel", str(user.results)).split() == ["cancelled:", job]
    (line,) = user.wait(ended, 30, "the cancelled job's end")
    user.nothing_left()
    assert len(cluster.run("squeue", "-h", "--states=all").split("\n")) == 2, "one job in all"


@torque
@pytest.mark.mpi
def test_a_job_of_qsub_leaves_its_row(desk):
    study = SIX.replace("lr = [1e-3, 3e-3]\n", "").replace("[1, 2]", "1").replace("[[layout]]\ndp_shard = 4\n", "")
    user = desk(study, 'scheduler = "pbs"')
    (job,) = user.submit()["jobs"]
    (line,) = user.wait(ended, 90, "the job's end")
    (row,) = user.rows()
    assert (line["state"], line["job"], row["status"]) == ("done", job, "ok"), (line, row, user.logs())


def test_arrays_are_cut_as_the_controller_says(desk, cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    assert Slurm().limits() == Limits(MOST, 9_999, "MaxJobCount = 10000")
    lr = "lr = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]"
    study = SIX.replace("lr = [1e-3, 3e-3]", lr).replace("[1, 2]", "1").replace("[[layout]]\ndp_shard = 4\n", "")
    user = desk(study, 'scheduler = "slurm"\npython = "/bin/true"')
    done = user.submit("--launcher", "srun")
    assert len(done["jobs"]) == 2 and done["runs"] == 5
    lines = user.wait(ended, 60, "the arrays' end")
    first, second = done["jobs"]
    assert [line["job"] for line in lines] == [f"{first}_0", f"{first}_1", f"{first}_2", f"{second}_0", f"{second}_1"]
    assert {line["state"] for line in lines} == {"done"} and len({line["what"] for line in lines}) == 5
