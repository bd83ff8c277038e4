"""One rank of a case traced: what it hands to collectives in a step, and the most memory it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...bench.comm_probe import CommProbe
from ...parallelism.engines import build_engine
from ..study.case import Case
from .fake_world import fake_world
from .live_bytes import LiveBytes

STEPS = 2  # DDP forms its buckets in the first, FSDP finds its order: the second is like all that follow

Sums = dict[str, dict[str, dict[str, float]]]
"""{"collective" | "dim": {name: {"bytes", "calls"}}}, as CommProbe.totals."""


@dataclass(frozen=True)
class RankTrace:
    """Of one rank. bytes, calls: by collective and by dimension, of one step (with an outer loop: an inner step and
    its share of a round's outer steps)."""

    rank: int
    pp_rank: int
    sums: Sums
    state_bytes: int  # between two steps
    peak_bytes: int  # in a step


def untraceable(case: Case) -> str | None:
    """Why a case cannot be traced, or None."""
    if case.layout.engine != "torch":
        return f"engine {case.layout.engine} asks its tensors for values: only torch's can be traced"
    if case.layout.compile:
        return "compiled blocks are not traced: set layout.compile = false"
    if case.outer.quorum:
        return "a quorum's messages go through a store, not through a process group"
    return None


def ranks_to_trace(case: Case) -> list[int]:
    """Of the first replica: the first rank of the first, of a middle and of the last place in the pipeline."""
    pp, others = case.layout.pp, case.layout.ranks // case.layout.pp
    return [place * others for place in sorted({0, pp // 2, pp - 1})]


def trace_rank(case: Case, rank: int) -> RankTrace:
    """Run the case's engine as this rank of its world.

    Raises
    ------
    ValueError: it cannot be traced; says why
    """
    reason = untraceable(case)
    if reason:
        raise ValueError(reason)
    live = LiveBytes()
    with fake_world(case.ranks, rank), live.counting():
        engine: Any = build_engine(case.shape, case.recipe, case.layout, case.outer, torch.device("cpu"))
        first, last = engine.rows()
        tokens = torch.zeros(last - first, case.shape.seq_len + 1, dtype=torch.int64)
        for _ in range(STEPS - 1):
            engine.train_step(tokens, 1e-3)
        state, live.peak = live.now, live.now
        probe = CommProbe(engine.talks())
        with probe:
            engine.train_step(tokens, 1e-3)
        peak = live.peak
        of_round = engine.count_round() if hasattr(engine, "count_round") else None
        engine.close()
    sums: Any = probe.totals()
    if of_round is not None:
        sums = _with_share(sums, of_round.totals(), case.outer.interval)
    return RankTrace(rank, rank * case.layout.pp // case.layout.ranks, sums, state, peak)


def _with_share(step: Sums, of_round: Any, period: int) -> Sums:
    """An inner step's, and of a round's outer steps the part of one of its `period` steps."""
    nothing = {"bytes": 0, "calls": 0}
    return {
        axis: {
            name: {
                unit: step[axis].get(name, nothing)[unit] + of_round[axis].get(name, nothing)[unit] / period
                for unit in nothing
            }
            for name in sorted({*step[axis], *of_round[axis]})
        }
        for axis in step
    }
