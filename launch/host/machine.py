"""What this machine offers, without importing torch: cores, GPUs, memory."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from .gpus import CHOSEN, driver_cards, smallest, visible_count, visible_devices


def cores() -> int:
    """Cores this process may use: its affinity, less where a cgroup's quota is smaller."""
    available = len(os.sched_getaffinity(0))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]):
        available = min(available, max(1, int(quota[0]) // int(quota[1])))
    return available


def gpus() -> int:
    """NVIDIA devices that ranks started here will see; 0 without a driver."""
    devices = visible_devices()
    return visible_count(driver_cards(), os.environ.get(CHOSEN)) if devices is None else len(devices)


def no_cuda() -> str | None:
    """Why no rank can use a GPU here; None: as far as can be seen without importing torch, one can."""
    if not gpus():
        hidden = os.environ.get(CHOSEN)
        by = "" if hidden is None else f" with {CHOSEN}={hidden}"
        return f"this machine shows no NVIDIA GPU{by}"
    spec = importlib.util.find_spec("torch")
    version = _read(str(Path(spec.origin).with_name("version.py"))) if spec and spec.origin else ""
    return "torch is built without CUDA here" if re.search(r"^cuda\b[^=]*= *None$", version, re.M) else None


def gpu_memory_bytes(ranks: int | None = None) -> int | None:
    """Total memory of the smallest device that so many ranks here would use; None where nvidia-smi does not know.

    ranks: None: all that can be seen
    """
    return smallest([device.memory_bytes for device in (visible_devices() or ())[:ranks]])


def host_memory_bytes() -> int | None:
    """Memory that new processes can take: MemAvailable, less where a cgroup (v2 or v1) leaves less."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    amounts = [int(available[1]) * 1024] if available else []
    for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):
        folder = "/sys/fs/cgroup" if limit == "max" else "/sys/fs/cgroup/memory"
        top, now = _read(f"{folder}/memory.{limit}").strip(), _read(f"{folder}/memory.{used}").strip()
        if top.isdigit() and now.isdigit():
            amounts.append(max(0, int(top) - int(now)))
    return min(amounts, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def oom_kills() -> int:
    """Processes the kernel's out-of-memory killer has ended, in this cgroup or, where that is hidden, on this host."""
    counts = [_counter(Path("/proc/vmstat"))]
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            counts.append(_counter(Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"))
        elif controllers == "memory":
            counts.append(_counter(Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control"))
    return sum(counts)


def _counter(file: Path) -> int:
    try:
        pairs = (line.split() for line in file.read_text().splitlines())
        return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill")
    except OSError:
        return 0
