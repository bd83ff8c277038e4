"""Performance of a link: bandwidths of a collective as nccl-tests defines them, and the fitted latency and bandwidth.

Algorithm bandwidth is S / t. Bus bandwidth is that times a factor which makes it the rate at which the link of each
rank was used, for any number of ranks n (NVIDIA/nccl-tests, doc/PERFORMANCE.md; send and receive: src/sendrecv.cu).
S is the size of the array that every rank reduces or receives, the whole gathered array of an all-gather, the whole
input of a reduce-scatter, everything that one rank sends in an all-to-all.

The model is t(S) = alpha + factor S / beta (Hockney, Parallel Computing 20 (1994) 389): alpha is the time of a call
that moves no data, beta the bus bandwidth of a call that is only transfer. It is fitted for each run by least squares
of the relative errors, so that small messages count; the interval is over runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .stats.rank_intervals import Estimate, median
from .table.read import rows_table, runs_table


def bus_factor(collective: str, ranks: int) -> float:
    """Bus bandwidth over algorithm bandwidth.

    Raises
    ------
    KeyError: nccl-tests has no such collective
    """
    n = ranks
    return {
        "all_reduce": 2 * (n - 1) / n,
        "reduce_scatter": (n - 1) / n,
        "all_gather": (n - 1) / n,
        "all_to_all": (n - 1) / n,
        "broadcast": 1.0,
        "send_recv": 1.0,
    }[collective]


@dataclass(frozen=True)
class Line:
    """t = alpha_s + bus bytes / beta."""

    alpha_s: float
    beta_bytes_per_s: float | None  # None: the time does not grow with the size
    misfit: float  # largest relative error of the line at a measured size


def fit_line(bus_bytes: Sequence[float], times_s: Sequence[float]) -> Line | None:
    """None with fewer than two sizes."""
    from scipy.optimize import nnls

    x, t = np.asarray(bus_bytes, float), np.asarray(times_s, float)
    if len(np.unique(x)) < 2:
        return None
    scale = x.max()  # both columns of the same order
    (alpha, slope), _ = nnls(np.column_stack([1 / t, x / scale / t]), np.ones_like(t))
    misfit = float(np.abs((alpha + slope * x / scale) / t - 1).max())
    return Line(float(alpha), float(scale / slope) if slope else None, misfit)


@dataclass(frozen=True)
class LinkFit:
    """A link as one collective uses it, over the runs that measured it."""

    backend: str
    dim: str
    collective: str
    group_ranks: int
    alpha_s: Estimate | None  # None: no run's line has one above zero
    beta_bytes_per_s: Estimate | None
    misfit: float  # of the worst run

    def to_dict(self) -> dict:
        return {
            "backend": self.backend,
            "dim": self.dim,
            "collective": self.collective,
            "group_ranks": self.group_ranks,
            "misfit": self.misfit,
            "alpha_s": None if self.alpha_s is None else self.alpha_s.to_dict(),
            "beta_bytes_per_s": None if self.beta_bytes_per_s is None else self.beta_bytes_per_s.to_dict(),
        }


def measured(path: str | Path) -> list[dict]:
    """Rows of `comm` of the runs with status ok, with the backend of their run; by run, dimension and size.

    Raises
    ------
    ValueError: nothing at the path
    """
    backends = {row["run_id"]: row["backend"] for row in runs_table(path, where="status == ok").to_pylist()}
    rows = rows_table(path, "comm", list(backends)).to_pylist()
    return [row | {"backend": backends[row["run_id"]]} for row in rows]


def fit_links(rows: Sequence[dict], level: float = 0.95) -> list[LinkFit]:
    """A line for each backend, dimension and collective that was measured at several sizes."""
    runs: dict[tuple[str, str, str, int], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row["time_s"] or 0) > 0:
            runs[row["backend"], row["dim"], row["collective"], row["group_ranks"]][row["run_id"]].append(row)
    fits = (_fit_link(key, by_run.values(), level) for key, by_run in runs.items())
    return list(filter(None, fits))


def _fit_link(key: tuple[str, str, str, int], runs: Iterable[list[dict]], level: float) -> LinkFit | None:
    """Medians of the lines of the runs of one key; None: none was measured at several sizes."""
    backend, dim, collective, ranks = key
    lines = _lines(runs, bus_factor(collective, ranks))
    if not lines:
        return None
    alpha = _median_if_any([line.alpha_s for line in lines if line.alpha_s > 0], level)
    beta = _median_if_any([line.beta_bytes_per_s for line in lines if line.beta_bytes_per_s], level)
    return LinkFit(backend, dim, collective, ranks, alpha, beta, max(line.misfit for line in lines))


def _lines(runs: Iterable[list[dict]], factor: float) -> list[Line]:
    """The line of each run that measured several sizes."""
    lines = [fit_line([factor * row["message_bytes"] for row in run], [row["time_s"] for row in run]) for run in runs]
    return [line for line in lines if line is not None]


def _median_if_any(values: Sequence[float], level: float) -> Estimate | None:
    return median(values, level) if values else None


def by_size(rows: Sequence[dict]) -> list[dict]:
    """One row for each backend, dimension, collective and size: the median over the runs, and their number."""
    keys = ("backend", "dim", "collective", "group_ranks", "message_bytes", "dtype")
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return [dict(zip(keys, key, strict=True)) | _bandwidths(members) for key, members in groups.items()]


def _bandwidths(rows: Sequence[dict]) -> dict:
    """Times and bandwidths over the runs of one collective and size."""
    first = rows[0]
    times = [row["time_s"] for row in rows if (row["time_s"] or 0) > 0]
    time_s = float(np.median(times)) if times else None
    algbw = first["message_bytes"] / time_s if time_s else None
    return {
        "runs": len(rows),
        "time_s": time_s,
        "least_s": min(times, default=None),
        "most_s": max(times, default=None),
        "algbw_bytes_per_s": algbw,
        "busbw_bytes_per_s": algbw * bus_factor(first["collective"], first["group_ranks"]) if algbw else None,
    }
