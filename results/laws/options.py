"""The options of `fit_file`: its keywords, and one frozen object of them for each stage of a fit.

`FitKeywords` types the keywords; the objects hold their defaults. `check` compares them with what a fit can answer
before any work is done: one line for each mistake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

import pandas as pd

from ..table.filter import where as where_rows
from .base import Law
from .solver import Objective

Part = TypeVar("Part")


class FitKeywords(TypedDict, total=False):
    """The keywords of `fit_file`, in the order of the objects below; `fit_file` says what each means."""

    law: str
    objective: str
    delta: float
    fix: Mapping[str, float | str] | None
    prior: float | str | None
    anyway: bool
    params: str | None
    tokens: str | None
    loss: str | None
    columns: Mapping[str, str] | None
    where: str | None
    holdout: str | None
    run: str | None
    bootstrap: int
    level: float
    seed: int
    profile: bool
    sensitivity: bool
    alternatives: Mapping[str, str] | None
    flops: str | None
    flops_per_nd: float
    target_flops: Sequence[float]
    approach: Sequence[str]
    nearest: int | None
    at: Sequence[Mapping[str, float]]
    compare: Sequence[str] | None
    budget_device_hours: float | None
    device_hours: str | None
    flops_per_device_hour: float | None


@dataclass(frozen=True)
class MethodOptions:
    """Which law is fitted, and how."""

    law: str = "chinchilla"
    objective: str = "huber"
    delta: float = 1e-3
    fix: Mapping[str, float | str] | None = None
    prior: float | str | None = None
    anyway: bool = False

    def check(self) -> None:
        for name, value in self.held.items():
            if not isinstance(value, str) and not math.isfinite(value):
                raise ValueError(f"fix {name}={value:g}: a parameter is held at a finite number")

    @property
    def held(self) -> dict[str, float | str]:
        return dict(self.fix or {})

    def settings(self) -> Objective:
        """Raises ValueError for an objective that does not exist."""
        return Objective(self.objective, self.delta)


@dataclass(frozen=True)
class RowOptions:
    """Which rows and columns of the table are read."""

    params: str | None = None
    tokens: str | None = None
    loss: str | None = None
    columns: Mapping[str, str] | None = None
    where: str | None = None
    holdout: str | None = None
    run: str | None = None

    def names(self, law: Law) -> tuple[dict[str, str], str]:
        """Role -> column as the user named them, and the column of the response."""
        usual = (("params", self.params), ("tokens", self.tokens))
        names, loss = dict(self.columns or {}) | {role: column for role, column in usual if column}, self.loss
        if loss and "loss" in law.roles:  # the law reads the loss and predicts something else
            names.setdefault("loss", loss)
            loss = None
        response = names.pop(law.response, None) or names.pop("y", None) or loss or law.response
        return names, response

    def kept_and_held(self, frame: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
        """Masks of the rows that `where` keeps and that `holdout` names. Raises ValueError if they leave no row."""
        where, holdout = self.where, self.holdout
        keep = pd.Series(True, index=frame.index) if where is None else where_rows(frame, where)
        held = pd.Series(False, index=frame.index) if holdout is None else where_rows(frame, holdout)
        if not keep.any():
            raise ValueError(f"where {where!r}: no row is left")
        if holdout is not None and not (keep & held).any():
            raise ValueError(f"holdout {holdout!r}: matches no row" + (" that where keeps" if where else ""))
        if not (keep & ~held).any():
            raise ValueError(f"holdout {holdout!r}: matches all {int(keep.sum())} rows, so that none is left to fit")
        return keep, held


@dataclass(frozen=True)
class IntervalOptions:
    """The intervals, and the other estimates of the uncertainty."""

    bootstrap: int = 1000
    level: float = 0.95
    seed: int = 0
    profile: bool = True
    sensitivity: bool = True
    alternatives: Mapping[str, str] | None = None

    def check(self) -> None:
        bootstrap, level = self.bootstrap, self.level
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level:g}")
        if bootstrap < 0:
            raise ValueError(f"bootstrap must be 0 or more resamples, got {bootstrap}")
        least = math.ceil(1 / (1 - level) - 1e-6)  # fewer have no quantile out there, and two ends of one draw
        if 0 < bootstrap < least:
            raise ValueError(
                f"bootstrap: {bootstrap} resamples give no {level:.0%} interval; take {least} or more, better 1000, "
                "or 0 for none"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True)
class ComputeOptions:
    """The compute of a run, the budgets to find an optimum for, and the approaches without a loss law."""

    flops: str | None = None
    flops_per_nd: float = 6.0
    target_flops: Sequence[float] = ()
    approach: Sequence[str] = ()
    nearest: int | None = None

    def check(self) -> None:
        if not (self.flops_per_nd > 0 and math.isfinite(self.flops_per_nd)):
            raise ValueError(f"flops_per_nd must be a positive number, got {self.flops_per_nd:g}")
        for flops in self.target_flops:
            if not (flops > 0 and math.isfinite(flops)):
                raise ValueError(f"target_flops must be positive FLOPs, such as 1e21, got {flops:g}")


@dataclass(frozen=True)
class ForecastOptions:
    """The runs to forecast, the laws to do it with, and what a run to add may cost."""

    at: Sequence[Mapping[str, float]] = ()
    compare: Sequence[str] | None = None
    budget_device_hours: float | None = None
    device_hours: str | None = None
    flops_per_device_hour: float | None = None

    def check(self) -> None:
        if self.at and self.compare is not None and not self.compare:
            raise ValueError("at: a stack of laws forecasts a run, and `--compare none` asks for no forecast: drop one")


@dataclass(frozen=True)
class FitOptions:
    """All keywords of one call of `fit_file`."""

    method: MethodOptions
    rows: RowOptions
    intervals: IntervalOptions
    compute: ComputeOptions
    forecast: ForecastOptions

    @classmethod
    def of(cls, keywords: FitKeywords) -> FitOptions:
        """Raises TypeError for a keyword that does not exist."""
        left: dict[str, Any] = dict(keywords)
        options = cls(
            _part(MethodOptions, left),
            _part(RowOptions, left),
            _part(IntervalOptions, left),
            _part(ComputeOptions, left),
            _part(ForecastOptions, left),
        )
        for name in left:
            raise TypeError(f"fit_file() got an unexpected keyword argument {name!r}")
        return options

    def check(self) -> None:
        """Raises ValueError for a number that no fit can be asked with: what it is and what would be right."""
        self.intervals.check()
        self.method.check()
        self.compute.check()
        self.forecast.check()


def _part(kind: type[Part], keywords: dict[str, Any]) -> Part:
    """An object of its share of the keywords, which are taken out."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass, each of those above
    return kind(**{name: keywords.pop(name) for name in names if name in keywords})
