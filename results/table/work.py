"""The work of a step is its tokens: how many there are, at what rate they were trained on, and whose work is the same.

    work = tokens_per_step, or tokens_seen / steps where steps differ in tokens
    rate = tokens_per_s:  tokens_per_step / step_time_s, or timed_tokens / timed_s where steps differ in tokens

Two runs do the same work where these counts are equal. Where the steps of one of them differ in tokens (packed
sequences, a short last batch) its work is a mean: means within VARIES of each other are the same, of runs that repeat
each other within REPEATS, for chance makes them differ more than those of many runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from ..schema.rows import AnyRow
from .errata import why_missing

VARIES, REPEATS = Fraction(1, 10), Fraction(1, 4)
UNKNOWN = "tokens per step unknown: say run.step(tokens=...) or record(tokens_per_step=...)"


@dataclass(frozen=True)
class Work:
    """Tokens of one step; varies: a mean over steps that differ."""

    tokens: Fraction
    varies: bool = False

    def over(self, devices: int) -> Work:
        """The share of one device."""
        return Work(self.tokens / devices, self.varies)

    def __str__(self) -> str:
        whole = self.tokens.denominator == 1
        return f"{int(self.tokens):,}" if whole else f"{float(self.tokens):,.1f}"


def work_of(row: AnyRow) -> Work | None:
    """The work of a step of this run; None: the row does not say."""
    if row.get("tokens_per_step"):
        return Work(Fraction(row["tokens_per_step"])) if row["tokens_per_step"] > 0 else None
    steps = row.get("step_rows") or row.get("steps")
    if not row.get("tokens_seen") or not steps or row["tokens_seen"] < 0 or steps < 0:
        return None
    return Work(Fraction(row["tokens_seen"], steps), varies=True)


def rate_of(row: AnyRow) -> float | None:
    """tokens/s of a run, all ranks together; None: not measured."""
    if row.get("tokens_per_s") is not None or _no_rate(row):
        return row["tokens_per_s"] if _positive(row, "tokens_per_s") else None
    if not _positive(row, "tokens_per_step", "step_time_s"):
        return None
    rate = row["tokens_per_step"] / row["step_time_s"]
    return rate if math.isfinite(rate) else None


def is_timed(row: AnyRow) -> bool:
    """Whether a rate and its ratios can be formed of this run, if its work is known."""
    return row["status"] == "ok" and _positive(row, "step_time_s", "world_size") and rate_of(row) is not None


def _positive(row: AnyRow, *names: str) -> bool:
    """Whether each of these columns has a value above 0."""
    return all((row.get(name) or 0) > 0 for name in names)


def mean_step_s(row: AnyRow) -> float:
    """Seconds of a step, for a sum over steps: step_time_s, or the mean where steps differ in tokens."""
    work, rate = work_of(row), rate_of(row)
    return float(work.tokens) / rate if work is not None and work.varies and rate else row["step_time_s"]


def no_work(row: AnyRow) -> str | None:
    """Why no ratio is formed of a run with status ok; None: its work and its rate are known."""
    for name in ("step_time_s", "tokens_per_step", "tokens_seen", "tokens_per_s", "world_size"):
        if (row.get(name) or 0) < 0:
            return f"{name} is below 0, which no measurement gives"
    if not row.get("step_time_s"):
        return _no_step_time(row)
    known = work_of(row)
    if known is None:
        return UNKNOWN
    if rate_of(row) is None:
        return _no_rate(row) or f"no tokens_per_s, and steps differ in tokens ({known} on average)"
    return None if row.get("world_size") else "world_size unknown"


def _no_step_time(row: AnyRow) -> str:
    why = why_missing(row, "step_time_s")
    return _no_rate(row) or ("no timed step" if why is None else f"no step time: {why}")


def _no_rate(row: AnyRow) -> str | None:
    """Why tokens_per_s is null, as the row says."""
    why = why_missing(row, "tokens_per_s")
    return row.get("tokens_per_s_reason") or (None if why is None else f"no tokens_per_s: {why}")


def levels(works: Iterable[Work], repeats: bool = False) -> dict[Work, Fraction]:
    """One number for each of these amounts of work: two of the same work have the same.

    Those that vary stand together from the smallest on as far as VARIES, and with the nearest fixed one that is as
    close to their mean. repeats: of runs that repeat each other; then as far as each is within REPEATS of the next.
    """
    amounts, within = set(works), REPEATS if repeats else VARIES
    result = {one: one.tokens for one in amounts if not one.varies}
    fixed = sorted(result.values())
    for members in _together([one for one in amounts if one.varies], within, like=-1 if repeats else 0):
        mean = sum((one.tokens for one in members), Fraction()) / len(members)
        near = min(fixed, key=lambda tokens: abs(tokens - mean), default=mean)
        result |= dict.fromkeys(members, near if _close(near, mean, within) else mean)
    return result


def _together(varying: Iterable[Work], within: Fraction, like: int) -> list[list[Work]]:
    """The amounts from the smallest on, in groups: each is close to the first (like = 0) or last (-1) of its group."""
    groups: list[list[Work]] = []
    for one in sorted(varying, key=lambda one: one.tokens):
        if groups and _close(groups[-1][like].tokens, one.tokens, within):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _close(one: Fraction, other: Fraction, within: Fraction) -> bool:
    return abs(one - other) <= within * max(one, other)
