"""Do the intervals of predictions hold what was measured? A rule of ours, beside the twelve of `scalade check`.

A prediction's interval is stated to hold the measurement in 90 % of all cases. A table fails where so few of its cases
lie inside that a true 90 % would give as few, or fewer, in less than one table of twenty (binomial). Repeats of a case
have one prediction, so a case counts once: as inside where at least half of its runs are. Cases of one study also
share what the model does not know of the machine, so a table can fail by one wrong number of the profile: then
`scalade calibrate` is what to do. Runs that something else on the machine disturbed say nothing of the model, and are
left aside (quiet.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..schema.rows import AnyRow
from ..table.column_codes import Coded
from ..table.quiet import disturbed

LEVEL = 0.9  # of the intervals, as docs of the columns state it
RARE = 0.05
INTERVALS = (  # what was predicted, its interval and what was measured
    ("step time", "predicted_step_time_low_s", "predicted_step_time_high_s", "step_time_s"),
    ("device memory", "predicted_memory_low_bytes", "predicted_memory_high_bytes", "peak_memory_bytes"),
)


def coverage(rows: Sequence[AnyRow], outcome_of: Callable, skip: str) -> tuple:
    """(verdict, why, rows outside) of ok runs.

    outcome_of: (rows that fail, why they do, why all is well) -> an outcome; skip: the verdict of a rule that does
    not apply
    """
    columns = Coded(rows)
    cases = columns.of("case_id") if rows else np.zeros(0, int)
    quiet = ~_disturbed(rows, columns)
    outside: list[AnyRow] = []
    bad, good = [], []
    for what, *names in INTERVALS:
        low, high, measured = (columns.numbers(name) for name in names)
        known = np.flatnonzero(~np.isnan(low) & ~np.isnan(high) & ~np.isnan(measured) & quiet)
        if not len(known):
            continue
        inside = (low <= measured) & (measured <= high)
        hits, count = _cases_inside(cases[known], inside[known])
        text = f"{what}: {hits} of {count} cases inside the stated {LEVEL:.0%} interval"
        if binomial_tail(hits, count, LEVEL) < RARE:
            bad.append(text)
            outside += [rows[at] for at in known[~inside[known]]]
        else:
            good.append(text)
    if not bad and not good:
        return skip, "no prediction with an interval beside a measurement on a quiet machine", []
    why = f"{'; '.join(bad)}: calibrate again on this machine (`scalade calibrate`)"
    return outcome_of(list({row["run_id"]: row for row in outside}.values()), why, "; ".join(good))


def _disturbed(rows: Sequence[AnyRow], columns: Coded) -> np.ndarray:
    """(rows,) bool"""
    causes = disturbed(rows, columns).values() if rows else ()
    return np.logical_or.reduce([np.zeros(len(rows), bool), *(which for which, _ in causes)])


def _cases_inside(cases: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    """(cases of which at least half of the runs are inside, cases)."""
    _, place = np.unique(cases, return_inverse=True)
    runs = np.bincount(place)
    return int((np.bincount(place, inside) >= runs / 2).sum()), len(runs)


def binomial_tail(hits: int, count: int, share: float) -> float:
    """P(X <= hits) of X ~ Binomial(count, share)."""
    from scipy.special import betainc

    return 1.0 if hits >= count else float(betainc(count - hits, math.floor(hits) + 1, 1 - share))
