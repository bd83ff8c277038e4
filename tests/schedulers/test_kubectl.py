"""Kubernetes through a real kubectl: against an API server of the tests' own, and by what kubectl checks by itself.

No Kubernetes is run. See kubernetes_stub.py for what the server is and is not.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
from kubernetes_stub import Cluster
from places import GOLDEN
from scheduler_jobs import CLOUD, make_job

from scalade.launch.schedulers.ask import SchedulerError
from scalade.launch.schedulers.base import Task
from scalade.launch.schedulers.kubernetes import KubernetesJobs
from scalade.launch.schedulers.state import State

KUBECTL = shutil.which("kubectl")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(KUBECTL is None, reason="no kubectl here (apt-get install kubernetes-client)"),
]
GOLDEN = GOLDEN / "schedulers"
NAME = "scalade-demo-c0ffee-0"
JOB = f"{NAME}.default"


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Puts kubectl in front of a cluster. What it sends is not checked by the server's schema: it has none."""
    wrapper = tmp_path / "kubectl"
    wrapper.write_text(f'#!/bin/sh\n[ "$1" != create ] || set -- "$@" --validate=false\nexec {KUBECTL} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def enter(cluster):
        for key, value in cluster.env.items():
            monkeypatch.setenv(key, value)
        return KubernetesJobs()

    return enter


def manifest(folder, **kubernetes):
    scheduler = KubernetesJobs()
    job = make_job("kubernetes", "torchrun", "array")
    job = job if not kubernetes else _with(job, **kubernetes)
    script = folder / f"{job.name}{scheduler.suffix}"
    script.write_text(scheduler.render(job))
    return script


def _with(job, **kubernetes):
    return replace(job, site=replace(CLOUD, kubernetes=replace(CLOUD.kubernetes, **kubernetes)))


def test_a_namespaced_user_without_jobsets_submits_sees_and_cancels(at, tmp_path):
    with Cluster(namespace="default") as cluster:
        kubernetes = at(cluster)
        script = manifest(tmp_path)
        assert kubernetes.find(script) is None
        assert kubernetes.submit(script, 2) == JOB == kubernetes.find(script)
        assert cluster.of("Job") == cluster.of("Service") == [f"{NAME}-0", f"{NAME}-1"]
        cluster.objects["Job", f"{NAME}-0"]["status"] = {"active": 2, "ready": 2}
        cluster.objects["Job", f"{NAME}-1"]["status"] = {
            "conditions": [
                {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active too long"}
            ]
        }
        told = kubernetes.tasks({"job": JOB, "other": "stranger.default"})
        assert told == {
            "job": {0: Task(State.RUNNING), 1: Task(State.FAILED, "DeadlineExceeded: Job was active too long")}
        }
        kubernetes.cancel(JOB, 1)
        assert cluster.of("Job") == cluster.of("Service") == [f"{NAME}-0"]
        kubernetes.cancel(JOB)
        assert cluster.of("Job") == cluster.of("Service") == [] and kubernetes.tasks({"job": JOB}) == {}
        assert all("/namespaces/default/" in path for path in cluster.asked if "jobs" in path or "services" in path)


def test_logs_are_of_the_jobs_namespace(at):
    with Cluster(namespace="team") as cluster:
        labels = {"scalade.dev/job": NAME}
        cluster.objects["Pod", "p-0"] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p-0", "namespace": "team", "labels": labels},
            "spec": {"containers": [{"name": "ranks"}]},
            "status": {"phase": "Running"},
        }
        kubernetes = at(cluster)
        assert "p-0 says hello" in kubernetes.printed(f"{NAME}.team", 5)
        with pytest.raises(SchedulerError, match="forbidden.*elsewhere"):
            kubernetes.printed(NAME, 5)  # an id of before: the namespace of the user's context


def test_a_jobset_waits_until_its_jobs_are_made_and_is_deleted_before_them(at, tmp_path):
    with Cluster(namespace="default", jobsets=True) as cluster:
        kubernetes = at(cluster)
        script = manifest(tmp_path, jobset=True)
        assert kubernetes.submit(script, 2) == JOB == kubernetes.find(script)
        assert kubernetes.tasks({"job": JOB}) == {"job": {0: Task(State.WAITING), 1: Task(State.WAITING)}}
        cluster.objects["Job", "made"] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "status": {"active": 1},
            "metadata": {
                "name": "made",
                "namespace": "default",
                "labels": {"scalade.dev/job": NAME, "scalade.dev/task": "1"},
            },
        }
        assert kubernetes.tasks({"job": JOB}) == {"job": {1: Task(State.RUNNING)}}
        kubernetes.cancel(JOB)
        assert cluster.of("JobSet") == cluster.of("Job") == []
        deleted = [path.split("/")[-2] for path in cluster.asked if path.startswith("DELETE")]
        assert deleted == ["jobsets", "jobs"]


def test_what_is_half_created_is_not_taken_for_refused(at, tmp_path):
    script = manifest(tmp_path)
    content = json.loads(script.read_text())
    content["items"][1]["apiVersion"] = "batch/v9"
    script.write_text(json.dumps(content))
    with Cluster(namespace="default") as cluster, pytest.raises(SchedulerError) as caught:
        at(cluster).submit(script, 2)
    assert "batch/v9" in str(caught.value)
    assert caught.value.unsure == bool(cluster.objects)


def test_a_server_that_is_away_is_silent(at):
    with Cluster(namespace="default") as cluster:
        kubernetes = at(cluster)
    with pytest.raises(SchedulerError, match="refused|connect"):
        kubernetes.tasks({"job": JOB})


def test_kubectl_reads_the_jobs_by_its_own_types(tmp_path):
    """`set env --local` asks no server; it decodes a Job into Kubernetes' own structure."""
    golden = json.loads((GOLDEN / "kubernetes-torchrun-array.manifest.json").read_text())
    jobs = [each for each in golden["items"] if each["kind"] == "Job"]

    def read(items):
        path = tmp_path / "jobs.json"
        path.write_text(json.dumps(golden | {"items": items}))
        command = [KUBECTL, "set", "env", "--local", "--filename", str(path), "READ=yes", "--output=json"]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)})

    done = read(jobs)
    assert done.returncode == 0 and done.stdout.count('"name": "READ"') == len(jobs) == 2, done.stderr
    wrong = [each | {"spec": each["spec"] | {"parallelism": "2"}} for each in jobs]
    assert "parallelism of type int32" in read(wrong).stderr
