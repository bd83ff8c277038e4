"""Two naive predictions, which stand beside every figure: a model that does not beat them is not worth its terms.

constant MFU      time = seconds at the whole peak x the median of (time / seconds at peak) over the calibration's
                  rows of this machine and precision, or of the nearest that there is
smallest scale    the same with the rows of this very model at their fewest devices: it stays what it is there
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import Configs


@dataclass(frozen=True)
class Work:
    """What n runs ask of their devices, and what tells alike runs: (n,) each."""

    at_peak_s: np.ndarray  # seconds of the step at the whole peak of all devices
    devices: np.ndarray
    machine: np.ndarray  # names
    precision: np.ndarray  # names
    model: np.ndarray  # names

    def take(self, rows: np.ndarray) -> Work:
        return Work(*(each[rows] for each in (self.at_peak_s, self.devices, self.machine, self.precision, self.model)))


def at_peak(configs: Configs, peak: np.ndarray, devices: np.ndarray) -> np.ndarray:
    """Seconds (n,) of a step at the whole peak (n,), FLOP/s a device: products and causal attention, 6 x; 8 x in the
    blocks where all of their forward pass is computed again."""
    c = configs
    times = np.where(np.asarray(c.recompute) == 2, 8, 6)
    flops = times * c.layers * (c.matrices_layer + c.width * c.seq_len) + 6 * c.vocab * c.width
    return np.asarray(flops * c.global_batch * c.seq_len / (peak * devices))


def constant_mfu(known: Work, measured_s: np.ndarray, asked: Work) -> np.ndarray:
    """Seconds (n,) of the asked runs; NaN without a known run."""
    ratio = measured_s / known.at_peak_s
    factors = [
        _first(
            ratio,
            (known.machine == machine) & (known.precision == precision),
            known.precision == precision,
            known.machine == machine,
            np.ones(len(ratio), bool),
        )
        for machine, precision in zip(asked.machine, asked.precision, strict=True)
    ]
    return np.array(factors) * asked.at_peak_s


def smallest_scale(known: Work, measured_s: np.ndarray, asked: Work) -> np.ndarray:
    """Seconds (n,) of the asked runs; constant MFU where no run of the model is known."""
    ratio = measured_s / known.at_peak_s
    times = constant_mfu(known, measured_s, asked)
    for i in range(len(times)):
        alike = (known.model == asked.model[i]) & (known.precision == asked.precision[i])
        alike &= known.machine == asked.machine[i]
        if alike.any():
            fewest = alike & (known.devices == known.devices[alike].min())
            times[i] = np.median(ratio[fewest]) * asked.at_peak_s[i]
    return times


def _first(ratio: np.ndarray, *choices: np.ndarray) -> float:
    """Median over the first choice of rows that has any; NaN where none has."""
    rows = next((each for each in choices if each.any()), None)
    return float("nan") if rows is None else float(np.median(ratio[rows]))
