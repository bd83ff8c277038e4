"""What a pipeline rank holds, and how many microbatches of it are alive at once.

Stages are as even as can be, the first ones a layer more (`parallelism.layout.stage_layers`), or of equal cost: blocks
are laid in order on a stage until its share of the FLOPs, the head's counted, is reached (nanotron's `build_model`).

Alive on rank r of p, in passes of one stage (Korthikanti et al., arXiv 2205.05198, section 4.2.3 and appendix B; zero
bubble: Qi et al., arXiv 2401.10241 and 2405.15362), of m microbatches and v stages a rank:

    GPipe, looped BFS           m v
    1F1B                        min(m, p - r)
    interleaved                 min(m v, p v + p - 1 - 2 r), with zero bubble r more: weight gradients are put off
    V-shaped                    min(m v, 2 p), DualPipeV one more

Layers and microbatches alive both fall with the rank, but for the ends: of the ranks between first and last none needs
more than the second, under V-shaped schedules none more than the last. So four ranks stand for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..layout import SCHEDULES, V_SHAPED
from .configs import Column, Configs

V_CODES = [SCHEDULES.index(name) for name in V_SHAPED]
GPIPE, ONE_F_ONE_B, BFS = (SCHEDULES.index(name) for name in ("GPipe", "1F1B", "LoopedBFS"))
ZERO_BUBBLE, DUAL = (SCHEDULES.index(name) for name in ("InterleavedZeroBubble", "DualPipeV"))


@dataclass(frozen=True)
class Held:
    """On each of r ranks, (r, n) or what broadcasts to it."""

    rank: np.ndarray
    layers: np.ndarray
    deepest: np.ndarray  # layers of its largest stage
    embedding: np.ndarray  # whether it holds the embedding, the head and the loss: 0 or 1
    head: np.ndarray
    loss: np.ndarray
    alive: np.ndarray  # passes of one stage whose activations are held at once

    def tables(self, tied: Column) -> np.ndarray:
        """Matrices of vocabulary x width that it holds: a tied head on the embedding's rank is none of its own."""
        return self.embedding + self.head - np.asarray(tied) * self.embedding * self.head


def candidates(c: Configs) -> np.ndarray:
    """Ranks one of which needs most, (4, n) or (4, 1)."""
    pp = np.atleast_1d(np.asarray(c.pp))
    return np.stack([np.zeros_like(pp), np.minimum(1, pp - 1), np.maximum(pp - 2, 0), pp - 1])


def held(c: Configs, rank: np.ndarray, by_cost: bool = False) -> Held:
    """What these ranks (r, n) hold. by_cost: stages of equal cost instead of equal layers."""
    alive = stages_alive(c, rank)
    if by_cost:
        layers, embedding, head, loss = _by_cost(c, rank)
        return Held(rank, layers, layers, embedding, head, loss, alive)
    pp, v = np.asarray(c.pp), np.asarray(c.virtual_stages)
    base, more = np.divmod(np.asarray(c.layers), np.asarray(c.stages))
    folded = _v_shaped(c)
    extra = np.clip(np.ceil((more - rank) / pp), 0, v)  # of its stages rank, rank + pp, ...
    extra = np.where(folded, (rank < more) * 1 + (2 * pp - 1 - rank < more) * 1, extra)
    first = (rank == 0) * 1
    last = np.where(folded, first, (rank == pp - 1) * 1)
    return Held(rank, base * v + extra, base + (extra > 0), first, last, last, alive)


def _v_shaped(c: Configs) -> np.ndarray:
    return np.isin(np.asarray(c.pp_schedule), V_CODES) & (np.asarray(c.pp) > 1)


def stages_alive(c: Configs, rank: np.ndarray) -> np.ndarray:
    """Passes of one stage whose activations are held at once, at most."""
    pp, v, m = (np.asarray(each) for each in (c.pp, c.virtual_stages, c.microbatches))
    code = np.asarray(c.pp_schedule)
    everything = m * v
    late = np.where(code == ZERO_BUBBLE, rank, 0)
    alive = np.select(
        [(code == GPIPE) | (code == BFS), code == ONE_F_ONE_B, np.isin(code, V_CODES)],
        [everything + 0 * rank, np.minimum(m, pp - rank), np.minimum(everything, 2 * pp + (code == DUAL)) + 0 * rank],
        np.minimum(everything, pp * v + pp - 1 - 2 * rank + late),
    )
    return np.where(pp > 1, alive, 1)


def _by_cost(c: Configs, rank: np.ndarray) -> tuple[np.ndarray, ...]:
    """(layers, embedding, head, loss) of these ranks, stages of equal cost."""
    pp = np.asarray(c.pp)
    keys = np.stack(np.broadcast_arrays(c.layers, c.matrices_layer, c.vocab * c.width, pp), axis=-1).reshape(-1, 4)
    unique, place = np.unique(keys, axis=0, return_inverse=True)
    plans = [equal_cost(*(int(x) for x in key)) for key in unique]
    rank = np.broadcast_to(rank, (len(rank), max(rank.shape[1], len(keys))))
    place = np.broadcast_to(place.reshape(-1), rank.shape[1:])
    longest = max(len(plan) for plan in plans)
    table = np.zeros((len(plans), longest, 4))
    for i, plan in enumerate(plans):
        table[i, : len(plan)] = plan
    found = table[place[None, :], rank.astype(int)]
    return tuple(found[..., i] for i in range(4))


@lru_cache(maxsize=65536)
def equal_cost(layers: int, layer_cost: int, head_cost: int, pp: int) -> tuple[tuple[int, int, int, int], ...]:
    """(layers, embedding, head, loss) of each stage: a stage is full once its share of the cost is reached.

    Blocks are the embedding, the layers, the final norm, the head, a cast and the loss; only layers and head cost.
    Where a block reaches past several shares the stages fall behind, and with many stages the last ones stay empty:
    the rank that should report the loss then has none, and the program fails (`lost_loss`).
    """
    blocks = [(1, 0)] + [(0, layer_cost)] * layers + [(-1, 0), (2, head_cost), (-1, 0), (3, 0)]
    total, done, stage = layers * layer_cost + head_cost, 0, 0
    found = [[0, 0, 0, 0] for _ in range(pp)]
    for kind, cost in blocks:
        if kind >= 0:
            found[stage][kind] += 1
        done += cost
        if done * pp >= total * (stage + 1) and stage < pp - 1:
            stage += 1
    return tuple((a, b, d, e) for a, b, d, e in found)


def lost_loss(c: Configs) -> np.ndarray:
    """Whether stages of equal cost leave the last rank without the loss, (n,)."""
    last = np.atleast_1d(np.asarray(c.pp) - 1)[None, :]
    return np.broadcast_to(_by_cost(c, last)[3][0] == 0, len(c))
