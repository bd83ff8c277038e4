"""Amdahl, Gustafson and USL: recovered from simulated tables, refused on too few, with intervals that cover."""

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.results.efficiency.system_laws import LAWS, fit_law

COUNTS = (1, 2, 4, 8, 16, 32)


def simulated(law, parameters, x1=100.0, noise=0.0, runs=6, rng=None, counts=COUNTS):
    rng = np.random.default_rng(0) if rng is None else rng
    return {n: x1 * law.speedup(n, *parameters) * np.exp(rng.normal(0, noise, runs)) for n in counts}


@given(
    st.sampled_from(("amdahl", "gustafson")),
    st.floats(0, 1),
    st.floats(1e-2, 1e7),
    st.lists(st.integers(1, 4096), min_size=3, max_size=7, unique=True),
)
@settings(max_examples=80, deadline=None)
def test_a_serial_share_is_recovered(name, s, x1, counts):
    law = LAWS[name]
    fit = fit_law(law, simulated(law, (s,), x1, counts=counts), draws=0)
    # Where all counts lie far out the curve is nearly its limit, and s and X1 are told apart by little.
    assert fit.rms_relative_error < 1e-6
    for n in counts:
        assert fit.throughput(n) == pytest.approx(x1 * law.speedup(n, s), rel=1e-5)
    if min(counts) <= 4 and max(counts) <= 64 and s > 1e-3:
        assert fit.parameters["s"].value == pytest.approx(s, rel=1e-4)
        assert fit.x1.value == pytest.approx(x1, rel=1e-4)


@given(st.floats(0, 0.5), st.floats(0, 0.02))
@settings(max_examples=60, deadline=None)
def test_usl_is_recovered_with_its_peak_and_half_point(sigma, kappa):
    law = LAWS["usl"]
    fit = fit_law(law, simulated(law, (sigma, kappa)), draws=0)
    assert fit.parameters["sigma"].value == pytest.approx(sigma, rel=1e-5, abs=1e-8)
    assert fit.parameters["kappa"].value == pytest.approx(kappa, rel=1e-5, abs=1e-8)
    if kappa > 1e-4:
        assert fit.peak.value == pytest.approx(sqrt((1 - sigma) / kappa), rel=1e-4)
        around = [law.speedup(fit.peak.value * f, sigma, kappa) for f in (0.99, 1, 1.01)]
        assert around[1] == max(around)
        assert law.speedup(fit.half.value, sigma, kappa) / fit.half.value == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    "name, s, half", [("amdahl", 0.1, 11.0), ("amdahl", 0.0, inf), ("gustafson", 0.75, 3.0), ("gustafson", 0.4, inf)]
)
def test_half_efficiency(name, s, half):
    law = LAWS[name]
    assert law.half(s) == pytest.approx(half)
    if half < inf:
        assert law.speedup(half, s) / half == pytest.approx(0.5)
    fit = fit_law(law, simulated(law, (s,)), draws=0)
    assert fit.half.value == (None if half == inf else pytest.approx(half))
    assert fit.peak.value is None


@pytest.mark.parametrize("name, needs", [("amdahl", 3), ("gustafson", 3), ("usl", 4)])
def test_too_few_device_counts_are_refused(name, needs):
    law = LAWS[name]
    few = simulated(law, (0.1,) * len(law.parameters), counts=COUNTS[: needs - 1])
    fit = fit_law(law, few)
    assert fit.refused == f"{needs - 1} device counts, {name} needs {needs}" and not fit.parameters
    assert fit.to_dict()["refused"] == fit.refused
    assert not fit_law(law, simulated(law, (0.1,) * len(law.parameters), counts=COUNTS[:needs])).refused


def test_too_few_runs_have_no_interval():
    law = LAWS["amdahl"]
    runs = simulated(law, (0.1,), noise=0.02)
    runs[8] = runs[8][:5]
    fit = fit_law(law, runs)
    assert fit.parameters["s"].low is None and "5 at some device count" in fit.note


def test_superlinear_scaling_is_not_a_negative_share():
    fit = fit_law(LAWS["amdahl"], {n: [100.0 * n**1.1] * 6 for n in COUNTS})
    assert fit.parameters["s"].value == 0 and fit.rms_relative_error > 0.05


def test_scaling_that_falls_is_not_a_share_above_one():
    fit = fit_law(LAWS["amdahl"], {n: [100.0 / n**0.2] * 6 for n in COUNTS})
    assert fit.parameters["s"].to_dict() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_one_wild_run_moves_little():
    law = LAWS["usl"]
    runs = simulated(law, (0.05, 0.001), noise=0.005)
    calm = fit_law(law, runs, draws=0).parameters["sigma"].value
    runs[8] = runs[8].copy()
    runs[8][0] /= 5
    assert fit_law(law, runs, draws=0).parameters["sigma"].value == pytest.approx(calm, abs=0.005)


@pytest.mark.parametrize("name, parameters", [("amdahl", (0.05,)), ("gustafson", (0.3,)), ("usl", (0.03, 0.001))])
def test_intervals_cover(name, parameters):
    """200 simulated tables at 3% noise, 6 runs a count: 95% intervals cover at least 91% of the time, and are tight."""
    law, rng = LAWS[name], np.random.default_rng(11)
    hits, widths = np.zeros(len(parameters)), np.zeros(len(parameters))
    for seed in range(200):
        fit = fit_law(law, simulated(law, parameters, noise=0.03, rng=rng), draws=300, seed=seed)
        for i, (estimate, truth) in enumerate(zip(fit.parameters.values(), parameters, strict=True)):
            hits[i] += estimate.low <= truth <= estimate.high
            widths[i] += (estimate.high - estimate.low) / 200
    assert (hits >= 0.91 * 200).all()
    assert (widths < 0.6 * np.array(parameters)).all()
