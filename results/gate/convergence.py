"""The convergence gate: loss at equal tokens, within a tolerance learned from the base's own seeds.

    tolerance = t(1 - alpha / 2 groups, k - 1) * s * sqrt(1/k + 1/m)

k, m: seeds of base and head, s: standard deviation of the base's losses over its seeds: the prediction interval of a
mean of m new seeds (Student). A change that only reshuffles rounding stays inside; one that learns worse by more than
seeds differ does not. Cases that differ in nothing but the seed are one group. Repeats of one seed are averaged.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..schema.columns import RUNS
from ..schema.rows import AnyRow, distinct, ok_rows
from ..table.held_out import refusal
from ..table.names import name_of
from ..wording import count_of
from .rule import FAILING, Verdict

SEEDS = 3  # from which a tolerance can be learned
NEARLY = 0.01  # of the tokens seen, where steps differ in tokens: packed sequences
ROUNDING = 1e-5  # relative: what another order of the same sums does, however alike the seeds
MEASURED = {
    "outer_steps",
    "outer_bytes_per_rank",
    "outer_time_s",
    "outer_exposed_s",
    "data_hash",
    "data_tokens",
    "data_entropy_nats",
    "seed",
}
DECIDED = tuple(
    column.name
    for group, prefix in (
        ("Model", "model"),
        ("Data", "data_"),
        ("Recipe", ""),
        ("Layout", ""),
        ("Outer loop", "outer_"),
        ("Measurement", ""),
    )
    for column in RUNS[group]
    if column.name.startswith(prefix) and column.name not in MEASURED
)
"""Columns that decide what is computed, but for the seed."""


@dataclass(frozen=True)
class LossFinding:
    """The loss of one group of cases that differ in nothing but the seed. Losses in nats per token."""

    name: str
    case_ids: tuple[str, ...]
    loss: str  # the column: val_loss where every run has one
    verdict: Verdict  # worse, better, same, missing
    reason: str | None
    base_seeds: int
    head_seeds: int
    tokens_seen: int | None = None
    base: float | None = None  # mean over the seeds
    head: float | None = None
    difference: float | None = None  # head - base
    tolerance: float | None = None
    learned: bool | None = None  # from the base's seeds; false: declared

    @property
    def fails(self) -> bool:
        return self.verdict in FAILING


def compare_losses(base: Sequence[AnyRow], head: Sequence[AnyRow], alpha: float, declared: float) -> list[LossFinding]:
    """One finding for each group of cases that has ok runs on both sides.

    declared: relative tolerance, for groups in which the base has fewer than SEEDS seeds
    """
    groups: dict[tuple, tuple[list[AnyRow], list[AnyRow]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((base, head)):
        for row in ok_rows(rows):
            groups[_decided(row)][side].append(row)
    both = [rows for rows in groups.values() if rows[1] and _has_loss(rows[0])]
    return [_compared(name_of(rows[0][0]), *rows, alpha / len(both), declared) for rows in both]


def _decided(row: AnyRow) -> tuple:
    return tuple(row[column] for column in DECIDED)


def _has_loss(rows: Sequence[AnyRow]) -> bool:
    return any(row["loss"] is not None for row in rows)


def _compared(name: str, base: Sequence[AnyRow], head: Sequence[AnyRow], alpha: float, declared: float) -> LossFinding:
    rows = (*base, *head)
    loss = "loss" if None in distinct(rows, "val_loss") else "val_loss"
    blank = LossFinding(
        name,
        case_ids=tuple(sorted(distinct(rows, "case_id"))),
        loss=loss,
        verdict=Verdict.MISSING,
        reason=_obstacle(rows, loss),
        base_seeds=len(distinct(base, "seed")),
        head_seeds=len(distinct(head, "seed")),
    )
    return blank if blank.reason is not None else _judged(blank, base, head, alpha, declared)


def _judged(
    blank: LossFinding, base: Sequence[AnyRow], head: Sequence[AnyRow], alpha: float, declared: float
) -> LossFinding:
    base_losses, head_losses = _by_seed(base, blank.loss), _by_seed(head, blank.loss)
    mean, head_mean = statistics.fmean(base_losses), statistics.fmean(head_losses)
    learned = len(base_losses) >= SEEDS
    tolerance = _learned_tolerance(base_losses, len(head_losses), alpha) if learned else declared * abs(mean)
    difference = head_mean - mean
    reasons = [] if learned else [f"tolerance declared, not learned: {len(base_losses)} of {SEEDS} seeds in BASE"]
    tokens = distinct((*base, *head), "tokens_seen")
    if len(tokens) > 1:
        reasons.append(f"steps differ in tokens: tokens_seen is {min(tokens)} to {max(tokens)}")
    return replace(
        blank,
        verdict=_verdict(difference, tolerance),
        reason="; ".join(reasons) or None,
        tokens_seen=tokens.pop() if len(tokens) == 1 else None,
        base=mean,
        head=head_mean,
        difference=difference,
        tolerance=tolerance,
        learned=learned,
    )


def _obstacle(rows: Sequence[AnyRow], loss: str) -> str | None:
    """Why there is no loss at equal tokens to compare, in one line."""
    differ = refusal(rows) if loss == "val_loss" else None
    if differ:
        return differ
    tokens = distinct(rows, "tokens_seen")
    if len(tokens) > 1 and not _nearly(rows):
        return f"no loss at equal tokens: tokens_seen is {' and '.join(sorted(map(str, tokens)))}"
    without = sum(row[loss] is None for row in rows)
    return f"{without} of {count_of(len(rows), 'run')} have no loss" if without else None


def _learned_tolerance(losses: Sequence[float], head_seeds: int, alpha: float) -> float:
    """From the losses of the base's seeds."""
    from scipy.stats import t

    seeds = len(losses)
    quantile = float(t.isf(alpha / 2, seeds - 1))
    tolerance = quantile * statistics.stdev(losses) * math.sqrt(1 / seeds + 1 / head_seeds)
    return max(tolerance, ROUNDING * abs(statistics.fmean(losses)))


def _verdict(difference: float, tolerance: float) -> Verdict:
    if abs(difference) <= tolerance:
        return Verdict.SAME
    return Verdict.WORSE if difference > 0 else Verdict.BETTER


def _nearly(rows: Sequence[AnyRow]) -> bool:
    """Whether runs whose steps differ in tokens saw as many, but for NEARLY."""
    tokens = distinct(rows, "tokens_seen")
    if None in tokens or not all(map(_recorded_without_work, rows)):
        return False
    return max(tokens) - min(tokens) <= NEARLY * max(tokens)


def _recorded_without_work(row: AnyRow) -> bool:
    """Whether another trainer recorded this run, in steps that differ in tokens."""
    return row["parity"] is not None and row["tokens_per_step"] is None


def _by_seed(rows: Sequence[AnyRow], loss: str) -> list[float]:
    """Of each seed the mean over its repeats."""
    seeds = defaultdict(list)
    for row in rows:
        seeds[row["seed"]].append(row[loss])
    return list(map(statistics.fmean, seeds.values()))
