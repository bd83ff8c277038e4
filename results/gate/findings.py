"""From pairs of values to verdicts: one test a pair, at an alpha that all cases and metrics share (Holm)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product, starmap

from ..schema.rows import AnyRow
from ..stats.rank_test import Sample, best_p, compare_samples, holm, runs_needed, smallest_seen
from .pairs import Finding, Pair, cases_of, pair
from .rule import IMPROVED, METRICS, Rule, Verdict


def findings_of(base: Sequence[AnyRow], head: Sequence[AnyRow], rule: Rule) -> list[Finding]:
    """Every metric of every case, from the rows of both sides."""
    metrics = [METRICS[column] for column in dict.fromkeys(rule.metrics)]
    pairs = list(filter(None, starmap(pair, product(cases_of(base, head), metrics))))
    samples = {at: _sample(one, rule) for at, one in enumerate(pairs) if one.head}
    adjusted = dict(zip(samples, holm([sample.p for sample in samples.values()]), strict=True))
    findings = [one.draft for one in pairs]
    for at, sample in samples.items():
        findings[at] = _judged(pairs[at], sample, adjusted[at], len(samples), rule)
    return findings


def _sample(pair: Pair, rule: Rule) -> Sample:
    return compare_samples(pair.base, pair.head, rule.alpha, blocks=pair.draft.interleaved is False)


def _judged(pair: Pair, sample: Sample, p_adjusted: float, tests: int, rule: Rule) -> Finding:
    """The verdict of one test among `tests`."""
    verdict, reason = _verdict(pair, sample, p_adjusted, tests, rule)
    return replace(
        pair.draft,
        verdict=verdict,
        reason="; ".join(filter(None, (pair.draft.reason, reason))) or None,
        ratio=sample.ratio,
        low=sample.low,
        high=sample.high,
        p=sample.p,
        p_adjusted=p_adjusted,
        smallest_seen=smallest_seen(sample, len(pair.base), len(pair.head), rule.alpha / tests, rule.power),
        spread=math.expm1(sample.spread),
        confirmed=False if verdict in IMPROVED else None,
        noise_fails=rule.fail_on_noise,
    )


def _verdict(pair: Pair, sample: Sample, p_adjusted: float, tests: int, rule: Rule) -> tuple[Verdict, str | None]:
    """With the reason where it is not that the sides differ or are the same."""
    if p_adjusted <= rule.alpha and abs(sample.ratio - 1) >= rule.min_effect:
        return _changed(pair, sample), None
    if _excludes_changes(sample, rule.margin):
        return Verdict.SAME, None
    level = rule.alpha / tests
    if sample.best_p > level:
        reason = f"too few runs to tell anything at this level: {runs_needed(level)} a side could"
        return (Verdict.MISSING if _ended_early(pair, level) else Verdict.NOISY), reason
    if sample.drift:
        return Verdict.NOISY, f"drift {sample.drift}, and the runs did not take turns: interleave them"
    return Verdict.NOISY, f"the interval does not exclude a change of {rule.margin:.3g}"


def _changed(pair: Pair, sample: Sample) -> Verdict:
    metric = METRICS[pair.draft.metric]
    got_worse = (sample.ratio > 1) == metric.less_is_better
    return metric.worse if got_worse else metric.better


def _excludes_changes(sample: Sample, margin: float) -> bool:
    """Whether the interval lies within the margin."""
    if sample.low is None or sample.high is None:
        return False
    return 1 / (1 + margin) < sample.low and sample.high < 1 + margin


def _ended_early(pair: Pair, level: float) -> bool:
    """Whether BASE has runs enough and HEAD has fewer: that is no noise."""
    runs = len(pair.base)
    return len(pair.head) < runs and best_p(runs, runs) <= level
