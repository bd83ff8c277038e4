"""Time of one transformer block for one microbatch on one rank: products, attention, elementwise work, launches.

Forward: four groups of products (query, key and value; output; up, with gate; down), attention
2 x 2 b s s w, halved as it is causal, and about 22 bytes moved for each element of the residual stream besides those
of the MLP. Backward: each product twice (by its input and by its weight), attention 2.5 times, 28 bytes an element.
The host launches kernels one after the other: a block takes at least (kernels x launch).

Attention that keeps its scores (before FlashAttention) computes all of them, and moves them in two bytes, with a mask
of one, through softmax, dropout and both products: 13 bytes a score forward, 19 backward. In fp8 a product's inputs
are cast first, twice, as they are read in two orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configs import PRECISIONS, Column, Configs
from .host import calls
from .machine import Machine
from .matmul import product_time
from .stack import Stack
from .tuning import Tuning

FORWARD_BYTES, BACKWARD_BYTES = 22.0, 28.0  # moved by elementwise kernels, an element of the residual stream
MLP_BYTES = 4.0  # an element of the MLP's hidden width
HIDDEN_COST = 0.1  # share of what hides behind something longer that is seen all the same
ATTENTION_BACKWARD = 2.5  # FLOPs of the backward pass over those of the forward pass
SCORES_BACKWARD = 2.0  # the same where the scores are kept
SCORE_BYTES = (13.0, 19.0)  # moved for each score that is kept, forward and backward
CAST_BYTES = 4.0  # an element of a product's input: read in bf16, written in fp8 twice


@dataclass(frozen=True)
class PassTime:
    """Seconds of a block's (or the head's) forward and backward pass, (n,) each."""

    forward: np.ndarray
    backward: np.ndarray

    def __add__(self, other: PassTime) -> PassTime:
        return PassTime(self.forward + other.forward, self.backward + other.backward)


def longest(some: Column, others: Column) -> np.ndarray:
    """Seconds of two things that go on at the same time: the longer, and a tenth of the shorter that does not hide."""
    return np.maximum(some, others) + HIDDEN_COST * np.minimum(some, others)


class Compute:
    """Times of computation on a machine under a stack, all factors of the calibration applied."""

    def __init__(self, configs: Configs, machine: Machine, stack: Stack, tuning: Tuning) -> None:
        self.configs, self.machine, self.stack, self.tuning = configs, machine, stack, tuning
        codes = np.asarray(configs.precision, int)
        peaks = np.array([machine.peaks.get(precision, np.nan) for precision in PRECISIONS])
        self.peak = peaks[codes]  # of products
        self.speed = self.peak * np.array([machine.products.relative.get(each, 1.0) for each in PRECISIONS])[codes]
        self.inner_peak = peaks[np.minimum(codes, 1)]  # of attention, which is never narrower than bf16
        self.busy = busy(configs, machine)
        slower = 1 + (machine.elementwise_contention - 1) * self.busy
        self.moved = slower / (machine.memory_bandwidth * machine.elementwise)  # seconds a byte
        self.launch = machine.launch_s * tuning.host * (0.0 if stack.compiled else 1.0)
        self.calls = calls(configs)

    def block(self) -> PassTime:
        """Of one transformer block; recomputation is in its backward pass."""
        forward, backward = self._products(self._block_products())
        attention = self._attention()
        elements = self._elements()
        times = (
            forward + attention * 1.0 / self.machine.attention_forward + elements * FORWARD_BYTES,
            backward
            + attention * ATTENTION_BACKWARD / self.machine.attention_backward
            + elements * BACKWARD_BYTES
            + self._accumulated(self.configs.params_layer),
        )
        bound = PassTime(*(np.asarray(each) for each in times))
        scores = self._scores(attention)
        bound = bound + scores
        if self.machine.on_host:
            return self._on_host(bound)
        whole = PassTime(
            longest(bound.forward, self.stack.kernels_forward * self.launch),
            longest(bound.backward, self.stack.kernels_backward * self.launch),
        )
        again = np.select(
            [np.asarray(self.configs.recompute) == 2, np.asarray(self.configs.recompute) == 1],
            [whole.forward, attention / self.machine.attention_forward + self._selective(elements, scores)],
            0.0,
        )
        return PassTime(whole.forward, whole.backward + again)

    def _on_host(self, computed: PassTime) -> PassTime:
        """Computation and dispatch of a block; the operations of recomputation are in the counts."""
        recompute = np.asarray(self.configs.recompute)
        again = np.select([recompute == 2, recompute == 1], [computed.forward, computed.forward / 3], 0.0)
        forward = computed.forward + self.calls.forward * self.launch
        return PassTime(forward, computed.backward + again + self.calls.backward * self.launch)

    def head(self) -> PassTime:
        """Of the output head, which is never narrower than bf16, and the loss, on the last stage."""
        c = self.configs
        vocab = c.vocab / np.where(np.asarray(c.loss_parallel) > 0, c.tp, 1)
        forward, backward = self._products([(c.tokens, vocab, c.width)], np.minimum(self.speed, self.inner_peak))
        loss = c.tokens * vocab * (np.asarray(c.element) + 4) / 6 * self.moved * self.tuning.elementwise
        added = self._accumulated(c.vocab * c.width)
        first, second = self.stack.loss_bytes
        ends = self.calls.ends * self.launch if self.machine.on_host else np.zeros(())
        return PassTime(forward + first * loss + ends / 3, backward + second * loss + added + ends * 2 / 3)

    def _accumulated(self, parameters: Column) -> np.ndarray:
        """Seconds to add the gradients of so many parameters, before they are split, to those of other microbatches."""
        seconds = self.stack.accumulate_bytes * self.moved * self.tuning.elementwise
        return np.asarray(parameters) / self.configs.tp * seconds

    def _block_products(self) -> list[tuple[Column, Column, Column]]:
        """(M, N, K) of the forward pass's products."""
        c, t = self.configs, self.configs.tokens
        return [
            (t, (c.width + 2 * c.kv_width) / c.tp, c.width),
            (t, c.width, c.width / c.tp),
            (t, (c.matrices - 1) * c.ffn / c.tp, c.width),
            (t, c.width, c.ffn / c.tp),
        ]

    def _products(
        self, shapes: list[tuple[Column, Column, Column]], speed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds forward and backward. speed: FLOP/s; default: at the configuration's precision."""
        speed = self.speed if speed is None else speed
        element = np.asarray(self.configs.element)
        cast = np.where(np.asarray(self.configs.precision) > 1, CAST_BYTES * self.moved * self.tuning.elementwise, 0.0)
        slower = self.tuning.matmul * (1 + (self.machine.products.contention - 1) * self.busy)
        forward = backward = np.zeros(())
        for m, n, k in shapes:
            times = [product_time(self.machine, speed, *each, element) for each in ((m, n, k), (m, k, n), (k, n, m))]
            forward = forward + times[0] * slower + m * k * cast
            backward = backward + (times[1] + times[2]) * slower + m * n * cast
        return forward, backward

    def _attention(self) -> np.ndarray:
        """Seconds of its forward pass at the whole peak."""
        c = self.configs
        flops = 2 * c.tokens * c.seq_len * c.width / c.tp  # causal: half of 4
        return flops / self.inner_peak * self.tuning.attention

    def _scores(self, attention: np.ndarray) -> PassTime:
        """Seconds of attention that keeps its scores, on top of the causal half that is computed without them.

        attention: seconds of that half, forward, at the whole peak
        """
        if self.stack.flash:
            return PassTime(np.zeros(()), np.zeros(()))
        c, machine = self.configs, self.machine
        moved = c.tokens * c.seq_len * c.heads / c.tp * self.moved * self.tuning.elementwise
        whole = 2 * SCORES_BACKWARD - ATTENTION_BACKWARD
        return PassTime(
            attention / machine.attention_forward + moved * SCORE_BYTES[0],
            attention * whole / machine.attention_backward + moved * SCORE_BYTES[1],
        )

    def _selective(self, elements: np.ndarray, scores: PassTime) -> np.ndarray:
        """Seconds of what is computed again besides attention: where scores are kept, they alone (2205.05198, 5)."""
        return elements * FORWARD_BYTES / 2 if self.stack.flash else scores.forward

    def _elements(self) -> np.ndarray:
        """Seconds to move a byte of each element of the residual stream and, by their share, of the MLP."""
        c = self.configs
        stream = c.width / np.where(np.asarray(c.sp) > 0, c.tp, 1)
        hidden = (c.matrices - 1) * c.ffn / c.tp * MLP_BYTES / FORWARD_BYTES
        fused = 0.5 if self.stack.compiled else 1.0
        wide = np.asarray(c.element) / 2
        return c.tokens * (stream + hidden) * wide * fused * self.moved * self.tuning.elementwise


def busy(configs: Configs, machine: Machine) -> np.ndarray:
    """How far a node is filled, 0 to 1: 0 with one rank, 1 with one on each of its devices."""
    neighbours = np.minimum(configs.all_ranks, machine.node_ranks) - 1
    return np.asarray(neighbours / max(machine.node_ranks - 1, 1), float)
