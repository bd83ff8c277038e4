"""What a step's time goes into, operation by operation: torch's profiler around steps that are run for it alone.

They follow the last step, on its batch again, when everything else is measured: the profiler costs small operations
as much again, so its times say where a difference lies, and the timed steps how large it is.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch.distributed as dist
from torch._C._autograd import DeviceType

from .device import Device
from .host_waits import Wait, Waits

COLUMNS = ("rank", "part", "op", "calls", "time_s", "device_time_s")
CLOCK = "scalade::clock"  # an event at a known time
KINDS = {"comm": "collectives", "bubble": "pipeline"}  # of waits


def profile(step: Callable[[], object], steps: int, pipeline: bool, waits_on_host: bool, device: Device) -> dict:
    """Columns of `ops`, all ranks', on rank 0 (elsewhere of this rank's). Collective.

    step: one training step, the same on every rank. pipeline, waits_on_host: the engine's, as for bench.host_waits.
    Self times: an operation's own, without what it calls. Those that this thread computes add up, with Python and
    waiting between them, to the row of part `step`.
    """
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as torch_profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.cuda
    waits = Waits(pipeline) if waits_on_host else None
    step()  # what an evaluation or a checkpoint left to be done is done
    with waits or nullcontext(), torch_profile(activities=activities, acc_events=True) as found:
        device.finish()
        if waits:
            waits.found.clear()
        with record_function(CLOCK):
            origin = time.perf_counter()
        begin = device.mark()
        for _ in range(steps):
            step()
        end = device.mark()
        device.finish()
    events = found.events()
    rows = list(_operations(events, device.cuda))
    if waits:
        rows += _waiting(waits, events, origin)
    rows.append(("step", "step", steps, device.between_s(begin, end), None))
    rank = dist.get_rank() if dist.is_initialized() else 0
    mine = [
        (rank, part, op, calls / steps, time_s / steps, None if device_s is None else device_s / steps)
        for part, op, calls, time_s, device_s in rows
    ]
    every: list[Any] = [mine]
    if dist.is_initialized():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
    return dict(zip(COLUMNS, zip(*(row for one in every for row in one), strict=True), strict=True))


def _waiting(waits: Waits, events, origin: float) -> Iterator[tuple]:
    """The rows of what this thread waited for, by kind."""
    for kind, op in KINDS.items():
        waited = [wait for wait in waits.found if wait.kind == kind]
        if waited:
            seconds = sum(wait.end - wait.begin for wait in waited) - _computed_in(waited, events, origin)
            yield "wait", op, len(waited), max(seconds, 0.0), None


def _computed_in(waits: list[Wait], events, origin: float) -> float:
    """Self time of operations inside these waits, s: a wait that is timed from outside (DDP's) holds some.

    origin: time.perf_counter of the event CLOCK, since the profiler's clock begins elsewhere.
    """
    (clock,) = (event for event in events if event.name == CLOCK)
    offset = origin - clock.time_range.end / 1e6
    begins = [wait.begin for wait in waits]
    total = 0.0
    for event in events:
        if _is_operation(event) and not event.is_async:
            wait = waits[max(bisect_right(begins, event.time_range.start / 1e6 + offset) - 1, 0)]
            if wait.begin <= event.time_range.start / 1e6 + offset < wait.end:
                total += event.self_cpu_time_total / 1e6
    return total


def _is_operation(event) -> bool:
    # A user's annotation is the time of the Python inside, of which nothing else is known either; and an event of
    # the device is counted with the operation that started it.
    return not event.is_user_annotation and event.device_type == DeviceType.CPU


def _operations(events, cuda: bool) -> Iterator[tuple]:
    """(part, op, calls, time_s, device_time_s) summed over the profiled steps, the longest first."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for event in events:
        if not _is_operation(event):
            continue
        one = sums["background" if event.is_async else "op", event.name]
        one[0] += 1
        one[1] += event.self_cpu_time_total / 1e6
        one[2] += event.self_device_time_total / 1e6
    for (part, name), (calls, time_s, device_s) in sorted(sums.items(), key=lambda item: -item[1][1]):
        yield part, name, calls, time_s, device_s if cuda else None
