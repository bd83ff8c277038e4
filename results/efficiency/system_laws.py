"""Laws of throughput against devices: Amdahl, Gustafson and the universal scalability law (USL), and their fits.

X(n) is the throughput on n devices, X1 that of one device as the law extrapolates it (a parameter, so that the noise of
the base is fitted like any other).

    amdahl      X = X1 / (s + (1 - s) / n)                          s: serial share of the work (AFIPS 1967)
    gustafson   X = X1 (n - s (n - 1))                              s: serial share of the time (CACM 31, 1988)
    usl         X = X1 n / (1 + sigma (n - 1) + kappa n (n - 1))    sigma: contention, kappa: coherency (Gunther,
                peak at sqrt((1 - sigma) / kappa)                   "Guerrilla Capacity Planning", 2007, ch. 4)

In device-seconds n / X (Amdahl, USL) and in X / n (Gustafson) the laws are linear with coefficients that cannot be
negative: the fit is weighted least squares on relative errors, exact, without starting values. Each device count
enters once, with the pseudo-median of its runs. Intervals resample the runs within each device count; their
percentiles are widened for few runs (Hesterberg, The American Statistician 69, 2015, "expanded percentile").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import inf, isfinite, sqrt
from typing import ClassVar

import numpy as np

from ..stats.rank_intervals import MIN_RUNS, pseudo_median, resampled_pseudo_medians


@dataclass(frozen=True)
class SystemLaw:
    """One law. speedup and half are functions of its parameters without X1; each may be arrays (draws,)."""

    name: str
    equation: str
    modes: tuple[str, ...]  # scaling that it describes
    parameters: tuple[str, ...]
    speedup: Callable[..., np.ndarray]  # (n, *parameters) -> X / X1
    features: Callable[[np.ndarray], np.ndarray]  # n (counts,) -> (counts, 1 + parameters), linear in the response
    inverse: bool  # the response is n / X; otherwise X / n
    share: bool  # the parameter is a share of all coefficients; otherwise parameters are over the first one
    peak: Callable[..., float]  # devices of the highest throughput; inf: none
    half: Callable[..., float]  # devices at which efficiency against X1 is one half; inf: never

    @property
    def needs(self) -> int:
        """Fewest device counts: one more than there is to fit."""
        return len(self.parameters) + 2


def _usl_half(sigma: float, kappa: float) -> float:
    if kappa <= 0:
        return 1 + 1 / sigma if sigma > 0 else inf
    b = sigma - kappa
    return (-b + sqrt(b * b + 4 * kappa * (1 + sigma))) / (2 * kappa)


LAWS = {
    law.name: law
    for law in (
        SystemLaw(
            "amdahl",
            "X1 / (s + (1 - s) / n)",
            ("strong",),
            ("s",),
            speedup=lambda n, s: n / (1 + s * (n - 1)),
            features=lambda n: np.stack([np.ones_like(n), n], -1),
            inverse=True,
            share=True,
            peak=lambda s: inf,
            half=lambda s: 1 + 1 / s if s > 0 else inf,
        ),
        SystemLaw(
            "gustafson",
            "X1 (n - s (n - 1))",
            ("weak",),
            ("s",),
            speedup=lambda n, s: n - s * (n - 1),
            features=lambda n: np.stack([np.ones_like(n), 1 / n], -1),
            inverse=False,
            share=True,
            peak=lambda s: inf,
            half=lambda s: s / (s - 0.5) if s > 0.5 else inf,
        ),
        SystemLaw(
            "usl",
            "X1 n / (1 + sigma (n - 1) + kappa n (n - 1))",
            ("strong", "weak"),
            ("sigma", "kappa"),
            speedup=lambda n, sigma, kappa: n / (1 + sigma * (n - 1) + kappa * n * (n - 1)),
            features=lambda n: np.stack([np.ones_like(n), n - 1, n * (n - 1)], -1),
            inverse=True,
            share=False,
            peak=lambda sigma, kappa: sqrt(max(1 - sigma, 0.0) / kappa) if kappa > 0 else inf,
            half=_usl_half,
        ),
    )
}


@dataclass(frozen=True)
class Fitted:
    """A figure with its interval; value null: not finite (no peak). high null beside a low: no upper end."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class LawRefused:
    """A law that was not fitted, and why."""

    law: SystemLaw
    refused: str

    parameters: ClassVar[dict[str, Fitted]] = {}

    def to_dict(self) -> dict:
        return {"law": self.law.name, "equation": self.law.equation, "refused": self.refused}


@dataclass(frozen=True)
class LawFit:
    """A fitted law."""

    law: SystemLaw
    x1_tokens_per_s: float  # throughput of one device
    x1: Fitted  # the same, with its interval
    parameters: dict[str, Fitted]
    peak: Fitted
    half: Fitted
    rms_relative_error: float  # over the device counts
    measured_to: int
    note: str | None

    refused: ClassVar[None] = None

    def throughput(self, devices: float) -> float:
        return self.x1_tokens_per_s * float(self.law.speedup(devices, *(p.value for p in self.parameters.values())))

    def to_dict(self) -> dict:
        return {
            "law": self.law.name,
            "equation": self.law.equation,
            "x1_tokens_per_s": self.x1.to_dict(),
            "parameters": {name: value.to_dict() for name, value in self.parameters.items()},
            "peak_devices": self.peak.to_dict(),
            "half_efficiency_devices": self.half.to_dict(),
            "rms_relative_error": self.rms_relative_error,
            "measured_to_devices": self.measured_to,
            "note": self.note,
        }


def fit_law(
    law: SystemLaw, runs: Mapping[int, Sequence[float]], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> LawFit | LawRefused:
    """Fit to the throughputs of the runs by device count, tokens/s.

    Refused with fewer device counts than the law needs. Intervals need MIN_RUNS runs at every device count.
    """
    return fit_laws([law], runs, level, draws, seed)[0]


def fit_laws(
    laws: Sequence[SystemLaw],
    runs: Mapping[int, Sequence[float]],
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> list[LawFit | LawRefused]:
    """fit_law of each, over the same resamples."""
    measured = _Measured(runs, level, draws, seed)
    return [_fit(law, measured) for law in laws]


class _Measured:
    """The runs by device count, their levels, and the levels of their resamples."""

    def __init__(self, runs: Mapping[int, Sequence[float]], level: float, draws: int, seed: int) -> None:
        self.counts = np.array(sorted(runs), dtype=float)
        self.logs = [np.log(np.asarray(runs[int(n)], dtype=float)) for n in self.counts]
        self.level, self.draws, self.seed = level, draws, seed
        self.fewest = min(map(len, self.logs))

    @cached_property
    def levels(self) -> np.ndarray:
        """(counts,) the pseudo-median of each count's runs."""
        return np.array([pseudo_median(x) for x in self.logs])

    @cached_property
    def resampled(self) -> np.ndarray | None:
        """(draws, counts) levels of resamples; None: too few runs, or no draws requested."""
        if self.fewest < MIN_RUNS or not self.draws:
            return None
        rng = np.random.default_rng(self.seed)
        some = [resampled_pseudo_medians(x, rng.integers(0, len(x), (self.draws, len(x)))) for x in self.logs]
        return np.stack(some, -1)

    @cached_property
    def tail(self) -> float:
        return _expanded_tail(self.level, [len(x) for x in self.logs])


@dataclass(frozen=True)
class _Solution:
    """The coefficients of a law, (1 + params,), and those of the resamples, (draws, 1 + params); tail: of intervals."""

    best: np.ndarray
    drawn: np.ndarray | None
    tail: float

    def coefficient(self, place: int) -> Fitted:
        return self._fitted(float(self.best[place]), None if self.drawn is None else self.drawn[:, place])

    def over(self, function: Callable[..., float]) -> Fitted:
        """function: of the coefficients without X1."""
        drawn = None if self.drawn is None else [function(*row) for row in self.drawn[:, 1:].tolist()]
        return self._fitted(float(function(*self.best[1:])), drawn)

    def _fitted(self, value: float, drawn: Sequence[float] | np.ndarray | None) -> Fitted:
        if drawn is None:
            return Fitted(value if isfinite(value) else None)
        low, high = np.quantile(drawn, [self.tail, 1 - self.tail], method="nearest").tolist()
        return Fitted(*(x if isfinite(x) else None for x in (value, low, high)))


def _fit(law: SystemLaw, measured: _Measured) -> LawFit | LawRefused:
    counts = measured.counts
    if len(counts) < law.needs:
        return LawRefused(law, f"{len(counts)} device counts, {law.name} needs {law.needs}")
    best = _solve(law, counts, measured.levels[None])[0]
    drawn = None if measured.resampled is None else _solve(law, counts, measured.resampled)
    solution = _Solution(best, drawn, 0.0 if drawn is None else measured.tail)
    fitted = best[0] * law.speedup(counts, *best[1:])
    few = measured.fewest < MIN_RUNS
    note = f"too few runs for intervals: {measured.fewest} at some device count, {MIN_RUNS} wanted" if few else None
    return LawFit(
        law,
        x1_tokens_per_s=float(best[0]),
        x1=solution.coefficient(0),
        peak=solution.over(law.peak),
        half=solution.over(law.half),
        parameters={name: solution.coefficient(place) for place, name in enumerate(law.parameters, 1)},
        rms_relative_error=float(np.sqrt(np.mean((np.exp(measured.levels) / fitted - 1) ** 2))),
        measured_to=int(counts[-1]),
        note=note,
    )


def _solve(law: SystemLaw, counts: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Least squares on relative errors with non-negative coefficients; logs: (draws, counts) -> (draws, 1 + params).

    Every set of active coefficients is tried: there are at most four. Errors are relative to the measured levels.
    """
    response = np.exp(np.log(counts) - logs) if law.inverse else np.exp(logs - np.log(counts))
    features = law.features(counts)
    design = features[None] / response[:, :, None]  # relative: the response becomes 1
    size = features.shape[1]
    best_cost = np.full(len(logs), np.inf)
    best = np.zeros((len(logs), size))
    # A share may be the whole (s = 1); without its constant the USL has no X1.
    active = (places for k in range(1, size + 1) for places in combinations(range(size), k) if 0 in places or law.share)
    for columns in map(list, active):
        part = design[:, :, columns]
        solution = np.einsum("dkc,dc->dk", np.linalg.pinv(part), np.ones(part.shape[:2]))
        cost = np.square(1 - np.einsum("dck,dk->dc", part, solution)).sum(-1)
        better = (solution >= 0).all(-1) & (cost < best_cost)
        best_cost[better] = cost[better]
        best[better] = 0.0
        best[np.ix_(better, columns)] = solution[better]
    # Amdahl n / X = (1 - s + s n) / X1; Gustafson X / n = X1 (1 - s + s / n); USL n / X = (1 + sigma (n - 1) ...) / X1
    unit = best.sum(-1, keepdims=True) if law.share else best[:, :1]
    return np.concatenate([1 / unit if law.inverse else unit, best[:, 1:] / unit], -1)


def _expanded_tail(level: float, sizes: Sequence[int]) -> float:
    from scipy.stats import norm, t

    harmonic = len(sizes) / sum(1 / size for size in sizes)
    freedom = sum(sizes) - len(sizes)
    return float(norm.cdf(sqrt(harmonic / (harmonic - 1)) * t.ppf((1 - level) / 2, freedom))) if freedom > 0 else 0.0
