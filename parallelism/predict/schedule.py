"""Time that a pipeline takes for all microbatches of a step, and the part of it in which a rank waits for others.

Simulated from the schedule's own order of actions (orders.py, pipeline_graph.py), never from a formula for one
schedule. Stages may differ: the first has the embedding, the last head and loss, and layers need not divide evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..layout import LOOPED, SCHEDULES
from .configs import Column, Configs
from .pipeline_graph import SEND, TERMS, paths_of


@dataclass(frozen=True)
class Passes:
    """Seconds of one microbatch through a block, or through what a stage has besides its blocks."""

    forward: Column
    backward_input: Column
    backward_weight: Column


@dataclass(frozen=True)
class PipelineTime:
    """Seconds, (n,) each; nan where the schedule does not take the number of microbatches."""

    makespan: np.ndarray  # from the first forward to the last backward pass
    busy: np.ndarray  # of the rank that computes most
    exposed_send: np.ndarray  # by which messages lengthen the makespan

    @property
    def bubble(self) -> np.ndarray:
        """In which even the rank that computes most has nothing to compute, messages aside."""
        return self.makespan - self.exposed_send - self.busy


def pipeline_time(
    configs: Configs, block: Passes, first: Passes, last: Passes, send: Column, overlaps: bool = False
) -> PipelineTime:
    """Of each configuration. first: what the first stage has besides its blocks (the embedding); last: head and loss;
    send: one message between two stages.

    overlaps: no rank waits for what it sends. Otherwise, as in torch, those of GPipe and 1F1B do where they turn from
    forward to backward passes or back.
    """
    n = len(configs)
    columns = [getattr(part, each.name) for part in (block, first, last) for each in fields(Passes)]
    times = np.stack([np.broadcast_to(np.asarray(each, float), n) for each in (*columns, send)], axis=1)
    out = np.full((3, n), np.nan)
    for key, rows in _groups(configs, n):
        out[:, rows] = _of_group(key, times[rows], overlaps)
    return PipelineTime(*out)


Key = tuple[int, int, int, int, int]  # schedule, pp, virtual stages, microbatches, layers


def _groups(configs: Configs, n: int) -> list[tuple[Key, np.ndarray]]:
    """Rows that have one order of actions."""
    names = ("pp_schedule", "pp", "virtual_stages", "microbatches", "layers")
    columns = [np.broadcast_to(np.asarray(getattr(configs, name), np.int64), n) for name in names]
    code = np.zeros(n, np.int64)
    for column in columns:
        code = code * (int(column.max(initial=0)) + 1) + column
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(first)))[:-1])
    keys = [tuple(int(column[row]) for column in columns) for row in first]
    return list(zip(keys, rows, strict=True))  # type: ignore[arg-type]


def _of_group(key: Key, times: np.ndarray, overlaps: bool) -> np.ndarray:
    """(makespan, busy, exposed send), (3, n). times: (n, TERMS)."""
    code, pp, v, m, layers = key
    if pp == 1:
        busy = m * (times @ np.array([layers] * 3 + [1] * 6 + [0]))
        return np.stack([busy, busy, 0 * busy])
    schedule = SCHEDULES[code]
    waits = "never" if overlaps or schedule in LOOPED else "turns"
    found = paths_of(schedule, pp, v, m, layers, waits)
    if found is None:
        return np.full((3, len(times)), np.nan)
    paths, periods = found
    silent = times[:, :SEND]
    counts = paths.counts + periods * paths.more
    computed = _longest(silent, counts[:, :SEND])
    makespan = np.maximum(_longest(times, counts), computed)
    busy = _longest(silent, (paths.busy + periods * paths.busy_more)[:, :SEND])
    return np.stack([makespan, busy, makespan - computed])


def _longest(times: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(n,): the longest of the paths, some at a time."""
    out = np.empty(len(times))
    some = max(1, 4_000_000 // len(counts))
    for begin in range(0, len(times), some):
        out[begin : begin + some] = (times[begin : begin + some] @ counts.T).max(axis=1)
    return out


__all__ = ["TERMS", "Passes", "PipelineTime", "pipeline_time"]
