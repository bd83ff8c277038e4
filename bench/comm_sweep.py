"""A sweep over collectives and message sizes: the rows of the table `comm`.

Each size: a call whose result is checked, warm-up calls, the timed calls, a call whose result is checked again. Before
each timed call the ranks meet at a barrier; its time is that of the slowest rank of all groups, and what is kept is
the median over the calls. A wrong result has no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..results.links import bus_factor
from .collectives import KINDS, Collective, Transport


@dataclass(frozen=True)
class CommSweep:
    """What is measured. Sizes are rounded down to what the group can share; their column has what was sent."""

    collectives: tuple[str, ...] = tuple(KINDS)
    sizes_bytes: tuple[int, ...] = (1024, 16384, 262144, 4194304)
    dtype: str = "float32"
    iterations: int = 20  # timed calls of each size, fewer where they would take longer than seconds_per_size
    warmup: int = 5
    seconds_per_size: float = 5.0


MIN_ITERATIONS = 3


class Ranks(Protocol):
    """All ranks of the world, whatever moves the messages."""

    def barrier(self) -> None: ...

    def slowest(self, seconds: Sequence[float]) -> list[float]:
        """Maximum over the ranks, element by element."""

    def settle(self) -> None:
        """Wait until what was called is done (a GPU)."""


@dataclass(frozen=True)
class Dimension:
    """Groups along one dimension of a mesh; this rank is in one of them."""

    name: str
    transport: Transport
    groups: int


def sweep(
    asked: CommSweep,
    dimensions: Sequence[Dimension],
    ranks: Ranks,
    device: str = "cpu",
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """The rows, on every rank alike; collective. told: called with each row as it is measured."""
    rows = []
    for dimension, kind, size in points(asked, dimensions):
        rows.append(_measure(asked, dimension, kind, size, ranks, device))
        on_row(rows[-1])
    return rows


def points(asked: CommSweep, dimensions: Sequence[Dimension]) -> Iterator[tuple[Dimension, str, int]]:
    """(dimension, collective, bytes), each once."""
    item = getattr(torch, asked.dtype).itemsize
    for dimension in dimensions:
        for kind in asked.collectives:
            n = dimension.transport.size if KINDS[kind].cut else 1
            for elements in dict.fromkeys(max(1, size // (item * n)) * n for size in asked.sizes_bytes):
                yield dimension, kind, elements * item


def _measure(asked: CommSweep, dim: Dimension, kind: str, size: int, ranks: Ranks, device: str) -> dict[str, Any]:
    dtype = getattr(torch, asked.dtype)
    collective = KINDS[kind](dim.transport, size // dtype.itemsize, dtype, device)
    row: dict[str, Any] = {
        "dim": dim.name,
        "collective": kind,
        "message_bytes": size,
        "group_ranks": dim.transport.size,
        "groups": dim.groups,
        "dtype": asked.dtype,
    }
    row["first_s"], right = _checked(collective, ranks)
    if right:
        collective.clear()
        most = max(1, int(asked.seconds_per_size / row["first_s"]))
        warm = _timed(collective, ranks, min(asked.warmup, most))
        last = warm[-1] if warm else row["first_s"]
        affordable = max(MIN_ITERATIONS, int(asked.seconds_per_size / last))
        times = _timed(collective, ranks, min(asked.iterations, affordable))
        _, right = _checked(collective, ranks)
    row["correct"] = right
    if right:
        time_s = float(np.median(times))
        row |= {
            "iterations": len(times),
            "time_s": time_s,
            "time_min_s": min(times),
            "time_p95_s": float(np.quantile(times, 0.95)),
            "algbw_bytes_per_s": size / time_s,
            "busbw_bytes_per_s": size / time_s * bus_factor(kind, dim.transport.size),
        }
    return row


def _checked(collective: Collective, ranks: Ranks) -> tuple[float, bool]:
    """(seconds, whether every rank's result is right)."""
    collective.fill()
    seconds = _once(collective, ranks)
    slowest, wrong = ranks.slowest([seconds, 0.0 if collective.right() else 1.0])
    return slowest, not wrong


def _timed(collective: Collective, ranks: Ranks, count: int) -> list[float]:
    return ranks.slowest([_once(collective, ranks) for _ in range(count)]) if count else []


def _once(collective: Collective, ranks: Ranks) -> float:
    ranks.settle()
    ranks.barrier()
    begin = time.perf_counter()
    collective.call()
    ranks.settle()
    return time.perf_counter() - begin


def wrong_result(rows: Sequence[dict[str, Any]], backend: str) -> str | None:
    """The first wrong result, in words."""
    for row in rows:
        if not row["correct"]:
            where = f"along {row['dim']} of {row['group_ranks']} ranks"
            return f"{row['collective']} of {row['message_bytes']} bytes over {backend} {where} gave a wrong result"
    return None
