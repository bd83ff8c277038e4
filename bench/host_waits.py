"""How long a rank's host stands still for communication in a step: the part of it that no computation hid.

Under gloo a collective runs in threads of its own and the rank goes on until it needs the result. Python code (blocking
collectives, FSDP2, the pipeline's schedules, our tensor and context parallelism) then calls `Work.wait`, which is timed
while `Waits` is open. DDP waits in C++, in a callback at the end of the backward pass; it is timed by a callback before
that one and one after it (`time_end_of_backward`), which counts its few microseconds of bookkeeping as waiting.
Collectives inside torch.compile's graphs are waited for where neither looks.

A wait holds the transfer, and before it the time until the slowest of the others has come to the same point. No clock
here separates the two, but the rank that waited least in a step was late and waited for little else than transfers: the
mean over the ranks exceeds it by the time spent waiting for others.

Two kinds are kept apart:
comm     collectives, and messages where there is no pipeline: exposed communication
bubble   receives and sends between the stages of a pipeline, and the first collective over all stages after it, in
         which the stages that finish early wait for the first one. Transfers of activations that nothing hid are in it.

On a GPU the host does not wait, its streams do: nothing is measured there, and what is not measured is null.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .device import Mark

MESSAGES = (12, 13, 14)  # c10d::OpType SEND, RECV, RECVANYSOURCE
_open: Waits | None = None


class Wait(NamedTuple):
    kind: str  # comm, bubble
    begin: float  # time.perf_counter
    end: float


class Waits:
    """Collects this rank's waits while it is open; one at a time in a process.

    pipeline: messages are between stages of a pipeline. A wait costs half a microsecond more than it would.
    """

    def __init__(self, pipeline: bool) -> None:
        self.pipeline = pipeline
        self.kind: str | None = None  # in the place of what the operation says
        self.found: list[Wait] = []

    def __enter__(self) -> Waits:
        global _open
        assert _open is None
        _open = self
        if dist.is_available():
            self._wait = dist.Work.wait
            dist.Work.wait = self._timed(self._wait)  # type: ignore[method-assign]  # until the end of the block
        return self

    def __exit__(self, *error: object) -> None:
        global _open
        _open = None
        if dist.is_available():
            dist.Work.wait = self._wait  # type: ignore[method-assign]

    def _timed(self, wait: Callable) -> Callable:
        clock, note = time.perf_counter, self.note
        message = "bubble" if self.pipeline else "comm"

        def timed(work: Any, *args, **kwargs):  # a dist.Work; torch does not declare _get_op_type
            begin = clock()
            try:
                return wait(work, *args, **kwargs)
            finally:
                note(message if work._get_op_type() in MESSAGES else "comm", begin, clock())

        return timed

    def note(self, kind: str, begin: float, end: float) -> None:
        self.found.append(Wait(self.kind or kind, begin, end))

    def take(self, update_began: Mark | None, update_ended: Mark | None) -> dict[str, float]:
        """This rank's columns of the step that has ended, s; begins the next. Arguments: as StepOutput's.

        Waits after update_ended are the outer step's, which has a clock of its own.
        """
        waits, self.found = self.found, []
        assert not isinstance(update_began, torch.cuda.Event) and not isinstance(update_ended, torch.cuda.Event)
        if update_ended is not None:
            waits = [wait for wait in waits if wait.begin < update_ended]
        columns = {"comm_time_s": _seconds(waits, "comm")}
        if self.pipeline:
            columns["bubble_time_s"] = _seconds(waits, "bubble")
        columns["comm_time_min_s"] = columns["comm_time_s"]  # the record makes a mean of the one and a minimum of this
        if update_began is not None:
            columns["optimizer_wait_s"] = _seconds([wait for wait in waits if wait.begin >= update_began])
        return columns


def _seconds(waits: Iterable[Wait], kind: str | None = None) -> float:
    """Of the waits of that kind; None: of all."""
    return sum((wait.end - wait.begin for wait in waits if kind in (None, wait.kind)), 0.0)


@contextmanager
def _counted(waits: Waits, kind: str) -> Iterator[None]:
    before, waits.kind = waits.kind, kind
    try:
        yield
    finally:
        waits.kind = before


def counted_as(kind: str) -> AbstractContextManager[None]:
    """Around a call: what it waits for is of this kind, whatever the operation."""
    return nullcontext() if _open is None else _counted(_open, kind)


def time_end_of_backward(output: torch.Tensor, waits_there: Callable[[], bool]) -> None:
    """Time what is waited for in C++ by callbacks of the backward pass that begins at `output`, where waits_there()
    says, when it begins, that there is one."""
    if _open is None or not output.requires_grad:
        return
    queue = torch.autograd.Variable._execution_engine.queue_callback

    def on_begin(_: torch.Tensor) -> None:
        if waits_there():
            queue(before_others)  # callbacks run in the order of their queueing, once all gradients are computed

    def before_others() -> None:
        begin = time.perf_counter()

        def after_others() -> None:
            if _open is not None:
                _open.note("comm", begin, time.perf_counter())

        queue(after_others)

    output.register_hook(on_begin)
