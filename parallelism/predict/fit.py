"""Calibration: factors, offsets, residual and interval of a model, from measured rows.

Factors and offsets are those that are likeliest after the rows: each logarithm is held towards zero by its prior
deviation, each row by a deviation that is estimated, robustly (Cauchy), as slow runs are noise. So three rows move an
offset, thirty a factor or two, and hundreds all of them, by one rule. What interval and choice are judged by are
errors on groups of rows that were left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from . import offsets as levels
from .calibration import Calibration, Prediction
from .configs import Configs
from .coverage import Coverage
from .interval import spread_of
from .machine import Machine
from .offsets import Offsets
from .stack import Stack
from .step import predict_step
from .tuning import NAMES, PRIOR, Tuning, from_logs

NOISE = 0.05  # deviation of a row's logarithm that is assumed before any; counts like NOISE_ROWS rows
NOISE_ROWS = 5
NOISE_LEAST = 0.01
MOVE = 0.02  # of a logarithm, for slopes
STEPS = 15
CLOSE = 1e-3
FOLDS = 8


def uncalibrated(machine: Machine, stack: Stack) -> Calibration:
    """The profile's own numbers, with an interval for a machine that was never measured."""
    return Calibration(machine, stack)


def calibrate(
    configs: Configs, step_time_s: np.ndarray, machine: Machine, stack: Stack, *, groups: np.ndarray | None = None
) -> Calibration:
    """The model calibrated on n measured rows.

    step_time_s: (n,); groups: (n,) names of the rows that are left out together when the calibration judges itself,
    by default one for each model and number of ranks.

    Raises
    ------
    ValueError: no rows, columns that do not fit, or times that are not positive
    """
    times = _checked(configs, step_time_s)
    names = _groups(configs) if groups is None else np.asarray(groups)
    fitted = _factors(configs, times, machine, stack)
    errors = left_out(configs, times, names, lambda some, t: _factors(some, t, machine, stack))
    how = f"factors and offsets from {len(times)} rows"
    return replace(fitted, spread=spread_of(errors), coverage=Coverage.over(configs), how=how)


def _checked(configs: Configs, step_time_s: np.ndarray) -> np.ndarray:
    times = np.asarray(step_time_s, float).reshape(-1)
    if not len(times):
        raise ValueError("calibrate: no rows")
    if len(configs) not in (1, len(times)):
        raise ValueError(f"calibrate: {len(times)} step times of {len(configs)} configurations")
    if not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError(f"calibrate: step time {times[~(times > 0)][:1]} of a row: must be positive")
    return times


def _groups(configs: Configs) -> np.ndarray:
    ranks = np.broadcast_to(np.asarray(configs.all_ranks, int), len(configs))
    return np.array([f"{key}@{n}" for key, n in zip(levels.workload_keys(configs), ranks, strict=True)])


def left_out(
    configs: Configs, times: np.ndarray, groups: np.ndarray, fit: Callable[[Configs, np.ndarray], Calibration]
) -> np.ndarray:
    """log(measured / predicted) of each row (n,) by a fit on the groups that it is not in."""
    known, place = np.unique(groups, return_inverse=True)
    folds = place % FOLDS
    if len(known) < 2:
        folds = np.arange(len(times)) % FOLDS
    errors = np.full(len(times), np.nan)
    for fold in np.unique(folds):
        out = folds == fold
        if out.all():
            continue
        fitted = fit(configs.take(~out), times[~out])
        errors[out] = np.log(times[out] / fitted.predict(configs.take(out)).parts.step_time_s)
    return errors[np.isfinite(errors)]


def _factors(configs: Configs, times: np.ndarray, machine: Machine, stack: Stack) -> Calibration:
    """Factors and offsets only."""
    keys, columns, deviations = levels.design(configs)
    prior = np.concatenate([[PRIOR[name] for name in NAMES], deviations])
    measured = np.log(times)

    def predicted(tuning: Tuning) -> np.ndarray:
        return np.log(predict_step(configs, machine, stack, tuning).step_time_s)

    def slopes(logs: np.ndarray, at: np.ndarray) -> np.ndarray:
        moved = [predicted(from_logs(logs + each)) - at for each in np.eye(len(NAMES)) * MOVE]
        return np.concatenate([np.stack(moved, axis=1) / MOVE, columns], axis=1)

    values, noise = np.zeros(len(prior)), NOISE
    for _ in range(STEPS):
        logs = values[: len(NAMES)]
        at = predicted(from_logs(logs))
        errors = measured - at - columns @ values[len(NAMES) :]
        noise = _noise(errors)
        step = _newton(slopes(logs, at), errors, values, prior, noise)
        values = values + step
        if np.max(np.abs(step)) < CLOSE:
            break
    found = Offsets(dict(zip(keys, map(float, values[len(NAMES) :]), strict=True)))
    return Calibration(machine, stack, from_logs(values[: len(NAMES)]), found)


def _newton(slopes: np.ndarray, errors: np.ndarray, values: np.ndarray, prior: np.ndarray, noise: float) -> np.ndarray:
    """One step towards the logarithms at which rows (Cauchy, reweighted) and priors (normal) are likeliest."""
    weights = 1 / (noise**2 + errors**2)
    curve = slopes.T @ (slopes * weights[:, None]) + np.diag(1 / prior**2)
    slope = slopes.T @ (errors * weights) - values / prior**2
    return np.clip(np.linalg.solve(curve, slope), -1.0, 1.0)


def _noise(errors: np.ndarray) -> float:
    """Deviation of the rows: of the middle half of them, and of what is assumed before any."""
    middle = float(np.median(np.abs(errors))) * 1.4826
    n = len(errors)
    return max(float(np.sqrt((n * middle**2 + NOISE_ROWS * NOISE**2) / (n + NOISE_ROWS))), NOISE_LEAST)


__all__ = ["Calibration", "Prediction", "Tuning", "calibrate", "uncalibrated"]
