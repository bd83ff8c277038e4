"""The search for the minimum: the law's starts, then more where the evidence for their best is weak.

Evidence is the gradient at the best point (projected: a parameter at a bound that it pushes outwards does not
count) and the share of the starts that ended there. Where either is weak, rounds of further starts follow:
every parameter with a bound held at it and then let go (an irreducible loss of 0, an exponent of 0), the minima
of wider objectives, and points around the best. What is still weak after that is reported: `Convergence.converged`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .base import AMPLITUDE
from .solver import Constraint, Objective, Problem, Solution

SAME = 1e-6  # two objectives this close, relatively, are the same optimum
FLAT = 1e-3  # a gradient below this, over sum |psi J|, is none
ROUNDS = 3
AROUND = 16  # starts around the best in a round, and as many around the law's own
PLENTY = 0.5  # the share of the law's own starts at the optimum that asks for no more
FEW = 0.05  # the share that proves nothing


@dataclass(frozen=True)
class Convergence:
    """The evidence that this is the minimum. starts: all that were tried, at_optimum: those that ended there.

    gradient: largest component over sum |psi J|. why_not: empty where it converged, else the reason with its numbers.
    """

    starts: int
    at_optimum: int
    gradient: float
    condition: float  # of J'J in the centred coordinates that are fitted
    condition_natural: float  # of J'J by the natural parameters (A, B, E themselves)
    why_not: str = ""
    converged: bool = True


def at_best(s: Solution) -> np.ndarray:
    """(B,) which problems of one table ended at the lowest objective of all."""
    best = s.objective[s.best]
    return s.objective <= best + SAME * abs(best) + 1e-14


def why_not(s: Solution) -> str:
    """Why the best of these solutions is no proven minimum, in words; empty where it is."""
    there, k = at_best(s), s.best
    gradient = float(s.gradient[there].min()) if there.any() else float(s.gradient[k])
    reasons = []
    if not gradient < FLAT:
        reasons.append(f"the gradient left at the lowest point is {gradient:.1e} (below {FLAT:g} is flat)")
    if len(s.objective) >= 4 and there.sum() < max(2, FEW * len(s.objective)):
        reasons.append(f"{int(there.sum())} of {len(s.objective)} starts reached the lowest point")
    return "; ".join(reasons)


def search(
    problem: Problem, starts: np.ndarray, seed: int = 0, tick: Callable[[float], None] | None = None
) -> Solution:
    """The solutions from `starts` (S, p), and from more rounds of starts while the evidence is weak."""
    starts = np.atleast_2d(starts)
    s = problem.solve(starts)
    rng = np.random.default_rng(seed)
    for k in range(ROUNDS):
        if not np.isfinite(s.objective).any() or (k == 0 and at_best(s).mean() >= PLENTY and not why_not(s)):
            break
        if tick:
            tick(k / ROUNDS)
        before = float(s.objective[s.best])
        more = _starts(problem, s, starts, rng)
        s = joined(s, problem.solve(more))
        moved = float(s.objective[s.best]) < before - SAME * abs(before) - 1e-14
        if not moved and (k > 0 or not why_not(s)):
            break
    return s


def joined(a: Solution, b: Solution) -> Solution:
    return Solution(*(np.concatenate(pair) for pair in zip(vars(a).values(), vars(b).values(), strict=True)))


def _starts(problem: Problem, s: Solution, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A round of starts (S, p): at bounds, from wider objectives, around the best few and around the law's own."""
    best = s.theta[np.argsort(s.objective)[:3]]
    out = [_at_bounds(problem, best[0])]
    if problem.objective.kind in ("huber", "l1"):
        delta = problem.objective.delta
        wide = replace(problem, objective=Objective("squares")).solve(best)
        for d in (100 * delta, 10 * delta):
            wide = replace(problem, objective=Objective("huber", d)).solve(wide.theta)
        out.append(wide.theta)
    for some, scales in ((best, (0.05, 0.3, 1.0)), (own, (0.3, 1.0))):
        some = some[rng.integers(len(some), size=AROUND)]
        width = rng.choice(scales, size=(AROUND, 1)) * np.maximum(0.3 * np.abs(some), 0.1)
        out.append(some + width * rng.standard_normal(some.shape))
    return np.concatenate(out)


def _at_bounds(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """The minima (k, p) with one bounded parameter held at a bound each, starting from theta (p,)."""
    low, high = problem.law.box(problem.inputs.centre)
    held = problem.constraint
    free = np.arange(len(theta)) if held is None else held.free
    minima = [theta[None]]
    for j in free:
        for edge in (low[j], high[j]):
            if not np.isfinite(edge) or edge == AMPLITUDE[1]:
                continue
            start = theta.copy()
            start[j] = edge
            minima.append(_solve_at(problem, start, int(j)).theta)
    return np.concatenate(minima)


def _solve_at(problem: Problem, start: np.ndarray, j: int) -> Solution:
    """The minimum with coordinate j of theta where `start` has it."""
    held, p = problem.constraint, len(start)
    if held is None:
        basis, offset, free = np.eye(p), np.zeros(p), np.arange(p)
    else:
        basis, offset, free = held.basis, held.offset, held.free
    at = int(np.flatnonzero(free == j)[0])
    keep = np.arange(len(free)) != at
    fixed = Constraint(basis[:, keep], offset + basis[:, at] * start[j], free[keep])
    return replace(problem, constraint=fixed).solve(start, iterations=60)
