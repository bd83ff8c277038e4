"""Kubernetes: an Indexed Job and a headless Service for each case, or one JobSet for all; kubectl.

A pod is a node: torchrun's agents meet at pod 0 of their Job. No two pods of Scalade share a node. The manifest is
JSON, which kubectl takes as it takes YAML.

A job's id here is `name.namespace`: a user who may see one namespace is asked about no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..host.launchers import LAUNCHERS, Step
from .ask import SchedulerError
from .base import Capabilities, Limits, Scheduler, Task, register
from .job import Job, Part
from .state import State

PORT = "29400"
LABEL = "scalade.dev"
JOB = "SCALADE_JOB"  # the pods' variable with their job's name
JOBSETS = "jobsets.jobset.x-k8s.io"
NO_JOBSETS = re.compile(r"doesn't have a resource type|could not find the requested resource|no matches for kind", re.I)


@register
class KubernetesJobs(Scheduler):
    name = "kubernetes"
    place = 5
    nesting = 2
    suffix = ".manifest.json"
    by_hand = "kubectl create -f"
    capabilities = Capabilities(
        launchers=("torchrun",),
        array="an Indexed Job each, or one JobSet",
        packed="",
        signal="SIGTERM to the pods",
        requeue="`backoffLimit`: the Job makes new pods",
        states="kubectl get jobs",
        tried="manifests against the published schema and by a real kubectl 1.32",
    )

    def refuse(self, job: Job) -> None:
        super().refuse(job)
        kubernetes = job.site.kubernetes
        if not kubernetes.image:
            raise ValueError('kubernetes needs a profile with an image: [kubernetes] image = "registry/scalade:tag"')
        if job.site.modules or job.site.pre_commands or job.site.options:
            raise ValueError("kubernetes: modules, pre_commands and options belong to batch scripts; use the image")
        for path in (job.study, job.results, job.workdir) if kubernetes.volume_claim else ():
            if not path.is_relative_to(kubernetes.mount_path):
                where = f"kubernetes.mount_path = {kubernetes.mount_path}"
                raise ValueError(f"{path} does not lie on the volume that the pods share ({where})")

    def starter(self, step: Step, tasks: int) -> list[str]:
        return []  # each pod runs its own agent

    def render(self, job: Job) -> str:
        """The manifest: a List of the job's objects, as JSON."""
        self.refuse(job)
        manifest = {"apiVersion": "v1", "kind": "List", "items": self.objects(job)}
        return json.dumps(manifest, indent=1) + "\n"

    def objects(self, job: Job) -> list[dict[str, Any]]:
        """The manifest as data."""
        name = _dns(job.name)
        if job.site.kubernetes.jobset:
            return [self._jobset(job, name)]
        objects = []
        for number, part in enumerate(job.parts):
            own = f"{name}-{number}"
            labels = self._labels(job, number)
            objects.append(
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": self._metadata(job, own, labels),
                    "spec": {
                        "clusterIP": "None",
                        "publishNotReadyAddresses": True,
                        "selector": {"batch.kubernetes.io/job-name": own},
                    },
                }
            )
            objects.append(
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": self._metadata(job, own, labels),
                    "spec": self._job(job, part, labels, f"{own}-0.{own}", own),
                }
            )
        return objects

    def _jobset(self, job: Job, name: str) -> dict[str, Any]:
        jobs = []
        for number, part in enumerate(job.parts):
            head = f"{name}-case{number}-0-0.{name}"
            spec = self._job(job, part, self._labels(job, number), head, None)
            template = {"metadata": {"labels": self._labels(job, number)}, "spec": spec}
            jobs.append({"name": f"case{number}", "replicas": 1, "template": template})
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": self._metadata(job, name, {f"{LABEL}/job": name}),
            "spec": {"network": {"enableDNSHostnames": True, "subdomain": name}, "replicatedJobs": jobs},
        }

    def _labels(self, job: Job, number: int) -> dict[str, str]:
        return {"app": "scalade", f"{LABEL}/job": _dns(job.name), f"{LABEL}/task": str(number)}

    def _metadata(self, job: Job, name: str, labels: dict[str, str]) -> dict[str, Any]:
        about = {f"{LABEL}/title": job.title}  # for people
        return {"name": name, "namespace": job.site.kubernetes.namespace, "labels": labels, "annotations": about}

    def _job(self, job: Job, part: Part, labels: dict[str, str], head: str, subdomain: str | None) -> dict[str, Any]:
        site, kubernetes = job.site, job.site.kubernetes
        step = job.step(head=head, port=PORT, name=f"{_dns(job.name)}-{part.case_id}")
        words = LAUNCHERS[job.launcher].step(step, self.starter, job.program(part.case_id))
        variables = {"OMP_NUM_THREADS": "1", **site.environment, **site.fabric}
        variables[JOB] = f"{labels[f'{LABEL}/job']}-{labels[f'{LABEL}/task']}"
        resources = {"cpu": str(site.cpus_per_rank * job.per_node)} if site.cpus_per_rank else {}
        resources |= {kubernetes.gpu_resource: str(site.gpus_per_node)} if site.gpus_per_node else {}
        container: dict[str, Any] = {
            "name": "ranks",
            "image": kubernetes.image,
            "workingDir": str(job.workdir),
            "command": [_kept(word) for word in words],
            "env": [{"name": key, "value": _kept(value)} for key, value in variables.items()],
        }
        container |= {"resources": {"requests": resources, "limits": resources}} if resources else {}
        mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        if kubernetes.volume_claim:
            mounts.append({"name": "shared", "mountPath": kubernetes.mount_path})
            volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}})
        apart = {"labelSelector": {"matchLabels": {"app": "scalade"}}, "topologyKey": "kubernetes.io/hostname"}
        pod: dict[str, Any] = {
            "restartPolicy": "Never",
            **({"subdomain": subdomain} if subdomain else {}),
            **({"serviceAccountName": kubernetes.service_account} if kubernetes.service_account else {}),
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
            "containers": [container | {"volumeMounts": mounts}],
            "volumes": volumes,
        }
        return {
            "completionMode": "Indexed",
            "completions": job.nodes,
            "parallelism": job.nodes,
            "backoffLimit": site.max_restarts,
            "activeDeadlineSeconds": job.seconds,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        }

    def own_id(self, env: Mapping[str, str]) -> str | None:
        return env.get(JOB)

    def limits(self) -> Limits:
        return Limits(self.most_tasks, self.most_tasks, "each is a Job and a Service of its own")

    def submit(self, script: Path, tasks: int) -> str:
        answer = self.answer(["kubectl", "create", "-f", str(script)])
        if answer.status:  # what had been created before it failed stays
            line = f"kubernetes: `kubectl` failed: {answer.first_line() if answer.err.strip() else answer.status}"
            raise SchedulerError(line, answer.status, unsure=" created" in answer.out)
        return self._id(script)

    def _id(self, script: Path) -> str:
        manifest = json.loads(script.read_text())
        return f"{_dns(script.name.removesuffix(self.suffix))}.{manifest['items'][0]['metadata']['namespace']}"

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        found: dict[str, dict[int, Task]] = {}
        for name, job_id in jobs.items():
            tasks = {_task_number(each): _task(each.get("status", {})) for each in self._get("jobs", job_id)}
            if not tasks:  # its controller may not have made them yet
                sets = self._get(JOBSETS, job_id)
                tasks = {n: Task(State.WAITING) for each in sets for n in range(len(each["spec"]["replicatedJobs"]))}
            if tasks:
                found[name] = tasks
        return found

    def _get(self, kind: str, job_id: str) -> list[dict[str, Any]]:
        """Objects of that kind that belong to a job; none where the cluster has no such kind.

        Raises
        ------
        SchedulerError: the server did not answer, or forbids it
        """
        where = _where(job_id)
        try:
            content = json.loads(self.ask(["kubectl", "get", kind, *where, "--output=json"]))
            return content.get("items", [])
        except SchedulerError as error:
            if kind == JOBSETS and NO_JOBSETS.search(str(error)):
                return []
            raise
        except ValueError as error:
            raise SchedulerError(f"kubernetes: `kubectl` gave no JSON: {error}") from None

    def find(self, script: Path) -> str | None:
        job_id = self._id(script)
        return job_id if self._get("jobs", job_id) or self._get(JOBSETS, job_id) else None

    def printed(self, job_id: str, lines: int) -> str | None:
        return self.ask(["kubectl", "logs", *_where(job_id), "--all-containers", "--prefix", f"--tail={lines}"])

    def cancel(self, job_id: str, task: int | None = None) -> None:
        """The JobSet first, whose controller would make its Jobs again; where there are no JobSets it says so."""
        where = _where(job_id) if task is None else _where(job_id, task)
        if task is None:
            try:
                self.ask(["kubectl", "delete", JOBSETS, *where, "--ignore-not-found"])
            except SchedulerError as error:
                if not NO_JOBSETS.search(str(error)):
                    raise
        self.ask(["kubectl", "delete", "jobs,services", *where, "--ignore-not-found"])

    def task_name(self, job_id: str, task: int) -> str:
        name, dot, namespace = job_id.partition(".")
        return f"{name}-{task}{dot}{namespace}"


def _where(job_id: str, task: int | None = None) -> list[str]:
    """kubectl's options that choose a job's objects. An id of before has no namespace: the current one's."""
    name, _, namespace = job_id.partition(".")
    chosen = f"{LABEL}/job={name}" + (f",{LABEL}/task={task}" if task is not None else "")
    return [*([f"--namespace={namespace}"] if namespace else []), f"--selector={chosen}"]


def _task_number(job: Mapping[str, Any]) -> int:
    return int(job["metadata"].get("labels", {}).get(f"{LABEL}/task", 0))


def _task(status: dict[str, Any]) -> Task:
    true = (condition for condition in status.get("conditions") or [] if condition.get("status") == "True")
    end = next((condition for condition in true if condition.get("type") in ("Complete", "Failed")), None)
    if end is not None:
        return _ended(end)
    runs = status.get("ready") or status.get("active") and "ready" not in status
    return Task(State.RUNNING if runs else State.WAITING)


def _ended(condition: dict[str, Any]) -> Task:
    if condition["type"] == "Complete":
        return Task(State.DONE)
    reason = f"{condition.get('reason', 'Failed')}: {condition.get('message', '')}"
    return Task(State.FAILED, reason.rstrip(": "))


def _dns(name: str) -> str:
    """A name as Kubernetes takes it (RFC 1123 label), with room for the task's and the pod's number."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-")


def _kept(text: str) -> str:
    """As it is: Kubernetes would put a variable's value in the place of `$(NAME)`."""
    return text.replace("$(", "$$(")
