"""What a calibration covers: the range of each axis over its rows, and beyond which factor it refuses to predict.

A physical model may be asked beyond its rows, with a wider interval: twice the ranks, ten times the parameters. It is
refused where an axis is further away than the factors below; the line says which axis and how far. The factors are
wide where the model is physical (the parameters of a model, which only make products larger) and narrow where another
regime begins (ranks, for what a network does under load). An uncalibrated model covers everything and is never
refused: its interval is wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .configs import Configs

FACTORS = {
    "ranks": 32.0,
    "params": 100.0,
    "seq_len": 16.0,
    "tokens of a microbatch": 64.0,
    "tp": 16.0,
    "pp": 64.0,
    "cp": 16.0,
}
"""How many times beyond the range of the rows an axis may lie."""
UNSEEN_PRECISION = 1.0  # decades by which a precision that no row had widens the interval


def axes(configs: Configs) -> dict[str, np.ndarray]:
    """Value (n,) of each axis."""
    c, n = configs, len(configs)
    values = {
        "ranks": c.all_ranks,
        "params": c.params_total,
        "seq_len": c.seq_len,
        "tokens of a microbatch": c.tokens,
        "tp": c.tp,
        "pp": c.pp,
        "cp": c.cp,
    }
    return {name: np.broadcast_to(np.asarray(value, float), n) for name, value in values.items()}


@dataclass(frozen=True)
class Coverage:
    """Least and greatest value of each axis; empty: not calibrated."""

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    precisions: tuple[int, ...] = ()

    @classmethod
    def over(cls, configs: Configs) -> Coverage:
        """Of these rows."""
        ranges = {name: (float(each.min()), float(each.max())) for name, each in axes(configs).items()}
        return cls(ranges, tuple(sorted({int(each) for each in np.atleast_1d(configs.precision)})))

    def away(self, configs: Configs) -> dict[str, np.ndarray]:
        """How many times beyond its range each axis is (n,); 1 inside of it."""
        values = axes(configs)
        return {
            name: np.maximum(np.maximum(values[name] / high, low / values[name]), 1.0)
            for name, (low, high) in self.ranges.items()
        }

    def distance(self, configs: Configs) -> np.ndarray:
        """Decades (n, 2) from the range: in ranks, and over all other axes; 0 inside."""
        away = {name: np.log10(each) for name, each in self.away(configs).items()}
        ranks = away.pop("ranks", np.zeros(len(configs)))
        away["precision"] = UNSEEN_PRECISION * self._other_precision(configs)
        others = np.sqrt(sum(np.square(each) for each in away.values()))
        return np.stack([ranks, others], axis=1)

    def _other_precision(self, configs: Configs) -> np.ndarray:
        """(n,) bool: no row had it, so that its speed is the profile's, not a measured one."""
        asked = np.broadcast_to(np.asarray(configs.precision, int), len(configs))
        return ~np.isin(asked, self.precisions) if self.precisions else np.zeros(len(configs), bool)

    def refused(self, configs: Configs) -> list[str | None]:
        """Why each configuration is outside of what was measured, or None."""
        reasons: list[str | None] = [None] * len(configs)
        values = axes(configs)
        for name, away in self.away(configs).items():
            low, high = self.ranges[name]
            for row in np.flatnonzero(away > FACTORS[name]):
                reasons[row] = (
                    f"{name} {values[name][row]:g} is {away[row]:.3g} times outside of what was measured "
                    f"({low:g} to {high:g}): at most {FACTORS[name]:g} times"
                )
        return reasons

    def to_table(self) -> dict[str, Any]:
        return {"ranges": {name: list(each) for name, each in self.ranges.items()}, "precisions": list(self.precisions)}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Coverage:
        ranges = {name: (float(low), float(high)) for name, (low, high) in table.get("ranges", {}).items()}
        return cls(ranges, tuple(int(each) for each in table.get("precisions", ())))
