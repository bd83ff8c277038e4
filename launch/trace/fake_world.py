"""A world of any size in one process: torch's fake process group, fake tensors, and what the engine cannot do on them.

Tensors have shapes and no values, and collectives move nothing. Whatever asks for a value is answered here: the mesh is
made of real (small) tensors, start values are not written, pipelines agree on static shapes without a vote, and DDP
hands its buckets to a collective from Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from ...parallelism import mesh, sharded, torch_engine


@contextmanager
def fake_world(size: int, rank: int) -> Iterator[None]:
    """This process as rank `rank` of `size`; all tensors that are made inside are fake.

    Raises
    ------
    RuntimeError: this process is in a world already
    """
    if dist.is_initialized():
        raise RuntimeError("a trace sets up a process group of its own, and this process has one")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        with ExitStack() as stack:
            for replaced in _replacements():
                stack.enter_context(replaced)
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            yield
    finally:
        dist.destroy_process_group()


def _replacements() -> list[Any]:
    from torch.distributed.pipelining.schedules import _PipelineSchedule

    return [
        patch.object(mesh, "build_mesh", _really(mesh.build_mesh)),
        patch.object(DeviceMesh, "__init__", _really(DeviceMesh.__init__)),
        patch.object(torch_engine, "part_and_offset", lambda parameter: (parameter, ())),
        patch.object(torch_engine, "fill", lambda *args: None),
        patch.object(torch_engine, "replicate", _replicate(sharded.replicate)),
        patch.object(_PipelineSchedule, "_warmup_p2p", _static_shapes),
    ]


def _really(function: Callable[..., Any]) -> Callable[..., Any]:
    """With tensors that have values."""

    def called(*args: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **options)

    return called


def _static_shapes(schedule: Any, stages: list[Any], has_backward: bool, p2p_done: bool) -> None:
    """What the vote of the stages comes to: every stage of the engine states its shapes."""
    from torch.distributed.pipelining._utils import InferenceMode

    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


def _replicate(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """DDP's own collective is called from C++ and would look for its result there."""

    def called(*args: Any) -> nn.Module:
        model = function(*args)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.register_comm_hook(model.process_group, _reduce)
            model.reducer = _OneBucket(model.reducer)  # type: ignore[assignment]
        return model

    return called


class _OneBucket:
    """DDP's reducer, which after the first step cuts its one bucket by values that the ranks exchange in C++: here it
    keeps the one, so that the bytes are right and the calls are not."""

    def __init__(self, reducer: Any) -> None:
        self.reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _reduce(group, bucket):  # DDP refuses annotations that are text
    dist.all_reduce(bucket.buffer(), group=group)
    done: torch.futures.Future = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done
