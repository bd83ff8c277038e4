"""Layers of each pipeline stage, and the stage that takes longest.

Even: as many layers on each stage as can be, the head besides. By cost (nanotron): block i goes to the first stage
whose share of the whole cost it does not exceed, the head counted as the layers that it costs,

    layers of stage k = floor(T (k + 1) / p) - floor(T k / p),    T = L + V h / (matrices of a layer)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import Configs
from .schedule import PipelineTime


@dataclass(frozen=True)
class Stages:
    """Layers of the fullest stage without the head, and of the last one, (n,) each."""

    fullest: np.ndarray
    last: np.ndarray

    def pipeline_time(
        self, configs: Configs, layer: np.ndarray, head: np.ndarray, overhead: float, send: np.ndarray
    ) -> PipelineTime:
        """1F1B over uneven stages: the slowest sets the pace, the others fill and drain; each message is waited for.

        overhead: seconds of a microbatch on each stage besides its layers; send: of one message.
        """
        m, pp = np.asarray(configs.microbatches, float), np.asarray(configs.pp, float)
        busy = m * (self.slowest(layer, head) + overhead)
        mean = (np.asarray(configs.layers) * layer + head) / pp + overhead
        sends = np.where(pp > 1, 2 * (m + pp - 1) * send, 0.0)
        return PipelineTime(busy + (pp - 1) * mean + sends, busy, sends)

    def slowest(self, layer: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Seconds of the stage that takes longest, of the seconds of a layer and of the head."""
        return np.maximum(self.fullest * layer, self.last * layer + head)


def split(configs: Configs, by_cost: bool) -> Stages:
    """Layers over stages, as even as can be or of equal cost."""
    layers, pp = np.asarray(configs.layers, float), np.asarray(configs.pp, float)
    if not by_cost:
        fullest = np.ceil(layers / pp)
        return Stages(fullest, np.where(pp > 1, layers - fullest * np.minimum(pp - 1, layers // fullest), layers))
    head = configs.vocab * configs.width / np.asarray(configs.matrices_layer, float)
    share = (layers + head) / pp
    fullest = np.zeros(np.broadcast(layers, pp).shape)
    for k in range(int(np.max(pp)) - 1):
        some = np.floor(np.minimum(share * (k + 1), layers)) - np.floor(np.minimum(share * k, layers))
        fullest = np.where(k < pp - 1, np.maximum(fullest, some), fullest)
    last = layers - np.floor(np.minimum(share * (pp - 1), layers))
    return Stages(np.where(pp > 1, fullest, layers), np.where(pp > 1, last, layers))
