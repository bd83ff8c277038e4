"""Compute optima: closed forms against search, approaches 1 and 2 against the law that made the table."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from scalade.results.laws import Objective, envelope, fit, get_law, isoflop, noise_scale, optimum
from scalade.results.laws.isoflop import budgets
from scalade.results.laws.table import Rows

LAWS = {
    "chinchilla": dict(A=480.0, alpha=0.35, B=2100.0, beta=0.37, E=1.8),
    "skaling": dict(A=100.0, alpha=0.39, B=780.0, beta=0.43, E=0.5, k=0.6),
    "kaplan": dict(N_c=8.8e13, alpha_N=0.076, D_c=5.4e13, alpha_D=0.095),
    "overtraining": dict(a=166.0, b=360.0, h=0.14, E=1.8),
    "farseer": dict(s=-0.021, q=0.169, S=0.091, B=88.01, b=-0.1, Q=-5.287, A=-0.124, a=0.123, E=0.424),
}


def fitted(name):
    rng = np.random.default_rng(0)
    law = get_law(name)
    columns = {
        "params": np.exp(rng.uniform(*np.log((1e8, 6e9)), 80)),
        "tokens": np.exp(rng.uniform(*np.log((1e9, 5e11)), 80)),
    }
    inputs = law.prepare(columns)
    y = np.exp(law.log_predict(law.theta(LAWS[name], inputs.centre)[None], inputs, derivatives=False)[0][0])
    return fit(law, Rows(columns, y, np.arange(80), np.arange(80)), objective=Objective("squares"))


@pytest.mark.parametrize("name", sorted(LAWS))
@pytest.mark.parametrize("k", [6.0, 7.3])
def test_optimum_is_the_minimum_along_the_budget(name, k):
    f, flops = fitted(name), 1e21

    def loss(u):
        return float(f.log_predict({"params": np.array([np.exp(u)]), "tokens": np.array([flops / k / np.exp(u)])})[0])

    o = optimum(f, flops, k)
    best = minimize_scalar(
        loss, bounds=(np.log(o.params) - 2, np.log(o.params) + 2), method="bounded", options={"xatol": 1e-8}
    )
    assert np.log(o.params) == pytest.approx(best.x, abs=5e-3)
    assert np.log(o.loss) <= best.fun + 1e-9 + 1e-6 * (name == "farseer")
    assert o.params * o.tokens * k == pytest.approx(flops, rel=1e-9)


def test_chinchilla_exponent_is_beta_over_the_sum():
    f = fitted("chinchilla")
    assert optimum(f, 1e21).exponent == pytest.approx(0.37 / 0.72, rel=1e-3)


def test_laws_of_other_columns_have_no_optimum():
    f = fit("power", Rows({"x": np.geomspace(1, 1e3, 9)}, np.geomspace(4, 2, 9), np.arange(9), np.arange(9)))
    with pytest.raises(ValueError, match="no compute optimum"):
        optimum(f, 1e20)


def loss_of(N, D):
    return 1.8 + 480 / N**0.35 + 2100 / D**0.35


def sweep(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e18, 1e21, 7), 9)
    best = (480 / 2100) ** (1 / 0.7) * (C / 6) ** 0.5
    N = best * np.tile(np.geomspace(0.25, 4, 9), 7)
    return N, C, loss_of(N, C / 6 / N) * np.exp(noise * rng.standard_normal(len(N)))


def test_isoflop_finds_the_exponent_when_exponents_are_equal():
    f = isoflop(*sweep(), draws=200)
    assert f.exponent == pytest.approx(0.5, abs=1e-3) and len(f.flops) == 7
    assert f.optimal_params(1e20) == pytest.approx((480 / 2100) ** (1 / 0.7) * (1e20 / 6) ** 0.5, rel=0.02)


def test_isoflop_interval_covers():
    hits = sum(
        lo <= 0.5 <= hi
        for lo, hi in (isoflop(*sweep(0.003, s), draws=200, seed=s).exponent_interval for s in range(20))
    )
    assert hits >= 16


def test_isoflop_says_which_budgets_it_left_out():
    N, C, L = sweep()
    keep = ~((C == C.min()) & (N > np.median(N[C == C.min()]) * 0.9))  # one side of the first parabola only
    f = isoflop(N[keep], C[keep], L[keep], draws=10)
    assert len(f.flops) == 6 and "outside the sizes trained" in f.left_out[0]
    with pytest.raises(ValueError, match="fewer than two budgets"):
        isoflop(N[:3], C[:3], L[:3])


def test_budgets_group_by_relative_distance():
    assert budgets(np.array([1.0, 1.1, 2.0, 2.2, 1.05, 8.0])).tolist() == [0, 0, 1, 1, 0, 2]


def test_envelope_finds_the_exponent():
    sizes = np.geomspace(1e7, 3e9, 14)
    D = np.geomspace(3e7, 3e12, 160)
    N, D = np.repeat(sizes, len(D)), np.tile(D, len(sizes))
    f = envelope(N.astype(int), N, 6 * N * D, loss_of(N, D))
    assert f.exponent == pytest.approx(0.5, abs=0.02)
    assert f.exponent_interval[0] < 0.5 < f.exponent_interval[1]
    with pytest.raises(ValueError, match="needs at least 3"):
        envelope([1, 1], [1e8, 1e8], [1e18, 1e19], [3.0, 2.9])


def test_noise_scale_recovers_a_known_gradient():
    rng = np.random.default_rng(0)
    dim, grad, sigma = 50, 0.1, 2.0

    def squared(batch):
        g = grad + sigma / np.sqrt(batch) * rng.standard_normal((4000, dim))
        return (g**2).sum(1)

    s = noise_scale(squared(16), squared(1024), 16, 1024)
    assert s.noise_scale == pytest.approx(sigma**2 * dim / (grad**2 * dim), rel=0.05)
    assert noise_scale([1.0], [1.0], 1, 2).noise_scale is None
    with pytest.raises(ValueError, match="batch_small < batch_big"):
        noise_scale([1.0], [1.0], 4, 4)


def test_isoflop_gives_vertices_coefficients_and_the_optimum_of_a_target():
    N, C, L = sweep(noise=0.002, seed=1)
    f = isoflop(N, C, L, draws=300, targets=[1e22], flops_per_nd=6.0)
    G, true_N = (480 / 2100) ** (1 / 0.7) / 6**0.5, lambda c: (480 / 2100) ** (1 / 0.7) * (c / 6) ** 0.5
    assert len(f.vertices) == 7 and [v.sizes for v in f.vertices] == [9] * 7
    hits = []
    for v in f.vertices:
        assert v.params * v.tokens * 6 == pytest.approx(v.flops) and v.curvature > 0
        assert v.tokens_interval == pytest.approx(tuple(v.flops / 6 / n for n in v.params_interval[::-1]))
        assert v.loss_interval[0] < v.loss < v.loss_interval[1]
        assert v.loss == pytest.approx(loss_of(true_N(v.flops), v.flops / 6 / true_N(v.flops)), rel=0.01)
        hits.append(v.params_interval[0] <= 1.02 * true_N(v.flops) and true_N(v.flops) <= 1.02 * v.params_interval[1])
    assert sum(hits) >= 5
    low, high = f.coefficient_interval
    assert low < f.coefficient < high and low < G < high
    (t,) = f.targets
    assert t.params == pytest.approx(f.coefficient * 1e22**f.exponent) and t.beyond == pytest.approx(10.0)
    assert t.params_interval[0] < true_N(1e22) < t.params_interval[1]
    assert t.tokens_interval == pytest.approx(tuple(1e22 / 6 / n for n in t.params_interval[::-1]))


def test_isoflop_resamples_within_budgets_alone():
    """A budget that is exact has no interval, however noisy the others are."""
    N, C, L = sweep(noise=0.02, seed=2)
    exact = C == C.max()
    L[exact] = 2.0 + 0.05 * np.log(N[exact] / np.exp(np.log(N[exact]).mean())) ** 2
    v = isoflop(N, C, L, draws=200).vertices
    widths = [np.log(x.params_interval[1] / x.params_interval[0]) for x in v]
    assert widths[-1] < 1e-6 and min(widths[:-1]) > 0.02


def test_a_parabola_needs_four_sizes():
    with pytest.raises(ValueError, match="needs 4 model sizes or more, nearest is 3"):
        isoflop(*sweep(), nearest=3)
