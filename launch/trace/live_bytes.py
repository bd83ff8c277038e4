"""The memory that tensors hold at each moment, without holding any: storages of fake tensors, counted while they live.

What an allocator would have to serve: no rounding, no fragmentation, no context or library.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that operations put out while it is active.

    now, peak: bytes; `peak` is set back by assigning to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}  # by storage
        self.references: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor) and not is_traceable_wrapper_subclass(value):  # a DTensor's parts come
                self._see(value.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes:
            self._resized(key, storage.nbytes())
            return
        self.references[key] = weakref.ref(storage, lambda _: self._gone(key))
        self.sizes[key] = 0
        self._resized(key, storage.nbytes())

    def _resized(self, key: int, nbytes: int) -> None:
        self.now += nbytes - self.sizes[key]
        self.sizes[key] = nbytes
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.references.pop(key, None)
        self.now -= self.sizes.pop(key, 0)

    @contextmanager
    def counting(self) -> Iterator[LiveBytes]:
        """Active, and told of storages that are resized in place (FSDP frees gathered parameters so)."""
        resize: Any = torch.UntypedStorage.resize_

        def told(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            if storage._cdata in self.sizes:
                self._resized(storage._cdata, size)
            return done

        torch.UntypedStorage.resize_ = told  # type: ignore[method-assign, assignment]
        try:
            with self:
                yield self
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
