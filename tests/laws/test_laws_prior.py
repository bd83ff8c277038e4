"""The weak prior of a law that few runs do not identify: off by default, exact at its ends, chosen by fitted runs."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from scalade.results.laws import Objective, choose_strength, fit, fit_file, fit_with_prior, get_law, rows
from scalade.results.laws.families.schedule import read_schedule
from scalade.results.laws.prior import STRENGTHS
from scalade.results.laws.solver import penalise

TRUE = dict(L0=2.5, A=0.6, alpha=0.45, B=450.0, C=1.3, beta=0.55, gamma=0.5)


@pytest.fixture(scope="module")
def curves():
    """Two-stage, constant and decaying runs of the multi-power law, 24 records each, with noise."""
    step = np.arange(500, 12500, 500)
    rates = {
        "constant": np.full(24, 3e-4),
        "two": np.where(step < 6000, 3e-4, 9e-5),
        "cosine": 3e-5 + 1.35e-4 * (1 + np.cos(np.pi * step / 12500)),
    }
    frame = pd.concat([pd.DataFrame({"run": n, "step": step, "lr": r, "loss": 3.0}) for n, r in rates.items()])
    frame = frame.reset_index(drop=True)
    law = get_law("multipower")
    inputs = law.prepare(rows(law, frame, {}, "loss", "run").columns)
    m = law.log_predict(law.theta(TRUE, inputs.centre)[None], inputs, derivatives=False)[0][0]
    return frame.assign(loss=np.exp(m + 0.001 * np.random.default_rng(0).standard_normal(len(m))))


def given(frame):
    return rows(get_law("multipower"), frame, {}, "loss", "run")


def test_a_jump_acts_at_its_record_and_a_slope_half_way():
    step, lr = np.array([100, 200, 300, 400, 500]), np.array([1.0, 1.0, 0.5, 0.5, 0.5])
    s = read_schedule(np.zeros(5), step, lr, warmup=False)
    assert s.s1[2] - s.s1[1] == pytest.approx(100.0) and s.s1[3] - s.s1[2] == pytest.approx(50.0)
    assert list(s.gap_steps) == [1.0, 101.0, 201.0] and s.gap_s1 == pytest.approx([0.5, 50.5, 100.5])
    s = read_schedule(np.zeros(5), step, np.array([1.0, 0.8, 0.6, 0.6, 0.6]), warmup=False)
    assert s.s1[1] - s.s1[0] == pytest.approx(90.0) and s.gap_steps[0] == 51.0


def test_off_by_default_and_refused_where_the_law_declares_none(curves):
    f = fit("multipower", given(curves))
    assert f.prior is None and f.plain is None
    free = fit_with_prior("multipower", given(curves), 0.0)
    assert np.array_equal(free.theta, f.theta) and free.prior.strength == 0
    with pytest.raises(ValueError, match="'annealing' declares none"):
        fit_with_prior("annealing", given(curves), 1.0)
    with pytest.raises(ValueError, match="'auto' or a strength"):
        fit_with_prior("multipower", given(curves), -1.0)
    with pytest.raises(ValueError, match="2 runs cannot choose"):
        choose_strength("multipower", [given(curves[curves.run != "two"])])


def test_a_strong_prior_is_its_centre_and_a_weak_one_lies_between(curves):
    strong = fit_with_prior("multipower", given(curves), 1e9)
    for name, (centre, _) in strong.prior.terms.items():
        assert strong.natural[name] == pytest.approx(centre, rel=1e-3), name
    weak = fit_with_prior("multipower", given(curves), 10.0)
    assert weak.plain.value < weak.value < strong.value
    assert weak.prior.without == weak.plain.natural


@pytest.mark.parametrize(
    "objective",
    [Objective(), *(pytest.param(Objective(k), marks=pytest.mark.slow) for k in ("squares", "raw_squares"))],
)
def test_the_penalised_minimum_is_that_of_a_reference(curves, objective):
    f = fit_with_prior("multipower", given(curves), 100.0, objective=objective)
    p = penalise(f.law, f.inputs.centre, f.prior.terms, f.prior_weight)

    def objective(theta):
        m = f.law.log_predict(theta[None], f.inputs, derivatives=False)[0][0]
        return 1e6 * (f.objective.of(f.log_y, m) + p.at(theta[None])[0])

    nudged = f.theta + 0.01 * np.random.default_rng(1).standard_normal(7)
    found = minimize(objective, nudged, method="Nelder-Mead", options=dict(maxiter=4000, xatol=1e-9, fatol=1e-9))
    assert objective(f.theta) <= found.fun * (1 + 1e-9)
    assert f.convergence.gradient < 1e-6 and f.convergence.at_optimum >= 8


def test_the_report_says_the_prior(curves):
    r = fit_file(curves, law="multipower", run="run", prior=30.0, bootstrap=0, sensitivity=False, profile=False)
    text = r.to_text()
    assert "prior: strength 30, given" in text and "objective without the prior" in text
    assert "outside them" not in text  # no profiles, nothing to compare with
    assert r.to_dict()["prior"]["without"] == r.prior.without and r.objective_value > r.prior.without_value


def test_the_report_says_what_the_prior_moved(curves):
    r = fit_file(curves, law="multipower", run="run", prior=1e9, bootstrap=0, sensitivity=False)
    off = next(n for n in r.notes if "outside them" in n)
    moved = {
        p.name
        for p in r.parameters
        if p.profile[0] and p.profile[1] and not p.profile[0] <= p.at_optimum <= p.profile[1]
    }
    assert moved and all(n in off for n in moved)


@pytest.mark.slow
def test_the_fitted_runs_choose_the_strength(curves):
    strength, tried = choose_strength("multipower", [given(curves)])
    assert [s for s, _ in tried] == list(STRENGTHS) and strength in STRENGTHS
    best = min(v for _, v in tried)
    assert best <= dict(tried)[strength] < tried[0][1]  # better out of sample than without
    held = curves.assign(run=curves.run + " later", loss=9.0)
    both = pd.concat([curves, held], ignore_index=True)
    r = fit_file(
        both,
        law="multipower",
        run="run",
        prior="auto",
        holdout="loss > 8",
        bootstrap=0,
        sensitivity=False,
        profile=False,
    )
    assert r.prior.strength == strength and r.prior.tried == tried  # held-out curves choose nothing
