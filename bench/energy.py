"""Energy counters that the hardware keeps: NVML for NVIDIA GPUs, RAPL for CPU packages. Null where it does not tell."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .nvml import open_gpu

RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules between start() and read(), of what this rank answers for: its GPU, or its host's CPU packages."""

    def __init__(self, cuda_index: int | None, local_rank: int) -> None:
        self.source: str | None = None
        self._counters: list = []
        if cuda_index is not None:
            self._open_nvml(cuda_index)
        elif local_rank == 0:
            self._open_rapl()

    def _open_nvml(self, index: int) -> None:
        with contextlib.suppress(Exception):  # no package, no driver, or a GPU without the counter
            pynvml, handle = open_gpu(index)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            self._counters = [(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, None)]
            self.source = "nvml"

    def _open_rapl(self) -> None:
        for package in sorted(p for p in RAPL.glob("intel-rapl:*") if p.name.count(":") == 1):
            try:
                span = int((package / "max_energy_range_uj").read_text()) / 1e6
                counter = package / "energy_uj"
                counter.read_text()  # often readable by root alone
            except (OSError, ValueError):
                continue
            self._counters.append((lambda counter=counter: int(counter.read_text()) / 1e6, span))
            self.source = "rapl"

    def start(self) -> None:
        self._begin = self._read()

    def _read(self) -> list[float]:
        """Each counter in joules; empty where one cannot be read (any more)."""
        with contextlib.suppress(Exception):  # a counter that fails costs its column, never the run
            return [read() for read, _ in self._counters]
        return []

    def read_j(self) -> float | None:
        """Joules since start(); a counter that went round once is put right."""
        now = self._read()
        if not now or not self._begin:
            return None
        spans = [span for _, span in self._counters]
        return sum(
            end - begin + (span if end < begin and span else 0.0)
            for begin, end, span in zip(self._begin, now, spans, strict=True)
        )
