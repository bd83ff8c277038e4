"""Calibration: factors, offsets, residual and interval of a model, from measured rows.

Factors and offsets are those that are likeliest after the rows: each logarithm is held towards zero by its prior
deviation, each row by a deviation that is estimated, robustly (Cauchy), as slow runs are noise. So three rows move an
offset, thirty a factor or two, and hundreds all of them, by one rule. What interval and choice are judged by are
errors on groups of rows that were left out.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from . import offsets as levels
from .calibration import Calibration, Prediction
from .configs import Configs
from .coverage import Coverage
from .interval import regime_of, spread_of
from .machine import Machine
from .offsets import Offsets
from .residual import FITS, features_of
from .risk import risk_of
from .stack import STACKS, Stack
from .step import predict_step
from .tuning import NAMES, PRIOR, Tuning, from_logs

NOISE = 0.05  # deviation of a row's logarithm that is assumed before any; counts like NOISE_ROWS rows
NOISE_ROWS = 5
NOISE_LEAST = 0.01
MOVE = 0.02  # of a logarithm, for slopes
STEPS = 15
CLOSE = 1e-3
FOLDS = 10
RIDGE_ROWS, TREE_ROWS = 60, 200  # from which on a residual is tried
SCORE_WIDTH = 0.1
MODELS = 4  # at most, that are left out one by one
MOST = 0.3  # share of the rows, those on the most ranks, that is left out together
AGAIN = 4  # steps of a fit that starts from that on all rows


def uncalibrated(machine: Machine, stack: Stack) -> Calibration:
    """The profile's own numbers, with an interval for a machine that was never measured."""
    return Calibration(machine, stack)


def calibration_of(machine: Machine, engine: str) -> Calibration:
    """The profile's calibration of this engine. One that was never measured has the torch engine's factors, and the
    interval of an uncalibrated model."""
    stack = STACKS[engine]
    if engine in machine.calibration:
        return Calibration.from_table(machine.calibration[engine], machine, stack)
    plain = uncalibrated(machine, stack)
    if "torch" not in machine.calibration:
        return plain
    other = Calibration.from_table(machine.calibration["torch"], machine, stack)
    return replace(plain, tuning=other.tuning, how=f"factors of torch: no row of {engine} was measured")


def calibrate(
    configs: Configs, step_time_s: np.ndarray, machine: Machine, stack: Stack, *, groups: np.ndarray | None = None
) -> Calibration:
    """The model calibrated on n measured rows.

    step_time_s: (n,); groups: (n,) names of the rows that are left out together when the calibration judges itself,
    by default one for each model and number of ranks.

    Raises
    ------
    ValueError: no rows, columns that do not fit, times that are not positive, or rows that the model has no time for
    """
    times = _checked(configs, step_time_s)
    names = _groups(configs) if groups is None else np.asarray(groups)
    fitted = _factors(configs, times, machine, stack)
    kinds = _kinds(len(times))
    inside = left_out(configs, times, folds_of(names), fitted, kinds)
    outside = [left_out(configs, times, fold, fitted, kinds) for fold in extrapolations(configs)]
    kind = _best(kinds, [inside, *outside])
    regime, errors = regime_of(configs, machine.node_ranks), inside[kind]
    known = np.isfinite(errors)
    risk = risk_of(errors[known], regime[known])
    spread = spread_of(errors[known] - risk.logs(regime)[known], regime[known])
    for fold, found in zip(extrapolations(configs), outside, strict=True):
        distance = Coverage.over(configs.take(fold < 0)).distance(configs)
        spread = spread.widened(found[kind] - risk.logs(regime), regime, distance)
    return replace(
        _with_residual(fitted, configs, times, kind),
        risk=risk,
        spread=spread,
        coverage=Coverage.over(configs),
        how=_how(len(times), len(np.unique(names)), kind, inside),
    )


def _kinds(rows: int) -> list[str]:
    """Residuals that so many rows may choose among."""
    if rows < RIDGE_ROWS:
        return ["factors"]
    trees = rows >= TREE_ROWS and find_spec("sklearn") is not None
    return ["factors", "ridge"] + ["trees"] * trees


def _best(kinds: list[str], judged: list[dict[str, np.ndarray]]) -> str:
    """The kind that is best on groups left out, among those that are worse than the factors in none of the trials."""
    scores = {kind: np.array([_score(errors[kind]) for errors in judged]) for kind in kinds}
    safe = [kind for kind in kinds if np.all(scores[kind] <= scores["factors"])]
    return min(safe, key=lambda kind: scores[kind][0])


def _score(errors: np.ndarray) -> float:
    """Mean robust loss of errors: a slow run counts little more than one that is off by a half."""
    some = errors[np.isfinite(errors)]
    return float(np.mean(np.log1p((some / SCORE_WIDTH) ** 2))) if len(some) else np.inf


def _how(rows: int, groups: int, kind: str, judged: dict[str, np.ndarray]) -> str:
    """One line: what was fitted, and by what it was chosen."""
    said = {each: np.median(np.abs(np.expm1(errors[np.isfinite(errors)]))) for each, errors in judged.items()}
    figures = ", ".join(f"{each} {value:.1%}" for each, value in said.items() if np.isfinite(value))
    by = f" (median error of groups left out, {groups} groups: {figures})" if figures else ""
    after = "" if kind == "factors" else f", then {kind} on the residual"
    return f"factors and offsets from {rows} rows{after}{by}"


def _with_residual(fitted: Calibration, configs: Configs, times: np.ndarray, kind: str) -> Calibration:
    """The factors, and what they leave of these rows."""
    if kind == "factors":
        return fitted
    parts = predict_step(configs, fitted.machine, fitted.stack, fitted.tuning)
    left = np.log(times) - np.log(parts.step_time_s) - fitted.offsets.of(configs)
    features = features_of(configs, parts, fitted.machine.node_ranks)
    return replace(fitted, residual=FITS[kind](features, left, _noise(left)))


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


def folds_of(groups: np.ndarray) -> np.ndarray:
    """A fold (n,) for each row; rows of a group are in the same one."""
    known, place = np.unique(groups, return_inverse=True)
    return place % FOLDS if len(known) > 1 else np.arange(len(groups)) % FOLDS


def extrapolations(configs: Configs) -> list[np.ndarray]:
    """Folds that ask what a calibration is for: each model by the others, the most ranks by fewer; -1: never left out.

    Where rows are few there are none.
    """
    n = len(configs)
    if n < RIDGE_ROWS:
        return []
    known, place = np.unique(levels.workload_keys(configs), return_inverse=True)
    folds = [np.where(place == k, 0, -1) for k in range(len(known))] if 1 < len(known) <= MODELS else []
    ranks = np.broadcast_to(np.asarray(configs.all_ranks, float), n)
    most = ranks > np.quantile(ranks, 1 - MOST)
    return [*folds, np.where(most, 0, -1)] if most.any() else folds


def left_out(
    configs: Configs, times: np.ndarray, folds: np.ndarray, fitted: Calibration, kinds: list[str]
) -> dict[str, np.ndarray]:
    """log(measured / predicted) of each row (n,) and kind by a fit on the other folds; NaN where it is never left out.

    fitted: on all rows, where the others' factors start.
    """
    errors = {kind: np.full(len(times), np.nan) for kind in kinds}
    for fold in np.unique(folds[folds >= 0]):
        out = folds == fold
        if out.all():
            continue
        some, measured, rest = configs.take(~out), times[~out], configs.take(out)
        factors = _factors(some, measured, fitted.machine, fitted.stack, fitted.tuning)
        for kind in kinds:
            found = _with_residual(factors, some, measured, kind)
            errors[kind][out] = np.log(times[out] / found.expected(rest).step_time_s)
    return errors


def _factors(
    configs: Configs, times: np.ndarray, machine: Machine, stack: Stack, start: Tuning | None = None
) -> Calibration:
    """Factors and offsets only. start: of a fit on nearly the same rows."""
    keys, columns, deviations = levels.design(configs)
    prior = np.concatenate([[PRIOR[name] for name in NAMES], deviations])
    measured = np.log(times)

    def predicted(tuning: Tuning) -> np.ndarray:
        return np.log(predict_step(configs, machine, stack, tuning).step_time_s)

    def slopes(logs: np.ndarray, at: np.ndarray) -> np.ndarray:
        moved = [predicted(from_logs(logs + each)) - at for each in np.eye(len(NAMES)) * MOVE]
        return np.concatenate([np.stack(moved, axis=1) / MOVE, columns], axis=1)

    values, noise = np.zeros(len(prior)), NOISE
    if start is not None:
        values[: len(NAMES)] = start.logs()
    for _ in range(STEPS if start is None else AGAIN):
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


__all__ = ["Calibration", "Prediction", "Tuning", "calibrate", "calibration_of", "uncalibrated"]
