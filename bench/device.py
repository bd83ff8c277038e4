"""The device a rank computes on: its clock, its memory, its peak. The one place that tells CPU from GPU."""

from __future__ import annotations

import resource
import time

import torch

# Dense peaks in FLOP/s from the vendors' datasheets, by a part of the device's name; the first match counts.
# fp32 is without TF32, which torch leaves off by default.
DATASHEET: tuple[tuple[str, dict[str, float]], ...] = (
    ("GB200", {"bf16": 2500e12, "fp32": 80e12}),
    ("B200", {"bf16": 2250e12, "fp32": 75e12}),
    ("GH200", {"bf16": 989e12, "fp32": 67e12}),
    ("H200 NVL", {"bf16": 835e12, "fp32": 60e12}),
    ("H200", {"bf16": 989e12, "fp32": 67e12}),
    ("H100 PCIe", {"bf16": 756e12, "fp32": 51e12}),
    ("H100 NVL", {"bf16": 835e12, "fp32": 60e12}),
    ("H100", {"bf16": 989e12, "fp32": 67e12}),
    ("A100", {"bf16": 312e12, "fp32": 19.5e12}),
    ("L40S", {"bf16": 362e12, "fp32": 91.6e12}),
    ("A10G", {"bf16": 70e12, "fp32": 35e12}),
    ("MI300X", {"bf16": 1307e12, "fp32": 163.4e12}),
)


def peak_resident_bytes() -> int:
    """Largest resident memory of this process since its program began.

    From the kernel's VmHWM where there is one. ru_maxrss (getrusage(2)) would not do: a program that was started by
    vfork, as subprocess does, begins with the peak of the process that started it.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


Mark = torch.cuda.Event | float
"""A point in time: on a GPU an event in its stream, on a CPU time.perf_counter."""


def mark(device: torch.device) -> Mark:
    """Now: on a GPU an event in its stream, on a CPU the clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Device:
    """Marks points in time without making the device wait, and reads them later."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.cuda = self.torch.type == "cuda"
        if self.cuda:
            torch.cuda.set_device(self.torch)
            torch.cuda.reset_peak_memory_stats()

    def mark(self) -> Mark:
        return mark(self.torch)

    def between_s(self, begin: Mark, end: Mark) -> float:
        """Seconds between two marks; waits until the device has passed the second."""
        if isinstance(begin, float) and isinstance(end, float):
            return end - begin
        assert not isinstance(begin, float) and not isinstance(end, float)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def finish(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def peak_memory_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.cuda else None

    @staticmethod
    def peak_host_memory_bytes() -> int:
        return peak_resident_bytes()

    @property
    def name(self) -> str | None:
        return torch.cuda.get_device_name() if self.cuda else None

    def peak_flops(self, precision: str, measure: bool) -> tuple[float | None, str | None]:
        """(FLOP/s, source) of this device; (None, None) for one that no datasheet here names, unless measured.

        measure: for such a device, time square matrix products of this precision; the fastest of twelve.
        """
        name = self.name or ""
        for part, peaks in DATASHEET:
            if part in name and " MIG " not in name:  # a slice has a part of the peak
                return peaks[precision], "datasheet"
        return (self._matmul_flops(precision), "measured matmul") if measure else (None, None)

    def _matmul_flops(self, precision: str) -> float:
        size = 8192 if self.cuda else 1024
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=self.torch).to(dtype) for _ in range(2))
        best = float("inf")
        for _ in range(12):
            begin = self.mark()
            torch.mm(a, b)
            best = min(best, self.between_s(begin, self.mark()))
        return 2.0 * size**3 / best
