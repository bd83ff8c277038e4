"""A table of measured runs as configurations: what each row asks for, what was measured, why others were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configs import PRECISIONS, Configs
from .field import Value, empty
from .layout_of import Unusable, number, settings
from .models import find_model
from .table_map import CONFIG_FIELDS, TEXT_FIELDS, TableMap, find_map

if TYPE_CHECKING:
    import pandas as pd

TIMES = ("step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "samples_per_s", "flops_per_s_per_gpu")
STATUS = ("ok", "oom", "failed")
PARTS = ("total", "state", "activations")
ADDED = ("machine", "stack", "dense", "gpus", "nodes", "params", "smallest")  # that a filter may name, too


@dataclass(frozen=True)
class Run:
    """One usable row."""

    row: int  # in the table, from 0
    settings: Mapping[str, float]
    gpus: float
    model: str  # as the table names it
    machine: str
    stack: str
    step_time_s: float  # NaN: not measured
    memory_bytes: float  # NaN: not measured
    memory_part: str
    status: str
    compete: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    active: str = ""  # of a mixture of experts


@dataclass(frozen=True)
class Runs:
    """The usable rows of a table, in its order, and why the others are not."""

    path: Path
    map: TableMap
    frame: pd.DataFrame  # the whole table, with the columns ADDED where it has none of that name
    runs: tuple[Run, ...]
    refused: Mapping[int, str]  # row -> reason

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def rows(self) -> np.ndarray:
        return np.array([run.row for run in self.runs], int)

    @property
    def configs(self) -> Configs:
        return as_configs(self.runs)

    def reasons(self) -> dict[str, int]:
        """Why rows were left out, and how many for each reason, most first."""
        return dict(Counter(self.refused.values()).most_common())


def as_configs(runs: tuple[Run, ...]) -> Configs:
    """The configurations of these runs. There must be one at least."""
    names = sorted({name for run in runs for name in run.settings})
    return Configs(
        **{name: np.array([run.settings.get(name, _DEFAULTS.get(name, 0)) for run in runs]) for name in names}
    )


_DEFAULTS: dict[str, Any] = {name: getattr(Configs, name) for name in CONFIG_FIELDS if hasattr(Configs, name)}


def read_runs(path: Path, named: Path | str | None = None, machine: str | None = None) -> Runs:
    """The runs of a table.

    named: map, a file or one that ships; default: the shipped one that fits. machine: profile of rows whose machine the
    map does not say.

    Raises
    ------
    ValueError: no such table, no map fits it, or none of its rows can be used
    """
    from ....results.laws.table import read_table

    frame = read_table(path)
    chosen = find_map(map(str, frame.columns), named)
    runs, refused = [], dict[int, str]()
    for i, row in enumerate(frame.to_dict("records")):
        try:
            runs.append(_run(i, {str(key): cell for key, cell in row.items()}, chosen, machine))
        except Unusable as reason:
            refused[i] = str(reason)
    if not runs:
        most = next(iter(Counter(refused.values()).most_common(1)))
        raise ValueError(f"{path}: no row can be used by map {chosen.name}: {most[0]} ({most[1]} rows)")
    return Runs(path, chosen, _with_added(frame, runs), tuple(runs), refused)


def _with_added(frame: pd.DataFrame, runs: list[Run]) -> pd.DataFrame:
    columns: dict[str, dict[int, Any]] = {
        "machine": {run.row: run.machine for run in runs},
        "stack": {run.row: run.stack for run in runs},
        "dense": {run.row: not run.active for run in runs},
        "gpus": {run.row: run.gpus for run in runs},
        "nodes": {run.row: np.ceil(run.gpus / 8) for run in runs},
        "smallest": _smallest(runs),
        "params": {run.row: float(np.asarray(as_configs((run,)).params_total)[0]) for run in runs},
    }
    added = frame.copy()
    for name in ADDED:
        if name not in added:
            added[name] = [columns[name].get(i) for i in range(len(frame))]
    return added


def _smallest(runs: list[Run]) -> dict[int, bool]:
    """Whether a run has the fewest devices of its whole model (no fewer layers), on its machine in its precision."""
    best: dict[tuple[str, str, str], tuple[float, float]] = {}
    size = {run.row: (-run.settings["layers"], run.gpus) for run in runs}
    keys = {run.row: (run.model, run.machine, precision_of(run)) for run in runs}
    for run in runs:
        best[keys[run.row]] = min(size[run.row], best.get(keys[run.row], size[run.row]))
    return {run.row: size[run.row] == best[keys[run.row]] for run in runs}


def _run(i: int, row: Mapping[str, Any], chosen: TableMap, machine: str | None) -> Run:
    for refusal in chosen.refuse:
        if refusal.fits(row):
            raise Unusable(refusal.reason)
    values, assumed = _values(row, chosen)
    active = _fill_model(values, chosen)
    device = _device(row, chosen)
    if machine is not None and not device:  # a device that the map does not know is not the one that was named
        values.setdefault("machine", machine)
    if "machine" not in values:
        raise Unusable(f"no machine profile for {device!r}" if device else "no machine profile: give --machine")
    configuration = settings(values, CONFIG_FIELDS)
    gpus = configuration.pop("gpus")
    status = str(values.get("status", "ok"))
    if status not in STATUS:
        raise Unusable(f"status {status!r}: not one of {', '.join(STATUS)}")
    time = _step_time(values, configuration, gpus, chosen.flops) if status == "ok" else np.nan
    memory = float(values.get("memory_bytes", np.nan))
    if status == "ok" and np.isnan(time) and np.isnan(memory):
        raise Unusable("nothing measured")
    cells = {name: "" if empty(row.get(name)) else str(row[name]) for name in chosen.compete}
    return Run(
        row=i,
        settings=configuration,
        gpus=gpus,
        model=str(values.get("model", "")),
        machine=str(values["machine"]),
        stack=str(values.get("stack", "torch")),
        step_time_s=time,
        memory_bytes=memory,
        memory_part=str(values.get("memory_part", "total")),
        status=status,
        compete=tuple(cells[name] for name in chosen.compete),
        assumed=assumed,
        active=active,
    )


def _values(row: Mapping[str, Any], chosen: TableMap) -> tuple[dict[str, Value], tuple[str, ...]]:
    """What the row says of each field, and what is assumed of it."""
    values, assumed = dict[str, Value](), []
    for name, ways in chosen.fields.items():
        for way in ways:
            value = way.text(row) if name in TEXT_FIELDS else way.of(row)
            if value is not None:
                values[name] = value
                if way.assumed:
                    assumed.append(f"{name} = {value:g}: {way.assumed}" if isinstance(value, float | int) else name)
                break
    return values, tuple(assumed)


def _fill_model(values: dict[str, Value], chosen: TableMap) -> str:
    """Take what the row does not say from the model that it names; what of a mixture of experts is active."""
    if "layers" in values and "width" in values:
        return ""
    model = find_model(str(values.get("model", "")), chosen.models)
    if model is None:
        raise Unusable(f"model {values.get('model', '')!r}: no shape known")
    if model.unusable:
        raise Unusable(f"{model.name}: {model.unusable}")
    for name, value in model.fields.items():
        values.setdefault(name, value)
    return model.active


def _device(row: Mapping[str, Any], chosen: TableMap) -> str:
    """What the row itself calls its device; empty: nothing."""
    cells = [row.get(way.column) for way in chosen.fields.get("machine", ()) if way.column]
    return next((str(cell) for cell in cells if not empty(cell)), "")


def _step_time(values: Mapping[str, Value], row: Mapping[str, float], gpus: float, convention: str) -> float:
    """Measured seconds of a step; NaN where nothing says it."""
    name = next((each for each in TIMES if each in values), None)
    if name is None:
        return float("nan")
    measured = number(values, name)
    if not measured > 0:
        raise Unusable(f"{name} is not above 0")
    tokens = row["global_batch"] * row["seq_len"]
    work = {
        "step_time_s": measured * measured,
        "tokens_per_s": tokens,
        "tokens_per_s_per_gpu": tokens / gpus,
        "samples_per_s": row["global_batch"],
        "flops_per_s_per_gpu": tokens * flops_per_token(Configs(**row), convention) / gpus,
    }
    return float(work[name] / measured)


def flops_per_token(configs: Configs, convention: str) -> Any:
    """Training FLOPs of a token: 6 a parameter of the matrices and of the head; `palm` adds attention, 12 L w s,
    `causal` half of that."""
    matrices = configs.layers * configs.matrices_layer + configs.vocab * configs.width
    attention = {"6n": 0, "palm": 12, "causal": 6}[convention]
    return 6 * matrices + attention * configs.layers * configs.width * configs.seq_len


def precision_of(run: Run) -> str:
    return PRECISIONS[int(run.settings.get("precision", 1))]
