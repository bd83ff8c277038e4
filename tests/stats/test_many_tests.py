"""Shapiro-Wilk and Kruskal-Wallis over many samples at once against scipy's, sample by sample."""

import warnings

import numpy as np
import pytest
from scipy.stats import kruskal, shapiro

from scalade.results.stats.many_tests import kruskal_p, shapiro_p

DRAWS = {
    "normal": lambda r, n: r.normal(1e-3, 1e-5, n),
    "skewed": lambda r, n: r.exponential(size=n),
    "wild": lambda r, n: r.standard_cauchy(n),
    "tied": lambda r, n: np.round(r.normal(size=n)),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_normality_of_samples_of_every_size(kind):
    chance = np.random.default_rng(1)
    samples = [DRAWS[kind](chance, n) for n in [*range(3, 40), 200, 5000] * 3]
    samples = [x for _, x in sorted(enumerate(samples), key=lambda one: one[0] * 7 % len(samples))]  # sizes mixed
    found = shapiro_p(np.concatenate(samples), np.array([len(x) for x in samples]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all the same
        wanted = [np.nan if np.ptp(x) == 0 else shapiro(x).pvalue for x in samples]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-12)


def test_what_tells_samples_apart():
    chance, tests = np.random.default_rng(2), []
    for n in range(60):
        tests.append(
            [
                DRAWS[list(DRAWS)[n % 4]](chance, int(size)) + n % 3 * shift
                for shift, size in enumerate(chance.integers(1, 9, 1 + n % 5))
            ]
        )
    tests += [[np.ones(4), np.ones(3)], [np.ones(4), np.zeros(3)]]
    rows = [(value, n, at) for n, some in enumerate(tests) for at, sample in enumerate(some) for value in sample]
    values, test, sample = (np.array(column) for column in zip(*rows, strict=True))
    order = chance.permutation(len(values))
    found = kruskal_p(values[order], (test * 10 + sample)[order], test[order], len(tests))
    wanted = [
        kruskal(*some).pvalue if len(some) > 1 and len(set(np.concatenate(some))) > 1 else np.nan for some in tests
    ]
    assert np.isnan(found).sum() == 13 and np.nanmin(found) < 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
