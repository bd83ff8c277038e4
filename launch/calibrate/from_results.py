"""`scalade calibrate --from RESULTS`: a profile improved by the user's own rows.

The factors, offsets and interval that the rows give (parallelism/predict/fit.py) go into the profile, for each engine
its own. The interval, and what is printed of the error, are of rows that were left out of the fit; the same rows are
nothing to judge the profile on afterwards.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ...bench.recipe import Recipe
from ...bench.shape import ModelShape
from ...parallelism.diloco.config import Outer
from ...parallelism.layout import Layout
from ...parallelism.predict import STACKS
from ...parallelism.predict.calibration import Prediction
from ...parallelism.predict.configs import from_cases
from ...parallelism.predict.fit import calibrate
from ...parallelism.predict.machine import FOLDER, load_machine, shipped
from ...results.wording import count_of
from ..predict.profile import THIS, own_profile
from .profile_file import write_profile

PREFIX = {ModelShape: "model_", Recipe: "", Layout: "", Outer: "outer_"}
LEAST_ROWS = 3
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Improved:
    """engines: of each one's calibration how it was fitted, its rows and the 90% interval of rows left out."""

    path: Path
    engines: dict[str, dict[str, Any]]
    left_aside: dict[str, int]  # why -> rows

    def to_dict(self) -> dict[str, Any]:
        return {"profile": str(self.path), "engines": self.engines, "left_aside": self.left_aside}

    def to_text(self) -> list[str]:
        lines = [
            f"{engine}: {found['how']}; the 90 % interval, of rows left out, is {found['low'] - 1:+.0%} to "
            f"{found['high'] - 1:+.0%} around a prediction"
            for engine, found in self.engines.items()
        ]
        lines += [f"{count_of(n, 'row')} not used: {why}" for why, n in self.left_aside.items()]
        return [*lines, f"profile: {self.path}"]


def improve(results: Path, machine: str | None, out: Path | None, where: str | None = None) -> Improved:
    """Calibrate on the rows of a table and write the profile.

    machine: the profile that is improved; None: `this`. out: the file; None: that of `this`. where: a filter of rows

    Raises
    ------
    ValueError: no profile, or too few rows
    """
    from ...results.table.read import read_runs

    frame = read_runs(results, where=where)
    rows = [{name: _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]
    source = _source(machine)
    table = tomllib.loads(source.read_text("utf-8"))
    engines, found = {}, load_machine(source)
    usable, left_aside = _usable(rows, found.device)
    for engine in sorted({str(row["engine"]) for row in usable}):
        own = [row for row in usable if row["engine"] == engine]
        if len(own) < LEAST_ROWS:
            left_aside[f"fewer than {LEAST_ROWS} of {engine}"] = len(own)
            continue
        configs = from_cases(case_of(row) for row in own)
        calibration = calibrate(configs, np.array([row["step_time_s"] for row in own]), found, STACKS[engine])
        table.setdefault("calibration", {})[engine] = calibration.to_table()
        low, high = _width(calibration.predict(configs))
        engines[engine] = {"how": calibration.how, "rows": len(own), "low": low, "high": high}
    if not engines:
        reasons = "; ".join(f"{count_of(n, 'row')}: {why}" for why, n in left_aside.items())
        raise ValueError(f"{results}: nothing to calibrate on: {reasons or 'there are no rows'}")
    path = out or own_profile()
    write_profile(path, table)
    return Improved(path, engines, left_aside)


def _width(predicted: Prediction) -> tuple[float, float]:
    """Ends of the 90% interval over the prediction: medians over the rows."""
    ends = predicted.low_s, predicted.high_s
    low, high = (float(np.nanmedian(end / predicted.step_time_s)) for end in ends)
    return low, high


def _source(machine: str | None) -> Path:
    if machine in (None, THIS):
        path = own_profile()
        if not path.is_file():
            known = ", ".join(shipped())
            raise ValueError(
                f"no profile of this machine ({path}): run `scalade calibrate`, or name a --machine: {known}"
            )
        return path
    return FOLDER / f"{machine}.toml" if machine in shipped() else Path(str(machine))


def _usable(rows: Sequence[Row], device: str) -> tuple[list[Row], dict[str, int]]:
    usable, left_aside = list[Row](), dict[str, int]()
    for row in rows:
        why = _unusable(row, device)
        if why:
            left_aside[why] = left_aside.get(why, 0) + 1
        else:
            usable.append(row)
    return usable, left_aside


def _unusable(row: Row, device: str) -> str | None:
    if row.get("status") != "ok":
        return f"status {row.get('status')}"
    if not row.get("step_time_s"):
        return "no step time"
    if row.get("device_type") not in (None, device):
        return f"measured on {row['device_type']}, the profile is of {device}"
    if row.get("engine") not in STACKS:
        return f"engine {row.get('engine')}"
    return "no model, recipe or layout" if row.get("model_width") is None or row.get("global_batch") is None else None


def case_of(row: Row) -> tuple[ModelShape, Recipe, Layout, Outer]:
    """What a row ran; settings that it has null are at their default."""
    shape, recipe, layout, outer = (_part(kind, prefix, row) for kind, prefix in PREFIX.items())
    return shape, recipe, layout, outer


def _part(kind: Any, prefix: str, row: Row) -> Any:
    values = {}
    for field in fields(kind):
        value = row.get(prefix + field.name)
        if value is not None:
            values[field.name] = value
        elif field.default is MISSING:
            raise ValueError(f"run {row.get('run_id')}: no {prefix}{field.name}")
    return kind(**values)


def _plain(value: Any) -> Any:
    """A cell of a pandas frame: missing is None, numpy's scalars are Python's."""
    import pandas as pd

    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    return value.item() if hasattr(value, "item") else value
