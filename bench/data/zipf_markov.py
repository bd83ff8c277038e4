"""zipf-markov: a synthetic language whose entropy rate is known exactly.

An order-1 Markov chain over V tokens. After token s the r-th most likely token (r = 1..V) is T[s, r], with
    p(r) = r^-a / Z,   Z = sum_{r=1..V} r^-a      (Zipf's law with exponent a = zipf_exponent).
Every row of T is a permutation of the tokens, so every row of the transition matrix holds the same probabilities, and
the entropy of the next token given the last is the same whatever the last one is:
    H = -sum_r p(r) ln p(r) = ln Z + (a / Z) sum_{r=1..V} r^-a ln r      nats per token.
H is therefore the entropy rate for any distribution over states, the stationary one included, and the expected loss of
no model is below it, at any target of any sequence. It is summed in float64 with math.fsum.

There is something to learn at several scales, so that the loss falls with the size of the model and the tokens seen:
tokens and ranks are dealt to `zipf_levels` levels l = 0..n-1 (rank r to level (r - 1) mod n), and within level l the
tokens take its ranks in an order that depends on the class of s alone, of which there are about V^(l/(n-1)): one order
at level 0 (frequencies, as a unigram model learns), one per token at the last. Each level has about V^(1/(n-1)) times
as much to know as the one before.

A sequence is drawn from (chain_seed, seed, position) alone; held-out sequences have a stream of their own that the
recipe's seed does not change. They are other draws of the chain: none is ever used for training.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from .shuffle import GAMMA, key, mix64
from .spec import DataSpec, in_use


def open_source(spec: DataSpec, seq_len: int, seed: int) -> ZipfMarkov:
    return ZipfMarkov(spec, seq_len, seed)


class ZipfMarkov:
    """A `Source` of unlimited fresh tokens."""

    val_windows = None

    def __init__(self, spec: DataSpec, seq_len: int, seed: int) -> None:
        self.vocab, exponent, chain_seed = in_use(spec.vocab), in_use(spec.zipf_exponent), in_use(spec.chain_seed)
        self.seq_len = seq_len
        self.probabilities, self.entropy_nats = zipf(self.vocab, exponent)
        self.table = transitions(self.vocab, in_use(spec.zipf_levels), chain_seed)
        self._cdf = np.cumsum(self.probabilities)
        self._cdf[-1] = 1.0
        self._train_key = key("zipf-markov train", chain_seed, seed)
        self._val_key = key("zipf-markov val", chain_seed)
        chain = self.table.astype("<u2").tobytes() + repr(float(exponent)).encode()
        self._hash = hashlib.sha256(chain).hexdigest()

    def train_rows(self, start: int, stop: int) -> np.ndarray:
        return self._draw(self._train_key, start, stop)

    def val_rows(self, start: int, stop: int) -> np.ndarray:
        return self._draw(self._val_key, start, stop)

    def unique_tokens(self, sequences: int) -> int:
        return sequences * self.seq_len

    def columns(self) -> dict[str, object]:
        return {"data_hash": self._hash, "data_tokens": None, "data_entropy_nats": self.entropy_nats}

    def _draw(self, stream: int, start: int, stop: int) -> np.ndarray:
        """Sequences (stop - start, seq_len + 1); all rows take a step of the chain at once."""
        assert 0 <= start <= stop, (start, stop)
        sequences = mix64(np.arange(start, stop).astype(np.uint64) * GAMMA + np.uint64(stream))
        steps = np.arange(1, self.seq_len + 2).astype(np.uint64) * GAMMA
        noise = mix64(sequences + steps[:, None])  # (seq_len + 1, rows)
        uniform = (noise >> np.uint64(11)).astype(np.float64) * 2.0**-53
        ranks = np.searchsorted(self._cdf, uniform, side="right")  # 0-based
        tokens = np.empty(noise.shape, np.int64)
        tokens[0] = uniform[0] * self.vocab  # uniform: the first token is never a target
        flat = self.table.ravel()
        for t in range(1, len(tokens)):
            tokens[t] = flat[tokens[t - 1] * self.vocab + ranks[t]]
        return np.ascontiguousarray(tokens.T)


def zipf(vocab: int, exponent: float) -> tuple[np.ndarray, float]:
    """(probabilities by rank, (vocab,) float64; their entropy in nats) of Zipf's law. Formula: above."""
    rank = np.arange(1, vocab + 1, dtype=np.float64)
    weight = rank**-exponent
    total = math.fsum(weight)
    return weight / total, math.log(total) + exponent * math.fsum(weight * np.log(rank)) / total


def transitions(vocab: int, levels: int, chain_seed: int) -> np.ndarray:
    """T[s, r]: the token of rank r (0-based) after token s; (vocab, vocab) uint16, each row a permutation."""
    table = np.empty((vocab, vocab), np.uint16)
    dealt = _shuffles(1, vocab, key("zipf-markov levels", chain_seed))[0]
    for level in range(levels):
        classes = round(vocab ** (level / (levels - 1))) if levels > 1 else vocab
        members = dealt[level::levels]
        orders = _shuffles(classes, len(members), key("zipf-markov order", chain_seed, level))
        table[:, level::levels] = members[orders[np.arange(vocab) * classes // vocab]]
    return table


def _shuffles(count: int, n: int, stream: int) -> np.ndarray:
    """Random permutations of range(n), (count, n). By our own hash: numpy's generators may change between versions."""
    cells = np.arange(count * n).astype(np.uint64).reshape(count, n)
    return np.argsort(mix64(cells * GAMMA + np.uint64(stream)), axis=1, kind="stable")
