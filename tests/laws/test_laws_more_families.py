"""Loss to loss, downstream error, vocabulary, sparsity, saturating experts, rates over horizons, device-hours: each
against published values or against another code's fit."""

import json

import numpy as np
import pandas as pd
import pytest
from places import ROOT
from scipy.optimize import curve_fit, minimize_scalar
from simulated_laws import TRUTH
from typer.testing import CliRunner

from scalade.cli.app import app
from scalade.results.laws import Objective, fit, fit_file, get_law, law_names, rows

SQUARES = Objective("raw_squares")


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


def fitted(law: str, frame: pd.DataFrame, response: str = "loss", **settings):
    return fit(law, rows(get_law(law), frame, {}, response), **settings)


# Loss on C4 and mean top-1 error of 17 tasks of the six models that the paper fits (mlfoundations/scaling, exp_data),
# and the (epsilon, k, gamma) that the paper's own code finds for them with scipy's curve_fit.
GADRE = {
    "c4": (
        [5.220676, 3.800284, 3.432646, 3.041737, 4.506404, 2.656859],
        [0.803674, 0.740027, 0.676734, 0.648741, 0.789723, 0.570686],
        (0.84974, 2.07891, 0.75612),
    ),
    "redpajama": (
        [5.387021, 3.899943, 3.531147, 3.149769, 4.572293, 2.768757],
        [0.813486, 0.725045, 0.671008, 0.636553, 0.767102, 0.547325],
        (0.85699, 2.20649, 0.71459),
    ),
    "refinedweb": (
        [5.271892, 3.860916, 3.517894, 3.130516, 4.516045, 2.763351],
        [0.809071, 0.701089, 0.682529, 0.637013, 0.787523, 0.545634],
        (0.86528, 2.21481, 0.70705),
    ),
}


@pytest.mark.parametrize("name", GADRE)
def test_downstream_error_ends_where_its_authors_code_does(name):
    loss, error, published = GADRE[name]
    report = fit_file(
        table(c4_loss=loss, err=error),
        law="downstream",
        loss="c4_loss",  # the role, since the law reads the loss
        columns={"error": "err"},
        objective="raw_squares",
        bootstrap=0,
        sensitivity=False,
        profile=False,
    )
    found = [report.fit.natural[p] for p in ("epsilon", "k", "gamma")]
    assert found == pytest.approx(published, rel=2e-3)


# Table 3 of Clark et al.: a, b, c, d, E_start, E_max.
CLARK = {
    "S-BASE": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
    "RL-R": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
    "HASH": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
}


def clark(params, experts, a, b, c, d, start, most):
    """Equation 1 in the paper's own form."""
    effective = 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
    size, width = np.log10(params), np.log10(effective)
    return 10 ** (a * size + b * width + c * size * width + d)


@pytest.mark.parametrize("router", CLARK)
def test_saturating_experts_give_the_published_coefficients_back(router):
    params, experts = (g.ravel() for g in np.meshgrid(np.geomspace(1.5e7, 1.3e9, 6), 2.0 ** np.arange(10)))
    frame = table(params=params, experts=experts, loss=clark(params, experts, *CLARK[router]))
    f = fitted("routed_saturating", frame, objective=Objective("squares"))
    assert [f.natural[p] for p in f.law.names] == pytest.approx(CLARK[router], rel=1e-3)


def test_experts_saturate_and_one_expert_is_e_start():
    a, b, c, d, start, most = CLARK["S-BASE"]
    law = get_law("routed_saturating")
    columns = {"params": np.array([1e8, 1e8]), "experts": np.array([1.0, 1e12])}
    inputs = law.prepare(columns)
    theta = law.theta(dict(zip(law.names, CLARK["S-BASE"], strict=True)), inputs.centre)
    found = np.exp(law.log_predict(theta[None], inputs, derivatives=False)[0][0])
    at = [10 ** (8 * a + d + (b + 8 * c) * np.log10(effective)) for effective in (start, most)]
    assert found == pytest.approx(at, rel=1e-6)


def test_less_than_one_expert_and_full_sparsity_are_refused():
    with pytest.raises(ValueError, match="experts: at least 1"):
        get_law("routed_saturating").prepare(table(params=[1e7, 1e8], experts=[0.5, 4.0]))
    frame = table(params=np.geomspace(1e7, 1e9, 12), tokens=np.geomspace(1e9, 1e8, 12), sparsity=1.0, loss=np.ones(12))
    with pytest.raises(ValueError, match="sparsity: .*below 1"):
        get_law("sparsity").prepare(frame)


ABNAR = TRUTH["sparsity"]


def test_sparsity_is_equation_6_with_the_coefficients_of_table_3():
    rng = np.random.default_rng(0)
    N, D, S = np.exp(rng.uniform(18, 24, 150)), np.exp(rng.uniform(21, 27, 150)), rng.choice([0, 0.5, 0.9, 0.98], 150)
    p = ABNAR
    loss = p["e"] + p["a"] / N ** p["alpha"] + p["b"] / D ** p["beta"] + p["c"] / (1 - S) ** p["lambda"]
    loss += p["d"] / ((1 - S) ** p["delta"] * N ** p["gamma"])
    f = fitted("sparsity", table(params=N, tokens=D, sparsity=S, loss=loss), objective=Objective("squares"))
    assert np.abs(f.residuals).max() < 1e-6
    assert [f.natural[name] for name in p] == pytest.approx(list(p.values()), rel=0.02)


# Approach 3 of Tao et al. in the paper's units (N_nv and N_v in millions, D in billions).
TAO = dict(A1=1.8313, A2=0.1953, B=2.1244, E=5.533, alpha1=0.447, alpha2=0.671, beta=0.447)


def test_vocabulary_gives_the_published_coefficients_back():
    rng = np.random.default_rng(1)
    n, v, d = (np.exp(rng.uniform(*np.log(r), 200)) for r in ((33, 2870), (2, 300), (0.5, 100)))
    unigram = rng.uniform(7.5, 9.0, 200)
    below = TAO["A1"] / n ** TAO["alpha1"] + TAO["A2"] / v ** TAO["alpha2"] + TAO["B"] / d ** TAO["beta"] - TAO["E"]
    frame = table(params_nonvocab=n, params_vocab=v, tokens=d, unigram_loss=unigram, loss=unigram + below)
    f = fitted("vocabulary", frame, objective=SQUARES, fix={"alpha1": "beta"})
    for name, value in TAO.items():
        assert f.natural[name] == pytest.approx(value, rel=1e-3), name


def test_loss_to_loss_follows_from_two_power_laws_of_compute():
    compute = np.geomspace(1e18, 1e22, 25)
    source, target = 1.9 + 2e2 * compute**-0.12, 1.4 + 9e1 * compute**-0.09
    f = fitted("loss_to_loss", table(source_loss=source, loss=target), objective=SQUARES)
    kappa = 0.09 / 0.12
    truth = dict(kappa=kappa, K=9e1 / 2e2**kappa, E_source=1.9, E=1.4)
    for name, value in truth.items():
        assert f.natural[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("rest", [1.3, 0.0])  # 0: the irreducible loss at its bound
def test_loss_to_loss_ends_at_the_minimum_of_scipy(rest):
    rng = np.random.default_rng(2)
    source = np.linspace(2.3, 4.5, 40)
    target = 1.2 * (source - 1.6) ** 0.9 + rest + 0.005 * rng.standard_normal(40)
    f = fitted("loss_to_loss", table(source_loss=source, loss=target), objective=SQUARES)

    def law(x, K, kappa, low, E):
        return K * (x - low) ** kappa + E

    bounds = ([0, 0, 0, 0], [50, 10, 2.29, 5])
    best = min(
        float(np.sum((law(source, *curve_fit(law, source, target, start, bounds=bounds)[0]) - target) ** 2))
        for start in ([1, 1, 1, 1], [1, 0.8, 1.8, 1.5], [2, 0.5, 2.0, 0.5])
    )
    assert float(np.sum((f.predict(f.rows.columns) - target) ** 2)) <= best * (1 + 1e-6)


def test_the_best_rate_falls_by_a_fifth_when_the_horizon_doubles():
    tokens = np.geomspace(2.5e10, 8e11, 6)
    f = fitted("lr_horizon", table(tokens=tokens, lr=3e-3 * (tokens / 1e11) ** -0.32), response="lr")
    assert f.natural["beta"] == pytest.approx(0.32)
    now, doubled = f.predict({"tokens": np.array([1e12, 2e12])})
    assert doubled / now == pytest.approx(2**-0.32)
    assert f.law.response == "lr"


def test_device_hours_is_chinchilla_where_time_follows_flops():
    rng = np.random.default_rng(3)
    N, T = np.exp(rng.uniform(16, 23, 80)), np.exp(rng.uniform(0, 10, 80))
    D = T * 1.44e18 / (6 * N)  # 400 TFLOP/s
    loss = 1.8 + 480 / N**0.35 + 2100 / D**0.37
    f = fitted("device_hours", table(params=N, device_hours=T, loss=loss), objective=Objective("squares"))
    p = f.natural
    assert (p["eta"], p["beta"], p["alpha"]) == pytest.approx((0.37, 0.37, 0.35), rel=1e-3)
    best = (p["alpha"] * p["A"] / (p["eta"] * p["B"]) * 1e3 ** p["beta"]) ** (1 / (p["alpha"] + p["eta"]))
    searched = minimize_scalar(
        lambda u: float(f.predict({"params": np.exp([u]), "device_hours": np.array([1e3])})[0]),
        bounds=(14, 26),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert np.exp(searched.x) == pytest.approx(best, rel=1e-3)


def test_laws_are_listed_with_what_they_read_and_their_source():
    text = CliRunner().invoke(app, ["fit", "--laws"])
    listed = json.loads(CliRunner().invoke(app, ["fit", "--laws", "--json"]).stdout)["laws"]
    assert text.exit_code == 0
    assert {law["law"] for law in listed} == set(law_names())
    for law in listed:
        known = get_law(law["law"])
        assert law["equation"] in text.stdout and known.source in text.stdout
        assert law["reads"] == list(known.roles) and law["predicts"] == known.response
        assert set(law["parameters"]) == set(known.names)


def test_fit_without_a_table_says_what_is_missing():
    result = CliRunner().invoke(app, ["fit"])
    assert result.exit_code == 2 and "--laws" in result.output


def test_the_page_of_the_laws_has_a_row_for_each():
    page = (ROOT / "docs" / "laws.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in law_names() if not any(f"`{name}`" in row for row in rows)] == []
