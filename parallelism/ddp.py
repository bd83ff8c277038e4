"""torch's DDP (arXiv 2006.15704) without torch.compile's front end, where nothing is compiled.

Its constructor and its forward pass import torch._dynamo for questions that matter to torch.compile alone. That
import is most of a rank's start-up beside torch itself (measured in docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..bench.host_waits import time_end_of_backward


class EagerDDP(DistributedDataParallel):
    # torch's marks the module for the compiler to find, and is declared to return contextlib's private class.
    def _inside_ddp_forward(self) -> contextlib.AbstractContextManager:  # type: ignore[override]
        return contextlib.nullcontext()


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """The constructor's question to the compiler, answered with torch's default: the C++ reducer."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    answer = SimpleNamespace(utils=SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer"))
    vars(torch)["_dynamo"] = answer
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is answer:
            del torch._dynamo  # the next access imports torch's own


def replicated(model: nn.Module, group: dist.ProcessGroup | None, compiled: bool) -> DistributedDataParallel:
    """`model` in DDP over `group`; its parameters are already the same on all ranks. compiled: parts of it are."""
    wrapped = _wrap(DistributedDataParallel, model, group) if compiled else _eager(model, group)
    wrapped.register_forward_hook(_time_its_wait)
    return wrapped


def _wrap(
    kind: type[DistributedDataParallel], model: nn.Module, group: dist.ProcessGroup | None
) -> DistributedDataParallel:
    return kind(model, process_group=group, gradient_as_bucket_view=True, init_sync=False)


def _eager(model: nn.Module, group: dist.ProcessGroup | None) -> DistributedDataParallel:
    try:
        with _answered():
            return _wrap(EagerDDP, model, group)
    except AttributeError:  # a newer torch that asks for more
        return _wrap(DistributedDataParallel, model, group)


def _time_its_wait(model: DistributedDataParallel, _: tuple, output: torch.Tensor) -> None:
    time_end_of_backward(output, lambda: model.require_backward_grad_sync)  # false under no_sync
