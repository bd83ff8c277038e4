"""The statistics of the gate against independent references: scipy, brute force, and simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalade.results.stats import drift as drifting
from scalade.results.stats.rank_test import (
    best_p,
    compare_samples,
    holm,
    rank_sum_p,
    runs_needed,
    shift_interval,
    smallest_seen,
)

SMALL = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=5)  # few values: many ties


@settings(max_examples=60, deadline=None)
@given(SMALL, SMALL)
def test_p_is_the_share_of_all_relabellings_as_extreme(x, y):
    pooled = np.array(x + y)
    ranks = stats.rankdata(pooled)
    sums = np.array([ranks[list(chosen)].sum() for chosen in combinations(range(len(pooled)), len(y))])
    observed = ranks[len(x) :].sum()
    by_hand = min(1.0, 2 * min(np.mean(sums <= observed), np.mean(sums >= observed)))
    assert rank_sum_p(np.array(x), np.array(y)) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 8), (8, 8), (12, 20), (40, 40)])
def test_p_without_ties_is_scipys(n, m):
    random = np.random.default_rng(n * m)
    x, y = random.standard_normal(n), random.standard_normal(m) + 0.5
    assert rank_sum_p(x, y) == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue, rel=1e-9)


def test_p_of_many_runs_goes_over_into_the_normal_one():
    random = np.random.default_rng(0)
    x, y = random.standard_normal(41), random.standard_normal(40) + 0.2
    exact = stats.mannwhitneyu(x, y, method="exact").pvalue
    assert 0.001 < exact < 0.2 and rank_sum_p(x, y) == pytest.approx(exact, rel=0.15)
    assert rank_sum_p(np.ones(60), np.ones(60)) == 1.0


def test_the_interval_is_the_shifts_that_are_not_rejected():
    random = np.random.default_rng(1)
    x, y = random.standard_normal(7), random.standard_normal(9) + 1
    low, high = shift_interval(x, y, 0.05)
    for shift, kept in ((low - 1e-9, False), (low + 1e-9, True), (high - 1e-9, True), (high + 1e-9, False)):
        assert (rank_sum_p(x, y - shift) > 0.05) == kept
    assert shift_interval(x[:3], y[:3], 0.05) == (None, None)


def test_the_interval_of_many_runs_goes_over_into_the_normal_one():
    random = np.random.default_rng(2)
    x, y = random.standard_normal(41), random.standard_normal(40)
    exact, normal = shift_interval(x[:40], y, 0.05), shift_interval(x, y, 0.05)
    assert np.abs(np.subtract(exact, normal)).max() < 0.1


def test_ratio_and_interval_of_a_known_change():
    times = np.exp(np.linspace(-0.02, 0.02, 8))
    found = compare_samples(times, times * 1.1, 0.05)
    assert found.ratio == pytest.approx(1.1) and found.low < 1.1 < found.high and found.p < 0.001
    swapped = compare_samples(times * 1.1, times, 0.05)
    assert swapped.ratio == pytest.approx(1 / 1.1) and swapped.p == found.p
    assert (swapped.low, swapped.high) == pytest.approx((1 / found.high, 1 / found.low))


def test_so_few_runs_can_show():
    assert best_p(4, 4) == pytest.approx(2 / 70) and best_p(1, 1) == 1
    assert (runs_needed(0.05), runs_needed(0.005)) == (4, 6)


def test_holm_is_the_step_down_of_the_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_the_smallest_change_that_could_have_been_seen_is_seen_as_often_as_said():
    random = np.random.default_rng(3)
    for runs in (6, 12):
        samples = [compare_samples(*np.exp(0.02 * random.standard_normal((2, runs))), 0.05) for _ in range(200)]
        change = np.median([smallest_seen(one, runs, runs, 0.05, 0.9) for one in samples])
        x, y = 0.02 * random.standard_normal((2, 600, runs))
        seen = np.mean([rank_sum_p(a, b + np.log1p(change)) <= 0.05 for a, b in zip(x, y, strict=True)])
        assert 0.84 < seen < 0.96, runs
    few = compare_samples([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], 0.05)
    assert smallest_seen(few, 3, 3, 0.05, 0.9) is None


def test_blocks_that_drift_are_not_believed():
    climbing = np.cumsum(np.full(8, 0.01)) + 1e-4 * np.random.default_rng(6).standard_normal(8)
    x, y = np.exp(climbing), np.exp(climbing + 0.08)  # one slow drift, base first
    alone = compare_samples(x, y, 0.05)
    assert alone.p < 0.05 and alone.drift is None
    found = compare_samples(x, y, 0.05, blocks=True)
    assert found.p > 0.05 and found.drift == "seen within the blocks" and found.widened >= 1
    assert found.low <= min(1, alone.low) and found.high >= max(1, alone.high)
    sure = compare_samples(x, y * 2, 0.05, blocks=True)
    assert sure.p < 0.05 and sure.drift is None  # but a doubling is


def test_without_autocorrelation_the_drift_test_is_students_t(monkeypatch):
    monkeypatch.setattr(drifting, "PHIS", (0.0,))
    monkeypatch.setattr(drifting, "TREND", 0.0)
    drifting._design.cache_clear()
    x, y = np.random.default_rng(4).standard_normal((2, 8))
    found, student = drifting.drift(x, y, 0.05), stats.ttest_ind(y, x)
    assert found.p == pytest.approx(student.pvalue) and found.widened == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx(tuple(student.confidence_interval()))
    drifting._design.cache_clear()


def test_the_drift_test_is_generalised_least_squares():
    """Against a second way to the same numbers: whitening by the Cholesky factor, then ordinary least squares."""
    series, base, head, phi = np.random.default_rng(7).standard_normal(11), 5, 6, 0.5
    R = phi ** np.abs(np.subtract.outer(np.arange(11), np.arange(11)))
    X = np.column_stack([np.ones(11), np.r_[np.zeros(base), np.ones(head)]])
    L = np.linalg.cholesky(R)
    Xw, yw = np.linalg.solve(L, X), np.linalg.solve(L, series)
    beta, left, *_ = np.linalg.lstsq(Xw, yw, rcond=None)
    weights, residuals, factors, constants, free = drifting._design(base, head, False)
    at = list(np.round(drifting.PHIS, 6)).index(phi)
    assert weights[at] @ series == pytest.approx(beta[1]) and free == 9
    assert series @ residuals[at] @ series == pytest.approx(left[0])
    assert factors[at] == pytest.approx(np.linalg.inv(Xw.T @ Xw)[1, 1])
    normal = np.linalg.slogdet(Xw.T @ Xw)[1]
    assert constants[at] == pytest.approx(-(2 * np.log(np.diag(L)).sum() + normal) / 2)


def test_values_far_apart_and_all_alike_stay_finite():
    assert np.isfinite(compare_samples([1e-300] * 4, [1e300] * 4, 0.05).ratio)
    same = compare_samples([5.0] * 8, [5.0] * 8, 0.05, blocks=True)
    assert (same.ratio, same.low, same.high, same.p, same.spread) == (1, 1, 1, 1, 0)
