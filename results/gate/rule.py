"""What the regression gate goes by: the columns that have a better and a worse, and the levels, all in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ..wording import nearest


class Verdict(StrEnum):
    """What the gate says of one metric of one case, or of one group's loss."""

    FASTER = "faster"
    SLOWER = "slower"
    SMALLER = "smaller"
    LARGER = "larger"
    SAME = "same"
    NOISY = "too noisy"
    MISSING = "missing"
    NEW = "new"
    SKIPPED = "skipped"
    WORSE = "worse"  # of losses
    BETTER = "better"


IMPROVED = (Verdict.FASTER, Verdict.SMALLER)
FAILING = (Verdict.MISSING, Verdict.SLOWER, Verdict.LARGER, Verdict.WORSE)


@dataclass(frozen=True)
class Metric:
    """A column of `runs` that has a good direction."""

    column: str
    less_is_better: bool
    worse: Verdict
    better: Verdict
    text: Callable[[float], str]  # as people read it
    always: bool = False  # an ok run without it was not measured; else null means that this machine cannot measure it


def _time(column: str, scale: float, digits: int, unit: str, always: bool = False) -> Metric:
    return Metric(
        column, True, Verdict.SLOWER, Verdict.FASTER, lambda value: f"{value * scale:,.{digits}f} {unit}", always
    )


def _memory(column: str) -> Metric:
    return Metric(column, True, Verdict.LARGER, Verdict.SMALLER, lambda value: f"{value / 2**20:,.1f} MiB")


METRICS = {
    metric.column: metric
    for metric in (
        _time("step_time_s", 1e3, 2, "ms", always=True),
        Metric(
            "tokens_per_s", False, Verdict.SLOWER, Verdict.FASTER, lambda value: f"{value:,.0f} tokens/s", always=True
        ),
        _memory("peak_memory_bytes"),
        _memory("peak_host_memory_bytes"),
        _time("first_step_s", 1, 2, "s"),
        _time("startup_s", 1, 2, "s"),
        Metric("energy_j", True, Verdict.LARGER, Verdict.SMALLER, lambda value: f"{value:,.0f} J"),
    )
}


@dataclass(frozen=True)
class Rule:
    """The levels. All but alpha and power are relative changes.

    metrics: columns, in METRICS. The first say most: their verdicts share alpha with the others.
    alpha: at most this chance that, where nothing changed, any case gets a verdict of change in any metric
    min_effect: changes smaller than this are `same`, however sure
    margin: `same` says that the interval excludes changes as large as this; where it does not, it is `too noisy`
    power: the smallest difference that could have been seen would have been with this probability
    loss_tolerance: of the loss, where the base has too few seeds to learn one from
    fail_on_noise: `too noisy` fails, as a change does
    """

    metrics: tuple[str, ...] = ("step_time_s", "peak_memory_bytes")
    alpha: float = 0.05
    min_effect: float = 0.01
    margin: float = 0.05
    power: float = 0.95
    loss_tolerance: float = 0.01
    fail_on_noise: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "min_effect", "margin", "power", "loss_tolerance"):
            value, may_be_0 = getattr(self, name), name in ("min_effect", "loss_tolerance")
            if not (0 < value < 1 or (may_be_0 and value == 0)):
                raise ValueError(f"{name} = {value}: must be a share of 1, as {getattr(type(self), name)}")
        if not self.metrics:
            raise ValueError(f"no metric to compare: allowed are {', '.join(METRICS)}")
        for name in self.metrics:
            _check_metric(name)


def _check_metric(name: str) -> None:
    if name in METRICS:
        return
    near = nearest(name, METRICS)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(METRICS)}"
    raise ValueError(f"metric {name!r} is not one with a better and a worse; {hint}")
