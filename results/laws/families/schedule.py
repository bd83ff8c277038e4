"""A learning-rate schedule read off a steps table: its integral S1 and the drops that later steps feel.

Rows are records (run, step, lr), any spacing. A change that stands alone, the rate constant before and
after, is a jump and acts at its record: the rate written beside a step is that step's. In a run of changes
(a cosine, a decay) the rate passed smoothly between records: each is taken half-way, so S1 is the trapezoid
sum. Before the first record it is taken to have risen linearly from 0 (the warm-up), in `WARMUP_PARTS`
equal rises. Only records where the rate changes make pairs, which keeps the double sums of the annealing
laws at (records x changes), not (steps x steps). The sum since a change counts the changed step itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..dual import Dual

WARMUP_PARTS = 16


@dataclass(frozen=True)
class Schedule:
    """s1 (n,) per row; pairs (row, drop) sorted by row: row (P,), drop (P,), lr (P,), gap_s1 (P,), gap_steps (P,)."""

    s1: np.ndarray
    row: np.ndarray
    drop: np.ndarray
    lr: np.ndarray
    gap_s1: np.ndarray
    gap_steps: np.ndarray

    def total(self, x: Dual) -> Dual:
        """Sum over the pairs of each row: (B, P) -> (B, n)."""
        n, starts = len(self.s1), np.flatnonzero(np.diff(self.row, prepend=-1))

        def add(a):
            out = np.zeros((a.shape[0], n))
            if len(starts):
                out[:, self.row[starts]] = np.add.reduceat(
                    np.broadcast_to(a, (a.shape[0], len(self.row))), starts, axis=1
                )
            return out

        return Dual(add(x.v), {j: add(d) for j, d in x.g.items()})


def read_schedule(run: np.ndarray, step: np.ndarray, lr: np.ndarray, warmup: bool = True) -> Schedule:
    """The schedule of every run of the table, rows in the table's order.

    Raises ValueError where a run has a step twice.
    """
    n = len(step)
    s1, parts = np.empty(n), []
    for name in dict.fromkeys(run.tolist()):
        at = np.flatnonzero(run == name)
        at = at[np.argsort(step[at], kind="stable")]
        t, eta = step[at].astype(float), lr[at].astype(float)
        if (np.diff(t) <= 0).any():
            raise ValueError(
                f"run {name!r} has step {t[1:][np.diff(t) <= 0][0]:g} twice: one row per run and step, please"
            )
        if warmup and t[0] > 1:  # the rise that was not recorded, as records of its own
            rise = np.linspace(0.0, 1.0, WARMUP_PARTS + 1)[:-1]
            t, eta = np.concatenate([rise * t[0], t]), np.concatenate([rise * eta[0], eta])
        changes = np.diff(eta, prepend=eta[0])
        node = np.flatnonzero(changes)
        jump = _jumps(changes)
        mean = np.where(jump[1:], eta[:-1], 0.5 * (eta[1:] + eta[:-1]))
        area = np.concatenate([[0.0], np.cumsum(mean * np.diff(t))])
        if t[0] > 0:
            area += t[0] * eta[0]
        seen = np.arange(len(t) - len(at), len(t))
        area_seen, t_seen = area[seen], t[seen]
        i, k = np.nonzero(seen[:, None] >= node[None])
        k = node[k]
        s1[at] = area_seen
        half = np.where(jump[k], 1.0, 0.5) * (t[k] - t[k - 1])
        area_then, step_then = area[k - 1] + half * eta[k - 1], t[k - 1] + half
        parts.append((at[i], -changes[k], eta[k], area_seen[i] - area_then + eta[k], t_seen[i] - step_then + 1.0))
    row, drop, rate, gap_s1, gap_steps = (np.concatenate(c) for c in zip(*parts, strict=True))
    order = np.argsort(row, kind="stable")
    return Schedule(s1, row[order], drop[order], rate[order], gap_s1[order], gap_steps[order])


def _jumps(changes: np.ndarray) -> np.ndarray:
    """Which changes (n,) stand alone: the rate is constant before and after."""
    still = np.concatenate([[True], changes == 0, [True]])
    return (changes != 0) & still[:-2] & still[2:]
