"""Jobs to be rendered as batch scripts."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

from scalade.launch.schedulers.job import Job, Part
from scalade.launch.schedulers.site import Kubernetes, Site


def table(**values):
    return types.MappingProxyType(values)


SITE = Site(
    account="proj42",
    partition="gpu",
    gpus_per_node=4,
    cpus_per_rank=8,
    modules=("cuda/12.4", "nccl"),
    pre_commands=('source "$HOME/site.sh"',),
    launcher_options=("--verbose",),
    mpirun="mpirun",
    mpi="mpich",
    container=("apptainer", "exec", "--nv", "/images/scalade 1.sif"),
    python="/opt/venv/bin/python",
    environment=table(HF_HOME="/scratch/hf cache"),
    fabric=table(NCCL_SOCKET_IFNAME="hsn0", NCCL_DEBUG="WARN"),
)


PARTS = (Part("0123456789abcdef", "tiny-300k dp8"), Part("fedcba9876543210", "tiny-300k fsdp8"))


CLOUD = replace(
    SITE,
    modules=(),
    pre_commands=(),
    container=(),
    launcher_options=(),
    kubernetes=Kubernetes(image="registry.example.org/scalade:1", volume_claim="work", mount_path="/data"),
)


def make_job(scheduler, launcher, mode, site=SITE, **more):
    name = "scalade-demo-c0ffee-0"
    folder = Path("/data/results/submissions/c0ffee")
    fields = {
        "name": name,
        "title": "study demo, 2 cases on 2 nodes with 4 ranks each",
        "mode": mode,
        "launcher": launcher,
        "study": folder / "demo.toml",
        "results": Path("/data/results"),
        "workdir": Path("/data/my study"),
        "folder": folder,
        "site": CLOUD if scheduler == "kubernetes" else site,
        "nodes": 2,
        "per_node": 4,
        "seconds": 5400,
        "parts": PARTS,
        "checkpoints": True,
        "scalade": "/opt/venv/bin/python",
    }
    return Job(**(fields | more))
