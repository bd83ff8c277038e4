"""Small facts between ranks: JSON, as the bytes of CPU tensors. No message is unpickled, so none can run anything.

All functions are collective over `group` (None: the world; a process alone, where there is no world).
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

LIMIT_BYTES = 2**30  # of one message


def from_first(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """The first rank's value, on every rank. What the others pass does not count."""
    if not dist.is_initialized():
        return value
    first = dist.get_rank(group) == 0
    content = _encoded(value) if first else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor(content.numel())
    dist.broadcast(length, group=group, group_src=0)
    content = content if first else torch.empty(_length(length), dtype=torch.uint8)
    dist.broadcast(content, group=group, group_src=0)
    return value if first else _decoded(content)


def at_first(value: Any, group: dist.ProcessGroup | None = None) -> list[Any] | None:
    """Every rank's value in the order of the ranks, on the first; None on the others."""
    if not dist.is_initialized():
        return [value]
    content, lengths = _with_lengths(value, group)
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: content.numel()] = content
    if dist.get_rank(group) != 0:
        dist.gather(padded, None, group=group, group_dst=0)
        return None
    every = [torch.empty_like(padded) for _ in lengths]
    dist.gather(padded, every, group=group, group_dst=0)
    return [_decoded(each[:n]) for each, n in zip(every, lengths, strict=True)]


def everywhere(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's value in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    content, lengths = _with_lengths(value, group)
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: content.numel()] = content
    every = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(every, padded, group=group)
    return [_decoded(each[:n]) for each, n in zip(every, lengths, strict=True)]


def to_each(values: list[Any] | None, group: dist.ProcessGroup | None = None) -> Any:
    """Of the first rank's list, the one for this rank."""
    first = not dist.is_initialized() or dist.get_rank(group) == 0
    own = values if first and values is not None else []
    if not dist.is_initialized():
        return own[0]
    mine = torch.empty((), dtype=torch.int64)
    contents = list(map(_encoded, own))
    lengths = [torch.tensor(content.numel()) for content in contents]
    dist.scatter(mine, lengths or None, group=group, group_src=0)
    longest = torch.tensor(max(map(int, lengths), default=0))
    dist.broadcast(longest, group=group, group_src=0)
    padded = [torch.zeros(int(longest), dtype=torch.uint8) for _ in contents]
    for content, into in zip(contents, padded, strict=True):
        into[: content.numel()] = content
    got = torch.empty(_length(longest), dtype=torch.uint8)
    dist.scatter(got, padded or None, group=group, group_src=0)
    return _decoded(got[: int(mine)])


def _with_lengths(value: Any, group: dist.ProcessGroup | None) -> tuple[Tensor, list[int]]:
    content = _encoded(value)
    lengths = [torch.empty((), dtype=torch.int64) for _ in range(dist.get_world_size(group))]
    dist.all_gather(lengths, torch.tensor(content.numel()), group=group)
    return content, [_length(length) for length in lengths]


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(content: Tensor) -> Any:
    return json.loads(content.numpy().tobytes())


def _length(announced: Tensor) -> int:
    length = int(announced)
    if not 0 < length <= LIMIT_BYTES:
        raise ValueError(f"a message between ranks of {length} bytes: 1 to {LIMIT_BYTES} are allowed")
    return length
