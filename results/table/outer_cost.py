"""What an outer loop adds to a step: its exchanges come once in a round of H inner steps, so H is what divides them.

    step time = median(step - exposed) + E / H,    E = sum over a round's exchanges of mean(exposed)

`exposed`: the seconds that a step waited for its outer step. E is the wait of one outer step, or under streaming of the
2 F times in a round at which one of F fragments is sent or applied; each of them has a mean of its own, since they
differ in size. The length of the run is in none of this: 1 s steps with a wait of 30 s every H = 30 are 2 s, whether
the run has 30, 59 or 3,000 of them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """When a round's exchanges come. Inner steps are counted from 1."""

    steps: int  # H
    phases: frozenset[int]  # t mod H of the inner steps t after which something is sent or applied
    whole_from: int = 1  # the first t whose exchange does all that it does in later rounds

    def exchanges_at(self, t: int) -> bool:
        """Whether an exchange that later rounds repeat follows inner step t."""
        return t >= self.whole_from and t % self.steps in self.phases


@dataclass(frozen=True)
class OuterCost:
    """Seconds, of the timed steps. Null, and `reason`: not every exchange of a round is among them."""

    inner_step_s: float
    round_exposed_s: float | None
    exchanges: int  # among the timed steps
    step_s: float | None
    reason: str | None


def outer_cost(timed: Sequence[tuple[int, float, float]], round: Round) -> OuterCost:
    """timed: (inner step from 1, its seconds, seconds of them that its outer step was waited for) of each timed step,
    at least one."""
    inner = statistics.median(seconds - exposed for _, seconds, exposed in timed)
    waits: dict[int, list[float]] = defaultdict(list)
    for t, _, exposed in timed:
        if round.exchanges_at(t):
            waits[t % round.steps].append(exposed)
    count = sum(map(len, waits.values()))
    if len(waits) < len(round.phases):
        several = len(round.phases) > 1
        what = f"{len(waits)} of the {len(round.phases)} exchanges of a round are" if several else "no outer step is"
        first, last = timed[0][0], timed[-1][0]
        why = f"{what} among the {len(timed)} timed steps, {first} to {last}: outer.sync_every = {round.steps}"
        return OuterCost(inner, None, count, None, f"{why}; take more steps")
    exposed = sum(statistics.fmean(some) for some in waits.values())
    return OuterCost(inner, exposed, count, inner + exposed / round.steps, None)
