"""Energy counters that go round, peaks that are known or null, marks in time."""

import subprocess
import sys
import time

import pytest
import torch

from scalade.bench import energy
from scalade.bench.device import DATASHEET, Device, peak_resident_bytes
from scalade.bench.energy import EnergyMeter
from scalade.bench.environment import environment_columns
from scalade.results.schema.columns import RUNS

COLUMNS = {column.name for group in RUNS.values() for column in group}


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """Sets a package's counter, in microjoules; two packages, a subzone and a package that cannot be read."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl:10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")
        (tmp_path / name / "energy_uj").write_text("0\n")
    (tmp_path / "intel-rapl:2").mkdir()
    (tmp_path / "intel-rapl:2" / "max_energy_range_uj").write_text("1000000000\n")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    return lambda name, microjoules: (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_are_added_up_without_their_parts(powercap):
    meter = EnergyMeter(None, local_rank=0)
    powercap("intel-rapl:0", 5_000_000)
    meter.start()
    powercap("intel-rapl:0", 12_000_000)
    powercap("intel-rapl:0:0", 900_000_000)  # a part of package 0: counted there
    powercap("intel-rapl:1", 1_500_000)
    powercap("intel-rapl:10", 250_000)
    assert meter.source == "rapl"
    assert meter.read_j() == pytest.approx(7 + 1.5 + 0.25)


def test_a_counter_that_goes_round_is_put_right(powercap):
    powercap("intel-rapl:0", 999_000_000)
    meter = EnergyMeter(None, local_rank=0)
    meter.start()
    powercap("intel-rapl:0", 3_000_000)
    assert meter.read_j() == pytest.approx(4.0)


def test_one_rank_of_a_host_answers_for_its_packages(powercap):
    meter = EnergyMeter(None, local_rank=1)
    meter.start()
    assert meter.read_j() is None and meter.source is None


def test_a_counter_that_fails_later_is_null_and_ends_no_run(powercap, tmp_path):
    meter = EnergyMeter(None, local_rank=0)
    meter.start()
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.read_j() is None


def test_no_counters_is_null(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "nothing")
    meter = EnergyMeter(None, local_rank=0)
    meter.start()
    assert meter.read_j() is None and meter.source is None


@pytest.fixture
def named(monkeypatch):
    def device(name: str | None) -> Device:
        monkeypatch.setattr(Device, "name", name)
        return Device("cpu")

    return device


@pytest.mark.parametrize(
    "name", [None, "NVIDIA GeForce RTX 4090", "Tesla V100-SXM2-16GB", "NVIDIA A10", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_an_unknown_device_has_no_peak(named, name):
    assert named(name).peak_flops("bf16", measure=False) == (None, None)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
    ],
)
def test_names_as_drivers_tell_them_find_their_peak(named, name, bf16):
    assert named(name).peak_flops("bf16", measure=True) == (bf16, "datasheet")


def test_no_name_of_the_datasheet_hides_a_later_one():
    names = [name for name, _ in DATASHEET]
    for i, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:i]), name


def test_a_measured_peak_is_one_this_device_reached(named):
    peak, source = named(None).peak_flops("fp32", measure=True)
    a = torch.ones(256, 256)
    begin = time.perf_counter()
    torch.mm(a, a)
    once = 2 * 256**3 / (time.perf_counter() - begin)
    assert source == "measured matmul" and 1e8 < peak < 1e14 and peak > once / 20


def test_marks_are_seconds():
    device = Device("cpu")
    begin = device.mark()
    time.sleep(0.02)
    assert 0.02 <= device.between_s(begin, device.mark()) < 5


def test_the_environment_fills_columns_of_the_table():
    row = environment_columns(Device("cpu"))
    assert set(row) <= COLUMNS
    assert row["device_type"] == "cpu" and row["device_name"] is None and row["driver_version"] is None
    assert row["torch_version"] == torch.__version__ and row["cpu_count"] >= 1 and row["host_memory_bytes"] > 2**20


def test_peak_memory_is_this_programs_and_not_its_parents():
    """A supervisor of 1 GB has ranks of their own size: ru_maxrss would have given each of them its gigabyte."""
    starter = (
        "import subprocess, sys\nheld = bytearray(2**30)\nheld[::4096] = b'1' * (2**30 // 4096)\n"
        "code = 'from scalade.bench.device import peak_resident_bytes; print(peak_resident_bytes())'\n"
        "print(subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True).stdout)"
    )
    peak = int(subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert 2**26 < peak < 2**30
    before = peak_resident_bytes()
    held = bytearray(2**27)
    held[::4096] = b"1" * (2**27 // 4096)
    assert peak_resident_bytes() >= before + 2**26
