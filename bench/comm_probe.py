"""What is communicated in one step: every collective that passes torch's dispatcher, from any caller.

The probe sees DDP, FSDP, pipelining and our own collectives alike, but for those of an outer step (`uncounted`), which
a single step does not represent: the engine counts a round of them (Engine.count_round). It costs some time per
operation, so it watches one warm-up step. It waits for each collective before going on (not for sends and receives,
which pair up), so `seconds` is the time of communication when nothing hides it.

Bytes are the size of the message: the tensor of an all-reduce, broadcast, send or receive, the whole gathered tensor
of an all-gather, the whole input of a reduce-scatter or all-to-all (nccl-tests' convention). A send and the receive
that takes it are counted once, at the sender.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .message_totals import Totals, totals

KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "send": "send_recv",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "barrier": "barrier",
}
LARGER_SECOND = ("reduce_scatter", "all_to_all", "scatter")  # (output, input): the input is the whole message


_uncounted = False


@contextmanager
def uncounted() -> Iterator[None]:
    """Around what belongs to no single step: no probe counts it, nor waits for it."""
    global _uncounted
    before, _uncounted = _uncounted, True
    try:
        yield
    finally:
        _uncounted = before


class CommProbe(TorchDispatchMode):
    """Counts collectives while it is active.

    talks: ranks by mesh dimension (Engine.talks); traffic among other ranks counts as `world`, of a rank with
    itself as none.
    """

    def __init__(self, talks: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.dimension: dict[tuple[int, ...], str] = {}
        for name, ranks in talks.items():
            self.dimension.setdefault(ranks, name)  # `inside` a replica may be the very ranks of one dimension
        self.calls: Counter[tuple[str, str]] = Counter()  # by (collective, dimension)
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.seconds = 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch._dynamo, some seconds of a run that never compiles

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = KINDS.get(func._opname) if func.namespace == "c10d" and not _uncounted else None
        ranks = _ranks_of(args) if kind else ()
        if kind is None or len(ranks) == 1:  # Megatron-Core reduces over groups of one rank, too: nothing moves
            return func(*args, **(kwargs or {}))
        begin = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if kind != "send_recv":
            work = out[-1] if isinstance(out, tuple | list) else out
            if hasattr(work, "wait"):
                work.wait()
        self.seconds += time.perf_counter() - begin
        key = (kind, self.dimension.get(ranks, "world"))
        self.calls[key] += 1
        self.bytes[key] += _message_bytes(kind, args)
        return out

    def add(self, kind: str, dimension: str, message_bytes: int) -> None:
        """A message that did not pass here."""
        self.calls[kind, dimension] += 1
        self.bytes[kind, dimension] += message_bytes

    def add_times(self, times: int, other: CommProbe) -> None:
        """So often what another has counted."""
        for mine, theirs in ((self.calls, other.calls), (self.bytes, other.bytes)):
            for key, count in theirs.items():
                mine[key] += times * count

    def totals(self) -> Totals:
        """{"collective" | "dim": {name: {"bytes", "calls"}}} of this rank."""
        return totals(self.bytes, self.calls)


def _ranks_of(args: tuple) -> tuple[int, ...]:
    """Of the group among an operation's arguments; empty where none is found."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject):
            try:
                group = dist.ProcessGroup.unbox(argument)
            except (RuntimeError, TypeError):
                continue  # the reduce operation is boxed, too
            ranks = dist.get_process_group_ranks(_resolve_process_group(group.group_name))
            return tuple(ranks)
    return ()


def _message_bytes(kind: str, args: tuple) -> int:
    tensors = [[t for t in tree_iter(a) if isinstance(t, torch.Tensor)] for a in args]
    sides = [sum(t.numel() * t.element_size() for t in side) for side in tensors if side]
    if not sides:
        return 0
    return sides[1] if kind in LARGER_SECOND and len(sides) > 1 else sides[0]
