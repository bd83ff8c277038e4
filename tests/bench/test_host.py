"""What else a machine did while a run was timed: planted /proc and /sys, planted NVML, and a real run's columns."""

import json
import sys
from types import SimpleNamespace

import pytest

from scalade.bench import host, nvml
from scalade.bench.host import HostMeter, host_columns
from scalade.results.schema.columns import RUNS

TICKS = host.TICKS
NAMES = [column.name for column in RUNS["Machine"]]


class Machine:
    """A planted machine of 4 CPUs: `run` lets time pass on it."""

    def __init__(self, root):
        self.root, self.times = root, {cpu: [0] * 10 for cpu in range(4)}
        self.write("proc/loadavg", "3.25 1.00 0.50 2/345 6789\n")
        self.write("proc/sys/kernel/random/boot_id", "a-b-c\n")
        self.write("proc/self/cgroup", "0::/job/rank\n")
        self.write("sys/fs/cgroup/cpu.stat", "usage_usec 5\nuser_usec 4\n")  # the root has no quota
        self.quota(0, 0, 0)
        self.clocks(3000, 2900, 800, 3000)
        self.run({})

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(self, seconds):
        """By CPU: (busy, stolen, idle)."""
        for cpu, (busy, stolen, idle) in seconds.items():
            for place, amount in zip((0, 2, 7, 3), (busy / 2, busy / 2, stolen, idle), strict=True):
                self.times[cpu][place] += round(amount * TICKS)
        sums = [sum(column) for column in zip(*self.times.values(), strict=True)]
        lines = [f"cpu  {' '.join(map(str, sums))}"]
        lines += [f"cpu{cpu} {' '.join(map(str, times))}" for cpu, times in self.times.items()]
        self.write("proc/stat", "\n".join([*lines, "intr 12345 0", "ctxt 99"]) + "\n")

    def clocks(self, *mhz):
        for cpu, value in enumerate(mhz):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", f"{value * 1000}\n")

    def heat(self, cpu, core, package):
        for what, count in (("core", core), ("package", package)):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/{what}_throttle_count", f"{count}\n")

    def quota(self, periods, throttled, microseconds):
        text = f"usage_usec 9\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {microseconds}\n"
        self.write("sys/fs/cgroup/job/cpu.stat", text)

    def meter(self, cpus=(0, 1, 2, 3), own=0.0, leads=True):
        spent = iter([10.0, 10.0 + own])
        return HostMeter(leads, root=self.root, cpus=frozenset(cpus), own_s=lambda: next(spent))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def timed(machine, meters, *, seconds, meanwhile=lambda: None):
    for meter in meters:
        meter.start()
    machine.run(seconds)
    meanwhile()
    for meter in meters:
        meter.stop()
    return host_columns(json.loads(json.dumps([meter.summary() for meter in meters])))


def test_the_columns_are_those_of_the_group(machine):
    assert list(timed(machine, [machine.meter()], seconds={})) == NAMES == list(host_columns([]))


def test_what_others_took_is_what_no_rank_did(machine):
    """Two ranks share four CPUs for 10 s: 40 s of CPU time, of which 24 busy, 4 stolen; the ranks say 9 and 7."""
    seconds = {0: (10, 0, 0), 1: (6, 4, 0), 2: (8, 0, 2), 3: (0, 0, 10)}
    told = timed(machine, [machine.meter(own=9.0), machine.meter(own=7.0, leads=False)], seconds=seconds)
    assert told["cpu_others_share"] == pytest.approx(8 / 40) and told["cpu_steal_share"] == pytest.approx(4 / 40)
    assert told["load_average"] == 3.25


def test_ranks_that_are_bound_answer_for_their_own_cpus(machine):
    seconds = {0: (10, 0, 0), 1: (10, 0, 0), 2: (10, 2, 0), 3: (10, 0, 0)}  # 3 is another job's
    meters = [machine.meter((0, 1), own=20.0), machine.meter((2,), own=9.0, leads=False)]
    told = timed(machine, meters, seconds=seconds)
    assert told["cpu_others_share"] == pytest.approx(1 / 12) and told["cpu_steal_share"] == pytest.approx(2 / 12)
    overlapping = [machine.meter((0, 1), own=1.0), machine.meter((1, 2), own=1.0, leads=False)]
    assert timed(machine, overlapping, seconds=seconds)["cpu_others_share"] is None


def test_the_worst_of_several_hosts_and_ranks_that_are_gone():
    def rank(name, own, load, **more):
        return {"host": name, "cpus": [0], "own_s": own, "load": load, "cpu": [10.0, 1.0, 20.0]} | more

    ranks = [
        rank("a", 10.0, 1.0, mhz=[3000.0, 2000.0], heat=0, quota=[0.0, 0.0]),
        rank("b", 6.0, 0.5, mhz=[2500.0, 2400.0], heat=3, quota=[0.25, 1.5]),
    ]
    told = host_columns(ranks)
    assert told["cpu_others_share"] == 0.2 and told["load_average"] == 1.0 and told["cpu_heat_throttles"] == 3
    assert (told["cpu_mhz"], told["cpu_mhz_min"]) == (2450.0, 2000.0)
    assert (told["cgroup_throttled_share"], told["cgroup_throttled_s"]) == (0.25, 1.5)
    assert host_columns(ranks, all_there=False)["cpu_others_share"] is None
    assert host_columns([*ranks, {}])["cpu_others_share"] == 0.2  # one that timed nothing


def test_clocks_heat_and_quotas(machine):
    machine.heat(1, 5, 7)
    machine.heat(2, 0, 7)
    machine.quota(1000, 900, 5_000_000)  # before the run: not its matter

    def meanwhile():
        machine.heat(1, 6, 9)
        machine.heat(2, 0, 9)
        machine.quota(1100, 925, 6_500_000)
        machine.clocks(2800, 2900, 800, 1000)

    told = timed(machine, [machine.meter()], seconds={0: (1, 0, 0)}, meanwhile=meanwhile)
    assert told["cpu_heat_throttles"] == 3 and told["cgroup_throttled_s"] == pytest.approx(1.5)
    assert told["cgroup_throttled_share"] == 0.25
    assert (told["cpu_mhz"], told["cpu_mhz_min"]) == (2850.0, 800.0)
    told = timed(machine, [machine.meter((0, 1))], seconds={0: (1, 0, 0)})
    assert (told["cpu_mhz"], told["cpu_mhz_min"]) == (2850.0, 2800.0)  # of the CPUs it may use


def test_a_quota_of_the_first_version_and_clocks_of_cpuinfo(tmp_path):
    root = Machine(tmp_path).root
    for cpu in range(4):
        (root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq").unlink()
    machine = SimpleNamespace(write=Machine.write.__get__(SimpleNamespace(root=root)))
    machine.write("proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/docker/x\n0::/\n")
    machine.write("sys/fs/cgroup/cpu/cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\n")
    cpus = [f"processor\t: {n}\ncpu MHz\t\t: {2000 + n}.5\nflags\t: x\n\n" for n in range(4)]
    machine.write("proc/cpuinfo", "".join(cpus))
    assert list(host.quotas(root).values()) == [host.Quota(10, 4, 2.5)]
    assert host.clocks_mhz({1, 3}, root) == [2001.5, 2003.5]


def test_what_is_not_told_is_null_and_never_0(tmp_path):
    meter = HostMeter(True, root=tmp_path, cpus=frozenset({0}))
    meter.start()
    meter.stop()
    told = host_columns([meter.summary()])
    assert told == dict.fromkeys(NAMES)
    never = HostMeter(True, root=tmp_path)  # every step was warm-up
    never.stop()
    assert never.summary() == {} and host_columns([{}]) == dict.fromkeys(NAMES)


@pytest.mark.parametrize("leads", [True, False])
def test_no_rank_begins_a_timed_step_while_another_reads(machine, monkeypatch, leads):
    happened = []
    meter = HostMeter(leads, None, lambda: happened.append("met"), root=machine.root, cpus=frozenset({0}))
    monkeypatch.setattr(meter, "_read", lambda: happened.append("read") or {})
    for done in range(6):
        meter.reached(done, 2, 4)
        happened.append(done)
    assert happened == [0, 1, "read", "met", 2, 3, "read", 4, 5]


def test_where_every_step_is_warm_up_nothing_is_read(machine):
    meter = machine.meter()
    for done in range(5):
        meter.reached(done, 4, 4)
    assert meter.summary() == {}


def test_a_clock_that_stands_still_tells_nothing(machine):
    told = timed(machine, [machine.meter()], seconds={})  # as in a sandbox whose /proc/stat is all 0
    assert told["cpu_others_share"] is None and told["cpu_steal_share"] is None


def test_stopped_twice_it_keeps_the_first_end(machine):
    meter = machine.meter()
    meter.start()
    machine.run({0: (1, 0, 1)})
    meter.stop()
    machine.run({0: (100, 0, 0)})
    meter.stop()
    assert meter.summary()["cpu"] == pytest.approx([1.0, 0.0, 2.0])


def test_a_gpu_tells_of_its_clock_and_why_it_was_held_down(monkeypatch):
    readings = iter([(1980, 0x1, 10**9, 0), (1410, 0x20 | 0x4 | 0x1, 3 * 10**9, 5 * 10**8)])
    state = {}

    def clock(handle, kind):
        state["now"] = next(readings)
        return state["now"][0]

    fake = SimpleNamespace(
        NVML_CLOCK_SM=1,
        nvmlDeviceGetClockInfo=clock,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: state["now"][1],
        nvmlDeviceGetViolationStatus=lambda handle, policy: SimpleNamespace(violationTime=state["now"][2 + policy]),
    )
    monkeypatch.setattr(nvml, "open_gpu", lambda index: (fake, None))
    clocks = nvml.GpuClocks(0)
    told = clocks.between(clocks.read(), clocks.read(), 10.0)
    assert told == {
        "gpu_mhz": 1410,
        "gpu_reasons": ["software power cap", "software thermal slowdown"],
        "gpu_heat_share": 0.05,
        "gpu_power_share": 0.2,
    }
    row = host_columns([{"host": "a", "cpus": [0], "own_s": 1, "load": None, "cpu": None} | told])
    assert row["gpu_throttle_reasons"] == "software power cap, software thermal slowdown" and row["gpu_mhz_min"] == 1410
    fake.nvmlDeviceGetViolationStatus = None  # a GPU that does not tell: its other columns stay
    readings = iter([(1980, 0, 0, 0), (1980, 0, 0, 0)])
    clocks = nvml.GpuClocks(0)
    assert clocks.between(clocks.read(), clocks.read(), 1.0) == {"gpu_mhz": 1980, "gpu_reasons": []}
    assert nvml.GpuClocks.between({}, {}, 1.0) == {}


def test_without_nvml_there_is_nothing_and_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.GpuClocks(0).read() == {} and nvml.GpuClocks(None).read() == {}
