"""Between two cases of a warm rank: what the first may have left behind is put back, or the rank does not go on.

Put back: environment, current folder, threads, random state, default dtype and device, gradient mode, determinism,
torch's compile caches, what torch.distributed remembers of meshes whose groups are gone, the allocator's cache and the
peaks of memory. Looked for: a process group that stands, threads that run on, and functions of torch that are not what
they were (an engine that patches them); a rank that finds one of these leaves the pool.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import sys
import threading
from contextlib import suppress
from types import ModuleType

LOOKED_AT = ("torch", "torch.nn.functional", "torch.distributed", "torch.cuda", "torch.optim", "torch.utils.checkpoint")
CLASSES = ("Tensor", "nn.Module", "nn.Linear", "optim.Optimizer", "autograd.Function")


class Before:
    """The state of this process before a case; call it when torch has been imported."""

    def __init__(self) -> None:
        import torch

        self.env, self.folder, self.threads = dict(os.environ), os.getcwd(), set(threading.enumerate())
        self.dtype, self.grad = torch.get_default_dtype(), torch.is_grad_enabled()
        self.deterministic, self.intra_op = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
        self.functions = _functions()

    def put_back(self) -> str | None:
        """What could not be put back, in words; None: the next case may come."""
        import torch
        import torch.distributed as dist

        left = "a process group was left standing" if dist.is_initialized() else None
        os.environ.clear()
        os.environ.update(self.env)
        os.chdir(self.folder)
        torch.set_default_dtype(self.dtype)
        torch.set_default_device(None)
        torch.set_grad_enabled(self.grad)
        torch.use_deterministic_algorithms(self.deterministic)
        torch.set_num_threads(self.intra_op)
        if replaced := self._replaced():
            left = f"{replaced} is not what it was"
        _reset_seeds()
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        gc.unfreeze()  # main.py froze what had been imported, and what an earlier case left
        _forget_meshes()
        gc.collect()
        _reset_memory()
        threads = [thread.name for thread in threading.enumerate() if thread not in self.threads and not thread.daemon]
        return left or (f"thread {threads[0]} runs on" if threads else None)

    def _replaced(self) -> str | None:
        """Name of a function of torch that another has taken the place of."""
        for name, now in _functions().items():
            if self.functions.get(name, now) is not now and not _of_torch(now):
                return name
        return None


def _reset_seeds() -> None:
    import torch

    torch.manual_seed(0)
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def _reset_memory() -> None:
    """Peaks of memory are those of the next case."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak of resident memory starts from what is resident now (proc(5))


def _functions() -> dict[str, object]:
    """Public functions and classes of torch, by name."""
    import torch

    functions: dict[str, object] = {}
    owners: list[tuple[str, object]] = [(name, sys.modules[name]) for name in LOOKED_AT if name in sys.modules]
    owners += [(f"torch.{name}", functools.reduce(getattr, name.split("."), torch)) for name in CLASSES]
    for name, owner in owners:
        functions |= {f"{name}.{key}": value for key, value in vars(owner).items() if _is_public(key, value)}
    return functions


def _is_public(name: str, value: object) -> bool:
    return callable(value) and not name.startswith("__") and not isinstance(value, ModuleType)


def _of_torch(what: object) -> bool:
    """Torch wraps some of its own functions when more of it is imported; code tells, a wrapper may bear any name."""
    import torch

    if code := getattr(what, "__code__", None):
        return code.co_filename.startswith(os.path.dirname(torch.__file__))
    return (getattr(what, "__module__", None) or "torch").startswith("torch")


def _forget_meshes() -> None:
    """A mesh compares equal to one of the same ranks whose groups are gone: a cache may give one for the other.

    A precaution: FSDP2 and tensor parallel in turns ran on torch 2.13 without it, too.
    """
    import torch

    for each in gc.get_objects():
        # not isinstance: it asks the object, and some of torch's answer with a warning
        if type(each) is functools._lru_cache_wrapper and (each.__module__ or "").startswith("torch.distributed"):
            each.cache_clear()
    for name in ("_clear_DTensor_sharding_propagator_cache",):
        getattr(torch._C, name, lambda: None)()
