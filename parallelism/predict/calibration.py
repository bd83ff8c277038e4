"""A calibrated model: the machine and the stack with the factors, offsets and spread that measured rows gave.

step time = model(factors) exp(offsets + residual),    90% of the runs between low and high
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from .configs import Configs
from .coverage import Coverage
from .interval import Spread, regime_of
from .machine import Machine
from .offsets import Offsets
from .residual import Residual, features_of, residual_from_table
from .risk import Risk
from .stack import Stack
from .step import Step, predict_step
from .tuning import Tuning


@dataclass(frozen=True)
class Prediction:
    """Of n configurations; seconds, (n,) each. Where `refused` says why, the time is NaN and so is its interval."""

    step_time_s: np.ndarray
    low_s: np.ndarray  # 5% of the runs are faster
    high_s: np.ndarray  # 5% are slower
    parts: Step  # they sum to step_time_s
    refused: list[str | None]


@dataclass(frozen=True)
class Calibration:
    """What predicts a step time on a machine under a stack."""

    machine: Machine
    stack: Stack
    tuning: Tuning = field(default_factory=Tuning)
    offsets: Offsets = field(default_factory=Offsets)
    residual: Residual | None = None
    risk: Risk = field(default_factory=Risk)
    spread: Spread = field(default_factory=Spread)
    coverage: Coverage = field(default_factory=Coverage)
    how: str = "the profile's own numbers: nothing was measured"

    def predict(self, configs: Configs) -> Prediction:
        """Step time with its interval and parts, or a refusal, of each configuration."""
        parts = self.expected(configs)
        regime = regime_of(configs, self.machine.node_ranks)
        parts = scaled(parts, np.exp(self.risk.logs(regime)))
        refused = self.coverage.refused(configs)
        refuse = np.array([each is not None for each in refused], bool)
        time = np.where(refuse, np.nan, parts.step_time_s)
        below, above = self.spread.logs(regime, self.coverage.distance(configs))
        return Prediction(
            step_time_s=time,
            low_s=np.maximum(time * np.exp(below), np.minimum(parts.bound_time_s, time)),
            high_s=time * np.exp(above),
            parts=parts,
            refused=refused,
        )

    def expected(self, configs: Configs) -> Step:
        """The parts of a run that is not slow."""
        parts = predict_step(configs, self.machine, self.stack, self.tuning)
        correction = self.offsets.of(configs)
        if self.residual is not None:
            correction = correction + self.residual.of(features_of(configs, parts, self.machine.node_ranks))
        return scaled(parts, np.exp(correction))

    def to_table(self) -> dict[str, Any]:
        """As plain tables and numbers, for a profile's TOML: [calibration]."""
        table: dict[str, Any] = {
            "how": self.how,
            "stack": self.stack.name,
            "tuning": {each.name: float(getattr(self.tuning, each.name)) for each in fields(Tuning)},
            "offsets": dict(self.offsets.values),
            "risk": self.risk.to_table(),
            "spread": self.spread.to_table(),
            "coverage": self.coverage.to_table(),
        }
        if self.residual is not None:
            table["residual"] = self.residual.to_table()
        return table

    @classmethod
    def from_table(cls, table: dict[str, Any], machine: Machine, stack: Stack) -> Calibration:
        """The reverse of `to_table`. Raises ValueError where a factor's name is unknown."""
        known = {each.name for each in fields(Tuning)}
        tuning = table.get("tuning", {})
        if unknown := sorted(set(tuning) - known):
            raise ValueError(f"calibration.tuning.{unknown[0]}: no such factor: known are {', '.join(sorted(known))}")
        residual = residual_from_table(table["residual"]) if "residual" in table else None
        return cls(
            machine=machine,
            stack=stack,
            tuning=Tuning(**{name: float(value) for name, value in tuning.items()}),
            offsets=Offsets({str(key): float(value) for key, value in table.get("offsets", {}).items()}),
            residual=residual,
            risk=Risk.from_table(table.get("risk", {})),
            spread=Spread.from_table(table.get("spread", {})),
            coverage=Coverage.from_table(table.get("coverage", {})),
            how=str(table.get("how", "")),
        )


def scaled(parts: Step, factor: np.ndarray) -> Step:
    """Every part of the expectation times the factor (n,); the bound stays what it is."""
    names = [each.name for each in fields(Step) if each.name != "bound_time_s"]
    return replace(parts, **{name: getattr(parts, name) * factor for name in names})
