"""Messages through torch.distributed (gloo, NCCL) and through MPI, behind the one face that a sweep calls."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


class TorchTransport:
    """A process group of torch.distributed. group: None is the whole world."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group or dist.group.WORLD
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        ranks = dist.get_process_group_ranks(self.group)
        self._next, self._before = ranks[(self.rank + 1) % self.size], ranks[(self.rank - 1) % self.size]
        self._root = ranks[0]
        # Their names before torch 2.13
        self._gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        self._scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

    def all_reduce(self, buffer: Tensor) -> None:
        dist.all_reduce(buffer, group=self.group)

    def all_gather(self, whole: Tensor, part: Tensor) -> None:
        self._gather(whole, part, group=self.group)

    def reduce_scatter(self, part: Tensor, whole: Tensor) -> None:
        self._scatter(part, whole, group=self.group)

    def all_to_all(self, received: Tensor, sent: Tensor) -> None:
        dist.all_to_all_single(received, sent, group=self.group)

    def send_recv(self, received: Tensor, sent: Tensor) -> None:
        both = [
            dist.P2POp(dist.isend, sent, self._next, self.group),
            dist.P2POp(dist.irecv, received, self._before, self.group),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()

    def broadcast(self, buffer: Tensor) -> None:
        dist.broadcast(buffer, self._root, group=self.group)


MPI_DTYPES = ("float32", "float64")
"""Not bfloat16: MPI has no such type. MPICH refuses it, Open MPI adds its bytes up as another type's."""


class MpiTransport:
    """An MPI communicator, on tensors in host memory.

    comm: mpi4py's
    """

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self.comm, self._in_place = comm, MPI.IN_PLACE
        self.rank, self.size = comm.rank, comm.size

    def all_reduce(self, buffer: Tensor) -> None:
        self.comm.Allreduce(self._in_place, buffer.numpy())

    def all_gather(self, whole: Tensor, part: Tensor) -> None:
        self.comm.Allgather(part.numpy(), whole.numpy())

    def reduce_scatter(self, part: Tensor, whole: Tensor) -> None:
        self.comm.Reduce_scatter_block(whole.numpy(), part.numpy())

    def all_to_all(self, received: Tensor, sent: Tensor) -> None:
        self.comm.Alltoall(sent.numpy(), received.numpy())

    def send_recv(self, received: Tensor, sent: Tensor) -> None:
        self.comm.Sendrecv(
            sent.numpy(), (self.rank + 1) % self.size, recvbuf=received.numpy(), source=(self.rank - 1) % self.size
        )

    def broadcast(self, buffer: Tensor) -> None:
        self.comm.Bcast(buffer.numpy())
