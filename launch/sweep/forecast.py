"""How long the missing runs will take, from what was predicted of them: their order, the time that is left, a limit.

    duration = start-up + steps x predicted step time

Without predictions (no profile of this machine) the order stays as planned, nothing is said, and no limit is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...results.wording import count_of
from .plan import AnyCase, CaseT, Plan, PlannedRun

STARTUP_S = 10.0  # processes, imports, rendezvous, the first step: rather too much than too little
RunT = TypeVar("RunT", bound=PlannedRun[AnyCase])
Predicted = Mapping[str, Mapping[str, Any]]
"""case_id -> columns `predicted_...` of its rows"""


@dataclass(frozen=True)
class Duration:
    """Seconds of a run, start-up included, with the ends of the prediction's 90 % interval."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.low + other.low, self.expected + other.expected, self.high + other.high)


class Forecast:
    """Durations of the runs of a study."""

    def __init__(self, predicted: Predicted) -> None:
        self.predicted = predicted

    def duration(self, run: PlannedRun[AnyCase]) -> Duration | None:
        """None: it was not predicted."""
        columns = self.predicted.get(run.case.case_id, {})
        step = columns.get("predicted_step_time_s")
        if step is None:
            return None
        ends = (columns.get(f"predicted_step_time_{end}_s", step) for end in ("low", "high"))
        low, high = (STARTUP_S + run.case.steps * end for end in ends)
        return Duration(low, STARTUP_S + run.case.steps * step, high)

    def largest_first(self, runs: Sequence[RunT]) -> list[RunT]:
        """Within each repeat the longest run first, so that one that is too large for the machine shows early, and
        that sweeps which share a study end together. Runs that were not predicted come last, in their order."""
        return sorted(runs, key=lambda run: (run.repeat, -self._expected(run)))

    def ordered(self, plan: Plan[CaseT], isolation: str) -> Plan[CaseT]:
        """The plan, its longest runs first; a pool's order stays, which keeps worlds of a size together."""
        if not self.predicted or isolation == "pool":
            return plan
        return replace(plan, pending=tuple(self.largest_first(plan.pending)))

    def _expected(self, run: PlannedRun[AnyCase]) -> float:
        duration = self.duration(run)
        return duration.expected if duration else 0.0

    def left(self, runs: Sequence[PlannedRun[AnyCase]]) -> str | None:
        """A line on how long these runs will take, one after the other; None: nothing was predicted."""
        known = [duration for duration in map(self.duration, runs) if duration]
        if not known:
            return None
        whole = sum(known[1:], known[0])
        more = len(runs) - len(known)
        unknown = f"; {count_of(more, 'run')} without a prediction" if more else ""
        return (
            f"predicted: {count_of(len(known), 'run')} in {span(whole.expected)} "
            f"({span(whole.low)} to {span(whole.high)}){unknown}"
        )

    def time_limit_s(self, run: PlannedRun[AnyCase], limit_s: float, factor: float) -> float:
        """limit_s, or `factor` times the upper end of the predicted duration where that is less. factor 0: limit_s."""
        duration = self.duration(run)
        return min(limit_s, factor * duration.high) if factor and duration else limit_s


def span(seconds: float) -> str:
    """For people: `45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if whole < 60:
        return f"{whole} s"
    if hours < 1:
        return f"{minutes} min {whole % 60:02d} s"
    if hours < 48:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"
