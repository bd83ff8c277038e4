"""Rows that are points of training curves, seen without a column that tells runs apart.

Points of one run share that run's deviation, so they are one observation of how runs differ. Rows are taken for
curves where they agree in all but what moves along a run (tokens, step, FLOPs, loss) and either stand at even steps,
eight of them or more, as a log does and a ladder of runs does not, or are thirty or more: no study trains
thirty runs at one size. A text column that names every row another says that they are runs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .base import Law
from .table import Rows

PROGRESS = ("tokens", "step", "steps", "x")  # roles that move along a run
EVEN, POINTS, MANY = 0.35, 8, 30  # spread of the steps over their mean; rows of a curve; rows that are surely one


def find_curves(law: Law, frame: pd.DataFrame, data: Rows) -> np.ndarray | None:
    """Code (n,) of the curve each row is on, or None where most rows are on none. frame: the table `data` is from."""
    along = next((r for r in PROGRESS if r in law.roles), None)
    if along is None or law.needs_run or law.response in PROGRESS or len(data.y) < POINTS:
        return None
    texts = _texts(frame, data)
    if texts is None:
        return None
    keys = [data.columns[r] for r in law.roles if r != along] + texts
    if not keys:
        return None
    code = pd.DataFrame(dict(enumerate(keys))).groupby(list(range(len(keys))), sort=False).ngroup().to_numpy()
    return code if _most_on_curves(code, data.columns[along], data.y) else None


def _most_on_curves(code: np.ndarray, at: np.ndarray, y: np.ndarray) -> bool:
    """Whether more than half of the rows (n,), grouped by code, are on curves over `at`."""
    size = np.bincount(code)
    if size[size >= POINTS].sum() <= 0.5 * len(code):
        return False
    groups = np.split(np.argsort(code, kind="stable"), np.cumsum(size)[:-1])
    on = sum(len(group) for group in groups if len(group) >= POINTS and _is_curve(at[group], y[group]))
    return on / len(code) > 0.5


def _texts(frame: pd.DataFrame, data: Rows) -> list[np.ndarray] | None:
    """The columns of text (n,) at the rows `data`; None where one names every row another, as an id of runs does."""
    texts = []
    for name in frame:
        if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].dtype != bool:
            continue
        values = frame[name].loc[data.index].astype(str).to_numpy()
        if len(np.unique(values)) == len(values):
            return None
        texts.append(values)
    return texts


def _is_curve(at: np.ndarray, y: np.ndarray) -> bool:
    distinct = np.unique(at)
    if len(distinct) < max(POINTS, 0.5 * len(at)):
        return False
    steps = np.diff(distinct)
    even = steps.std() <= EVEN * steps.mean()
    if not even and len(distinct) < MANY:
        return False
    order = np.argsort(at, kind="stable")
    return bool(np.corrcoef(np.arange(len(y)), np.log(y[order]))[0, 1] < -0.5) if np.ptp(y) > 0 else False


def effective_rows(residuals: np.ndarray, cluster: np.ndarray) -> float:
    """The effective number of rows, n / (1 + (m - 1) rho), with rho the intraclass correlation of the
    residuals (n,) and m the mean size of a cluster weighted by itself (Kish 1965)."""
    n, k = len(residuals), int(cluster.max()) + 1
    size = np.bincount(cluster)
    if k < 2 or k == n:
        return float(n)
    mean = np.bincount(cluster, residuals) / size
    between = (size * (mean - residuals.mean()) ** 2).sum() / (k - 1)
    within = ((residuals - mean[cluster]) ** 2).sum() / max(n - k, 1)
    m0 = (n - (size**2).sum() / n) / (k - 1)
    rho = np.clip((between - within) / max(between + (m0 - 1) * within, 1e-300), 0.0, 1.0)
    return float(n / (1 + ((size**2).sum() / n - 1) * rho))
