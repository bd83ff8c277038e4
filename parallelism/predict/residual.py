"""What the model leaves of the logarithm of the step time, learnt from rows."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .configs import Configs
from .step import Step


class Residual(Protocol):
    """A correction learnt from rows."""

    def of(self, configs: Configs, parts: Step) -> np.ndarray:
        """What is added to the logarithm of the model's step time (n,)."""

    def to_table(self) -> dict[str, Any]: ...


def residual_from_table(table: dict[str, Any]) -> Residual:
    """Raises ValueError where its kind is unknown."""
    raise ValueError(f"calibration.residual.kind = {table.get('kind')!r}: unknown")
