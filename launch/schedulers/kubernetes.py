"""Kubernetes: an Indexed Job and a headless Service for each case, or one JobSet for all; kubectl.

A pod is a node: torchrun's agents meet at pod 0 of their Job. No two pods of Scalade share a node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..launchers import LAUNCHERS, Step
from .base import Capabilities, Job, Part, Scheduler, Task
from .shell import comment
from .state import State

PORT = "29400"
LABEL = "scalade.dev"
JOB = "SCALADE_JOB"  # the pods' variable with their job's name


class KubernetesJobs(Scheduler):
    name = "kubernetes"
    suffix = ".yaml"
    by_hand = "kubectl create -f"
    can = Capabilities(
        launchers=("torchrun",),
        array="an Indexed Job each, or one JobSet",
        packed="",
        signal="SIGTERM to the pods",
        requeue="`backoffLimit`: the Job makes new pods",
        states="kubectl get jobs",
        tried="manifests against the published schema",
    )

    def refuse(self, job: Job) -> None:
        super().refuse(job)
        kubernetes = job.site.kubernetes
        if not kubernetes.image:
            raise ValueError("kubernetes needs a profile with an image: [kubernetes] image = \"registry/scalade:tag\"")
        if job.site.modules or job.site.pre_commands or job.site.options:
            raise ValueError("kubernetes: modules, pre_commands and options belong to batch scripts; use the image")
        for path in (job.study, job.results, job.workdir) if kubernetes.volume_claim else ():
            if not path.is_relative_to(kubernetes.mount_path):
                where = f"kubernetes.mount_path = {kubernetes.mount_path}"
                raise ValueError(f"{path} does not lie on the volume that the pods share ({where})")

    def starter(self, step: Step, tasks: int) -> list[str]:
        return []  # each pod runs its own agent

    def render(self, job: Job) -> str:
        """The manifest (YAML)."""
        self.refuse(job)
        head = "\n".join([*comment(f"Scalade: {job.title}"), *self.hint(job)])
        return head + "\n" + "---\n".join(_yaml(each) + "\n" for each in self.objects(job))

    def objects(self, job: Job) -> list[dict[str, Any]]:
        """The manifest as data."""
        name = _dns(job.name)
        if job.site.kubernetes.jobset:
            return [self._jobset(job, name)]
        objects = []
        for number, part in enumerate(job.parts):
            own = f"{name}-{number}"
            labels = self._labels(job, number)
            objects.append({
                "apiVersion": "v1", "kind": "Service", "metadata": self._metadata(job, own, labels),
                "spec": {"clusterIP": "None", "publishNotReadyAddresses": True,
                         "selector": {"batch.kubernetes.io/job-name": own}},
            })  # fmt: skip
            objects.append({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": self._metadata(job, own, labels),
                "spec": self._job(job, part, labels, f"{own}-0.{own}", own),
            })  # fmt: skip
        return objects

    def _jobset(self, job: Job, name: str) -> dict[str, Any]:
        jobs = []
        for number, part in enumerate(job.parts):
            head = f"{name}-case{number}-0-0.{name}"
            spec = self._job(job, part, self._labels(job, number), head, None)
            template = {"metadata": {"labels": self._labels(job, number)}, "spec": spec}
            jobs.append({"name": f"case{number}", "replicas": 1, "template": template})
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
            "metadata": self._metadata(job, name, {f"{LABEL}/job": name}),
            "spec": {"network": {"enableDNSHostnames": True, "subdomain": name}, "replicatedJobs": jobs},
        }  # fmt: skip

    def _labels(self, job: Job, number: int) -> dict[str, str]:
        return {"app": "scalade", f"{LABEL}/job": _dns(job.name), f"{LABEL}/task": str(number)}

    def _metadata(self, job: Job, name: str, labels: dict[str, str]) -> dict[str, Any]:
        return {"name": name, "namespace": job.site.kubernetes.namespace, "labels": labels}

    def _job(self, job: Job, part: Part, labels: dict[str, str], head: str, subdomain: str | None) -> dict[str, Any]:
        site, kubernetes = job.site, job.site.kubernetes
        step = job.step(head=head, port=PORT, name=f"{_dns(job.name)}-{part.case_id}")
        words = LAUNCHERS[job.launcher].step(step, self.starter, job.program(part.case_id))
        variables = {"OMP_NUM_THREADS": "1", **site.environment, **site.fabric}
        variables[JOB] = f"{labels[f'{LABEL}/job']}-{labels[f'{LABEL}/task']}"
        resources = {"cpu": str(site.cpus_per_rank * job.per_node)} if site.cpus_per_rank else {}
        resources |= {kubernetes.gpu_resource: str(site.gpus_per_node)} if site.gpus_per_node else {}
        container: dict[str, Any] = {
            "name": "ranks", "image": kubernetes.image, "workingDir": str(job.workdir),
            "command": [_kept(word) for word in words],
            "env": [{"name": key, "value": _kept(value)} for key, value in variables.items()],
        }  # fmt: skip
        container |= {"resources": {"requests": resources, "limits": resources}} if resources else {}
        mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
        volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
        if kubernetes.volume_claim:
            mounts.append({"name": "shared", "mountPath": kubernetes.mount_path})
            volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": kubernetes.volume_claim}})
        apart = {"labelSelector": {"matchLabels": {"app": "scalade"}}, "topologyKey": "kubernetes.io/hostname"}
        pod: dict[str, Any] = {
            "restartPolicy": "Never", **({"subdomain": subdomain} if subdomain else {}),
            **({"serviceAccountName": kubernetes.service_account} if kubernetes.service_account else {}),
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
            "containers": [container | {"volumeMounts": mounts}], "volumes": volumes,
        }  # fmt: skip
        return {
            "completionMode": "Indexed", "completions": job.nodes, "parallelism": job.nodes,
            "backoffLimit": site.max_restarts, "activeDeadlineSeconds": job.seconds,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        }  # fmt: skip

    def own_id(self, env: Mapping[str, str]) -> str | None:
        return env.get(JOB)

    def submit(self, script: Path, tasks: int) -> str:
        self.ask(["kubectl", "create", "-f", script.name], cwd=script.parent)
        return _dns(script.stem)

    def tasks(self, jobs: Mapping[str, str]) -> dict[str, dict[int, Task]]:
        found: dict[str, dict[int, Task]] = {}
        for name in jobs:
            selector = f"{LABEL}/job={_dns(name)}"
            told = json.loads(self.ask(["kubectl", "get", "jobs", "--all-namespaces", "-l", selector, "-o", "json"]))
            for each in told.get("items", []):
                number = int(each["metadata"]["labels"].get(f"{LABEL}/task", 0))
                found.setdefault(name, {})[number] = _task(each.get("status", {}))
        return found

    def printed(self, name: str, lines: int) -> str | None:
        selector = f"{LABEL}/job={_dns(name)}"
        return self.ask(["kubectl", "logs", "-l", selector, "--all-containers", "--prefix", f"--tail={lines}"])

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self.ask(["kubectl", "delete", "jobs,services,jobsets", "--all-namespaces", "-l", f"{LABEL}/job={job_id}"])


def _task(status: dict[str, Any]) -> Task:
    for condition in status.get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            if condition["type"] == "Complete":
                return Task(State.DONE)
            said = f"{condition.get('reason', 'Failed')}: {condition.get('message', '')}"
            return Task(State.FAILED, said.rstrip(": "))
    runs = status.get("ready") or status.get("active") and "ready" not in status
    return Task(State.RUNNING if runs else State.WAITING)


def _dns(name: str) -> str:
    """A name as Kubernetes takes it (RFC 1123 label), with room for the task's and the pod's number."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-")


def _kept(text: str) -> str:
    """As it is: Kubernetes would put a variable's value in the place of `$(NAME)`."""
    return text.replace("$(", "$$(")


def _yaml(value: Any, indent: str = "") -> str:
    """Block YAML of dicts, lists and scalars; a string that is no plain word is quoted."""
    if isinstance(value, dict) and value:
        lines = []
        for key, each in value.items():
            nested = isinstance(each, dict | list) and each
            inner = indent + ("" if isinstance(each, list) else "  ")
            lines.append(f"{indent}{key}:" + (f"\n{_yaml(each, inner)}" if nested else f" {_yaml(each)}"))
        return "\n".join(lines)
    if isinstance(value, list) and value:
        return "\n".join(f"{indent}- {_yaml(each, indent + '  ').lstrip()}" for each in value)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][A-Za-z0-9./_-]*", value) and value.lower() not in WORDS:
        return value
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """A double-quoted YAML string: plain ASCII, everything else by its number."""
    plain = {c: c for c in map(chr, range(0x20, 0x7F))} | {'"': '\\"', "\\": "\\\\"}
    words = (plain.get(c) or (f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}") for c in text)
    return f'"{"".join(words)}"'


WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n", "none")
