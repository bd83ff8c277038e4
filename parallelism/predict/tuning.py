"""What calibration may change: a few factors on the model's times, all 1 where nothing is known.

They are what a profile cannot know of a machine and a stack that it has not run: how far from the datasheet the
products stay, how much dearer the links are in a real network.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Tuning:
    """Factors on times; more than 1 is slower."""

    matmul: float = 1.0
    attention: float = 1.0
    elementwise: float = 1.0
    host: float = 1.0  # launches
    inside: float = 1.0  # transfers inside a node
    between: float = 1.0  # transfers between nodes
    latency: float = 1.0  # of every message
    crossing: float = 1.0  # tensor parallel over more than one node, on top of `between`
    optimizer: float = 1.0
    synchronisation: float = 1.0  # of ranks that wait for the slowest
    calls: float = 1.0  # host time of a tensor-parallel collective
    blocked: float = 1.0  # what such a call costs more for each rank, where other stages are in other nodes
    gathering: float = 1.0  # gather and scatter beside all-reduce, between nodes
    congestion: float = 1.0  # transfers between nodes, for each doubling of the nodes
    sharing: float = 1.0  # transfers between nodes, for each doubling of the ranks of a group in a node
    microbatch: float = 1.0  # host time of a microbatch

    def logs(self) -> np.ndarray:
        """Natural logarithms of the factors (p,), in the order of the fields."""
        return np.log([getattr(self, each.name) for each in fields(self)])


NAMES = tuple(each.name for each in fields(Tuning))
PRIOR = {
    "matmul": 0.2,
    "attention": 0.3,
    "elementwise": 0.3,
    "host": 0.5,
    "inside": 0.4,
    "between": 0.6,
    "latency": 0.8,
    "crossing": 1.0,
    "optimizer": 0.5,
    "synchronisation": 0.7,
    "calls": 0.7,
    "blocked": 1.0,
    "gathering": 0.2,
    "congestion": 0.2,
    "sharing": 0.2,
    "microbatch": 1.0,
}
"""Standard deviation of each factor's logarithm before anything is measured: how wrong a profile may be."""


def from_logs(logs: np.ndarray, names: tuple[str, ...] = NAMES, base: Tuning | None = None) -> Tuning:
    """The factors whose logarithms (p,) these are, for the named ones; the others as in `base`."""
    return replace(base or Tuning(), **{name: float(np.exp(each)) for name, each in zip(names, logs, strict=True)})
