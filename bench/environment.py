"""What a run was measured on: hardware and software, as columns of the table."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from .device import Device

CHECKOUT = Path(__file__).resolve().parents[1]


def environment_columns(device: Device) -> dict[str, object]:
    """Columns of the group "Environment" that do not depend on how the ranks were started."""
    return {
        "device_type": device.torch.type,
        "device_name": device.name,
        "device_count": torch.cuda.device_count() if device.cuda else 1,
        "driver_version": _driver() if device.cuda else None,
        "cpu_model": _cpu_model(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "host_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME") if Path("/etc/os-release").exists() else None,
        "kernel": platform.release(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "cuda_version": torch.version.cuda,
        "nccl_version": ".".join(map(str, torch.cuda.nccl.version())) if device.cuda else None,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "scalade_version": version_of("scalade"),
        "mpi_version": _mpi_version(),
        "deepspeed_version": version_of("deepspeed") if "deepspeed" in sys.modules else None,
        "megatron_version": version_of("megatron-core") if "megatron.core" in sys.modules else None,
    }


def version_of(package: str) -> str | None:
    """Installed version, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return None
    return name[1] if name else platform.machine()


def _git(*arguments: str) -> str | None:
    """Of the checkout this package runs from; None for an installed package."""
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _driver() -> str | None:
    try:
        version = re.search(r"Module\s+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return version[1] if version else None


def _mpi_version() -> str | None:
    """Of the MPI that started this process, where its bindings are already loaded."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi.Get_library_version().strip(" \t\n\0").splitlines()[0].strip() if mpi else None
