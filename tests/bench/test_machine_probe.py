"""Micro-benchmarks of a device: times that are of what was asked, and a clock that other programs do not lengthen."""

import time

import pytest
import torch

from scalade.bench import machine_probe as probe
from scalade.bench.device import Device
from scalade.bench.shape import ModelShape


@pytest.fixture
def device():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Device("cpu")
    torch.set_num_threads(before)


def test_a_larger_product_takes_longer(device):
    small, large = probe.products(device, "fp32", [(128, 128, 128), (512, 512, 512)], 0.4)
    assert small[:3] == (128, 128, 128) and large[:3] == (512, 512, 512)
    assert 10 * small[3] < large[3] < 640 * small[3]


def test_attention_and_blocks_have_both_passes(device):
    ((*shape, forward, backward),) = probe.attention(device, "fp32", [(2, 2, 64, 16)], 0.2)
    assert shape == [2, 2, 64, 16] and 0 < forward < 1 and 0 < backward < 1
    model = ModelShape(layers=1, heads=2, kv_heads=2, width=32, ffn=64, vocab=64, seq_len=16)
    one, four = (probe.block(device, "fp32", model, batch, 0.5) for batch in (1, 64))
    assert one[0] < four[0] and one[1] < four[1]


def test_the_bandwidth_is_of_bytes_read_and_written(device):
    found = probe.copy_bandwidth(device, 0.3, 16 * 2**20)
    source = torch.ones(4 * 2**20)
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        begin = time.thread_time()
        target.copy_(source)
        times.append(time.thread_time() - begin)
    assert found == pytest.approx(2 * 16 * 2**20 / sorted(times)[5], rel=0.6)


def test_the_clock_of_one_thread_stands_still_while_others_have_the_core(device):
    watch = probe.Stopwatch(device)
    begin = watch.mark()
    time.sleep(0.3)
    assert watch.alone and watch.since_s(begin) < 0.1


def test_the_clock_of_several_threads_is_the_wall(device):
    torch.set_num_threads(2)
    watch = probe.Stopwatch(device)
    begin = watch.mark()
    time.sleep(0.1)
    assert not watch.alone and watch.since_s(begin) >= 0.1


def test_a_launch_is_some_microseconds(device):
    assert 1e-7 < probe.launch_cost(device, 0.1) < 1e-3
