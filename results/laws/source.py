"""The table of a fit as the later stages see it: `Source` before the fit, `Fitted` after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from .base import Law, get_law
from .curves import find_curves
from .fit import Fit, Settings
from .options import FitOptions
from .table import Rows, column, read_table, rows


@dataclass(frozen=True)
class Source:
    """The table that is fitted, and what is read of it. train: the rows of `frame` that are fitted."""

    law: Law
    options: FitOptions
    table: str
    frame: pd.DataFrame
    keep: pd.Series
    held: pd.Series
    train: pd.DataFrame
    names: dict[str, str]
    response: str

    @property
    def used(self) -> set[str]:
        """The columns that the fit reads, and the roles they have."""
        run = self.options.rows.run
        return {self.response, *self.names.values(), *self.law.roles, *([] if run is None else [run])}

    def rows_of(self, frame: pd.DataFrame) -> Rows:
        return rows(self.law, frame, self.names, self.response, self.options.rows.run)


@dataclass(frozen=True)
class Fitted:
    """The fit that the later stages start from. noise: the table says no more than a constant."""

    source: Source
    rows: Rows
    fit: Fit
    settings: Settings
    noise: bool

    @property
    def options(self) -> FitOptions:
        return self.source.options

    @property
    def nd(self) -> np.ndarray:
        """Compute (n,) by the convention C = k N D."""
        return self.options.compute.flops_per_nd * self.rows.columns["params"] * self.rows.columns["tokens"]


def read_source(path: str | Path | pd.DataFrame, options: FitOptions) -> Source:
    law = get_law(options.method.law)
    if isinstance(path, pd.DataFrame):
        frame, table = path, path.attrs.get("table", "frame")
    else:
        frame, table = read_table(path), Path(path).name
    options.check()
    names, response = options.rows.names(law)
    keep, held = options.rows.kept_and_held(frame)
    return Source(law, options, table, frame, keep, held, frame[keep & ~held], names, response)


def as_runs(source: Source, data: Rows) -> tuple[Rows, list[str]]:
    """The rows with copies and points of one curve as one run each, and the notes about them."""
    notes, run = [], source.options.rows.run
    if data.copies:
        notes.append(
            f"{data.copies} rows are exact copies of others" + ("" if run else "; copies were resampled as one run")
        )
    if data.twins:
        count, more = len(data.twins), len(data.twins) - 4
        some = ", ".join(f"{a} and {b}" for a, b in data.twins[:4]) + (f" and {more} more pairs" if more > 0 else "")
        notes.append(
            f"{count} pair{'s' if count > 1 else ''} of rows hold one run twice, rounded or under another name (rows "
            f"{some}): resampled as one run each, and counted twice in the fit; drop one of each"
        )
    curves = find_curves(source.law, source.train, data) if run is None else None
    if curves is not None:
        data = replace(data, cluster=curves)
        notes.append(
            f"the {len(data.y)} rows look like points of {data.clusters} training curves: a curve was taken as one "
            "run; name the column that tells runs apart (--run)"
        )
    return data, notes


def rows_if_usable(source: Source, frame: pd.DataFrame) -> Rows | None:
    """The rows `where` left out as well, if they can be fitted at all: they are only a comparison."""
    try:
        return source.rows_of(frame)
    except ValueError:
        return None


def compute_of(fitted: Fitted, data: Rows) -> np.ndarray:
    """Compute (n,) of the rows: the FLOPs column, else k N D, else the law's own measure of size."""
    flops, law = fitted.options.compute.flops, fitted.source.law
    if flops is not None:
        values = column(fitted.source.train, flops, "flops").loc[data.index].to_numpy(float)
        if np.isfinite(values).all() and (values > 0).all():
            return values
        raise ValueError(f"flops: column {flops!r} holds null, zero or negative values")
    if {"params", "tokens"} <= set(data.columns):
        return fitted.options.compute.flops_per_nd * data.columns["params"] * data.columns["tokens"]
    return law.extent(data.columns)
