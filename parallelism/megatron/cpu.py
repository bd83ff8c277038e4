"""What Megatron-Core needs to run where there is no CUDA device, all of it: for tests and small studies.

Megatron-Core asks for CUDA in places where the CPU and gloo would do. So that the same engine code runs in both
places, its modules are given a `torch` of their own, in which

- `device="cuda"` and `torch.cuda.current_device()` mean the CPU,
- `torch.cuda`'s streams, synchronisation and random states do nothing (there is no dropout: nothing is random),

and two methods of tensors answer its modules alone as on a GPU: `type()` says `torch.cuda.FloatTensor`, by
which its optimizers tell precisions apart, and `cuda()` stays here. torch itself and the arithmetic are left alone.
Where a CUDA device exists this refuses; where a name it replaces is gone (another Megatron-Core) it fails, naming it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types

import torch

FACTORIES = ("arange", "empty", "full", "ones", "tensor", "zeros")
# Modules that make tensors with device="cuda"; each must be there and use `torch`.
MODULES = (
    "distributed.distributed_data_parallel",
    "distributed.param_and_grad_buffer",
    "models.gpt.gpt_model",
    "optimizer",
    "optimizer.clip_grads",
    "optimizer.distrib_optimizer",
    "optimizer.optimizer",
    "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules",
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "tensor_parallel.random",
    "transformer.module",
    "transformer.utils",
    "utils",
)


class NoStream:
    """A stream or an event: everything is done when the call returns."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


class CpuCuda(types.ModuleType):
    """Stands for `torch.cuda`; what it does not replace is torch's own."""

    Stream = Event = NoStream

    def __init__(self) -> None:
        super().__init__("torch.cuda")

    def __getattr__(self, name: str):
        return getattr(torch.cuda, name)

    @staticmethod
    def current_device() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def current_stream(device: object = None) -> NoStream:
        return NoStream()

    default_stream = current_stream

    @staticmethod
    def stream(stream: object) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    @staticmethod
    def nothing(*args: object, **kwargs: object) -> None: ...

    synchronize = empty_cache = manual_seed = set_rng_state = nothing

    @staticmethod
    def get_rng_state(*args: object, **kwargs: object) -> torch.Tensor:
        return torch.empty(0)


def _on_cpu(factory):
    @functools.wraps(factory)
    def make(*args, device=None, **kwargs):
        return factory(*args, device="cpu" if device == "cuda" else device, **kwargs)

    return make


def _torch_for_megatron() -> types.ModuleType:
    stand_in = types.ModuleType("torch")
    vars(stand_in).update(vars(torch))
    for name in FACTORIES:
        setattr(stand_in, name, _on_cpu(getattr(torch, name)))
    # __getattr__: what torch imports lazily
    vars(stand_in).update(cuda=CpuCuda(), __getattr__=lambda name: getattr(torch, name))
    return stand_in


def _asked_by_megatron() -> bool:
    return sys._getframe(2).f_globals.get("__name__", "").startswith("megatron.core")


_type, _cuda = torch.Tensor.type, torch.Tensor.cuda


def _type_as_on_gpu(self, *args, **kwargs):
    name = _type(self, *args, **kwargs)
    if not args and not kwargs and _asked_by_megatron():
        return name.replace("torch.", "torch.cuda.", 1)
    return name


def _cuda_stays(self, *args, **kwargs):
    return self if _asked_by_megatron() else _cuda(self, *args, **kwargs)


def install() -> None:
    """Make Megatron-Core's modules, imported so far, run on the CPU. Again: those imported since, too.

    Raises
    ------
    RuntimeError: there is a CUDA device, or this Megatron-Core lacks a name that is replaced
    """
    if torch.cuda.is_available():
        raise RuntimeError("there is a CUDA device: Megatron-Core needs no help here")
    for name in MODULES:
        module = importlib.import_module(f"megatron.core.{name}")
        if getattr(vars(module).get("torch"), "__name__", None) != "torch":
            raise RuntimeError(f"megatron.core.{name}.torch is gone: this Megatron-Core cannot run on a CPU here")
    random = sys.modules["megatron.core.tensor_parallel.random"]
    for name, nothing in (("_get_cuda_rng_state", CpuCuda.get_rng_state), ("_set_cuda_rng_state", CpuCuda.nothing)):
        if not hasattr(random, name):
            raise RuntimeError(f"{random.__name__}.{name} is gone: this Megatron-Core cannot run on a CPU here")
        setattr(random, name, nothing)
    stand_in = _torch_for_megatron()
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and vars(module).get("torch") is torch:
            vars(module)["torch"] = stand_in
    for name, method in (("type", _type_as_on_gpu), ("cuda", _cuda_stays)):
        setattr(torch.Tensor, name, method)
