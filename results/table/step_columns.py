"""Steps of many runs as numpy columns, one after the other: no object a row, and a run's steps are a slice of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from .read import rows_table

Steps = Mapping[str, np.ndarray]  # of one run: name -> (steps,) float64, NaN where null; a truth value is 0 or 1


class StepColumns(Mapping[str, Steps]):
    """run_id -> its steps, as views of the columns (rows,) of all; runs without steps are not in it."""

    def __init__(self, columns: Mapping[str, np.ndarray], runs: Sequence[str], starts: np.ndarray) -> None:
        """runs: those that have rows; starts: (runs + 1,) where the rows of each begin, and the end of the last."""
        self.columns = columns
        self._spans = {
            run: slice(*ends) for run, *ends in zip(runs, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        }

    def __getitem__(self, run_id: str) -> Steps:
        span = self._spans[run_id]
        return {name: values[span] for name, values in self.columns.items()}

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


NO_STEPS = StepColumns({}, (), np.zeros(1, int))


def read_step_columns(path: str | Path, runs: Iterable[str], names: Sequence[str]) -> StepColumns:
    """These columns of `steps` of the last attempts of these runs; an exported file of runs has none.

    Raises
    ------
    ValueError: as read_steps
    """
    runs = list(runs)
    if not runs or Path(path).is_file():
        return NO_STEPS
    table = rows_table(path, "steps", runs, columns=["run_id", *names])
    if not len(table):
        return NO_STEPS
    owner = table["run_id"].dictionary_encode().unify_dictionaries().combine_chunks()
    codes, known = owner.indices.to_numpy(), owner.dictionary.to_pylist()
    cuts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    columns = {}
    for name in names:  # one at a time: no more than one is in memory twice
        columns[name] = _as_floats(table[name])
        table = table.drop_columns([name])
    return StepColumns(columns, [known[code] for code in codes[cuts]], np.append(cuts, len(codes)))


def _as_floats(column) -> np.ndarray:
    """(rows,) float64 of a pyarrow column of numbers or truth values, NaN where null."""
    parts = [part.cast("int8") if str(part.type) == "bool" else part for part in column.chunks]
    values = np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])
    return values.astype(np.float64, copy=False)
