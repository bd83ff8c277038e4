"""What `scalade doctor` reads off this host: limits, clock, frequency, driver, file system. None is: not told."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ...bench.host import clocks_mhz, cpu_time, read

SYNCS = 5
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
SAMPLE_S = 0.5
CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
UNLIMITED = 2**60  # a control group's way to say none


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = platform.system()
    return f"{name}, kernel {platform.release()}, {platform.machine()}"


def cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", read("/proc/cpuinfo") or "", re.M)
    return found[1] if found else platform.machine()


def limit(name: str) -> int | None:
    """A soft limit of this process (`NOFILE`, `AS`, ...); None: unlimited."""
    soft = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return None if soft == resource.RLIM_INFINITY else soft


def cgroup_memory_bytes() -> int | None:
    """The memory limit of this process's control group (v2 or v1)."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        file = {"": "/sys/fs/cgroup{}/memory.max", "memory": "/sys/fs/cgroup/memory{}/memory.limit_in_bytes"}
        text = read(file.get(controllers, "").format(path.rstrip("/"))) or ""
        if text.isdigit() and int(text) < UNLIMITED:
            return int(text)
    return None


def free_bytes(folder: str | Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def clock() -> tuple[float, float, str | None]:
    """(resolution as the system says, smallest time between two different readings, clock source); in s."""
    ticks: list[float] = []
    last = time.perf_counter()
    while len(ticks) < 200:
        now = time.perf_counter()
        if now != last:
            ticks.append(now - last)
            last = now
    return time.get_clock_info("perf_counter").resolution, min(ticks), read(CLOCKSOURCE)


def cpu_frequency() -> tuple[str | None, str | None]:
    """(the governor, the frequency now)."""
    mhz = clocks_mhz(os.sched_getaffinity(0))
    return read(GOVERNOR), f"{statistics.median(mhz) / 1e3:.2f} GHz now" if mhz else None


def cpu_taken() -> tuple[float, float] | None:
    """(share of this process's CPUs that is busy, share that the hypervisor gives to others), over SAMPLE_S."""
    cpus = os.sched_getaffinity(0)
    begin = cpu_time(cpus)
    time.sleep(SAMPLE_S)
    end = cpu_time(cpus)
    taken = end.since(begin) if begin and end else None
    return (taken.busy / taken.all, taken.stolen / taken.all) if taken and taken.all > 0 else None


def nvidia_driver() -> str | None:
    found = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", read("/proc/driver/nvidia/version") or "")
    return found[1] if found else None


def energy_source() -> str | None:
    if nvidia_driver() and installed("nvidia-ml-py"):
        return "NVML (the GPUs')"
    packages = list(Path("/sys/class/powercap").glob("intel-rapl:[0-9]/energy_uj"))
    return "RAPL (the CPU packages')" if packages and all(read(file) for file in packages) else None


def mpirun() -> tuple[str, str] | None:
    """(path, what it calls itself) of the mpirun that the launcher would take."""
    beside = Path(sys.executable).with_name("mpirun")
    path = str(beside) if beside.exists() else shutil.which("mpirun")
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return path, f"does not start ({error})"
    version = re.search(r"Version:\s*(\S+)", done.stdout)
    if version and "HYDRA" in done.stdout:
        return path, f"MPICH's Hydra {version[1]}"
    return path, (done.stdout.splitlines() or ["unknown"])[0]


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    return folder


def filesystem(folder: Path) -> str:
    """Type of the file system that the folder is on."""
    target, best = str(folder.resolve()), ("", "unknown")
    for line in (read("/proc/self/mounts") or "").splitlines():
        _, point, kind = line.split(" ", 3)[:3]
        point = point.encode().decode("unicode_escape")  # a space is \040
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


@dataclass(frozen=True)
class FolderTrial:
    error: str | None  # why nothing can be written there
    fsync_s: float = 0.0
    locks: bool = False  # flock keeps a second holder out


def try_folder(folder: Path) -> FolderTrial:
    """Write, sync, rename and lock as a results folder is; leaves nothing behind."""
    try:
        with tempfile.TemporaryDirectory(prefix=".scalade-doctor-", dir=folder) as name:
            times = [_synced_write(Path(name) / f"{number}") for number in range(SYNCS)]
            os.rename(Path(name) / "0", Path(name) / "renamed")
            return FolderTrial(None, statistics.median(times), _locks(Path(name) / "lock"))
    except OSError as error:
        return FolderTrial(f"{error.strerror or error}: {folder}")


def _synced_write(file: Path) -> float:
    with open(file, "wb") as handle:
        handle.write(bytes(4096))
        handle.flush()
        begin = time.perf_counter()
        os.fsync(handle.fileno())
        return time.perf_counter() - begin


def _locks(file: Path) -> bool:
    with open(file, "w") as first, open(file, "w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
