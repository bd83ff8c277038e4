"""The actions of a pipeline as a graph of what waits for what, and its longest paths.

An action begins when the one before it on its rank has ended and what it needs has arrived. So the time of a step is
the longest path through the graph: a sum of so many forward passes of a block, so many backward passes, so many
messages. Which path is the longest depends on the ratio of these times, but few paths are it for any: they are found
by simulation at many ratios, and the time of a configuration is then the maximum of as many weighted sums.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain

import numpy as np

from ..layout import stage_layers
from .orders import BI, LEAST, ROUNDS, B, F, Order, W, order_of, refused

KINDS = ("forward", "backward_input", "backward_weight")
TERMS = 10  # times that a path is made of: KINDS of a block, KINDS of the first stage's own, of the last's, a message
SEND = 9
SAMPLES = (96, 512)  # least and most ratios of times at which the longest path is looked for; fewer for many stages


class Graph:
    """Actions as rows, in the order of the ranks; row `none` stands for the beginning.

    waits: "never": messages travel behind computation; "turns": a rank that turns from forward to backward passes or
    back waits for the message it has sent, as torch's GPipe and 1F1B do; "always": after each message.
    """

    def __init__(self, order: Order, stages: int, layers: int, waits: str) -> None:
        sizes = [len(actions) for actions in order]
        rank = np.repeat(np.arange(len(order)), sizes)
        kinds, stage, microbatch, paired = map(np.array, zip(*chain.from_iterable(order), strict=True))
        self.none, self.last = len(rank), np.cumsum(sizes) - 1
        forward, weight = kinds == F, kinds == W
        holder = np.zeros(stages, int)
        holder[stage] = rank
        row = np.arange(self.none)
        before = np.where(np.isin(row, self.last - np.array(sizes) + 1), self.none, row - 1)
        # The pass that an action gives its result to, and the one whose result it needs, are on another rank or are
        # the rank's own order.
        ends = np.full((2, stages, microbatch.max() + 1), self.none)
        ends[forward[~weight].astype(int), stage[~weight], microbatch[~weight]] = (row + paired)[~weight]
        giver, taker = np.where(forward, stage - 1, stage + 1), np.where(forward, stage + 1, stage - 1)
        needs = np.where(
            self._elsewhere(giver, rank, holder) & ~weight,
            ends[forward.astype(int), giver.clip(0, stages - 1), microbatch],
            self.none,
        )
        following = np.append(forward[1:], False)
        turns = (forward != following) | (waits == "always")
        halts = self._elsewhere(taker, rank, holder) & ~weight & turns & (waits != "never")
        halts[self.last] = False
        self.before, self.needs = np.append(before, self.none), np.append(needs, self.none)
        self.send_before = np.append(halts, False)[self.before].astype(float)
        self.send_needs = (self.needs != self.none).astype(float)
        self.terms = self._terms(kinds, stage, np.array([len(part) for part in stage_layers(layers, stages)]))
        self.levels = self._levels(before.tolist(), needs.tolist())

    @staticmethod
    def _elsewhere(stage: np.ndarray, rank: np.ndarray, holder: np.ndarray) -> np.ndarray:
        """Whether there is such a stage and another rank has it."""
        return (stage >= 0) & (stage < len(holder)) & (holder[stage.clip(0, len(holder) - 1)] != rank)

    @staticmethod
    def _terms(kinds: np.ndarray, stage: np.ndarray, layers: np.ndarray) -> np.ndarray:
        """How often each time is in each action, (rows + 1, TERMS)."""
        terms = np.zeros((len(kinds) + 1, TERMS))
        for place, of_kind in enumerate(((F,), (B, BI), (B, W))):
            rows = np.flatnonzero(np.isin(kinds, of_kind))
            terms[rows, place] = layers[stage[rows]]
            terms[rows, 3 + place] = stage[rows] == 0
            terms[rows, 6 + place] = stage[rows] == len(layers) - 1
        return terms

    def _levels(self, before: list[int], needs: list[int]) -> list[np.ndarray]:
        """Rows that depend on earlier levels only."""
        level = [0] * (len(before) + 1)
        done = [False] * len(before) + [True]
        at = [0, *(self.last[:-1] + 1)]
        left = len(before)
        while left:
            moved = left
            for rank, end in enumerate(self.last):
                row = at[rank]
                while row <= end and done[needs[row]]:
                    level[row] = 1 + max(level[before[row]], level[needs[row]])
                    done[row] = True
                    row += 1
                left -= row - at[rank]
                at[rank] = row
            assert left < moved, "the ranks of a schedule wait for each other"
        order = np.argsort(level[:-1], kind="stable")
        return np.split(order, np.flatnonzero(np.diff(np.array(level)[order])) + 1)

    def busy(self) -> np.ndarray:
        """What each rank computes in a step, (ranks, TERMS)."""
        ends = np.cumsum(self.terms, axis=0)[self.last]
        return np.diff(ends, axis=0, prepend=0)

    def simulate(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """When each action ends, (rows + 1, samples), and whether it waited for what it needed. times: (samples,
        TERMS) in seconds."""
        lasts = self.terms.astype(times.dtype) @ times.T
        send = times[:, SEND]
        ends = np.zeros_like(lasts)
        waited = np.zeros(lasts.shape, bool)
        send_before, send_needs = (each[:, None].astype(times.dtype) for each in (self.send_before, self.send_needs))
        for rows in self.levels:
            free, there = ends[self.before[rows]], ends[self.needs[rows]]
            free += send_before[rows] * send
            there += send_needs[rows] * send
            waited[rows] = there > free
            ends[rows] = np.maximum(free, there) + lasts[rows]
        return ends, waited

    def makespan(self, times: np.ndarray) -> np.ndarray:
        """Seconds of a step, (samples,)."""
        return self.simulate(times)[0][self.last].max(axis=0)

    def longest(self, times: np.ndarray) -> np.ndarray:
        """How often each time is in the longest path, (samples, TERMS)."""
        ends, waited = self.simulate(times.astype(np.float32))
        row = self.last[ends[self.last].argmax(axis=0)]
        sample, paths = np.arange(len(times)), np.zeros((len(times), TERMS))
        while (row != self.none).any():
            paths += self.terms[row]
            waits = waited[row, sample]
            paths[:, SEND] += np.where(waits, self.send_needs[row], self.send_before[row])
            row = np.where(waits, self.needs[row], self.before[row])
        return paths


def graph_of(schedule: str, pp: int, v: int, m: int, layers: int, waits: str) -> Graph:
    """Raises ValueError: the schedule does not take this number of microbatches."""
    return Graph(order_of(schedule, pp, v, m), pp * v, layers, waits)


class Paths:
    """The candidates for the longest path of a step, at any number of microbatches from `least` on in steps of
    `period`: counts + periods x more, (paths, TERMS) each. busy, busy_more: of the ranks."""

    def __init__(self, schedule: str, pp: int, v: int, m: int, layers: int, waits: str, grows: bool) -> None:
        period = pp if schedule in ROUNDS else 1
        times = _sampled(layers, pp * v)
        far = 2 if schedule in ROUNDS else 2 * pp  # periods: no path goes on for longer from one rank to the next
        sizes = [m + i * period for i in ((0, 1, far) if grows else (0,))]
        graphs = [graph_of(schedule, pp, v, size, layers, waits) for size in sizes]
        found, busy = [graph.longest(times) for graph in graphs], [graph.busy() for graph in graphs]
        more, busy_more = found[min(1, len(found) - 1)] - found[0], busy[min(1, len(busy) - 1)] - busy[0]
        # Where the longest path changes its kind between two sizes, it is left out: other ratios have both kinds.
        steady = (found[-1] - found[0] == more * (far if grows else 0)).all(axis=1)
        self.counts, self.more = np.hsplit(np.unique(np.hstack([found[0], more])[steady], axis=0), 2)
        self.busy, self.busy_more = np.hsplit(np.unique(np.hstack([busy[0], busy_more]), axis=0), 2)


def steady_from(schedule: str, pp: int) -> int:
    """Microbatches from which on another period of them only lengthens the middle of a step."""
    return 3 * pp if schedule in ROUNDS else (1 if schedule in ("GPipe", "LoopedBFS") else 2) * pp + 1


@lru_cache(maxsize=4096)
def paths_of(schedule: str, pp: int, v: int, m: int, layers: int, waits: str) -> tuple[Paths, int] | None:
    """The candidates for a step of m microbatches, and how many periods more it has than they were found at; None
    where the schedule does not take this number of microbatches."""
    if refused(schedule, pp, v, m):
        return None
    period = pp if schedule in ROUNDS else 1
    periods = max(0, (m - max(steady_from(schedule, pp), LEAST.get(schedule, 0) * pp)) // period)
    return _paths(schedule, pp, v, m - periods * period, layers, waits, periods > 0), periods


@lru_cache(maxsize=1024)
def _paths(schedule: str, pp: int, v: int, m: int, layers: int, waits: str, grows: bool) -> Paths:
    return Paths(schedule, pp, v, m, layers, waits, grows)


@lru_cache(maxsize=64)
def _sampled(layers: int, stages: int) -> np.ndarray:
    """Times at which paths are looked for, (samples, TERMS). Forward pass of a stage: 1."""
    random, count = np.random.default_rng(7), min(max(12288 // stages, SAMPLES[0]), SAMPLES[1])
    each = max(layers / stages, 1.0)

    def some(low: float, high: float, zero: float = 0.0) -> np.ndarray:
        """Log-uniform; a share of `zero` is 0."""
        drawn = np.exp(random.uniform(np.log(low), np.log(high), count))
        return np.where(random.random(count) < zero, 0.0, drawn)

    by_input, by_weight = some(0.7, 2.5), some(0.6, 1.3)
    first, last = some(0.01, 1.0, 0.4), some(0.03, 6.0, 0.15)
    block = [np.full(count, 1 / each), by_input / each, by_weight / each]
    ends = [first, 0 * first, first, last, last * some(0.7, 1.4), last * some(0.7, 1.4)]
    times = np.stack([*block, *ends, some(1e-3, 1.0, 0.3)], axis=1)
    times[0, :] = [*(1 / each,) * 3, *(0.0,) * 7]  # all alike: where zero-bubble schedules have none
    return times
