"""Durations that a step of the host's clock does not bend: Unix time once, at a start, then the monotonic clock.

CLOCK_MONOTONIC is one for all processes of a host since it booted (clock_gettime(2)), in one time namespace
(time_namespaces(7)); kernels before 5.6 have no such namespaces. The clock's id says which: between two hosts there
are only Unix times to go by.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Moment:
    """A point in time."""

    at: float  # Unix time, s
    monotonic: float = 0.0  # s, of the clock `clock`
    clock: str = ""  # empty: only the Unix time is known

    @classmethod
    def now(cls) -> Moment:
        return cls(time.time(), time.monotonic(), clock_id())

    def elapsed_s(self) -> float:
        """Since then; never below 0."""
        if self.clock and self.clock == clock_id():
            return max(0.0, time.monotonic() - self.monotonic)
        return max(0.0, time.time() - self.at)

    def time_now(self) -> float:
        """Unix time now, by the clock as it stood then: the difference of two of these is a duration."""
        return self.at + self.elapsed_s()


@lru_cache(maxsize=1)
def clock_id(root: Path = Path("/")) -> str:
    """Of this process's monotonic clock; empty where the kernel does not say."""
    try:
        boot = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    try:
        return f"{boot} {os.readlink(root / 'proc/self/ns/time')}"
    except FileNotFoundError:
        return boot
    except OSError:
        return ""
