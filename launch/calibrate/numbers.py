"""From what was measured to the numbers of a profile: each is fitted where the model (parallelism/predict/) uses it.

A CPU's curve, attention, dispatch and blocks are those of fp32: the model has one of each, bf16 there is emulated in
parts and has another of its own, and attention of short sequences is fp32 in either (bench/model.py).

products      efficiency and half sizes: least squares of log time over the grid, by the model's own product_time
dispatch      a block so small that nothing else counts, over the operations that are counted for it (host.py)
elementwise   what a large block takes beyond its products, attention and dispatch
attention     FLOPs over time and peak: median over the shapes
optimizer     the update of the reference model beyond its dispatch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...parallelism.diloco.config import Outer
from ...parallelism.layout import Layout
from ...parallelism.predict import STACKS, Machine, Tuning
from ...parallelism.predict.configs import Configs, from_cases
from ...parallelism.predict.host import BACKWARD, FORWARD, calls
from ...parallelism.predict.layer import ATTENTION_BACKWARD, Compute
from ...parallelism.predict.machine import Link, Products
from ...parallelism.predict.matmul import product_time
from ...parallelism.predict.step import OPTIMIZER_BYTES
from .grid import grid_for

Numbers = dict[str, float]
BYTES = {"fp32": 4, "bf16": 2}
BOUNDS = {  # of what is fitted to the products: least, start, most
    "efficiency": (0.05, 0.9, 2.0),
    "half_m": (0.0, 8.0, 500.0),
    "half_n": (0.0, 8.0, 500.0),
    "half_k": (0.0, 8.0, 2000.0),
}
OTHERS = 0.1  # share of the time of the cores that other programs may have
LEAST_SHARE, MOST_SHARE = 0.02, 8.0  # of the bandwidth that elementwise work may seem to reach: caches are faster


@dataclass(frozen=True)
class Facts:
    """What the ranks measured: of one alone, and of each where all are at work (empty: there is one rank)."""

    device: str
    ranks: int
    alone: dict[str, Any]
    together: Sequence[dict[str, Any]]
    links: Sequence[tuple[float, float]]  # (latency s, bus bandwidth bytes/s) of each collective
    memory_bytes: float  # of one rank's device

    @property
    def others_share(self) -> float:
        """Share of the time of computing in which other programs had a rank's core, the worst; 0 where not known."""
        return max(0.0, 1 - min(float(each.get("had_core", 1.0)) for each in (self.alone, *self.together)))

    @property
    def quiet(self) -> bool:
        """Whether the times of ranks that wait for each other mean anything."""
        return self.others_share <= OTHERS


def fit_machine(facts: Facts) -> tuple[Machine, dict[str, float]]:
    """The machine, and of each fit its median relative error."""
    errors: dict[str, float] = {}
    machine = _without_elementwise(facts, errors)
    machine = replace(machine, launch_s=_dispatch(facts, machine))
    machine = replace(machine, elementwise=_elementwise(facts, machine))
    machine = replace(machine, optimizer=_optimizer(facts, machine))
    return machine, errors


def _without_elementwise(facts: Facts, errors: dict[str, float]) -> Machine:
    alone, cuda = facts.alone, facts.device == "cuda"
    peaks = {name: _peak(facts, name) for name in alone["products"]}
    latency, bandwidth = _link(facts)
    machine = Machine(
        name="this",
        description="",
        device=facts.device,
        peaks=peaks,
        memory_bytes=facts.memory_bytes,
        memory_bandwidth=float(alone["bandwidth"]),
        products=Products(efficiency=0.9, units=int(alone.get("units", 1)), half_k=8.0, floor_s=1e-7),
        attention_forward=1.0,
        attention_backward=1.0,
        elementwise=1.0,
        launch_s=float(alone["launch_s"] or 0.0),
        links=(Link("node", float("inf"), bandwidth, latency),),
        node_ranks=facts.ranks,
        reserved_bytes=float(alone["resident_bytes"]) if not cuda else 0.0,
    )
    names = ("efficiency", "half_k") if cuda else tuple(BOUNDS)
    products, error = fit_products(machine, _of_device(facts, alone["products"]), names)
    errors["products"] = error
    relative = {name: _relative(machine, products, name, rows) for name, rows in alone["products"].items()}
    machine = replace(machine, products=replace(products, relative=relative))
    forward, backward = _attention(_of_device(facts, alone["attention"]), machine)
    machine = replace(machine, attention_forward=forward, attention_backward=backward)
    return replace(
        machine,
        products=replace(machine.products, contention=_contention(facts)),
        elementwise_contention=_copy_contention(facts),
    )


def _of_device(facts: Facts, measured: dict[str, Any]) -> dict[str, Any]:
    """What counts, by precision."""
    return measured if facts.device == "cuda" else {"fp32": measured["fp32"]}


def _peak(facts: Facts, precision: str) -> float:
    """The datasheet's where there is one, else that of the fastest product."""
    known = facts.alone.get("datasheet", {}).get(precision)
    return float(known or max(2.0 * m * n * k / t for m, n, k, t in facts.alone["products"][precision]))


def _relative(machine: Machine, products: Products, precision: str, rows: Sequence[Sequence[float]]) -> float:
    """Efficiency of a precision over that of the curve: median of the curve's time over the measured one."""
    m, n, k, t = np.array(rows, float).T
    found = product_time(replace(machine, products=products), machine.peaks[precision], m, n, k, BYTES[precision])
    return float(np.median(found / t))


def fit_products(
    machine: Machine, measured: dict[str, Sequence[Sequence[float]]], names: Sequence[str]
) -> tuple[Products, float]:
    """(the curve, median relative error). measured: (M, N, K, seconds) by precision; names: what is fitted."""
    from scipy.optimize import least_squares

    rows = [(precision, row) for precision, each in measured.items() for row in each]
    m, n, k, t = (np.array([row[i] for _, row in rows], float) for i in range(4))
    peak = np.array([machine.peaks[name] for name, _ in rows])
    element = np.array([BYTES[name] for name, _ in rows])

    def curve(values: np.ndarray) -> Products:
        found: dict[str, Any] = dict(zip(names, map(float, values), strict=True))
        return replace(machine.products, **found)

    def errors(values: np.ndarray) -> np.ndarray:
        found = product_time(replace(machine, products=curve(values)), peak, m, n, k, element)
        return np.log(found / t)

    least, start, most = np.array([BOUNDS[name] for name in names]).T
    found = least_squares(
        errors, start, bounds=(least, most), loss="soft_l1", f_scale=0.1, x_scale=np.maximum(start, 1)
    )
    return curve(found.x), float(np.median(np.abs(np.expm1(errors(found.x)))))


def _attention(measured: dict[str, Sequence[Sequence[float]]], machine: Machine) -> tuple[float, float]:
    """Shares of the peak, forward and backward: medians."""
    ahead, back = [], []
    for precision, rows in measured.items():
        for batch, heads, s, d, forward, backward in rows:
            flops = 2.0 * batch * heads * s * s * d
            ahead.append(flops / forward / machine.peaks[precision])
            back.append(flops * ATTENTION_BACKWARD / backward / machine.peaks[precision])
    return float(np.median(ahead)), float(np.median(back))


def _contention(facts: Facts) -> float:
    """Time of the same products with all ranks at work over that of one: median, at least 1."""
    if not facts.together or facts.device == "cuda":
        return 1.0
    alone = {tuple(row[:3]): row[3] for row in facts.alone["products"]["fp32"]}
    ratios = [row[3] / alone[tuple(row[:3])] for each in facts.together for row in each["products"]["fp32"]]
    return max(1.0, float(np.median(ratios)))


def _copy_contention(facts: Facts) -> float:
    if not facts.together or facts.device == "cuda":
        return 1.0
    together = float(np.median([each["bandwidth"] for each in facts.together]))
    return max(1.0, float(facts.alone["bandwidth"]) / together)


def _link(facts: Facts) -> tuple[float, float]:
    """(latency, bus bandwidth): medians over the collectives; of one rank alone nothing is known, or asked."""
    if not facts.links:
        return 1e-4, 1e9
    latency, bandwidth = (float(np.median(each)) for each in zip(*facts.links, strict=True))
    return latency, bandwidth


def _blocks(facts: Facts) -> list[tuple[str, ModelShape, int, float, float]]:
    grid = grid_for(facts.device == "cuda")
    return [
        (precision, ModelShape(**shape), batch, forward, backward)
        for precision, times in _of_device(facts, facts.alone["blocks"]).items()
        for (shape, batch), (forward, backward) in zip(grid.blocks, times, strict=True)
    ]


def _dispatch(facts: Facts, machine: Machine) -> float:
    """Seconds of an operation where the host computes; of a launch as it was measured elsewhere."""
    if not machine.on_host:
        return machine.launch_s
    least = [forward + backward for _, _, batch, forward, backward in _blocks(facts) if batch == 1]
    return float(np.median(least)) / (FORWARD + BACKWARD)


def _elementwise(facts: Facts, machine: Machine) -> float:
    """The share of the bandwidth by which the model's block takes as long as the measured one: median."""
    shares = []
    for precision, shape, batch, forward, backward in _blocks(facts):
        if batch == 1 and machine.on_host:
            continue
        configs = _configs(shape, Recipe(global_batch=batch, steps=1, precision=precision), Layout())
        whole, half = (_block_time(configs, replace(machine, elementwise=share)) for share in (1.0, 2.0))
        moved = 2 * (whole - half)  # at a share of 1
        rest = forward + backward - (whole - moved)
        shares.append(moved / rest if rest > 0 else MOST_SHARE)
    return float(np.clip(np.median(shares), LEAST_SHARE, MOST_SHARE)) if shares else 1.0


def _block_time(configs: Configs, machine: Machine) -> float:
    found = Compute(configs, machine, STACKS["torch"], Tuning()).block()
    return float(np.sum(found.forward + found.backward))


def _configs(shape: ModelShape, recipe: Recipe, layout: Layout) -> Configs:
    return from_cases([(shape, recipe, layout, Outer())])


def _optimizer(facts: Facts, machine: Machine) -> float:
    shares = []
    for row in facts.alone["steps"]:
        shape = ModelShape(**row["shape"])
        configs = _configs(shape, Recipe(global_batch=row["global_batch"], steps=1), Layout())
        counted = calls(configs)
        dispatch = float(np.sum(shape.layers * counted.update + counted.step)) * machine.launch_s
        rest = row["update_s"] - dispatch * machine.on_host if row["update_s"] else 0.0
        if rest > 0:
            shares.append(shape.params_total * OPTIMIZER_BYTES / machine.memory_bandwidth / rest)
    return float(np.clip(np.median(shares), LEAST_SHARE, MOST_SHARE)) if shares else 1.0


def reference_rows(facts: Facts) -> tuple[Configs, np.ndarray]:
    """The reference model's steps: (configurations, step time (n,)). In all layouts; on a busy machine of one rank
    alone, whose clock is its own."""
    rows = [*facts.alone["steps"], *(facts.together[0]["steps"] if facts.together and facts.quiet else ())]
    cases = [
        (ModelShape(**row["shape"]), Recipe(row["global_batch"], 1), Layout(**row["layout"]), Outer()) for row in rows
    ]
    return from_cases(cases), np.array([row["step_time_s"] for row in rows])


def reference_mfu(facts: Facts, machine: Machine) -> float:
    """Causal, of the largest reference model on one rank."""
    from ...bench.flops import flops_per_token

    row = max(facts.alone["steps"], key=lambda each: each["global_batch"])
    shape = ModelShape(**row["shape"])
    flops = flops_per_token(shape)["causal"] * row["global_batch"] * shape.seq_len
    return flops / row["step_time_s"] / machine.peaks["fp32"]
