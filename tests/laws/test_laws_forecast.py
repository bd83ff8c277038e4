"""One forecast path: what is printed for a run without a loss is what is scored on held-out rows, or is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from scalade.results.laws import Rows, fit, fit_file, forecast, get_law
from scalade.results.laws.discrepancy import corrected, spectra, thinned
from scalade.results.laws.forecast import Forecast
from scalade.results.laws.predictions import score

ND = dict(params="n_params", tokens="n_tokens")


def table(seed=0, n=60, noise=0.002, bend=0.0) -> pd.DataFrame:
    """Losses about a Chinchilla law; bend: a smooth deviation in log N that no law of the registry holds."""
    rng = np.random.default_rng(seed)
    N, D = np.exp(rng.uniform(*np.log((5e7, 1e10)), n)), np.exp(rng.uniform(*np.log((1e9, 5e11)), n))
    L = 1.8 + 480 / N**0.35 + 2100 / D**0.37
    L *= np.exp(bend * np.sin(np.log(N / 5e7)) + noise * rng.standard_normal(n))
    return pd.DataFrame({"n_params": N, "n_tokens": D, "loss": L})


def of(frame) -> Rows:
    i = np.arange(len(frame))
    return Rows({"params": frame.n_params.to_numpy(), "tokens": frame.n_tokens.to_numpy()}, frame.loss.to_numpy(), i, i)


QUICK = dict(**ND, bootstrap=60, sensitivity=False, compare=["overtraining"])


def test_held_out_rows_are_scored_by_the_forecast_that_is_printed():
    """The same rows asked for by `at` and by `holdout`: same point, same interval; not the law's own."""
    frame = table(bend=0.02)
    frame["held"] = frame.n_params * frame.n_tokens > np.quantile(frame.n_params * frame.n_tokens, 0.85)
    last = frame[frame.held]
    at = [dict(params=row.n_params, tokens=row.n_tokens) for row in last.itertuples()]
    r = fit_file(frame, holdout="held", at=at, profile=False, **QUICK)
    point, low, high = (np.array([getattr(p, name) for p in r.forecasts]) for name in ("point", "low", "high"))
    y = last.loss.to_numpy()
    assert r.holdout.relative_error == pytest.approx(np.mean(np.abs(point / y - 1)), rel=1e-9)
    assert r.holdout.calibrated_coverage == np.mean((low <= y) & (y <= high))
    assert r.holdout.calibrated_score == pytest.approx(score(np.log(y), np.log(low), np.log(high), 0.95), rel=1e-9)
    assert r.holdout.law_relative_error == pytest.approx(
        np.mean(np.abs(r.fit.predict(dict(params=last.n_params.to_numpy(), tokens=last.n_tokens.to_numpy())) / y - 1))
    )
    assert r.holdout.relative_error < 0.7 * r.holdout.law_relative_error  # it takes up what the law leaves over
    text = r.to_text()
    assert f"mean relative error {r.holdout.relative_error:.2%}" in text
    assert f"chinchilla alone: rms log error {r.holdout.law_rmse_log:.4g}"[:40] in text


def test_the_loss_at_a_target_is_the_forecast_of_that_run():
    r = fit_file(table(), target_flops=[1e23], profile=False, **QUICK)
    best, seen = r.optima[0], r.forecasts[0]
    assert (seen.columns["params"], seen.columns["tokens"]) == (best.params, best.tokens) and seen.target_flops == 1e23
    assert best.loss == seen.point and best.loss_interval == (seen.low, seen.high)
    again = fit_file(table(), at=[dict(params=best.params, tokens=best.tokens)], profile=False, **QUICK).forecasts[0]
    assert (again.point, again.low, again.high) == (seen.point, seen.low, seen.high)
    assert seen.width == pytest.approx(seen.high / seen.low - 1)
    truth = 1.8 + 480 / best.params**0.35 + 2100 / best.tokens**0.37
    assert seen.low < truth < seen.high


def test_a_forecast_says_how_far_beyond_the_table_it_is():
    frame = table()
    r = fit_file(frame, at=[dict(n_params=1e12, tokens=1e15), dict(params=1e9, tokens=1e10)], profile=False, **QUICK)
    far, near = r.forecasts
    assert far.beyond["params"] == pytest.approx(1e12 / frame.n_params.max())
    assert far.beyond["extent"] == pytest.approx(1e27 / (frame.n_params * frame.n_tokens).max())
    assert "intervals were tested up to" in far.note and near.note == ""
    away = np.abs(np.log(frame[["n_params", "n_tokens"]] / [1e9, 1e10]))
    k = (away**2).sum(axis=1).idxmin()
    assert near.nearest == {"params": frame.n_params[k], "tokens": frame.n_tokens[k]}
    assert near.nearest_factor == pytest.approx(np.exp(away.loc[k].max()))
    assert far.width > 2 * near.width
    d = json.loads(json.dumps(r.to_dict(), allow_nan=False))["forecasts"]
    assert d[0]["columns"] == {"params": 1e12, "tokens": 1e15} and d[0]["low"] < d[0]["point"] < d[0]["high"]
    assert "WARNING: " in r.to_text() and "params / largest" in r.to_text()


def test_no_interval_is_printed_where_none_could_be_calibrated():
    r = fit_file(table(n=9), at=[dict(params=1e11, tokens=1e13)], target_flops=[1e22], profile=False, **QUICK)
    p = r.forecasts[1]
    assert p.low is None and p.width is None and "too few rows" in p.why_not and np.isfinite(p.point)
    assert r.optima[0].loss_interval is None and "no interval: too few rows for rolling hold-outs" in r.to_text()


@pytest.mark.parametrize(
    "at, says",
    [
        (dict(params=1e9), "tokens is not given"),
        (dict(params=1e9, tokens=1e10, replicas=2), "unknown role 'replicas'"),
        (dict(params=1e9, tokens=-1.0), "tokens must be a positive number, got -1"),
        (dict(params=1e9, tokens=np.inf), "must be a positive number"),
    ],
)
def test_a_run_that_cannot_be_forecast_gets_one_clear_line(at, says):
    with pytest.raises(ValueError, match=says) as error:
        fit_file(table(), at=[at], **QUICK)
    assert "\n" not in str(error.value) and str(error.value).startswith("at: ")


def test_optima_are_refused_when_their_parameters_are():
    noise = table(n=40)
    noise["loss"] = 2.7 * np.exp(0.1 * np.random.default_rng(0).standard_normal(40))
    r = fit_file(noise, **ND, target_flops=[1e23], bootstrap=60, sensitivity=False, compare=["overtraining"])
    assert not all(p.identified for p in r.parameters if p.name != "E")
    best = r.optima[0]
    assert best.params is best.tokens is best.loss is best.exponent is best.params_interval is None
    assert "which the table does not identify" in best.note and best.note in r.to_text()
    assert not r.forecasts and r.to_dict()["optima"][0]["params"] is None


def test_an_optimum_that_does_not_move_with_what_is_refused_stands():
    frame = table(n=80)
    frame["loss"] = 3000 / frame.n_params**0.25 + 2000.0 / frame.n_tokens**0.2  # no E
    frame["loss"] *= np.exp(0.002 * np.random.default_rng(0).standard_normal(80))
    r = fit_file(frame, **ND, target_flops=[1e21], bootstrap=60, sensitivity=False, compare=())
    assert not {p.name: p for p in r.parameters}["E"].identified
    assert all(p.identified for p in r.parameters if p.name != "E") and r.optima[0].params is not None


def test_a_law_of_other_columns_has_a_calibrated_forecast():
    N, M = np.repeat(np.geomspace(3e7, 2e9, 7), 4), np.tile([1.0, 2, 4, 8], 7)
    L = 19.226 * N**-0.0985 * M**0.0116 * np.exp(0.002 * np.random.default_rng(0).standard_normal(28))
    frame = pd.DataFrame({"params": N, "replicas": M, "loss": L})
    r = fit_file(frame, law="diloco_joint", at=[dict(params=1e10, replicas=4)], bootstrap=0, profile=False)
    p = r.forecasts[0]
    assert p.low < 19.226 * 1e10**-0.0985 * 4**0.0116 < p.high and p.width < 0.2
    assert [s.law for s in r.laws][0] == "diloco_joint" and len(r.laws) == 4
    assert r.calibration.reach > 10 and "extent / largest" in r.to_text()


@pytest.mark.parametrize("name", ["power", "routed", "step_law_lr", "critical_batch", "downstream", "sparsity"])
def test_every_law_of_single_runs_says_how_large_a_run_is(name):
    law, rng = get_law(name), np.random.default_rng(0)
    columns = {role: rng.uniform(0.1, 0.9, 5) for role in law.roles}
    assert law.extent(columns).shape == (5,) and (law.extent(columns) > 0).all()


def test_the_discrepancy_takes_up_what_the_law_leaves_over():
    """On a bent table the law misses the next runs; with its discrepancy it does not, and the sd knows how far."""
    frame = table(n=120, noise=0.001, bend=0.03)
    extent = frame.n_params * frame.n_tokens
    low, top = frame[extent <= extent.quantile(0.85)], frame[extent > extent.quantile(0.85)]
    rows = of(low)
    f = fit("chinchilla", rows)
    c = corrected(f, spectra(f.law, rows))
    new = of(top)
    point, sd = c.predict(new.columns)
    miss = np.log(new.y) - point
    plain = np.log(new.y) - f.log_predict(new.columns)
    assert np.sqrt(np.mean(miss**2)) < 0.5 * np.sqrt(np.mean(plain**2)) and c.covariance.size > 1
    assert np.mean(np.abs(miss) < 1.96 * sd) > 0.8
    far = {"params": np.array([1e12]), "tokens": np.array([1e14])}
    assert c.predict(far)[1][0] > 3 * np.median(sd)


def test_no_discrepancy_is_found_where_the_law_is_true():
    frame = table(n=120, noise=0.01)
    f = fit("chinchilla", of(frame))
    c = corrected(f, spectra(f.law, of(frame)))
    assert c.noise * np.sqrt(1 + c.covariance.size**2) == pytest.approx(0.01, rel=0.4)


def test_many_rows_are_thinned_evenly_and_the_largest_kept():
    keep = thinned(np.arange(1000.0), 100, 0)
    assert keep.sum() == 100 and keep[950:].all() and 20 < keep[:475].sum() < 30
    assert (keep == thinned(np.arange(1000.0), 100, 0)).all() and thinned(np.arange(9.0), 100, 0).all()


def test_a_held_parameter_is_held_in_the_forecast():
    r = of(table())
    c: Forecast = forecast(["chinchilla"], r, r.columns["params"] * r.columns["tokens"], fix={"E": 1.7})
    assert c.fits[0].natural["E"] == pytest.approx(1.7)
    assert c.laws[0].fit.law.natural(c.laws[0].theta[None], c.fits[0].inputs.centre)[0, 4] == pytest.approx(1.7)


@pytest.mark.slow
def test_the_next_budgets_minimum_lies_in_the_interval_of_its_target():
    """IsoFLOP sweeps bent away from the law: the least loss measured at the next budget, four tables."""
    inside = {"calibrated": 0, "plain": 0}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        C = np.repeat(np.geomspace(1e17, 1e20, 8), 8)
        N = 0.12 * (C / 6) ** 0.5 * np.tile(np.geomspace(0.2, 5, 8), 8)
        frame = pd.DataFrame({"n_params": N, "n_tokens": C / 6 / N, "C": C})
        L = 1.8 + 480 / N**0.35 + 2100 / frame.n_tokens**0.37
        frame["loss"] = L * np.exp(0.05 * np.log10(C / 1e20) ** 2 + 0.002 * rng.standard_normal(64))
        low, top = frame[C < 9e19], frame[C > 9e19]
        kw = dict(**ND, sensitivity=False, profile=False, bootstrap=60, target_flops=[1e20])
        r = fit_file(low, compare=["skaling"], **kw)
        inside["calibrated"] += r.optima[0].loss_interval[0] <= top.loss.min() <= r.optima[0].loss_interval[1]
        best = {"params": np.array([r.optima[0].params]), "tokens": np.array([r.optima[0].tokens])}
        a, b = np.exp(np.percentile(r.fit.log_predict(best, r.fit.draws), [2.5, 97.5]))
        inside["plain"] += a <= top.loss.min() <= b
    assert inside["calibrated"] >= 3 and inside["plain"] <= 1, inside


def test_the_command_takes_runs_and_targets(tmp_path, capsys):
    from typer.testing import CliRunner

    from scalade.cli.app import app

    table().to_csv(tmp_path / "runs.csv", index=False)
    base = ["fit", str(tmp_path / "runs.csv"), "--params", "n_params", "--tokens", "n_tokens", "--bootstrap", "0"]
    base += ["--compare", "overtraining"]
    found = CliRunner().invoke(
        app, [*base, "--at", "params=1e10,tokens=2e11", "--at", "n_params=2e10,n_tokens=1e12", "--json"]
    )
    seen = json.loads(found.stdout)["forecasts"]
    assert [p["columns"] for p in seen] == [{"params": 1e10, "tokens": 2e11}, {"params": 2e10, "tokens": 1e12}]
    assert all(p["low"] < p["point"] < p["high"] for p in seen)
    failed = CliRunner().invoke(app, [*base, "--at", "params=big,tokens=2e11"])
    assert failed.exit_code and "'big' is not a number" in str(failed.exception)
    plain = json.loads(CliRunner().invoke(app, [*base[:-1], "none", "--target-flops", "1e22", "--json"]).stdout)
    assert plain["forecasts"] == [] and plain["laws"] == []


def test_the_noise_of_the_next_run_is_about_the_law_not_about_its_discrepancy():
    """Draws of the laws know no discrepancy: with its small noise every candidate would promise too much."""
    r = of(table(bend=0.03, noise=0.0005))
    c = forecast(["chinchilla"], r, r.columns["params"] * r.columns["tokens"])
    residuals = c.fits[0].residuals
    assert (
        c.noise == pytest.approx(np.quantile(np.abs(residuals), 0.95) / 1.96, rel=0.1) and c.noise > 5 * c.laws[0].noise
    )
