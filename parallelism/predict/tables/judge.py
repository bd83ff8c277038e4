"""The model held against measured runs: calibrated on some of them, judged on others, beside both naive predictions.

Runs of one machine under one stack are calibrated together. Judged runs of a pair that has no calibration of its own
take one of the same stack on another machine, else of another stack on the same machine, else the profile's numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..fit import Calibration, calibrate, uncalibrated
from ..machine import Machine, load_machine
from ..memory import cannot_run, predict_memory, reported_memory
from ..memory_fit import calibrate_memory
from ..naive import Work, at_peak, constant_mfu, smallest_scale
from ..stack import MemoryTuning, Stack, named_stack
from .metrics import MemoryFigures, TimeFigures, memory_figures, time_figures
from .runs import Run, Runs, as_configs, precision_of, read_runs
from .split import Split, split

Pair = tuple[str, str]  # machine, stack
SHAPE = ("layers", "width", "ffn", "vocab")  # what makes a model, for the naive prediction by model


@dataclass(frozen=True)
class Predicted:
    """Predictions of n judged runs, (n,) each; NaN and a reason where one is refused."""

    step_time_s: np.ndarray
    low_s: np.ndarray
    high_s: np.ndarray
    refused: tuple[str | None, ...]
    constant_mfu_s: np.ndarray
    smallest_scale_s: np.ndarray
    memory_bytes: np.ndarray
    over: np.ndarray  # predicted not to fit


@dataclass(frozen=True)
class Figures:
    """Of the model and of both naive predictions, on the same rows."""

    model: TimeFigures
    constant_mfu: TimeFigures
    smallest_scale: TimeFigures
    memory: MemoryFigures


@dataclass(frozen=True)
class Verdict:
    """All that came out."""

    split: Split
    calibrations: Mapping[Pair, tuple[int, Calibration]]  # of how many rows
    predicted: Predicted
    figures: Figures
    parts: Mapping[str, Figures]  # by the values of the column that was asked for


def judge_table(
    path: Path,
    named: Path | str | None = None,
    machine: str | None = None,
    calibrated_on: str | None = None,
    judged_on: str | None = None,
    by: str | None = None,
) -> Verdict:
    """Read, split, calibrate, predict and compare.

    named: map; machine: profile of the rows whose machine the map does not say, and of those of its own name;
    by: column for whose values the figures are given too

    Raises
    ------
    ValueError: what read_runs, split and load_machine say, or no column `by`
    """
    own = load_machine(machine) if machine is not None else None
    table = read_runs(path, named, own.name if own else None)
    if by is not None and by not in table.frame:
        raise ValueError(f"--by {by}: no such column: there is {', '.join(map(str, table.frame.columns))}")
    parted = split(table, calibrated_on, judged_on, own.name if own else None)
    machines = _machines((*parted.calibration, *parted.judged), own)
    calibrations = _calibrations(parted.calibration, machines)
    predicted = _predicted(parted, machines, calibrations)
    everything = np.ones(len(parted.judged), bool)
    parts = {}
    if by is not None:
        values = np.array([str(table.frame[by].iloc[run.row]) for run in parted.judged])
        parts = {str(each): _figures(parted, predicted, values == each) for each in np.unique(values)}
    return Verdict(parted, calibrations, predicted, _figures(parted, predicted, everything), parts)


def _machines(runs: tuple[Run, ...], own: Machine | None) -> dict[str, Machine]:
    names = sorted({run.machine for run in runs})
    return {name: own if own is not None and own.name == name else load_machine(name) for name in names}


def pair_of(run: Run) -> Pair:
    return run.machine, run.stack


def _calibrations(runs: tuple[Run, ...], machines: Mapping[str, Machine]) -> dict[Pair, tuple[int, Calibration]]:
    found = {}
    for pair in sorted({pair_of(run) for run in runs}):
        some = tuple(run for run in runs if pair_of(run) == pair)
        times = np.array([run.step_time_s for run in some])
        found[pair] = (len(some), calibrate(as_configs(some), times, machines[pair[0]], named_stack(pair[1])))
    return found


def calibration_for(
    pair: Pair, machines: Mapping[str, Machine], known: Mapping[Pair, tuple[int, Calibration]]
) -> Calibration:
    """The nearest calibration, for this machine and this stack; of the most rows where several are as near."""
    machine, stack = machines[pair[0]], named_stack(pair[1])
    near = [
        (stacks == pair[1], machine_name == pair[0], rows, calibration)
        for (machine_name, stacks), (rows, calibration) in known.items()
    ]
    near = [each for each in near if each[0] or each[1]]
    if not near:
        return uncalibrated(machine, stack)
    best = max(near, key=lambda each: (each[0] and each[1], each[0], each[1], each[2]))
    return replace(best[3], machine=machine, stack=stack)


def _predicted(
    parted: Split, machines: Mapping[str, Machine], calibrations: Mapping[Pair, tuple[int, Calibration]]
) -> Predicted:
    runs, n = parted.judged, len(parted.judged)
    time, low, high, memory = (np.full(n, np.nan) for _ in range(4))
    over, refused = np.zeros(n, bool), [None] * n  # type: tuple[np.ndarray, list[str | None]]
    for pair in sorted({pair_of(run) for run in runs}):
        rows = np.array([i for i, run in enumerate(runs) if pair_of(run) == pair])
        some = tuple(runs[i] for i in rows)
        machine, stack = machines[pair[0]], named_stack(pair[1])
        found = calibration_for(pair, machines, calibrations).predict(as_configs(some))
        time[rows], low[rows], high[rows] = found.step_time_s, found.low_s, found.high_s
        for i, reason in zip(rows, found.refused, strict=True):
            refused[i] = reason
        tuning = _memory_tuning(tuple(run for run in parted.calibration if pair_of(run) == pair), machine, stack)
        parts = predict_memory(as_configs(some), machine, stack, tuning)
        measured = {
            "total": reported_memory(as_configs(some), machine, stack, tuning),
            "state": np.broadcast_to(parts.weights + parts.gradients + parts.optimizer + parts.copies, len(rows)),
            "activations": np.broadcast_to(parts.activations, len(rows)),
        }
        memory[rows] = [measured[run.memory_part][k] for k, run in enumerate(some)]
        over[rows] = cannot_run(as_configs(some), machine, stack, tuning)
    known, asked = _work(parted.calibration, machines), _work(runs, machines)
    times = np.array([run.step_time_s for run in parted.calibration])
    return Predicted(
        step_time_s=time,
        low_s=low,
        high_s=high,
        refused=tuple(refused),
        constant_mfu_s=constant_mfu(known, times, asked),
        smallest_scale_s=smallest_scale(known, times, asked),
        memory_bytes=memory,
        over=over,
    )


def _memory_tuning(runs: tuple[Run, ...], machine: Machine, stack: Stack) -> MemoryTuning | None:
    """The allocator's factors from the calibration rows that have a peak; None: there are none."""
    known = tuple(run for run in runs if run.memory_bytes > 0 and run.memory_part == "total" and run.status == "ok")
    if not known:
        return None
    return calibrate_memory(as_configs(known), np.array([r.memory_bytes for r in known]), machine, stack).tuning


def _work(runs: tuple[Run, ...], machines: Mapping[str, Machine]) -> Work:
    if not runs:
        return Work(*(np.zeros(0) for _ in fields(Work)))
    precisions = [precision_of(run) for run in runs]
    peaks = np.array([machines[run.machine].peak(each) for run, each in zip(runs, precisions, strict=True)])
    devices = np.array([run.gpus for run in runs])
    return Work(
        at_peak_s=at_peak(as_configs(runs), peaks, devices),
        devices=devices,
        machine=np.array([run.machine for run in runs]),
        precision=np.array(precisions),
        model=np.array([" ".join(f"{run.settings[name]:g}" for name in SHAPE) for run in runs]),
    )


def _figures(parted: Split, predicted: Predicted, rows: np.ndarray) -> Figures:
    """Over the rows of a mask. The naive predictions are judged on the rows that the model predicts."""
    runs = [run for run, take in zip(parted.judged, rows, strict=True) if take]
    measured = np.array([run.step_time_s for run in runs])
    groups = [run.compete for run in runs]
    time = predicted.step_time_s[rows]
    there = np.where(np.isfinite(time), measured, np.nan)
    return Figures(
        model=time_figures(measured, time, groups, predicted.low_s[rows], predicted.high_s[rows]),
        constant_mfu=time_figures(there, predicted.constant_mfu_s[rows], groups),
        smallest_scale=time_figures(there, predicted.smallest_scale_s[rows], groups),
        memory=memory_figures(
            np.array([run.memory_bytes for run in runs]),
            predicted.memory_bytes[rows],
            predicted.over[rows],
            np.array([run.status for run in runs]),
        ),
    )


__all__ = ["Figures", "Predicted", "Runs", "Verdict", "judge_table"]
