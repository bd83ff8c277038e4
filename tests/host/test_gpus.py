"""What CUDA would show a rank, read off a planted nvidia-smi: by index, UUID and MIG name, and what each has."""

import itertools
import stat

import pytest

from scalade.launch.host import gpus, machine
from scalade.launch.host.placement import Placement
from scalade.launch.process.rank_environment import child_environment
from scalade.launch.study.study import load_study

A, B, C = "GPU-aaaa1111-0000", "GPU-bbbb2222-0000", "GPU-bbbb3333-0000"
CARDS = ((A, "16384", "Disabled"), (B, "81920", "Disabled"), (C, "40960", "Disabled"))  # as the bus has them
SLICED = ((A, "81920", "Enabled"), (B, "40960", "Disabled"))
LIST = f"""GPU 0: NVIDIA A100-SXM4-80GB (UUID: {A})
  MIG 3g.40gb     Device  0: (UUID: MIG-c6d4f1ef-42e4)
  MIG 1g.10gb     Device  1: (UUID: MIG-cba663e8-9bed)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})
"""
OLD_LIST = f"GPU 0: A100 (UUID: {A})\n  MIG 1g.5gb Device 0: (UUID: MIG-{A}/7/0)\n"
XML = f"""<?xml version="1.0" ?><nvidia_smi_log><gpu id="0"><uuid>{A}</uuid><mig_devices>
<mig_device><index>0</index><gpu_instance_id>2</gpu_instance_id><compute_instance_id>0</compute_instance_id>
<fb_memory_usage><total>40192 MiB</total></fb_memory_usage></mig_device>
<mig_device><index>1</index><gpu_instance_id>9</gpu_instance_id><compute_instance_id>0</compute_instance_id>
<fb_memory_usage><total>9728 MiB</total></fb_memory_usage></mig_device>
</mig_devices></gpu></nvidia_smi_log>"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Plants an nvidia-smi and clears what chooses among its cards."""
    number = itertools.count()

    def plant(cards, listed="", xml="", fields=3):
        folder = tmp_path / str(next(number))  # what a path says is asked once
        folder.mkdir()
        rows = "\n".join(", ".join(card[:fields]) for card in cards)
        file = folder / "nvidia-smi"
        answers = {"l": listed, "x": xml, "q": rows}
        for name, text in answers.items():
            (folder / name).write_text(text)
        refuses = 'case "$1" in *mig.mode*) echo not a valid field; exit 2;; esac; ' if fields < 3 else ""
        file.write_text(
            f'#!/bin/sh\n{refuses}case "$1" in -L) cat {folder}/l;; -q) cat {folder}/x;; *) cat {folder}/q;; esac\n'
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    for name in (gpus.CHOSEN, gpus.ORDER):
        monkeypatch.delenv(name, raising=False)
    return plant


def seen(monkeypatch, chosen, order=None):
    for name, value in ((gpus.CHOSEN, chosen), (gpus.ORDER, order)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    devices = [round(device.memory_bytes / 2**30) for device in gpus.visible_devices()]
    assert machine.gpus() == len(devices) and machine.gpu_memory_bytes() == min(
        (device.memory_bytes for device in gpus.visible_devices()), default=None
    )
    return devices


@pytest.mark.parametrize(
    "chosen, gib",
    [
        ("0", [16]),
        ("1", [80]),
        ("2", [40]),
        ("2,1", [40, 80]),
        (" 1 , 2", [80, 40]),
        ("+1", [80]),
        ("1gpu,2", [80, 40]),
        ("", []),
        ("-1", []),
        ("-1,0", []),
        ("1,-1,0", [80]),
        ("3", []),
        ("1,3,0", [80]),
        ("1,GPU-aaaa", [80]),
        ("1,1", []),
        ("none", []),
        ("NoDevFiles", []),
        (A, [16]),
        (f"{C},{A}", [40, 16]),
        ("GPU-aaaa", [16]),
        ("GPU-bbbb3", [40]),
        ("GPU-bbbb", []),  # of two: of none
        (f"{B},GPU-cccc,{A}", [80]),
        (f"{B},0", [80]),
        (f"{B},{B}", []),
        (f"{B},GPU-bbbb2", []),
        ("MIG-c6d4f1ef", []),
    ],
)
def test_of_three_cards(smi, monkeypatch, chosen, gib):
    smi(CARDS)
    assert seen(monkeypatch, chosen, "PCI_BUS_ID") == gib == seen(monkeypatch, chosen)


def test_in_an_order_that_only_cuda_knows_a_card_has_what_every_card_has(smi, monkeypatch):
    smi(CARDS)
    assert seen(monkeypatch, None, "PCI_BUS_ID") == [16, 80, 40]
    assert seen(monkeypatch, None) == seen(monkeypatch, None, "FASTEST_FIRST") == [16, 16, 16]
    assert seen(monkeypatch, "1", "FASTEST_FIRST") == [16] and seen(monkeypatch, B, "FASTEST_FIRST") == [80]


def test_ranks_count_the_cards_as_the_plan_does():
    place = Placement("local", 0, 1, 0, 1)

    def order(**env):
        return child_environment(env, place, "127.0.0.1", 5, threads=1).get("CUDA_DEVICE_ORDER")

    assert order(CUDA_VISIBLE_DEVICES="1") == "PCI_BUS_ID" and order(CUDA_VISIBLE_DEVICES=A) is None is order()
    assert order(CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="FASTEST_FIRST") == "FASTEST_FIRST"


@pytest.mark.parametrize(
    "chosen, bytes_",
    [
        ("MIG-c6d4f1ef-42e4", 40192 * 2**20),
        ("MIG-cba", 9728 * 2**20),
        ("MIG-c", None),
        (f"MIG-{A}/9/0", 9728 * 2**20),
        ("MIG-cba,MIG-c6d", 9728 * 2**20),
        ("0", 40192 * 2**20),
        ("1", 40960 * 2**20),
        ("1,0", 40192 * 2**20),
        (A, 40192 * 2**20),
        (None, 40192 * 2**20),
    ],
)
def test_of_slices_a_process_sees_one(smi, monkeypatch, chosen, bytes_):
    smi(SLICED, LIST, XML)
    if chosen is not None:
        monkeypatch.setenv(gpus.CHOSEN, chosen)
    assert machine.gpus() == (bytes_ is not None) and machine.gpu_memory_bytes() == bytes_


def test_a_slice_that_only_its_profile_tells_of(smi, monkeypatch):
    smi(SLICED, LIST, "no xml")
    monkeypatch.setenv(gpus.CHOSEN, "MIG-cba663e8-9bed")
    assert machine.gpu_memory_bytes() == 10 * 10**9
    smi(SLICED[:1], OLD_LIST)
    monkeypatch.setenv(gpus.CHOSEN, f"MIG-{A}/7/0")
    assert machine.gpu_memory_bytes() == 5 * 10**9
    smi(SLICED[:1], f"GPU 0: A100 (UUID: {A})\n")  # cut, but into nothing
    monkeypatch.setenv(gpus.CHOSEN, "0")
    assert machine.gpus() == 0


def test_drivers_that_know_less(smi, monkeypatch):
    smi(CARDS, fields=2)
    monkeypatch.setenv(gpus.CHOSEN, "1")
    assert machine.gpu_memory_bytes() == 81920 * 2**20
    smi(((A, "[N/A]", "[N/A]"),))  # its memory is the host's
    monkeypatch.setenv(gpus.CHOSEN, "0")
    assert machine.gpus() == 1 and machine.gpu_memory_bytes() is None
    smi(())
    assert machine.gpus() == 0 and machine.gpu_memory_bytes() is None
    smi((("NVIDIA-SMI has failed because it could not communicate with the driver", "1", "Disabled"),))
    assert gpus.visible_devices() is None and machine.gpu_memory_bytes() is None


def test_a_case_is_held_against_the_devices_that_it_would_use(smi, tmp_path, monkeypatch):
    smi(((A, "81920", "Disabled"), (B, "8192", "Disabled")))
    (tmp_path / "t.toml").write_text(
        'model = {size = "diloco-1.3b", vocab = 32768}\nrecipe = {global_batch = 8}\nbudget = {steps = 3}\n'
        'layout = {dp_replicate = [1, 2]}\nrun = {device = "cuda"}\n'
    )

    def skipped(chosen):
        monkeypatch.setenv(gpus.CHOSEN, chosen)
        return [planned.skip_reason for planned in load_study(tmp_path / "t.toml").cases()]

    alone, both = skipped("0,1")
    assert alone is None and "there are 8192.0 MiB of the GPU" in both
    assert all("8192.0 MiB" in reason for reason in skipped("1,0"))
    assert skipped("0") == [None, "needs 2 ranks, this machine has 1 GPUs"]
    assert "8192.0 MiB" in skipped("GPU-bbbb")[0]
