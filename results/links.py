"""What a link gives: bandwidths of a collective as nccl-tests defines them, and the latency and bandwidth behind them.

Algorithm bandwidth is S / t. Bus bandwidth is that times a factor which makes it the rate at which each rank's link
was used, whatever the number of ranks n (NVIDIA/nccl-tests, doc/PERFORMANCE.md; send and receive: src/sendrecv.cu).
S is the size of the array that every rank reduces or receives, the whole gathered array of an all-gather, the whole
input of a reduce-scatter, all that one rank hands out in an all-to-all.

The model behind: t(S) = alpha + factor S / beta (Hockney, Parallel Computing 20 (1994) 389), alpha the time of a call
that moves nothing, beta the bus bandwidth of one that is all transfer. Fitted for each run by least squares of the
relative errors, so that small messages count; the interval is over runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
    """A link, seen through one collective, over the runs that measured it."""

    backend: str
    dim: str
    collective: str
    group_ranks: int
    alpha_s: Estimate | None  # None: no run's line has one above zero
    beta_bytes_per_s: Estimate | None
    misfit: float  # of the worst run

    def to_dict(self) -> dict:
        about = {name: getattr(self, name) for name in ("backend", "dim", "collective", "group_ranks", "misfit")}
        return about | {
            name: None if getattr(self, name) is None else getattr(self, name).to_dict()
            for name in ("alpha_s", "beta_bytes_per_s")
        }


def measured(path: str | Path) -> list[dict]:
    """Rows of `comm` of the runs that ended well, with their run's backend; one run, dimension and size after another.

    Raises
    ------
    ValueError: nothing at the path
    """
    backends = {row["run_id"]: row["backend"] for row in runs_table(path, where="status == ok").to_pylist()}
    rows = rows_table(path, "comm", list(backends)).to_pylist()
    return [row | {"backend": backends[row["run_id"]]} for row in rows]


def fit_links(rows: Sequence[dict], level: float = 0.95) -> list[LinkFit]:
    """A line for each backend, dimension and collective that was measured at several sizes."""
    runs: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row["time_s"] or 0) > 0:
            runs[row["backend"], row["dim"], row["collective"], row["group_ranks"]][row["run_id"]].append(row)
    fits = []
    for (backend, dim, collective, ranks), by_run in runs.items():
        factor = bus_factor(collective, ranks)
        lines = [
            line
            for run in by_run.values()
            if (line := fit_line([factor * row["message_bytes"] for row in run], [row["time_s"] for row in run]))
        ]
        alphas = [line.alpha_s for line in lines if line.alpha_s > 0]
        betas = [line.beta_bytes_per_s for line in lines if line.beta_bytes_per_s]
        if lines:
            fits.append(
                LinkFit(
                    backend,
                    dim,
                    collective,
                    ranks,
                    median(alphas, level) if alphas else None,
                    median(betas, level) if betas else None,
                    max(line.misfit for line in lines),
                )
            )
    return fits


def by_size(rows: Sequence[dict]) -> list[dict]:
    """One row for each backend, dimension, collective and size: the median over the runs, and how many they are."""
    keys = ("backend", "dim", "collective", "group_ranks", "message_bytes", "dtype")
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    found = []
    for key, members in groups.items():
        times = [row["time_s"] for row in members if (row["time_s"] or 0) > 0]
        time_s = float(np.median(times)) if times else None
        algbw = key[4] / time_s if time_s else None
        found.append(
            dict(zip(keys, key, strict=True))
            | {
                "runs": len(members),
                "time_s": time_s,
                "least_s": min(times, default=None),
                "most_s": max(times, default=None),
                "algbw_bytes_per_s": algbw,
                "busbw_bytes_per_s": algbw * bus_factor(key[2], key[3]) if algbw else None,
            }
        )
    return found
