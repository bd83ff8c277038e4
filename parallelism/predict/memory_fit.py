"""Calibration of memory: the allocator's factors from measured peaks, and how far a prediction may be off.

    measured = constant + a (state and copies) + b (activations) + c (stream) + d (logits) + e (gathered)

The bytes in brackets are the model's; the six numbers of `MemoryTuning` are found by non-negative least squares of the
relative error, reweighted towards its absolute value (few peaks with a setting that the table does not name must not
move the others), and drawn to the stack's own factors as strongly as PRIOR rows would. The interval is the central part
of the relative errors on rows that were left out: of each model in turn, or, of one model, of its layouts in parts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import nnls

from .configs import Configs
from .machine import Machine
from .memory import UNCALIBRATED, default_tuning, memory_by_rank, reported_memory
from .stack import MemoryTuning, Stack

PRIOR = 3.0  # rows' worth of the factors that stand without a calibration
ROUNDS = 25  # of reweighting
LEAST = 0.02  # relative error below which rows weigh alike
COVERED = 0.90
OF_ONE_MODEL = 0.94  # taken instead where all rows are of one model: another is further off than another layout of it
_FOLDS = 5
NAMES = tuple(each.name for each in fields(MemoryTuning))


@dataclass(frozen=True)
class MemoryCalibration:
    """Factors of a machine's and a stack's allocator, and the interval of what they predict."""

    machine: Machine
    stack: Stack
    tuning: MemoryTuning
    low: float  # measured over predicted, at the interval's ends
    high: float
    rows: int  # that it was found from

    def predict(self, configs: Configs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bytes, low, high) of what the program reports as its peak, (n,) each; 90% of peaks are within."""
        middle = reported_memory(configs, self.machine, self.stack, self.tuning)
        return middle, middle * self.low, middle * self.high


def calibrate_memory(configs: Configs, peak_bytes: np.ndarray, machine: Machine, stack: Stack) -> MemoryCalibration:
    """Factors from n peaks (n,), of the rank and the counter that the stack reports.

    Raises
    ------
    ValueError: there are no peaks, or one is not positive
    """
    peaks = np.asarray(peak_bytes, float)
    if not len(peaks) or not (np.isfinite(peaks) & (peaks > 0)).all():
        raise ValueError(
            "peak memory to calibrate from: one positive number of bytes a row is needed, one row at least"
        )
    columns, fixed = _columns(configs, machine, stack)
    start = np.array(default_tuning(machine, stack).vector())
    factors = _fit(columns, peaks - fixed, peaks, start)
    parts, covered = _parts(configs)
    ratios = _left_out(columns, peaks, fixed, start, parts)
    low, high = np.quantile(ratios, [(1 - covered) / 2, (1 + covered) / 2]) if len(ratios) > 1 else UNCALIBRATED
    return MemoryCalibration(
        machine, stack, MemoryTuning(*map(float, factors)), float(min(low, 1)), float(max(high, 1)), len(peaks)
    )


def _columns(configs: Configs, machine: Machine, stack: Stack) -> tuple[np.ndarray, np.ndarray]:
    """(bytes that each factor multiplies (n, 6), bytes that none does (n,)) on the rank that is reported."""
    unit = np.eye(len(NAMES))
    parts = [memory_by_rank(configs, machine, stack, MemoryTuning(*row)) for row in unit]
    now = memory_by_rank(configs, machine, stack)
    counter = "total" if machine.device == "cpu" else stack.keeps.counter
    counted = np.asarray(getattr(now, counter))
    rank = np.zeros(counted.shape[1], int) if stack.keeps.reports == "first" else counted.argmax(axis=0)
    rows = np.arange(len(rank))
    columns = np.stack([part.reserved[rank, rows] for part in parts], axis=1)
    # A factor multiplies what is there at the peak: activations, or the update's temporaries once they are gone.
    update = (now.temporaries > now.activations + now.logits)[rank, rows]
    state = (now.state + now.copies)[rank, rows] + np.where(update, now.temporaries[rank, rows], 0)
    columns = np.where(update[:, None] & (np.arange(len(NAMES)) > 0), 0, columns)
    columns[:, NAMES.index("state")] = state
    fixed = now.library[rank, rows] if counter == "total" else np.zeros(len(rank))
    return columns, fixed


def _fit(columns: np.ndarray, target: np.ndarray, peaks: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Factors (6,): least absolute relative error, drawn to `start`."""
    scaled = columns / peaks[:, None]
    weight, factors = np.ones(len(peaks)), start
    scale = np.where(start > 0, start, 1.0)
    pull = np.diag(np.where(np.arange(len(start)) == 0, scaled[:, 0].mean(), 0.3 / scale)) * np.sqrt(PRIOR)
    for _ in range(ROUNDS):
        left = np.vstack([scaled * weight[:, None], pull])
        factors, _ = nnls(left, np.concatenate([target / peaks * weight, pull @ start]))
        off = np.abs(scaled @ factors - target / peaks)
        weight = np.sqrt(LEAST / np.maximum(off, LEAST))
    return factors


def _parts(configs: Configs) -> tuple[np.ndarray, float]:
    """(a number (n,) that rows share which are left out together, the part of their errors that the interval is)."""
    models = _alike(configs, ("layers", "width", "ffn", "vocab"))
    if models.max() > 0:
        return models, COVERED
    return _alike(configs, ("tp", "pp", "cp")) % _FOLDS, OF_ONE_MODEL


def _alike(configs: Configs, names: tuple[str, ...]) -> np.ndarray:
    """A number (n,) that is the same for rows that agree in these settings."""
    keys = np.stack([np.broadcast_to(getattr(configs, name), len(configs)) for name in names], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def _left_out(
    columns: np.ndarray, peaks: np.ndarray, fixed: np.ndarray, start: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """Measured over predicted of rows whose part was left out of the fit."""
    ratios = []
    for part in np.unique(parts):
        out = parts == part
        if not out.any() or out.all():
            continue
        factors = _fit(columns[~out], (peaks - fixed)[~out], peaks[~out], start)
        ratios.append(peaks[out] / (columns[out] @ factors + fixed[out]))
    return np.concatenate(ratios) if ratios else np.array([])
