"""What a rank measures for `scalade calibrate`: `python -m scalade.launch.calibrate.rank SPEC.json`.

What is asked lies in the scratch folder (ASKED); rank 0 leaves there what was found (FACTS). One rank alone takes the
whole grid. All ranks of the machine at once repeat a part of it, which shows how much they disturb each other. Both
train the reference model in the layouts that their number of ranks allows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...parallelism.diloco.config import Outer
from ...parallelism.layout import Layout
from ...results import files
from ..process.progress import Reporter
from ..process.run_spec import RunResult
from ..study.case import Case
from .grid import Grid, Reference, grid_for, layouts_for, references

if TYPE_CHECKING:
    from ...bench.device import Device
    from ..rank.world import World

ASKED, FACTS = "asked.json", "facts.json"
COMMAND = (sys.executable, "-m", __name__ if __name__ != "__main__" else f"{__package__}.rank")
WARM_UP, STEPS = 3, 24  # of the reference, at most


def program(case: Case, world: World, reporter: Reporter) -> RunResult:
    """A rank's part, in the place of the training. Collective."""
    from ...bench.device import Device, peak_resident_bytes

    asked = files.read_json(reporter.folder / ASKED)
    assert isinstance(asked, dict)
    device, seconds = Device(world.device), float(asked["seconds"])
    facts: dict[str, Any] = {"resident_bytes": peak_resident_bytes()}
    reporter.phase("measuring")
    grid = grid_for(device.cuda)
    share = 0.55 if world.size == 1 else 0.25
    begin = time.process_time(), time.perf_counter()
    facts |= _micro(device, grid, seconds * share, alone=world.size == 1)
    if not device.cuda and world.threads == 1:
        facts["had_core"] = (time.process_time() - begin[0]) / (time.perf_counter() - begin[1])
    facts |= device_facts(device) if world.rank == 0 else {}
    facts["steps"] = _reference_steps(world, device, seconds * (1 - share))
    every = _gathered(facts, world)
    if world.rank == 0:
        files.write(reporter.folder / FACTS, json.dumps(every), sync=False)
    return RunResult("ok", {})


def device_facts(device: Device) -> dict[str, Any]:
    """What the device says of itself."""
    import torch

    if not device.cuda:
        return {}
    found = torch.cuda.get_device_properties(device.torch)
    peaks = {name: device.peak_flops(name, measure=False)[0] for name in ("fp32", "bf16")}
    return {"units": found.multi_processor_count, "memory_bytes": found.total_memory, "datasheet": peaks}


def _micro(device: Device, grid: Grid, seconds: float, *, alone: bool) -> dict[str, Any]:
    from ...bench import machine_probe as probe

    if not alone:
        _meet()
        shapes = grid.products[-4:]
        facts: dict[str, Any] = {"products": {"fp32": probe.products(device, "fp32", shapes, seconds / 2)}}
        _meet()
        return facts | {"bandwidth": probe.copy_bandwidth(device, seconds / 2)}
    share = seconds / (3 * len(grid.precisions) + 2)
    facts = {"products": {}, "attention": {}, "blocks": {}}
    for precision in grid.precisions:
        facts["products"][precision] = probe.products(device, precision, grid.products, share)
        facts["attention"][precision] = probe.attention(device, precision, grid.attention, share)
        facts["blocks"][precision] = [
            [*probe.block(device, precision, ModelShape(**shape), batch, share / len(grid.blocks))]
            for shape, batch in grid.blocks
        ]
    facts["bandwidth"] = probe.copy_bandwidth(device, share)
    facts["launch_s"] = probe.launch_cost(device, share) if device.cuda else None
    return facts


def _meet() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def _reference_steps(world: World, device: Device, seconds: float) -> list[dict[str, Any]]:
    """Median step time of the reference model in each layout of this many ranks, slowest rank."""
    asked = [(reference, layout) for reference in references(device.cuda) for layout in layouts_for(world.size)]
    return [_timed_steps(world, device, reference, layout, seconds / len(asked)) for reference, layout in asked]


def _timed_steps(world: World, device: Device, reference: Reference, layout: Layout, seconds: float) -> dict[str, Any]:
    import torch

    from ...bench.machine_probe import Stopwatch
    from ...parallelism.engines import build_engine

    shape = ModelShape(**reference.shape)
    recipe = Recipe(global_batch=reference.global_batch, steps=1)
    engine = build_engine(shape, recipe, layout, Outer(), device.torch)
    first, last = engine.rows()
    tokens = torch.randint(0, shape.vocab, (last - first, shape.seq_len + 1), device=device.torch)
    times: list[float] = []
    watch = Stopwatch(device)
    watch.alone = watch.alone and world.size == 1  # else a step waits for other ranks
    begun = time.perf_counter()
    while len(times) < WARM_UP + LEAST_STEPS or (len(times) < STEPS and _goes_on(world, begun, seconds)):
        begin = watch.mark()
        engine.train_step(tokens, 1e-3)
        times.append(watch.since_s(begin))
    update_s = _update_s(engine, watch) if layout == Layout() else None
    engine.close()
    kept = _slowest(times[WARM_UP:], world)
    return {
        "shape": reference.shape,
        "global_batch": reference.global_batch,
        "layout": {name: value for name, value in vars(layout).items() if value != getattr(Layout(), name)},
        "step_time_s": _quantile(kept),
        "update_s": update_s,
    }


LEAST_STEPS = 5


def _update_s(engine: Any, watch: Any) -> float:
    """Seconds of clipping and update alone."""
    import torch

    times = []
    for _ in range(WARM_UP + STEPS):
        for parameter, _ in engine.optimizer.parts:
            parameter.grad = torch.ones_like(parameter)
        begin = watch.mark()
        engine.optimizer.step(1e-3)
        times.append(watch.since_s(begin))
    return _quantile(times[WARM_UP:])


def _quantile(times: Sequence[float]) -> float:
    import numpy as np

    return float(np.quantile(times, 0.25))


def _goes_on(world: World, begun: float, seconds: float) -> bool:
    """Whether there is time for another step; the same on every rank."""
    import torch
    import torch.distributed as dist

    more = torch.tensor(float(time.perf_counter() - begun < seconds), device=world.device)
    if world.size > 1:
        dist.all_reduce(more, dist.ReduceOp.MIN)
    return bool(more.item())


def _slowest(times: Sequence[float], world: World) -> list[float]:
    import torch
    import torch.distributed as dist

    every = torch.tensor(list(times), dtype=torch.float64, device=world.device)
    if world.size > 1:
        dist.all_reduce(every, dist.ReduceOp.MAX)
    return every.tolist()


def _gathered(facts: dict[str, Any], world: World) -> list[dict[str, Any]]:
    """The facts of every rank."""
    import torch.distributed as dist

    every: list[Any] = [facts]
    if world.size > 1:
        every = [None] * world.size
        dist.all_gather_object(every, facts)
    return every


if __name__ == "__main__":
    from ..rank.main import main

    main(program=program)
