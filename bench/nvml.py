"""One GPU through NVML: its energy counter, its clock and why that was held down. Null where NVML has no answer."""

from __future__ import annotations

import contextlib
from typing import Any

REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""nvmlClocksEventReason... of nvml.h that hold down the clock of a busy GPU: not idling, nor a setting."""
POWER, THERMAL = 0, 1  # NVML_PERF_POLICY_...


def open_gpu(cuda_index: int) -> tuple[Any, Any]:
    """(pynvml, handle) of the GPU that torch calls so. Raises whatever is missing."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(cuda_index).uuid}")


class GpuClocks:
    """Reads the clock, the reasons and the time for which heat and power held it down."""

    def __init__(self, cuda_index: int | None) -> None:
        self._gpu = None
        if cuda_index is not None:
            with contextlib.suppress(Exception):  # no package, no driver, or a slice
                self._gpu = open_gpu(cuda_index)

    def read(self) -> dict[str, float]:
        if self._gpu is None:
            return {}
        nvml, handle = self._gpu
        queries = {
            "mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
            "power_ns": lambda: nvml.nvmlDeviceGetViolationStatus(handle, POWER).violationTime,
            "heat_ns": lambda: nvml.nvmlDeviceGetViolationStatus(handle, THERMAL).violationTime,
        }
        reading = {}
        for name, query in queries.items():
            with contextlib.suppress(Exception):  # what a GPU cannot answer costs that column only
                reading[name] = query()
        return reading

    @staticmethod
    def between(begin: dict[str, float], end: dict[str, float], seconds: float) -> dict[str, object]:
        """Of two readings so many seconds apart."""
        columns: dict[str, object] = {}
        both = begin.keys() & end.keys()
        if "mhz" in both:
            columns["gpu_mhz"] = min(begin["mhz"], end["mhz"])
        if "reasons" in both:
            seen = int(begin["reasons"]) | int(end["reasons"])
            columns["gpu_reasons"] = [name for bit, name in REASONS.items() if seen & bit]
        for name in ("heat", "power"):
            if f"{name}_ns" in both and seconds > 0:
                columns[f"gpu_{name}_share"] = (end[f"{name}_ns"] - begin[f"{name}_ns"]) / 1e9 / seconds
        return columns
