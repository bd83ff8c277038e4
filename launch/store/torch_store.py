"""The shared store as torch's process groups ask for it: a torch.distributed.Store over a StoreClient.

It replaces TCPStore, to which any process can connect. A group exchanges some addresses through it when it is made, and
with a quorum the replicas' messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store  # dist.Store, which has no type

from .client import StoreClient, StoreLate

_kept: list[SharedStore] = []  # C++ holds the store without its Python half, which must not go first


class SharedStore(Store):
    """timeout: the client's, until it is set."""

    def __init__(self, client: StoreClient) -> None:
        super().__init__()
        self.client = client
        self.set_timeout(timedelta(seconds=client.timeout_s))
        _kept.append(self)

    @property
    def _timeout_s(self) -> float:
        return self.timeout.total_seconds()  # type: ignore[attr-defined]  # torch's stub lacks it

    def set(self, key: str, value: str | bytes) -> None:
        self.client.set(key, value)

    def get(self, key: str) -> bytes:
        try:
            return self.client.get(key, self._timeout_s)
        except StoreLate as error:
            raise dist.DistStoreError(str(error)) from None

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        try:
            self.client.wait(keys, self._timeout_s if timeout is None else timeout.total_seconds())
        except StoreLate as error:
            raise dist.DistStoreError(str(error)) from None

    def add(self, key: str, amount: int) -> int:
        return self.client.add(key, amount)

    def check(self, keys: Sequence[str]) -> bool:
        return self.client.check(keys)

    def delete_key(self, key: str) -> bool:
        return self.client.delete_key(key)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return self.client.compare_set(key, expected, desired)

    def append(self, key: str, value: str | bytes) -> None:
        self.client.append(key, value)

    def num_keys(self) -> int:
        return self.client.num_keys()

    def has_extended_api(self) -> bool:
        return False

    def clone(self) -> SharedStore:
        """The same connection: its lock lets threads take turns."""
        return self

    # As C++ calls them.
    deleteKey, compareSet, getNumKeys, hasExtendedApi = delete_key, compare_set, num_keys, has_extended_api  # noqa: N815


def forget() -> None:
    """Close the stores of the run before, in a process that starts another."""
    for store in _kept:
        store.client.close()
    _kept.clear()
