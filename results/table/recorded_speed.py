"""Step time and tokens/s of a recorded run, from the steps that it timed, or why there is none.

Without an outer loop the step time is the median. With one it is as outer_cost.py has it, where each step records its
wait for the outer step, else (streaming: always) the mean over the last whole rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..wording import count_of

TIMES = ("data_time_s", "compute_time_s", "optimizer_time_s")  # of runs, medians of the same columns of steps
Rows = Sequence[Mapping[str, Any]]
Columns = dict[str, Any]


class NotMeasured(Exception):
    """Why there is no step time, or no rate, in one line."""


def known_values(rows: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of those rows that have one."""
    return [row[name] for row in rows if row.get(name) is not None]


def speed_columns(steps: Rows, row: Mapping[str, Any]) -> Columns:
    """The columns of `runs` about speed.

    steps: rows of `steps`, with `warmup` and `tokens`; row: the columns of `runs` that are known already
    """
    return _Timing(steps, row).columns()


class _Timing:
    """The steps of a run, and the settings that say how they are counted."""

    def __init__(self, steps: Rows, row: Mapping[str, Any]) -> None:
        self.steps, self.row = steps, row
        self.timed = [one for one in steps if not one["warmup"] and one.get("step_time_s") is not None]
        self.algorithm = row.get("outer_algorithm") or "none"
        self.period = row.get("outer_sync_every")

    def columns(self) -> Columns:
        first = self.steps[0].get("step_time_s") if self.steps else None
        columns = {"timed_steps": len(self.timed), "first_step_s": first}
        columns |= _or_reason("step_time_s_reason", self._step_time)
        columns |= _or_reason("tokens_per_s_reason", lambda: self._rate(columns))
        return columns | self._spread() if self.timed else columns

    def _spread(self) -> Columns:
        """Medians of the parts of a step, where every timed step has them, and quantiles of the whole."""
        columns = {}
        for name in TIMES:
            parts = known_values(self.timed, name)
            columns[name] = statistics.median(parts) if len(parts) == len(self.timed) else None
        times = sorted(one["step_time_s"] for one in self.timed)
        return columns | {"step_time_p05_s": _quantile(times, 0.05), "step_time_p95_s": _quantile(times, 0.95)}

    def _step_time(self) -> Columns:
        if not self.timed:
            raise NotMeasured(self._untimed())
        if self.algorithm == "none":
            return {"step_time_s": statistics.median(one["step_time_s"] for one in self.timed)}
        if not self.period:
            raise NotMeasured(f"{self.algorithm} without its period: record(outer_sync_every=...)")
        if self.algorithm == "streaming" or len(known_values(self.timed, "outer_exposed_s")) < len(self.timed):
            return {"step_time_s": statistics.fmean(one["step_time_s"] for one in self._whole_rounds())}
        return self._with_waits(self.period)

    def _with_waits(self, period: int) -> Columns:
        """Every timed step says how long it waited for its outer step."""
        waits = [one["outer_exposed_s"] for one in self.timed if one.get("outer_step", one["outer_exposed_s"] > 0)]
        inner = statistics.median(one["step_time_s"] - one["outer_exposed_s"] for one in self.timed)
        columns: Columns = {"inner_step_time_s": inner, "timed_outer_steps": len(waits)}
        if not waits:
            why = f"no outer step is among the {len(self.timed)} timed steps: more steps"
            return columns | {"step_time_s_reason": why}
        exposed = statistics.fmean(waits)
        return columns | {"outer_round_exposed_s": exposed, "step_time_s": inner + exposed / period}

    def _whole_rounds(self) -> Rows:
        """Without an outer loop all timed steps, else the last that make whole rounds."""
        if self.algorithm == "none" or not self.period:
            return self.timed
        for index, one in enumerate(self.steps):
            if not one["warmup"] and one.get("step_time_s") is None:  # perhaps the outer step: then a round is cheap
                say = "run.step(step_time_s=...) in every step"
                raise NotMeasured(f"step {index} of an outer loop does not say its time: {say}")
        rounds = self.timed[len(self.timed) % self.period :]
        if not rounds:
            raise NotMeasured(f"{len(self.timed)} timed steps are no whole round of {self.period}: more steps")
        return rounds

    def _rate(self, step: Mapping[str, Any]) -> Columns:
        """tokens/s: the tokens of a step over step_time_s; of steps that differ in tokens all over all.

        The median step of varying work stands for no rate: 90 steps of 100 tokens in 1 s and 10 of 1000
        in 2 s make 172.7 tokens/s, and neither 100 nor 500.
        """
        if "step_time_s" not in step:
            raise NotMeasured(step["step_time_s_reason"])
        columns: Columns = {}
        tokens, seconds = self.row["tokens_per_step"], step["step_time_s"]
        if tokens is None:
            counted = self._with_tokens()
            tokens, seconds = sum(one["tokens"] for one in counted), math.fsum(one["step_time_s"] for one in counted)
            columns = {"timed_tokens": tokens, "timed_s": seconds}
        if not tokens or not 0 < seconds < math.inf:
            why = f"{tokens} tokens in {seconds:g} s is no rate: tokens and step_time_s must be above 0"
            return columns | {"tokens_per_s_reason": why}
        rate = tokens / seconds
        return columns | {"tokens_per_s": rate, "tokens_per_s_per_device": rate / self.row["world_size"]}

    def _with_tokens(self) -> Rows:
        """The timed steps that record their tokens, with an outer loop of whole rounds."""
        if not known_values(self.timed, "tokens"):
            which = "no timed step" if known_values(self.steps, "tokens") else "no step"
            raise NotMeasured(f"tokens per step unknown: {which} says run.step(tokens=...)")
        rounds = self._whole_rounds()
        counted = [one for one in rounds if one["tokens"] is not None]
        if self.algorithm != "none" and len(counted) < len(rounds):
            why = "steps of an outer loop differ in tokens, and some do not say them"
            raise NotMeasured(f"{why}: run.step(tokens=...) in every step")
        return counted

    def _untimed(self) -> str:
        """Why no step is timed."""
        if not self.steps:
            return "no step was recorded"
        if not known_values(self.steps, "step_time_s"):
            return "no step says its time: run.step(step_time_s=...)"
        if all(one["warmup"] for one in self.steps):
            warm = self.row["measure_warmup_steps"]
            every = count_of(len(self.steps), "step is", "steps are")
            return f"all {every} warm-up: record(measure_warmup_steps=...) below {warm}, or more steps"
        return "no step after the warm-up says its time: run.step(step_time_s=...)"


def _or_reason(column: str, measure: Callable[[], Columns]) -> Columns:
    try:
        return measure()
    except NotMeasured as why:
        return {column: str(why)}


def _quantile(ordered: Sequence[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
