"""Optimal learning rate, optimal batch, critical batch, gradient noise scale.

critical_batch: (S/S_min - 1)(E/E_min - 1) = 1 with examples E = B S, that is S = S_min (1 + B_crit / B) and
B_crit = E_min / S_min; steps S to a target loss at batch B (McCandlish et al. 2018, arXiv 1812.06162).
step_law_lr: eta = c N^p D^q and step_law_batch: B = c D^r (Li et al. 2025, arXiv 2503.04715);
lr_horizon: eta = c D^-beta of one model size over token horizons, and lr_horizon_joint: eta = c N^-alpha D^-beta
(Bjorck et al. 2024, arXiv 2409.19913);
Power Lines' B_opt ~ D^.38, B_crit ~ D^.47 and timescale B/(eta lambda D) are `power` fits of those columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base import Inputs, Parameter, register
from .powers import SumOfPowers, log_of


@register
class CriticalBatch(SumOfPowers):
    name = "critical_batch"
    equation = "S = S_min (1 + B_crit / B)"
    source = "McCandlish et al. 2018, arXiv 1812.06162"
    roles = ("batch",)
    response = "steps"
    parameters = (Parameter("S_min", "fewest steps", log=True), Parameter("B_crit", "critical batch", log=True))
    terms = ({"S_min": 1.0}, {"S_min": 1.0, "B_crit": 1.0, None: log_of("batch", -1)})

    def starts(self, inputs: Inputs, log_y: np.ndarray) -> np.ndarray:
        b = -inputs.x[1, None]
        B = np.quantile(b, (0.02, 0.25, 0.5, 0.75, 0.98))
        S = [np.median(log_y - np.log1p(np.exp(c - b))) for c in B]
        return np.stack([np.array(S), B], 1)


@register
class StepLawLr(SumOfPowers):
    name = "step_law_lr"
    equation = "eta = c N^p D^q"
    source = "Li et al. 2025, arXiv 2503.04715 (p = -0.713, q = 0.307, c = 1.79)"
    response = "lr"
    parameters = (Parameter("c", "scale", log=True), Parameter("p", "exponent of N"), Parameter("q", "exponent of D"))
    terms = ({"c": 1.0, "p": log_of("params"), "q": log_of("tokens")},)


@register
class StepLawBatch(SumOfPowers):
    name = "step_law_batch"
    equation = "B = c D^r"
    source = "Li et al. 2025, arXiv 2503.04715 (r = 0.571, c = 0.58)"
    roles = ("tokens",)
    response = "batch"
    parameters = (Parameter("c", "scale", log=True), Parameter("r", "exponent of D"))
    terms = ({"c": 1.0, "r": log_of("tokens")},)


@register
class LrHorizon(SumOfPowers):
    name = "lr_horizon"
    equation = "eta = c D^-beta"
    source = "Bjorck et al. 2024, arXiv 2409.19913 (beta = 0.32 from 760M on)"
    roles = ("tokens",)
    response = "lr"
    parameters = (Parameter("c", "scale", log=True), Parameter("beta", "how fast the best rate falls with D"))
    terms = ({"c": 1.0, "beta": log_of("tokens", -1)},)


@register
class LrHorizonJoint(SumOfPowers):
    name = "lr_horizon_joint"
    equation = "eta = c N^-alpha D^-beta"
    source = "Bjorck et al. 2024, arXiv 2409.19913 (alpha = 0.23, beta = 0.32)"
    response = "lr"
    parameters = (
        Parameter("c", "scale", log=True),
        Parameter("alpha", "how fast the best rate falls with N"),
        Parameter("beta", "how fast the best rate falls with D"),
    )
    terms = ({"c": 1.0, "alpha": log_of("params", -1), "beta": log_of("tokens", -1)},)


@dataclass(frozen=True)
class NoiseScale:
    """B_simple = tr(Sigma) / |G|^2 in the unit of the batches, and its parts; None where |G|^2 is not positive."""

    noise_scale: float | None
    grad_sq: float
    trace_sigma: float


def noise_scale(grad_sq_small, grad_sq_big, batch_small: float, batch_big: float) -> NoiseScale:
    """Gradient noise scale from mean squared gradient norms at two batch sizes.

    grad_sq_*: (steps,) squared norms; both are averaged before the ratio, for the ratio of means is
    what is consistent. Source: McCandlish et al. 2018. Raises ValueError on batch_small >= batch_big.
    """
    if not 0 < batch_small < batch_big:
        raise ValueError(f"noise_scale needs 0 < batch_small < batch_big, got {batch_small:g} and {batch_big:g}")
    small, big = float(np.mean(grad_sq_small)), float(np.mean(grad_sq_big))
    grad_sq = (batch_big * big - batch_small * small) / (batch_big - batch_small)
    trace = (small - big) / (1 / batch_small - 1 / batch_big)
    return NoiseScale(trace / grad_sq if grad_sq > 0 and trace > 0 else None, grad_sq, trace)
