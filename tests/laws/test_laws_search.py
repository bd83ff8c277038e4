"""The search for the minimum: vanishing terms, bounds, weak evidence said aloud, profiles that find a lower point."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scalade.cli.app import app
from scalade.results.laws import Objective, fit, fit_file, with_profiles
from scalade.results.laws import search as search_file
from scalade.results.laws.search import Problem, at_best, search, why_not
from scalade.results.laws.solver import Solution
from scalade.results.laws.table import Rows

SIZES = (6e7, 1.2e8, 2.5e8, 5e8, 1e9, 2e9, 4e9)


def zero_constant(seed: int) -> Rows:
    """L = 5.6/N^.0606 + 330/D^.29 on a grid of sizes and tokens, noise .4%: the irreducible loss is 0."""
    rng = np.random.default_rng(seed)
    N, D = (v.ravel() for v in np.meshgrid(np.array(SIZES), 2e9 * 4.0 ** np.arange(6)))
    N = N * np.exp(rng.normal(0, 0.05, len(N)))
    y = (5.6 / N**0.0606 + 330 / D**0.29) * np.exp(rng.normal(0, 0.004, len(N)))
    return Rows({"params": N, "tokens": D}, y, np.arange(len(y)), np.arange(len(y)))


def frame(r: Rows) -> pd.DataFrame:
    return pd.DataFrame(dict(params=r.columns["params"], tokens=r.columns["tokens"], loss=r.y))


@pytest.mark.parametrize("seed", range(6))
def test_an_irreducible_loss_of_zero_is_no_higher_than_with_zero_held(seed):
    r = zero_constant(seed)
    free, held = fit("chinchilla", r), fit("chinchilla", r, fix={"E": 1e-9})
    assert free.value <= held.value * (1 + 1e-6)
    c = free.convergence
    assert c.converged and c.starts == 16 and c.at_optimum > 8  # by the first starts, no round of more


@pytest.mark.parametrize(
    "law, constant, columns",
    [
        ("power_constant", "E", ("x",)),
        ("diloco_joint_constant", "C", ("params", "replicas")),
        ("diloco_additive", "C", ("params", "replicas")),
        ("broken_power", "a", ("x",)),
    ],
)
def test_every_law_with_a_constant_reaches_zero(law, constant, columns):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        size, M = np.exp(rng.uniform(17, 23, 48)), np.tile([1.0, 2.0, 4.0, 8.0], 12)
        y = 9.0 * size**-0.07 * M**0.01 * np.exp(0.004 * rng.standard_normal(48))
        data = {"x": size, "params": size, "replicas": M}
        r = Rows({c: data[c] for c in columns}, y, np.arange(48), np.arange(48))
        held = fit(law, r, fix={constant: 1e-9})
        assert fit(law, r).value <= held.value * (1 + 1e-6), seed


def test_a_vanishing_token_exponent_is_found_beyond_the_first_starts():
    """beta near 0: a term that looks like the constant; every first start stops on the way."""
    rng = np.random.default_rng(1)
    N, D = np.exp(rng.uniform(16, 23, 60)), np.exp(rng.uniform(18, 27, 60))
    y = (480 / N**0.35 + 2.1 / D**0.0074 + 0.9) * np.exp(0.004 * rng.standard_normal(60))
    r = Rows({"params": N, "tokens": D}, y, np.arange(60), np.arange(60))
    free = fit("chinchilla", r)
    for beta in (0.0, 0.0074, 0.02):
        assert free.value <= fit("chinchilla", r, fix={"beta": beta}).value * (1 + 1e-6)


def test_the_evidence_is_judged_by_gradient_and_share():
    def found(objective, gradient):
        n = len(objective)
        return Solution(np.zeros((n, 2)), np.array(objective), np.array(gradient), np.ones(n, bool))

    assert why_not(found([1.0] * 8, [1e-8] * 8)) == ""
    assert "gradient left at the lowest point is 4.0e-01" in why_not(found([1.0] * 8, [0.4] * 8))
    assert "1 of 8 starts" in why_not(found([1.0] + [2.0] * 7, [1e-8] * 8))
    assert why_not(found([1.0], [1e-8])) == ""  # one start of its own: the caller knows where it begins
    assert at_best(found([1.0, 1.0 + 5e-7, 1.1], [0.0] * 3)).tolist() == [True, True, False]


@pytest.fixture
def stopped(monkeypatch):
    """A solver that gives up after three steps."""
    solve = Problem.solve
    monkeypatch.setattr(Problem, "solve", lambda self, start, **kw: solve(self, start, **{"iterations": 3} | kw))


def test_a_fit_that_did_not_converge_is_loud(stopped, tmp_path):
    table = tmp_path / "t.csv"
    frame(zero_constant(0)).to_csv(table, index=False)
    r = fit_file(table, bootstrap=0, profile=False, sensitivity=False)
    assert not r.convergence.converged and r.exit_code == 1
    text = r.to_text()
    assert text.count("NOT CONVERGED") == 3 and "starts reached the lowest point" in text
    assert "  converged:" not in text
    assert r.to_dict()["convergence"]["why_not"]
    ended = CliRunner().invoke(app, ["fit", str(table), "--bootstrap", "0", "--json"])
    told = json.loads(ended.stdout)
    assert ended.exit_code == told["exit_code"] == 1 and told["convergence"]["converged"] is False


def test_a_profile_that_finds_a_lower_point_moves_the_fit(monkeypatch):
    r = zero_constant(1)
    best = fit("chinchilla", r)
    with monkeypatch.context() as m:
        m.setattr(search_file, "ROUNDS", 0)
        solve = Problem.solve
        m.setattr(Problem, "solve", lambda self, start, **kw: solve(self, start, **{"iterations": 4} | kw))
        f = fit("chinchilla", r, bootstrap_draws=20)
    assert f.value > best.value * 1.01
    moved = with_profiles(f)
    assert moved.value == pytest.approx(best.value, rel=1e-6)
    assert "a profile found a lower point" in moved.notes[0]
    assert len(moved.draws) == 20 and not np.array_equal(moved.draws, f.draws)
    assert min(min(p.rise) for p in moved.profiles) == 0.0


def test_a_constant_that_may_be_zero_says_where_its_interval_ends():
    e = fit_file(frame(zero_constant(0)), bootstrap=0, sensitivity=False).parameters[-1]
    assert e.name == "E" and e.value is None and "0 is in its 95% interval" in e.reason
    assert e.profile[0] is None and 0.05 < e.profile[1] < 1.5


def test_a_clear_minimum_costs_no_second_round(monkeypatch):
    rounds = []
    monkeypatch.setattr(search_file, "_starts", lambda *a: rounds.append(a) or np.zeros((0, 5)))
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(16, 23, 60)), np.exp(rng.uniform(18, 27, 60))
    y = (480 / N**0.35 + 2100 / D**0.37 + 1.8) * np.exp(0.004 * rng.standard_normal(60))
    f = fit("chinchilla", Rows({"params": N, "tokens": D}, y, np.arange(60), np.arange(60)))
    assert not rounds and f.convergence.starts == 16
    s = search(Problem(f.law, f.inputs, f.log_y, Objective("squares")), f.theta)
    assert s.objective[0] > 0 and not rounds
