"""What a host does beside the ranks: load, stolen time, other processes, clocks, throttling. None is: not told.

Of Linux's counters (man 5 proc, Documentation/admin-guide/cgroup-v2.rst, .../cpu-freq). A meter reads them before the
first timed step and after the last, never in a step. Needs no torch.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .nvml import GpuClocks

ROOT = Path("/")
TICKS = os.sysconf("SC_CLK_TCK")  # of /proc/stat, in a second


def read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def machine_id(root: Path = ROOT) -> str:
    """One for all that runs under this kernel: a lab's nodes and containers have host names of their own."""
    return read(root / "proc/sys/kernel/random/boot_id") or socket.gethostname()


def load_average(root: Path = ROOT) -> float | None:
    """Tasks that ran or waited to, mean over the last minute."""
    words = (read(root / "proc/loadavg") or "").split()
    return float(words[0]) if words else None


@dataclass(frozen=True)
class CpuTime:
    """Seconds since the start of the system, summed over CPUs."""

    busy: float
    stolen: float  # by the hypervisor, for others
    idle: float

    @property
    def all(self) -> float:
        return self.busy + self.stolen + self.idle

    def since(self, begin: CpuTime) -> CpuTime:
        return CpuTime(self.busy - begin.busy, self.stolen - begin.stolen, self.idle - begin.idle)


def cpu_time(cpus: Collection[int], root: Path = ROOT) -> CpuTime | None:
    """Of these CPUs together; None where one of them is not in /proc/stat."""
    found = []
    for line in (read(root / "proc/stat") or "").splitlines():
        name, _, rest = line.partition(" ")
        if re.fullmatch(r"cpu\d+", name) and int(name[3:]) in cpus:
            user, nice, system, idle, iowait, irq, softirq, stolen = (*map(int, rest.split()[:8]), *[0] * 8)[:8]
            times = (user + nice + system + irq + softirq, stolen, idle + iowait)
            found.append(CpuTime(*(ticks / TICKS for ticks in times)))
    if len(found) < len(cpus) or not found:
        return None
    return CpuTime(*(sum(getattr(each, name) for each in found) for name in ("busy", "stolen", "idle")))


def clocks_mhz(cpus: Collection[int], root: Path = ROOT) -> list[float]:
    """Of each of these CPUs, now: cpufreq's, else those in /proc/cpuinfo; empty where neither tells."""
    folder = root / "sys/devices/system/cpu"
    told = [read(folder / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus]
    if all(each and each.isdigit() for each in told):
        return [int(each) / 1e3 for each in told]
    pairs = re.findall(r"^(processor|cpu MHz)\s*: ([\d.]+)", read(root / "proc/cpuinfo") or "", re.M)
    cpu, found = None, []
    for name, value in pairs:
        if name == "processor":
            cpu = int(value) if value.isdigit() else None
        elif cpu in cpus:
            found.append(float(value))
    return found


def heat_throttles(cpus: Collection[int], root: Path = ROOT) -> dict[int, int]:
    """Times each of these CPUs, or its package, slowed itself for heat; empty where it is not counted."""
    found = {}
    for cpu in cpus:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        told = [read(folder / f"{what}_throttle_count") for what in ("core", "package")]
        if any(each and each.isdigit() for each in told):
            found[cpu] = sum(int(each) for each in told if each and each.isdigit())
    return found


@dataclass(frozen=True)
class Quota:
    """Of one control group: periods, those in which it was held back, and for how long in s."""

    periods: int
    throttled: int
    throttled_s: float


def quotas(root: Path = ROOT) -> dict[str, Quota]:
    """Of this process's control group and those above it that have a CPU quota, v2 and v1."""
    found = {}
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) < 3 or (parts[1] and "cpu" not in parts[1].split(",")):
            continue
        mounts = [parts[1], "cpu"] if parts[1] else ["", "unified"]
        path = Path(parts[2].lstrip("/"))
        for mount in mounts:
            for above in (path, *path.parents):
                file = root / "sys/fs/cgroup" / mount / above / "cpu.stat"
                told = dict(re.findall(r"^(\w+) (\d+)$", read(file) or "", re.M))
                if int(told.get("nr_periods", 0)):
                    held_s = int(told.get("throttled_usec", 0)) / 1e6 + int(told.get("throttled_time", 0)) / 1e9
                    found[str(file)] = Quota(int(told["nr_periods"]), int(told.get("nr_throttled", 0)), held_s)
    return found


@dataclass
class HostMeter:
    """One rank's view, between start() and stop().

    leads: it reads what is the same for all ranks of its host
    meet: returns when every rank is here. Some kernels take 10 ms for the clock of each CPU (x86, Linux 4.13 to 5.17):
    the others would wait for them in the first timed step
    """

    leads: bool
    cuda_index: int | None = None
    meet: Callable[[], None] = lambda: None
    root: Path = ROOT
    cpus: frozenset[int] = field(default_factory=lambda: frozenset(os.sched_getaffinity(0)))
    own_s: Callable[[], float] = time.process_time
    _begin: dict | None = field(default=None, init=False)
    _end: dict | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._gpu = GpuClocks(self.cuda_index)

    def reached(self, done: int, first: int, last: int) -> None:
        """So many steps are done; those after the first `first` are timed, up to `last`. Collective."""
        if done == first < last:
            self.start()
            self.meet()
        if done == last:
            self.stop()

    def start(self) -> None:
        self._begin = self._read() | {"load": load_average(self.root)}

    def stop(self) -> None:
        if self._begin is not None and self._end is None:
            self._end = self._read()

    def _read(self) -> dict:
        told = {
            "at": time.monotonic(),
            "own": self.own_s(),
            "cpu": cpu_time(self.cpus, self.root),
            "gpu": self._gpu.read(),
        }
        if self.leads:
            told |= {
                "mhz": clocks_mhz(self.cpus, self.root),
                "heat": heat_throttles(self.cpus, self.root),
                "quotas": quotas(self.root),
            }
        return told

    def told(self) -> dict[str, object]:
        """What host_columns takes, of this rank; goes through JSON. Empty where nothing was timed."""
        begin, end = self._begin, self._end
        if begin is None or end is None:
            return {}
        seconds = end["at"] - begin["at"]
        cpu = end["cpu"].since(begin["cpu"]) if begin["cpu"] and end["cpu"] else None
        mine = {
            "host": machine_id(self.root),
            "cpus": sorted(self.cpus),
            "own_s": end["own"] - begin["own"],
            "load": begin["load"],
            "cpu": [cpu.busy, cpu.stolen, cpu.all] if cpu and cpu.all > 0 else None,
        } | self._gpu.between(begin["gpu"], end["gpu"], seconds)
        if self.leads:
            mine["mhz"] = begin["mhz"] + end["mhz"]
            mine["heat"] = max(
                (end["heat"][cpu] - count for cpu, count in begin["heat"].items() if cpu in end["heat"]), default=None
            )
            mine["quota"] = _worst_quota(begin["quotas"], end["quotas"])
        return mine


def _worst_quota(begin: Mapping[str, Quota], end: Mapping[str, Quota]) -> list[float] | None:
    """[share of the periods that were throttled, throttled seconds] of the group that was held back most."""
    none, found = Quota(0, 0, 0.0), []
    for name, now in end.items():
        was = begin.get(name, none)
        if now.periods > was.periods:
            share = (now.throttled - was.throttled) / (now.periods - was.periods)
            found.append([share, now.throttled_s - was.throttled_s])
    return max(found, default=None)


def host_columns(ranks: Sequence[Mapping], all_there: bool = True) -> dict[str, object]:
    """Columns of the group "Machine" from what each rank's meter told: those of the worst host.

    all_there: False: some ranks are gone, so what they took of the CPU is not known
    """
    ranks = [rank for rank in ranks if rank]
    timed = [rank for rank in ranks if rank["cpu"]]
    clocks = [rank["mhz"] for rank in ranks if rank.get("mhz")]
    quotas = [rank["quota"] for rank in ranks if rank.get("quota")]
    reasons = [set(rank["gpu_reasons"]) for rank in ranks if rank.get("gpu_reasons") is not None]
    return {
        "load_average": _most(rank["load"] for rank in ranks),
        "cpu_others_share": _others(timed) if all_there and len(timed) == len(ranks) else None,
        "cpu_steal_share": _most(rank["cpu"][1] / rank["cpu"][2] for rank in timed),
        "cpu_mhz": min((statistics.median(each) for each in clocks), default=None),
        "cpu_mhz_min": min((min(each) for each in clocks), default=None),
        "cpu_heat_throttles": _most(rank.get("heat") for rank in ranks),
        "cgroup_throttled_share": _most(share for share, _ in quotas),
        "cgroup_throttled_s": _most(seconds for _, seconds in quotas),
        "gpu_mhz_min": min((rank["gpu_mhz"] for rank in ranks if rank.get("gpu_mhz") is not None), default=None),
        "gpu_heat_share": _most(rank.get("gpu_heat_share") for rank in ranks),
        "gpu_power_share": _most(rank.get("gpu_power_share") for rank in ranks),
        "gpu_throttle_reasons": ", ".join(sorted(set().union(*reasons))) if reasons else None,
    }


def _others(ranks: Sequence[Mapping]) -> float | None:
    """Share of their CPUs' time that went to processes which are no rank. Ranks share all of their CPUs or none."""
    groups: dict[tuple, list[Mapping]] = {}
    for rank in ranks:
        groups.setdefault((rank["host"], tuple(rank["cpus"])), []).append(rank)
    for host, cpus in groups:
        if any(host == other and cpus != some and set(cpus) & set(some) for other, some in groups):
            return None  # who of the ranks was on which of them is not told
    shares = []
    for members in groups.values():
        busy, _, every = max((rank["cpu"] for rank in members), key=lambda cpu: cpu[2])
        shares.append(max(0.0, busy - sum(rank["own_s"] for rank in members)) / every)
    return _most(shares)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
