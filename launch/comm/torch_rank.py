"""One rank of a sweep over collectives through torch: `python -m scalade.launch.comm.torch_rank SPEC.json`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..process.progress import Reporter
from ..process.run_spec import RunResult
from ..study.comm_case import CommCase

if TYPE_CHECKING:
    from ...bench.comm_sweep import CommSweep, Dimension
    from ..rank.world import World

COMMAND = (sys.executable, "-m", __name__ if __name__ != "__main__" else f"{__package__}.torch_rank")


class TorchRanks:
    """The default process group."""

    def __init__(self, device: str) -> None:
        from ...bench.device import Device

        self.device = Device(device)

    def barrier(self) -> None:
        import torch.distributed as dist

        dist.barrier()

    def slowest(self, seconds: Sequence[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        every = torch.tensor(list(seconds), dtype=torch.float64, device=self.device.torch)
        dist.all_reduce(every, dist.ReduceOp.MAX)
        return every.tolist()

    def settle(self) -> None:
        if self.device.cuda:
            import torch

            torch.cuda.synchronize(self.device.torch)


def program(case: CommCase, world: World, reporter: Reporter) -> RunResult | None:
    """Collective; rank 0's result has the rows."""
    from ...bench.transports import TorchTransport
    from ...parallelism.mesh import group_of

    if case.backend != world.backend:
        raise RuntimeError(f"the backend is to be {case.backend}, and these ranks speak {world.backend}")

    def transport(sets: list[list[int]]) -> TorchTransport:
        return TorchTransport(group_of(sets, world.rank, world.size))

    rows = measure(case, dimensions(case, transport), TorchRanks(world.device), world.device, reporter)
    return result(case, rows, world.device) if world.rank == 0 else None


def dimensions(case: CommCase, transport: Callable[[list[list[int]]], Any]) -> list[Dimension]:
    """transport: of this rank, given all sets of ranks that talk to each other; collective."""
    from ...bench.comm_sweep import Dimension
    from ...parallelism.mesh import DIMENSIONS, ranks_along

    sizes = {dim: case.sizes.get(dim, 1) for dim in DIMENSIONS}
    sets = {dim: ranks_along((dim,), sizes) for dim in DIMENSIONS if sizes[dim] > 1}
    sets = sets or {"world": [list(range(case.ranks))]}
    return [Dimension(dim, transport(each), len(each)) for dim, each in sets.items()]


def measure(
    case: CommCase, dimensions: Sequence[Dimension], ranks: Any, device: str, reporter: Reporter
) -> list[dict[str, Any]]:
    """The sweep, telling the reporter how far it is."""
    from ...bench.comm_sweep import sweep

    reporter.phase("measuring")
    done = []

    def measured(row: dict[str, Any]) -> None:
        done.append(row)
        reporter.step(len(done))

    return sweep(comm_sweep(case), dimensions, ranks, device, measured)


def comm_sweep(case: CommCase) -> CommSweep:
    from ...bench.comm_sweep import CommSweep

    asked = case.asked
    return CommSweep(
        collectives=tuple(asked["collectives"]),
        sizes_bytes=tuple(asked["sizes_bytes"]),
        dtype=asked["dtype"],
        iterations=asked["iterations"],
        warmup=asked["warmup"],
        seconds_per_size=asked["seconds_per_size"],
    )


def result(case: CommCase, rows: list[dict[str, Any]], device: str) -> RunResult:
    """What rank 0 writes: a wrong result anywhere fails the run, and its rows stay."""
    from ...bench.comm_sweep import wrong_result
    from ...bench.device import Device
    from ...bench.environment import environment_columns

    names = dict.fromkeys(name for row in rows for name in row)
    wrong = wrong_result(rows, case.backend)
    comm = {name: [row.get(name) for row in rows] for name in names}
    return RunResult("failed" if wrong else "ok", environment_columns(Device(device)), comm=comm, reason=wrong)


if __name__ == "__main__":
    from ..rank.main import main

    main(program=program)
