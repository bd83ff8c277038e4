"""Time of a matrix product (M, N, K): tiles in waves over the device's units, alignment, a short inner dimension.

On a device with units (streaming multiprocessors) a product is cut into tiles of 256 x 128, 128 x 128, 128 x 64 or
64 x 64 elements of the result, whichever is fastest; smaller tiles reuse less (relative efficiency 1, .97, .85, .65).
waves = tiles / units: whole waves up to three, beyond them the fraction and .35 (they overlap).

    time = waves units 2 tile K / (peak efficiency) (1 + half_k / K), at least bytes / bandwidth, at least the floor

N and K that are no multiples of 64 / 32 / 16 / 8 reach .93 / .85 / .72 / .30 of it. Without units (a CPU):

    time = 2 M N K / (peak efficiency) (1 + half_m / M) (1 + half_n / N) (1 + half_k / K)
"""

from __future__ import annotations

import numpy as np

from .configs import Column
from .machine import Machine

TILES = ((256 * 128, 256, 128, 1.0), (128 * 128, 128, 128, 0.97), (128 * 64, 128, 64, 0.85), (64 * 64, 64, 64, 0.65))
OVERLAPPED = 3  # waves, beyond which the last one no longer stands alone
TAIL = 0.35  # of a wave


def product_time(machine: Machine, peak: Column, m: Column, n: Column, k: Column, element: Column) -> np.ndarray:
    """Seconds of one product of (m, k) and (k, n). peak: FLOP/s of its precision; element: bytes."""
    rows, columns, inner = (np.maximum(np.asarray(each, float), 1.0) for each in (m, n, k))
    return _time(machine, peak, rows, columns, inner, np.asarray(element))


def _time(
    machine: Machine, peak: Column, m: np.ndarray, n: np.ndarray, k: np.ndarray, element: np.ndarray
) -> np.ndarray:
    products = machine.products
    speed = np.asarray(peak) * products.efficiency
    begins = (1 + products.half_k / k) * (1 + products.half_m / m) * (1 + products.half_n / n)
    if products.units > 1:
        work = _tiled(m, n, products.units) * 2 * k
        speed = speed * aligned(n) * aligned(k)
    else:
        work = 2 * m * n * k
    moved = (m * k + k * n + m * n) * element / machine.memory_bandwidth
    return np.maximum(np.maximum(work * begins / speed, moved), products.floor_s)


def _tiled(m: np.ndarray, n: np.ndarray, units: int) -> np.ndarray:
    """Elements of the result that are computed for, tiles that are not full and waves that are not counted whole."""
    least: np.ndarray | None = None
    for size, rows, columns, efficiency in TILES:
        waves = np.ceil(m / rows) * np.ceil(n / columns) / units
        waves = np.where(waves > OVERLAPPED, waves + TAIL, np.ceil(waves))
        elements = waves * (units * size / efficiency)
        least = elements if least is None else np.minimum(least, elements)
    assert least is not None
    return least


def aligned(size: np.ndarray) -> np.ndarray:
    """Relative speed of a product by the alignment of one of its dimensions."""
    steps = [size % 64 == 0, size % 32 == 0, size % 16 == 0, size % 8 == 0]
    return np.select(steps, [1.0, 0.93, 0.85, 0.72], 0.30)
