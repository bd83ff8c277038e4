"""What a host does beside the ranks: load, stolen time, other processes, clocks, throttling. None: not known.

Of Linux's counters (man 5 proc, Documentation/admin-guide/cgroup-v2.rst, .../cpu-freq). A meter reads them before the
first timed step and after the last, never in a step. Needs no torch.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
    times: list[CpuTime] = []
    for line in (read(root / "proc/stat") or "").splitlines():
        name, _, rest = line.partition(" ")
        if re.fullmatch(r"cpu\d+", name) and int(name[3:]) in cpus:
            user, nice, system, idle, iowait, irq, softirq, stolen = (*map(int, rest.split()[:8]), *[0] * 8)[:8]
            busy = user + nice + system + irq + softirq
            times.append(CpuTime(busy / TICKS, stolen / TICKS, (idle + iowait) / TICKS))
    if len(times) < len(cpus) or not times:
        return None
    return CpuTime(
        sum(each.busy for each in times), sum(each.stolen for each in times), sum(each.idle for each in times)
    )


def clocks_mhz(cpus: Collection[int], root: Path = ROOT) -> list[float]:
    """Of each of these CPUs, now: cpufreq's, else those in /proc/cpuinfo; empty where neither has them."""
    folder = root / "sys/devices/system/cpu"
    kilohertz = _counters(read(folder / f"cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus)
    if len(kilohertz) == len(cpus):
        return [each / 1e3 for each in kilohertz]
    pairs = re.findall(r"^(processor|cpu MHz)\s*: ([\d.]+)", read(root / "proc/cpuinfo") or "", re.M)
    cpu, clocks = None, []
    for name, value in pairs:
        if name == "processor":
            cpu = int(value) if value.isdigit() else None
        elif cpu in cpus:
            clocks.append(float(value))
    return clocks


def _counters(contents: Iterable[str | None]) -> list[int]:
    """The numbers among the contents of files that may be missing, or hold something else."""
    return [int(content) for content in contents if content and content.isdigit()]


def heat_throttles(cpus: Collection[int], root: Path = ROOT) -> dict[int, int]:
    """Times each of these CPUs, or its package, slowed itself for heat; empty where it is not counted."""
    counts = {}
    for cpu in cpus:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        own = _counters(read(folder / f"{part}_throttle_count") for part in ("core", "package"))
        if own:
            counts[cpu] = sum(own)
    return counts


@dataclass(frozen=True)
class Quota:
    """Of one control group: periods, those in which it was held back, and for how long in s."""

    periods: int
    throttled: int
    throttled_s: float


def quotas(root: Path = ROOT) -> dict[str, Quota]:
    """Of this process's control group and those above it that have a CPU quota, v2 and v1."""
    quotas = {}
    for file in _quota_files(root):
        counters = {name: int(count) for name, count in re.findall(r"^(\w+) (\d+)$", read(file) or "", re.M)}
        if counters.get("nr_periods"):
            throttled_s = counters.get("throttled_usec", 0) / 1e6 + counters.get("throttled_time", 0) / 1e9
            quotas[str(file)] = Quota(counters["nr_periods"], counters.get("nr_throttled", 0), throttled_s)
    return quotas


def _quota_files(root: Path) -> Iterator[Path]:
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) < 3 or (parts[1] and "cpu" not in parts[1].split(",")):
            continue
        path = Path(parts[2].lstrip("/"))
        for mount in (parts[1], "cpu") if parts[1] else ("", "unified"):
            for group in (path, *path.parents):
                yield root / "sys/fs/cgroup" / mount / group / "cpu.stat"


@dataclass(frozen=True)
class Reading:
    """What one rank's meter reads at one moment."""

    at: float  # time.monotonic
    own_s: float  # CPU time of this process
    cpu: CpuTime | None
    gpu: dict[str, float]
    # Read by the rank that leads only:
    mhz: list[float] = field(default_factory=list)
    heat: dict[int, int] = field(default_factory=dict)
    quotas: dict[str, Quota] = field(default_factory=dict)


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
    _begin: Reading | None = field(default=None, init=False)
    _end: Reading | None = field(default=None, init=False)
    _load: float | None = field(default=None, init=False)  # when it began

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
        self._begin, self._load = self._read(), load_average(self.root)

    def stop(self) -> None:
        if self._begin is not None and self._end is None:
            self._end = self._read()

    def _read(self) -> Reading:
        reading = Reading(time.monotonic(), self.own_s(), cpu_time(self.cpus, self.root), self._gpu.read())
        if not self.leads:
            return reading
        return replace(
            reading,
            mhz=clocks_mhz(self.cpus, self.root),
            heat=heat_throttles(self.cpus, self.root),
            quotas=quotas(self.root),
        )

    def summary(self) -> dict[str, object]:
        """This rank's argument of host_columns; goes through JSON. Empty where nothing was timed."""
        begin, end = self._begin, self._end
        if begin is None or end is None:
            return {}
        cpu = end.cpu.since(begin.cpu) if begin.cpu and end.cpu else None
        summary = {
            "host": machine_id(self.root),
            "cpus": sorted(self.cpus),
            "own_s": end.own_s - begin.own_s,
            "load": self._load,
            "cpu": [cpu.busy, cpu.stolen, cpu.all] if cpu and cpu.all > 0 else None,
        } | self._gpu.between(begin.gpu, end.gpu, end.at - begin.at)
        if self.leads:
            summary["mhz"] = begin.mhz + end.mhz
            throttles = [end.heat[cpu] - count for cpu, count in begin.heat.items() if cpu in end.heat]
            summary["heat"] = max(throttles, default=None)
            summary["quota"] = _worst_quota(begin.quotas, end.quotas)
        return summary


def _worst_quota(begin: Mapping[str, Quota], end: Mapping[str, Quota]) -> list[float] | None:
    """[share of the periods that were throttled, throttled seconds] of the group that was held back most."""
    none, throttled = Quota(0, 0, 0.0), []
    for name, now in end.items():
        was = begin.get(name, none)
        if now.periods > was.periods:
            share = (now.throttled - was.throttled) / (now.periods - was.periods)
            throttled.append([share, now.throttled_s - was.throttled_s])
    return max(throttled, default=None)


def host_columns(ranks: Sequence[Mapping], all_there: bool = True) -> dict[str, object]:
    """Columns of the group "Machine" from each rank's HostMeter.summary: those of the worst host.

    all_there: False: some ranks are gone, so the CPU time they used is not known
    """
    ranks = list(filter(None, ranks))
    timed = [rank for rank in ranks if rank["cpu"]]
    clocks = list(filter(None, _values(ranks, "mhz")))
    quotas = _values(ranks, "quota")
    reasons = _values(ranks, "gpu_reasons")
    return {
        "load_average": _most(_values(ranks, "load")),
        "cpu_others_share": _others(timed) if all_there and len(timed) == len(ranks) else None,
        "cpu_steal_share": _most(stolen / every for _, stolen, every in _values(timed, "cpu")),
        "cpu_mhz": min(map(statistics.median, clocks), default=None),
        "cpu_mhz_min": min(map(min, clocks), default=None),
        "cpu_heat_throttles": _most(_values(ranks, "heat")),
        "cgroup_throttled_share": _most(share for share, _ in quotas),
        "cgroup_throttled_s": _most(seconds for _, seconds in quotas),
        "gpu_mhz_min": min(_values(ranks, "gpu_mhz"), default=None),
        "gpu_heat_share": _most(_values(ranks, "gpu_heat_share")),
        "gpu_power_share": _most(_values(ranks, "gpu_power_share")),
        "gpu_throttle_reasons": ", ".join(sorted(set().union(*reasons))) if reasons else None,
    }


def _values(ranks: Sequence[Mapping], name: str) -> list[Any]:
    """Of the ranks that have one."""
    return [rank[name] for rank in ranks if rank.get(name) is not None]


def _others(ranks: Sequence[Mapping]) -> float | None:
    """Share of their CPUs' time that went to processes which are no rank. Ranks share all of their CPUs or none."""
    groups: dict[tuple, list[Mapping]] = {}
    for rank in ranks:
        groups.setdefault((rank["host"], tuple(rank["cpus"])), []).append(rank)
    if any(_overlap(*pair) for pair in itertools.combinations(groups, 2)):
        return None  # which rank ran on which of the shared CPUs is not known
    shares = []
    for members in groups.values():
        busy, _, every = max((rank["cpu"] for rank in members), key=lambda cpu: cpu[2])
        shares.append(max(0.0, busy - sum(rank["own_s"] for rank in members)) / every)
    return _most(shares)


def _overlap(one: tuple, other: tuple) -> bool:
    """Whether two (host, CPUs) have a CPU in common."""
    return one[0] == other[0] and not set(one[1]).isdisjoint(other[1])


def _most(values: Iterable[float]) -> float | None:
    return max(values, default=None)
