"""Offsets that calibration adds in logarithms: of all rows, of a precision, of a model, of a workload, each shrunk.

A machine that runs one workload 4% slower than the model says runs the same workload so at other scales too: what the
model misses of it is alike. A workload that was never run has the offset of its precision, and one of an unknown
precision that of all rows. The wider a level, the weaker it is held towards zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .configs import Configs

PRIOR = {"all": 0.3, "precision": 0.1, "model": 0.2, "workload": 0.05}
"""Standard deviation of the offsets of a level, in logarithms, before anything is measured."""


@dataclass(frozen=True)
class Offsets:
    """Logarithms that are added to the model's step time, by key: all, precision:1, workload:16x2048x8192x131072:1."""

    values: dict[str, float] = field(default_factory=dict)

    def of(self, configs: Configs) -> np.ndarray:
        """Their sum for each configuration (n,)."""
        n = len(configs)
        total = np.full(n, self.values.get("all", 0.0))
        for keys in (precision_keys(configs), model_keys(configs), workload_keys(configs)):
            known, place = np.unique(keys, return_inverse=True)
            total += np.array([self.values.get(str(key), 0.0) for key in known])[place]
        return total


def precision_keys(configs: Configs) -> np.ndarray:
    """Names (n,) of the precisions."""
    return _joined("precision", configs, (configs.precision,))


def model_keys(configs: Configs) -> np.ndarray:
    """Names (n,) of the models at their precisions, whatever the number of layers."""
    return _joined("model", configs, workload(configs)[1:])


def workload_keys(configs: Configs) -> np.ndarray:
    """Names (n,) of the models at their precisions."""
    return _joined("workload", configs, workload(configs))


def workload(configs: Configs) -> tuple[np.ndarray, ...]:
    """What makes a workload: columns of the model's shape, and the precision."""
    c = configs
    return tuple(np.asarray(each) for each in (c.layers, c.width, c.ffn, c.vocab, c.precision))


def _joined(level: str, configs: Configs, columns: tuple[np.ndarray | float, ...]) -> np.ndarray:
    table = np.stack([np.broadcast_to(np.asarray(each, np.int64), len(configs)) for each in columns])
    known, place = np.unique(table, axis=1, return_inverse=True)
    names = np.array([f"{level}:" + "x".join(map(str, column)) for column in known.T])
    return names[place.reshape(-1)]


def design(configs: Configs) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys of the offsets that these rows can tell, their indicator columns (n, p), and their prior deviations (p,)."""
    n = len(configs)
    keys, columns, prior = ["all"], [np.ones(n)], [PRIOR["all"]]
    levels = {"precision": precision_keys(configs), "model": model_keys(configs), "workload": workload_keys(configs)}
    for level, names in levels.items():
        known = np.unique(names)
        for key in known if len(known) > 1 else []:
            keys.append(str(key))
            columns.append((names == key).astype(float))
            prior.append(PRIOR[level])
    return keys, np.stack(columns, axis=1), np.array(prior)
