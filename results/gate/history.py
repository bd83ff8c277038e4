"""`scalade history`: when did a case get slower? Change points over the runs of a results folder, or of many.

One number per run, in the order the runs were started. A case's series is cut where the standardised rank sum of a
stretch of runs against all others

    max over i < j of |W_ij - E W_ij| / sd W_ij,    W_ij the sum of the ranks of the runs i .. j - 1

is larger than chance makes it, then each part again: circular binary segmentation (Olshen et al. 2004) on ranks, so
that a slowdown that was mended later is found like one that stayed. Chance is simulated for a series as
autocorrelated as this one: machines drift from run to run, and a test for independent runs takes drift for change.
(E-divisive, which the kept libraries offer, is one: on autocorrelated per-step series it raised 31 false alarms in
40.) The first cut of every case is held to Holm's alpha over all cases.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from ..schema.rows import AnyRow, ok_rows, rows_of, values_in
from ..stats.rank_test import holm, rank_sum_p
from ..table.names import name_of
from ..table.read import printable, runs_table
from ..table.work import Work, levels, work_of
from ..wording import count_of
from .rule import METRICS, Rule

SIDE = 4  # runs on each side of a change point, at least
CAUTION = 1.5  # standard errors added to the autocorrelation: keeps 5% at autocorrelations up to 0.5, from 20 runs
SIMULATED = 1999  # series of noise that the p-value is counted in
BATCH = 2**21  # stretches in memory at once
EDGES = 250  # of longer series, not every run is tried as the edge of a stretch
MACHINE = (
    "git_commit",
    "scalade_version",
    "torch_version",
    "cuda_version",
    "nccl_version",
    "driver_version",
    "kernel",
    "python_version",
    "device_name",
    "device_count",
    "cpu_model",
    "cpu_count",
    "threads_per_rank",
    "backend",
)


@dataclass(frozen=True)
class ChangePoint:
    """Between two runs the level of a case changed."""

    last_before: str  # run_id and when it started
    first_after: str
    position: int  # runs of the series before it
    before: float  # median of the part before
    after: float
    ratio: float
    p: float
    changed: tuple[str, ...]  # columns of the environment that changed there: where to look first


@dataclass(frozen=True)
class History:
    """The series of one case and one amount of work, oldest run first."""

    case_id: str
    name: str
    metric: str
    values: tuple[float, ...]
    started_at: tuple[str, ...]
    changes: tuple[ChangePoint, ...]
    autocorrelation: float | None  # of neighbouring runs within the parts; null: too few runs
    judged: bool  # false: too few runs for a change point


def history(
    paths: str | Path | Sequence[str | Path], metric: str = "step_time_s", alpha: float = 0.05, where: str | None = None
) -> list[History]:
    """The series of every case, oldest run first, with its change points.

    paths: results folders, exported tables, or folders of results folders (one a night, say); attempts all count

    Raises
    ------
    ValueError: nothing at a path, a metric without a better and a worse, or not a filter
    """
    Rule(metrics=(metric,), alpha=alpha)  # refuses what is neither
    cases = _by_work(_measured([paths] if isinstance(paths, str | Path) else paths, metric, where))
    series = {key: np.log(values_in(members, metric)) for key, members in cases.items()}
    adjusted = _first_p(series)
    several = Counter(case_id for case_id, _ in cases)
    return [
        _history(members, series[key], metric, alpha, adjusted.get(key), several[key[0]] > 1)
        for key, members in cases.items()
    ]


def _first_p(series: Mapping[tuple, np.ndarray]) -> dict[tuple, float]:
    """p of the first cut of every series that is long enough for one, adjusted for the others."""
    first = {key: _cut(values)[1] for key, values in series.items() if len(values) >= 2 * SIDE}
    return dict(zip(first, holm(list(first.values())), strict=True))


def _measured(paths: Sequence[str | Path], metric: str, where: str | None) -> list[AnyRow]:
    """The ok attempts that have the metric and say when they started, oldest first."""
    rows: dict[tuple, AnyRow] = {}
    for folder in chain.from_iterable(_results_in(Path(path)) for path in paths):
        for row in ok_rows(rows_of(runs_table(folder, all_attempts=True, where=where))):
            if row["started_at"] and (row[metric] or 0) > 0:
                rows[row["run_id"], row["attempt"], row["started_at"]] = row  # a copied run counts once
    return sorted(rows.values(), key=lambda row: (row["started_at"], row["run_id"]))


def _by_work(rows: Sequence[AnyRow]) -> dict[tuple, list[AnyRow]]:
    """The runs by case and tokens of a step: recorded runs of one case may differ in them, and that is no change."""
    works: dict[str, set[Work | None]] = defaultdict(set)
    for row in rows:
        works[row["case_id"]].add(work_of(row))
    level = {case_id: levels(filter(None, some), repeats=True) for case_id, some in works.items()}
    cases = defaultdict(list)
    for row in rows:
        work = work_of(row)
        cases[row["case_id"], None if work is None else level[row["case_id"]][work]].append(row)
    return cases


def to_dict(histories: Sequence[History]) -> dict[str, object]:
    """For programs."""
    return {"kind": "scalade history", "cases": [asdict(one) for one in histories]}


def to_text(histories: Sequence[History]) -> list[str]:
    """For people: one line for each case, one for each change point under it."""
    lines = list(map(printable, chain.from_iterable(map(_case_lines, histories))))
    return lines or ["no ok run that says when it started"]


def _case_lines(one: History) -> Iterator[str]:
    drift = "" if one.autocorrelation is None else f", autocorrelation {one.autocorrelation:.2f}"
    judged = f"change points: {len(one.changes)}{drift}"
    result = judged if one.judged else f"too few runs: {2 * SIDE} are needed"
    yield f"{one.name} {one.case_id} {one.metric}: {count_of(len(one.values), 'run')}, {result}"
    text = METRICS[one.metric].text
    for change in one.changes:
        yield (
            f"  {text(change.before)} -> {text(change.after)} (x {change.ratio:.3f}, p {change.p:.2g}) "
            f"after {change.last_before}, from {change.first_after}"
        )
        yield from (f"    changed there: {column}" for column in change.changed)


def change_points(values: np.ndarray, alpha: float, first_p: float | None = None) -> list[tuple[int, float]]:
    """(position, p) of the changes of level in a series, by position; a position counts the values before it.

    first_p: the p of the first cut after adjustment for other series; None: its own
    """
    cuts = dict(_cuts(values, 0, alpha, first_p))
    while cuts:  # an edge of a stretch need not be a change: its neighbouring parts must differ
        edges = [0, *sorted(cuts), len(values)]
        same = {
            cut: rank_sum_p(values[start:cut], values[cut:end])
            for start, cut, end in zip(edges, edges[1:], edges[2:], strict=False)
        }
        least = max(same, key=same.__getitem__)
        if same[least] <= alpha:
            break
        del cuts[least]
    return sorted(cuts.items())


def _cuts(values: np.ndarray, offset: int, alpha: float, first_p: float | None = None) -> Iterator[tuple[int, float]]:
    """(position, p) of every cut of a part of a series that begins at `offset`."""
    if len(values) < 2 * SIDE:
        return
    cuts, p = _cut(values)
    p = p if first_p is None else first_p
    if p > alpha:
        return
    yield from ((offset + cut, p) for cut in cuts)
    for start, end in pairwise([0, *cuts, len(values)]):
        yield from _cuts(values[start:end], offset + start, alpha)


def autocorrelation(values: np.ndarray, positions: Sequence[int]) -> float | None:
    """Lag-one autocorrelation of the values about the medians of the parts between the positions."""
    if len(values) < 2 * SIDE:
        return None
    parts = np.split(values, positions)
    left = np.concatenate([part - part.mean() for part in parts])
    squares = float((left**2).sum())
    if squares <= 0:
        return 0.0
    biased = float((left[1:] * left[:-1]).sum()) / squares
    unbiased = biased + (1 + 3 * biased) * len(parts) / len(values)  # of a short series, Kendall 1954
    return float(np.clip(unbiased, -1, 1))


def _cut(values: np.ndarray) -> tuple[list[int], float]:
    """Where the most different stretch of a series begins and ends (one of both, where it reaches an end of the
    series), and how often noise as autocorrelated has one as different."""
    distance, best = _statistic(values[None])
    count = len(values)
    cuts = [int(edge) for edge in _stretches(count)[:, best[0]] if 0 < edge < count]
    own = autocorrelation(values, cuts)
    assert own is not None, "the caller has refused short series"
    # An upper bound: the best cuts also take away some of the drift they are to be judged by.
    phi = min(max(own + CAUTION * math.sqrt((1 - own**2) / count), 0.0), 0.95)
    as_good = sum(int((_statistic(noise)[0] >= distance[0] - 1e-9).sum()) for noise in _noise(phi, count))
    return cuts, (1 + as_good) / (1 + SIMULATED)


def _noise(phi: float, count: int) -> Iterator[np.ndarray]:
    """SIMULATED autoregressive series, in batches (many, count)."""
    random = np.random.default_rng(0)  # the same verdict for the same table
    left = SIMULATED
    while left:
        noise = random.standard_normal((min(left, max(1, BATCH // _stretches(count).shape[1])), count))
        for step in range(1, count):
            noise[:, step] = phi * noise[:, step - 1] + math.sqrt(1 - phi**2) * noise[:, step]
        yield noise
        left -= len(noise)


@lru_cache(maxsize=64)
def _stretches(count: int) -> np.ndarray:
    """(2, stretches): begin and end of the stretches of a series that leave SIDE runs or none on every side."""
    edges = [0, *range(SIDE, count - SIDE + 1, 1 + count // EDGES), count]
    pairs = [(i, j) for i in edges for j in edges if SIDE <= j - i <= count - SIDE]
    return np.array(pairs).T


def _statistic(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """series: (many, n). The largest standardised rank sum and the index of its stretch: (many,) each."""
    from scipy.stats import rankdata

    n = series.shape[1]
    ranks = rankdata(series, axis=1)
    sums = np.pad(np.cumsum(ranks, axis=1), ((0, 0), (1, 0)))
    begin, end = _stretches(n)
    length = end - begin
    variance = ranks.var(axis=1, keepdims=True) * n / (n - 1)  # of the ranks: ties make it smaller
    scale = np.sqrt(length * (n - length) / n * np.where(variance > 0, variance, 1))
    distance = np.abs(sums[:, end] - sums[:, begin] - length * (n + 1) / 2) / scale
    best = distance.argmax(axis=1)
    return distance[np.arange(len(series)), best], best


def _history(
    rows: Sequence[AnyRow], values: np.ndarray, metric: str, alpha: float, first_p: float | None, several: bool
) -> History:
    """several: the case has series of other work beside this one, so that its name says how much."""
    points = change_points(values, alpha, first_p)
    edges = [0, *(position for position, _ in points), len(values)]
    levels = [float(np.exp(np.median(part))) for part in np.split(values, edges[1:-1])]
    changes = [
        ChangePoint(
            last_before=_execution(rows[position - 1]),
            first_after=_execution(rows[position]),
            position=position,
            before=before,
            after=after,
            ratio=after / before,
            p=p,
            changed=tuple(_changed(rows[position - 1], rows[position])),
        )
        for (position, p), (before, after) in zip(points, pairwise(levels), strict=True)
    ]
    work = f" {work_of(rows[-1]) or 'unknown'} tokens a step"
    return History(
        case_id=rows[0]["case_id"],
        name=name_of(rows[-1]) + (work if several else ""),
        metric=metric,
        values=tuple(values_in(rows, metric)),
        started_at=tuple(values_in(rows, "started_at")),
        changes=tuple(changes),
        autocorrelation=autocorrelation(values, edges[1:-1]),
        judged=first_p is not None,
    )


def _execution(row: AnyRow) -> str:
    return f"{row['run_id']} {row['started_at']}"


def _changed(before: AnyRow, after: AnyRow) -> list[str]:
    return [f"{name} {before[name]} -> {after[name]}" for name in MACHINE if before[name] != after[name]]


def _results_in(path: Path) -> list[Path]:
    """The path, or the results folders directly in it."""
    if path.is_dir() and not (path / "runs").is_dir():
        return sorted(folder for folder in path.iterdir() if (folder / "runs").is_dir()) or [path]
    return [path]
