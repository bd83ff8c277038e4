"""Residual, risk and interval: what is planted is learnt, what is not there is not, and tables say the same again."""

import numpy as np
import pytest

from scalade.parallelism.predict import residual as residuals
from scalade.parallelism.predict.configs import Configs
from scalade.parallelism.predict.fit import calibrate, extrapolations
from scalade.parallelism.predict.interval import LINES, Spread, spread_of
from scalade.parallelism.predict.machine import load_machine
from scalade.parallelism.predict.residual import FEATURES, fit_ridge, fit_trees, residual_from_table
from scalade.parallelism.predict.risk import SLOW, Risk, risk_of
from scalade.parallelism.predict.stack import STACKS
from scalade.parallelism.predict.step import predict_step

MACHINE, STACK = load_machine("h100"), STACKS["nanotron"]


def features(n=600, seed=0):
    return np.random.default_rng(seed).uniform(0, 4, (n, len(FEATURES)))


def regime(n=2000, seed=0):
    draw = np.random.default_rng(seed)
    return np.column_stack([np.ones(n), draw.integers(0, 6, n), draw.integers(0, 2, n)]).astype(float)


@pytest.mark.parametrize("fit, step", [(fit_ridge, False), (fit_trees, True)])
def test_a_planted_residual_is_learnt_and_written(fit, step):
    def truth(x):
        return 0.2 * ((x[:, 1] > 2) & (x[:, 3] > 2)) if step else 0.05 * (x[:, 0] - 2) - 0.03 * (x[:, 4] - 2)

    x, noise = features(), np.random.default_rng(1).normal(0, 0.02, 600)
    found = fit(x, truth(x) + noise, 0.05)
    again, new = residual_from_table(found.to_table()), features(seed=7)
    assert np.median(np.abs(found.of(new) - truth(new))) < 0.02
    np.testing.assert_allclose(again.of(new), found.of(new))


def test_trees_are_those_of_scikit_learn():
    from sklearn.ensemble import HistGradientBoostingRegressor

    x, y = features(), np.random.default_rng(2).normal(0, 0.05, 600)
    theirs = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=residuals.TREES,
        max_leaf_nodes=residuals.LEAVES,
        min_samples_leaf=residuals.ROWS_OF_LEAF,
        learning_rate=residuals.RATE,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    ).fit(x, y)
    np.testing.assert_allclose(fit_trees(x, y, 1.0).of(x), np.clip(theirs.predict(x), -0.3, 0.3), atol=1e-12)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.ensemble", None)
    with pytest.raises(ValueError, match=r"^trees on the residual need scikit-learn: pip install scalade\[trees\]$"):
        fit_trees(features(), np.zeros(600), 0.05)


@pytest.mark.parametrize("table", [{"kind": "forest", "features": list(FEATURES)}, {"kind": "ridge", "features": []}])
def test_a_residual_that_is_not_known(table):
    with pytest.raises(ValueError, match=r"^calibration\.residual\."):
        residual_from_table(table)


def test_a_planted_share_of_slow_runs_is_found():
    x, draw = regime(), np.random.default_rng(3)
    chance = 1 / (1 + np.exp(-x @ np.array([-4.0, 0.3, 2.0])))
    errors = np.where(draw.uniform(size=len(x)) < chance, 2.0, 0.0)
    found = risk_of(errors, x).logs(x) / SLOW
    assert np.abs(found - chance).mean() < 0.03
    assert Risk().logs(x).max() == 0


@pytest.mark.parametrize("n", [12, 40, 400])
def test_intervals_cover_noise_as_they_say(n):
    draw, x = np.random.default_rng(4), regime(n)
    covered = []
    for _ in range(40 if n < 100 else 5):
        low, high = spread_of(draw.normal(0, 0.1, n), x).logs(regime(2000, 9), np.zeros((2000, 2)))
        new = draw.normal(0, 0.1, 2000)
        covered.append(np.mean((low <= new) & (new <= high)))
    assert 0.86 <= np.mean(covered) <= 0.96


def test_quantiles_follow_the_regime():
    x, draw = regime(), np.random.default_rng(5)
    errors = draw.normal(0, 0.05 * (1 + x[:, 1] + 4 * x[:, 2]))
    low, high = spread_of(errors, x).logs(x, np.zeros((len(x), 2)))
    for apart in (0, 1):
        rows = x[:, 2] == apart
        assert np.mean((low <= errors) & (errors <= high), where=rows) == pytest.approx(0.9, abs=0.04)


def test_distance_and_few_rows_make_it_wider():
    spread = spread_of(np.full(5, 0.01), regime(5))
    near, far = (spread.logs(regime(1), np.array([[0.0, each]]))[1] for each in (0.0, 1.0))
    assert far > near
    assert spread_of(np.full(2, 0.0), regime(2)).above[0] > spread_of(np.full(50, 0.0), regime(50)).above[0] > 0
    assert Spread.from_table(spread.to_table()) == spread
    assert len(spread.above) == LINES


def test_noise_gives_no_residual():
    """Rows that the factors explain: whatever is chosen may not make other rows worse."""
    draw, n = np.random.default_rng(6), 240
    tp, pp, dp = 2 ** draw.integers(0, 4, n), 2 ** draw.integers(0, 3, n), 2 ** draw.integers(2, 5, n)
    shape = {"layers": 16, "heads": 32, "kv_heads": 32, "width": 2048, "ffn": 8192, "vocab": 131072, "seq_len": 4096}
    configs = Configs(**shape, global_batch=256, dp_replicate=dp, tp=tp, pp=pp, microbatches=256 // dp)
    truth = predict_step(configs, MACHINE, STACK).step_time_s
    found = calibrate(configs, truth * np.exp(draw.normal(0, 0.05, n)), MACHINE, STACK)
    assert np.median(np.abs(found.predict(configs).step_time_s / truth - 1)) < 0.025
    assert "factors" in found.how
    assert all((fold >= 0).any() for fold in extrapolations(configs))
