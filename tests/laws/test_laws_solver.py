"""The minimiser and the laws' derivatives: against finite differences, known parameters, and other solvers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from simulated_laws import TRUTH, simulate

from scalade.results.laws import Objective, fit, get_law, law_names
from scalade.results.laws.base import unknown
from scalade.results.laws.solver import constrain, minimise
from scalade.results.laws.table import Rows


def test_every_law_has_a_truth_here():
    assert set(TRUTH) == set(law_names())


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_derivatives_match_central_differences(name):
    rng = np.random.default_rng(0)
    law, r = get_law(name), simulate(name, rng, n=25)
    inputs = law.prepare(r.columns)
    theta = law.theta(TRUTH[name], inputs.centre)[None] * (1 + 0.01 * rng.standard_normal((3, len(law.names))))
    m, J = law.log_predict(theta, inputs)
    assert np.array_equal(m, law.log_predict(theta, inputs, derivatives=False)[0])
    for j in range(theta.shape[1]):
        h = np.zeros_like(theta)
        h[:, j] = 1e-6
        up, down = (law.log_predict(theta + s * h, inputs, derivatives=False)[0] for s in (1, -1))
        assert np.allclose((up - down) / 2e-6, J[:, j], rtol=1e-5, atol=1e-7), law.names[j]


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_natural_and_fitted_coordinates_are_inverse(name):
    law, r = get_law(name), simulate(name, np.random.default_rng(1), n=25)
    centre = law.prepare(r.columns).centre
    back = law.natural(law.theta(TRUTH[name], centre)[None], centre)[0]
    assert np.allclose(back, list(TRUTH[name].values()), rtol=1e-9)


LOOSE = {"broken_power": 0.05, "farseer": 0.05}  # nearly flat directions


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_noise_free_tables_give_the_parameters_back(name):
    r = simulate(name, np.random.default_rng(2), n=120)
    f = fit(name, r, objective=Objective("squares"))
    assert np.abs(f.residuals).max() < 1e-4
    for p, want in TRUTH[name].items():
        assert f.natural[p] == pytest.approx(want, rel=LOOSE.get(name, 1e-2)), p


@pytest.mark.parametrize(
    "name", ["chinchilla", "skaling", "kaplan", "overtraining", "farseer", "diloco_joint_constant"]
)
@pytest.mark.parametrize("kind", ["huber", "squares"])
def test_noisy_tables_most_starts_reach_one_optimum_with_no_gradient(name, kind):
    f = fit(name, simulate(name, np.random.default_rng(3), noise=0.005, n=150), objective=Objective(kind))
    assert f.convergence.at_optimum >= 0.5 * f.convergence.starts
    assert f.convergence.gradient < 1e-5


def test_the_optimum_is_no_worse_than_nearby_points():
    r = simulate("chinchilla", np.random.default_rng(4), noise=0.01)
    f = fit("chinchilla", r)
    rng = np.random.default_rng(0)
    near = f.theta + np.repeat([1e-4, 1e-2], 200)[:, None] * rng.standard_normal((400, 5))
    a = np.abs(f.log_y - f.law.log_predict(near, f.inputs, derivatives=False)[0])
    q = np.minimum(a, 1e-3)
    assert (q * (a - q / 2)).sum(1).min() >= f.value


def test_l1_agrees_with_linear_programming():
    rng = np.random.default_rng(5)
    r = simulate("diloco_joint", rng, noise=0.02, n=40)
    X = np.c_[np.ones(40), np.log(r.columns["params"]), np.log(r.columns["replicas"])]
    n, p = X.shape
    lp = linprog(
        np.r_[np.zeros(p), np.ones(2 * n)],
        A_eq=np.c_[X, np.eye(n), -np.eye(n)],
        b_eq=np.log(r.y),
        bounds=[(None, None)] * p + [(0, None)] * (2 * n),
    )
    f = fit("diloco_joint", r, objective=Objective("l1"))
    assert f.value == pytest.approx(lp.fun, rel=1e-4)
    assert f.value >= lp.fun * (1 - 1e-9)


def test_squares_on_one_power_law_is_least_squares():
    r = simulate("power", np.random.default_rng(6), noise=0.05)
    slope, intercept = np.polyfit(np.log(r.columns["x"]), np.log(r.y), 1)
    f = fit("power", r, objective=Objective("squares"))
    assert f.natural["c"] == pytest.approx(slope, rel=1e-9)
    assert np.log(f.natural["a"]) == pytest.approx(intercept, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 10_000))
def test_units_of_a_column_move_only_its_amplitude(scale, seed):
    r = simulate("chinchilla", np.random.default_rng(seed), noise=0.01, n=80)
    other = Rows(r.columns | {"tokens": r.columns["tokens"] * scale}, r.y, r.cluster, r.index)
    a, b = (fit("chinchilla", x, objective=Objective("squares")) for x in (r, other))
    assert b.value == pytest.approx(a.value, rel=1e-6)
    assert b.natural["beta"] == pytest.approx(a.natural["beta"], rel=1e-4)
    assert b.natural["B"] == pytest.approx(a.natural["B"] * scale ** a.natural["beta"], rel=1e-2)


def test_a_batch_gives_what_its_members_give_alone():
    r = simulate("skaling", np.random.default_rng(7), noise=0.01, n=80)
    law = get_law("skaling")
    inputs, log_y = law.prepare(r.columns), np.log(r.y)
    start = law.starts(inputs, log_y)[:10]
    w = np.random.default_rng(0).multinomial(80, np.full(80, 1 / 80), size=10).astype(float)
    together = minimise(law, inputs, log_y, start, weights=w)
    for k in range(10):
        alone = minimise(law, inputs, log_y, start[k : k + 1], weights=w[k])
        assert together.objective[k] == pytest.approx(alone.objective[0], rel=1e-9)


def test_weights_are_copies_of_rows():
    r = simulate("chinchilla", np.random.default_rng(8), noise=0.01, n=40)
    law = get_law("chinchilla")
    inputs, log_y = law.prepare(r.columns), np.log(r.y)
    w = np.random.default_rng(1).integers(0, 3, 40)
    copied = np.repeat(np.arange(40), w)
    many = {k: v[copied] for k, v in r.columns.items()}
    start = law.starts(inputs, log_y)
    a = minimise(law, inputs, log_y, start, weights=w.astype(float))
    b = minimise(law, law.prepare(many, inputs.centre), log_y[copied], start)
    assert np.allclose(a.theta[a.best], b.theta[b.best], rtol=1e-5)


def test_held_and_tied_parameters_stay():
    r = simulate("chinchilla", np.random.default_rng(9), noise=0.01)
    f = fit("chinchilla", r, fix={"E": 1.7, "beta": "alpha"})
    assert f.natural["E"] == pytest.approx(1.7, rel=1e-12)
    assert f.natural["beta"] == pytest.approx(f.natural["alpha"], rel=1e-12)
    free = fit("chinchilla", r)
    assert f.value >= free.value


def test_holding_at_the_optimum_changes_nothing():
    r = simulate("chinchilla", np.random.default_rng(10), noise=0.01)
    free = fit("chinchilla", r)
    held = fit("chinchilla", r, fix={"A": free.natural["A"]})
    assert held.value == pytest.approx(free.value, rel=1e-9)


@pytest.mark.parametrize(
    "fix, says", [({"gamma": 1.0}, "unknown parameter of chinchilla 'gamma'"), ({"A": -1.0}, "must be positive")]
)
def test_held_parameters_are_checked(fix, says):
    with pytest.raises(ValueError, match=says):
        fit("chinchilla", simulate("chinchilla", np.random.default_rng(0)), fix=fix)


def test_farseer_offsets_cannot_be_held():
    law = get_law("farseer")
    with pytest.raises(ValueError, match="cannot be held"):
        constrain(law, {"params": 20.0, "tokens": 24.0}, {"E": 0.4})


def test_a_start_where_the_law_is_undefined_is_no_optimum():
    law, r = get_law("multipower"), simulate("multipower", np.random.default_rng(0))
    inputs = law.prepare(r.columns)
    good = law.theta(TRUTH["multipower"], inputs.centre)
    bad = good.copy()
    bad[3] = np.nan
    s = minimise(law, inputs, np.log(r.y), np.stack([bad, good]))
    assert np.isinf(s.objective[0]) and s.best == 1 and not s.converged[0]


@pytest.mark.parametrize("bad", [dict(kind="hubber"), dict(delta=0.0), dict(delta=-1.0)])
def test_objectives_are_checked(bad):
    with pytest.raises(ValueError):
        Objective(**bad)


def test_unknown_laws_get_near_misses():
    with pytest.raises(ValueError, match="did you mean 'chinchilla'"):
        get_law("chinchila")
    assert "there is" in unknown("law", "zzz", ["a"])


def test_a_parameter_at_its_bound_leaves_the_rest_optimal():
    rng = np.random.default_rng(11)
    r = simulate("chinchilla", rng)
    r = Rows(
        r.columns,
        (2000 / r.columns["tokens"] ** 0.2 + 300 / r.columns["params"] ** 0.25)
        * np.exp(0.02 * rng.standard_normal(60)),
        r.cluster,
        r.index,
    )
    steep = Rows(
        r.columns, r.y * (r.columns["tokens"] / 1e10) ** -0.05, r.cluster, r.index
    )  # steeper than any constant allows
    for table in (r, steep):
        free = fit("chinchilla", table, objective=Objective("squares"))
        held = fit("chinchilla", table, objective=Objective("squares"), fix={"E": 1e-9})
        assert free.value <= held.value * (1 + 1e-9)
