"""Which rows calibrate and which are judged: two filters on the table, or a table of its own to calibrate on.

Nothing is judged on what it was fitted on: filters that overlap are refused, and a judged row that repeats a
calibration row (the same configuration, the same measured time) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ....results.table.filter import where
from ....results.wording import count_of
from .runs import Run, Runs, read_runs

REPEATS = "repeats a row that calibrates"


@dataclass(frozen=True)
class Split:
    """Runs that calibrate, runs that are judged; `table` with what was left out."""

    table: Runs
    calibration: tuple[Run, ...]
    judged: tuple[Run, ...]


def split(table: Runs, calibrate: str | None, judge: str | None, machine: str | None = None) -> Split:
    """The split of a table by two filters, or by a filter and the path of a table to calibrate on.

    Raises
    ------
    ValueError: a filter is wrong, chooses no usable row, or both choose one
    """
    other = calibrate is not None and Path(calibrate).suffix in (".csv", ".tsv", ".parquet", ".pq")
    if other:
        return _of_two(table, Path(str(calibrate)), judge, machine)
    fitted = chosen(table, "--calibrate", calibrate) if calibrate is not None else np.zeros(len(table), bool)
    judged = chosen(table, "--judge", judge) if judge is not None else ~fitted
    if both := int(np.sum(fitted & judged)):
        raise ValueError(
            f"{count_of(both, 'row')} in both --calibrate and --judge: nothing is judged on what it was fitted on"
        )
    if not judged.any():
        raise ValueError("--calibrate takes every usable row: none is left to judge")
    # Failed runs teach no time, but their memory is judged.
    fitted &= np.array([np.isfinite(run.step_time_s) for run in table.runs])
    return _without_repeats(table, _taken(table, fitted), _taken(table, judged))


def _of_two(table: Runs, path: Path, judge: str | None, machine: str | None) -> Split:
    if path.resolve() == table.path.resolve():
        raise ValueError(f"--calibrate {path}: is the table that is judged: give a filter of its rows")
    runs = tuple(run for run in read_runs(path, machine=machine).runs if np.isfinite(run.step_time_s))
    if not runs:
        raise ValueError(f"--calibrate {path}: no row has a step time")
    judged = chosen(table, "--judge", judge) if judge is not None else np.ones(len(table), bool)
    return _without_repeats(table, runs, _taken(table, judged))


def chosen(table: Runs, option: str, text: str) -> np.ndarray:
    """Which usable rows a filter chooses, bool (runs,). Raises ValueError where it is wrong or chooses none."""
    try:
        mask = where(table.frame, text).to_numpy(bool)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
    usable = mask[table.rows]
    if not usable.any():
        left = int(mask.sum())
        why = f"{count_of(left, 'row')}, none of which can be used" if left else "no row"
        raise ValueError(f"{option} {text!r}: chooses {why}")
    return usable


def _taken(table: Runs, mask: np.ndarray) -> tuple[Run, ...]:
    return tuple(run for run, take in zip(table.runs, mask, strict=True) if take)


def _without_repeats(table: Runs, calibration: tuple[Run, ...], judged: tuple[Run, ...]) -> Split:
    known = {_content(run) for run in calibration}
    repeats = {run.row: REPEATS for run in judged if _content(run) in known}
    kept = tuple(run for run in judged if run.row not in repeats)
    if not kept:
        raise ValueError("every judged row repeats one that calibrates")
    return Split(replace(table, refused={**table.refused, **repeats}), calibration, kept)


def _content(run: Run) -> tuple[object, ...]:
    return (run.machine, run.stack, run.gpus, run.step_time_s, tuple(sorted(run.settings.items())))
