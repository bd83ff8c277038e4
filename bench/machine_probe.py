"""Micro-benchmarks of a device: products, attention, copies, a block of the model, the cost of a dispatched operation.

Each is repeated until its share of the time is used up, at least three times; what is kept is the lower quartile, as
other work on the machine only ever adds. Where a CPU computes in one thread, the clock is that thread's processor time,
which counts waits for memory but not the time in which other programs had the core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from .device import Device, Mark
from .model import COMPUTE_DTYPES, Decoder
from .shape import ModelShape

LEAST = 3  # repeats
MOST = 200
QUANTILE = 0.25
LAUNCHES = 200  # kernels in a row, on a GPU
COPY_BYTES = 64 * 2**20  # beyond the caches of a core


class Stopwatch:
    """Time of computation that waits for no other rank."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.alone = not device.cuda and torch.get_num_threads() == 1

    def mark(self) -> Mark:
        return time.thread_time() if self.alone else self.device.mark()

    def since_s(self, begin: Mark) -> float:
        return self.device.between_s(begin, self.mark())


def repeated(device: Device, call: Callable[[], object], seconds: float) -> float:
    """Seconds of one call."""
    call()
    device.finish()
    times: list[float] = []
    watch, until = Stopwatch(device), time.perf_counter() + seconds
    while len(times) < LEAST or (time.perf_counter() < until and len(times) < MOST):
        begin = watch.mark()
        call()
        times.append(watch.since_s(begin))
    return float(np.quantile(times, QUANTILE))


def products(
    device: Device, precision: str, shapes: Sequence[tuple[int, int, int]], seconds: float
) -> list[tuple[int, int, int, float]]:
    """(M, N, K, seconds) of each product of (M, K) and (K, N). seconds: for all of them."""
    found, share = [], seconds / max(1, len(shapes))
    for m, n, k in shapes:
        a, b = (torch.randn(size, device=device.torch).to(COMPUTE_DTYPES[precision]) for size in ((m, k), (n, k)))
        out = torch.empty((m, n), device=device.torch, dtype=a.dtype)
        found.append((m, n, k, repeated(device, partial(torch.mm, a, b.t(), out=out), share)))
    return found


def attention(
    device: Device, precision: str, shapes: Sequence[tuple[int, int, int, int]], seconds: float
) -> list[tuple[int, int, int, int, float, float]]:
    """(batch, heads, s, head_dim, seconds forward, backward) of causal attention. seconds: for all of them."""
    found, share = [], seconds / max(1, 2 * len(shapes))
    for shape in shapes:
        q, k, v = (
            torch.randn(shape, device=device.torch).to(COMPUTE_DTYPES[precision]).requires_grad_() for _ in range(3)
        )

        forward = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
        ahead = repeated(device, forward, share)
        grad = torch.ones_like(forward())
        both = repeated(device, partial(_both, forward, grad), share)
        found.append((*shape, ahead, max(both - ahead, 1e-9)))
    return found


def _both(forward: Callable[[], torch.Tensor], grad: torch.Tensor) -> None:
    forward().backward(grad)


def copy_bandwidth(device: Device, seconds: float, nbytes: int = COPY_BYTES) -> float:
    """Bytes/s, read and written."""
    source = torch.ones(nbytes // 4, device=device.torch)
    target = torch.empty_like(source)
    return 2 * nbytes / repeated(device, lambda: target.copy_(source), seconds)


def block(device: Device, precision: str, shape: ModelShape, batch: int, seconds: float) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass of one block of the model, eager."""
    with torch.device(device.torch):
        model = Decoder(shape, precision, layers=[0], first=False, last=False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        model.set_positions(torch.arange(shape.seq_len))
        x = torch.randn(batch, shape.seq_len, shape.width).to(COMPUTE_DTYPES[precision]).requires_grad_()
    grad = torch.ones_like(x)
    ahead = repeated(device, lambda: model(x), seconds / 2)

    def both() -> None:
        model.zero_grad()
        model(x).backward(grad)

    return ahead, max(repeated(device, both, seconds / 2) - ahead, 1e-9)


def launch_cost(device: Device, seconds: float) -> float:
    """Host time of launching one kernel, in a row of them that the device has not reached yet (a GPU)."""
    x = torch.zeros(16, device=device.torch)

    def launch() -> float:
        begin = time.perf_counter()
        for _ in range(LAUNCHES):
            x.add_(1.0)
        spent = time.perf_counter() - begin
        device.finish()
        return spent / LAUNCHES

    launch()
    times, until = [launch()], time.perf_counter() + seconds
    while time.perf_counter() < until and len(times) < MOST:
        times.append(launch())
    return float(np.quantile(times, QUANTILE))
