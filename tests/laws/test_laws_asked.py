"""What is asked of a fit that it cannot answer: one line, and no number."""

import warnings

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scalade.cli.app import app
from scalade.results.laws import fit_file
from scalade.results.laws.isoflop import isoflop

QUICK = dict(params="n_params", tokens="n_tokens", bootstrap=0, profile=False, sensitivity=False)


def table(n=40, noise=0.004, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(1e7), np.log(3e9), n))
    D = N * np.exp(rng.uniform(np.log(2), np.log(200), n))
    L = (480 / N**0.35 + 2100 / D**0.37 + 1.8) * np.exp(noise * rng.standard_normal(n))
    return pd.DataFrame(dict(n_params=N, n_tokens=D, loss=L))


def noise() -> pd.DataFrame:
    return table().assign(loss=3 * np.exp(0.1 * np.random.default_rng(0).standard_normal(40)))


@pytest.mark.parametrize(
    "asked, says",
    [
        (dict(target_flops=[-1e20]), "target_flops must be positive FLOPs, such as 1e21, got -1e\\+20"),
        (dict(target_flops=[0.0]), "target_flops must be positive"),
        (dict(target_flops=[np.nan]), "target_flops must be positive"),
        (dict(target_flops=[np.inf]), "target_flops must be positive"),
        (dict(target_flops=[1.0]), "target_flops: 1 is .* times below the smallest run of the table"),
        (dict(flops_per_nd=0.0), "flops_per_nd must be a positive number"),
        (dict(seed=-3), "seed must be 0 or more, got -3"),
        (dict(bootstrap=1), "bootstrap: 1 resamples give no 95% interval; take 20 or more"),
        (dict(bootstrap=50, level=0.99), "take 100 or more"),
        (dict(fix={"E": np.nan}), "fix E=nan: a parameter is held at a finite number"),
        (dict(at=[dict(params=1e9, n_params=2e9, tokens=1e10)]), "at: params is given twice"),
        (dict(at=[dict(params=7, tokens=140)]), "at: params=7 is .* times below the smallest .* the units of the"),
        (dict(at=[dict(params=1e9, tokens=1e10)], compare=()), "at: .* `--compare none` asks for no forecast"),
        (dict(holdout="n_params > 0"), "holdout 'n_params > 0': matches all 40 rows, so that none is left to fit"),
    ],
)
def test_a_question_without_an_answer_gets_one_line(asked, says):
    with pytest.raises(ValueError, match=says) as error:
        fit_file(table(), **(QUICK | asked))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--at params=1e9,params=2e9,tokens=1e10", "--fix E=1.8 --fix E=1.9"])
def test_a_name_given_twice_is_not_dropped_in_silence(tmp_path, option):
    table().to_csv(tmp_path / "t.csv", index=False)
    some = ["--params", "n_params", "--tokens", "n_tokens", "--bootstrap", "0"]
    done = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), *some, *option.split()])
    assert isinstance(done.exception, ValueError) and "is given twice" in str(done.exception)


def test_a_run_outside_of_the_table_is_doubted_on_every_side():
    at = [dict(params=1e6, tokens=1e6), dict(params=1e12, tokens=1e9), dict(params=1e9, tokens=1e10)]
    low, wide, inside = (p.note for p in fit_file(table(), **QUICK, at=at).forecasts)
    assert "times below the smallest" in low and "params is" in wide and "times the largest" in wide and inside == ""


def test_no_forecast_rests_on_noise():
    rate = dict(budget_device_hours=1.0, flops_per_device_hour=1e18)
    r = fit_file(noise(), **QUICK, at=[dict(params=1e10, tokens=1e11)], target_flops=[1e22], **rate)
    assert not r.forecasts and not r.laws and r.optima[0].params is None and not r.next_runs
    assert any(n.startswith("no forecast: the law says no more than a constant") for n in r.notes)


def test_a_table_that_follows_the_law_exactly_has_converged():
    r = fit_file(table(noise=0.0), **(QUICK | dict(profile=True)))
    assert r.convergence.converged and r.exit_code == 0
    for p, true in zip(r.parameters, (480, 0.35, 2100, 0.37, 1.8), strict=True):
        assert p.identified and p.value == pytest.approx(true, rel=1e-6)
        assert p.profile == pytest.approx((true, true), rel=1e-3)


def test_the_end_of_a_profile_is_looked_for_in_a_wide_gap():
    t = table(60, seed=6)
    t["loss"] = (1.8 + 2100 / t.n_tokens**0.37) * np.exp(0.004 * np.random.default_rng(6).standard_normal(60))
    r = fit_file(t, **(QUICK | dict(profile=True)))  # a term in N that is not there
    low, high = next(p.profile for p in r.parameters if p.name == "E")
    assert low is None and 1.2 < high < 1.85  # it was 5.8, on a straight line to the end of the grid


def test_nothing_is_warned_of_on_stderr_where_an_amplitude_has_no_end():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_file(noise(), **QUICK, law="kaplan", where="n_params < 8e7")


def test_rows_that_follow_closely_over_decades_are_no_budget():
    N = np.exp(np.random.default_rng(0).uniform(17, 21, 60))
    C = np.geomspace(1e18, 1e20, 60)  # 8% apart: each is within 15% of the next
    with pytest.raises(ValueError, match="60 rows in between, no one budget"):
        isoflop(N, C, 3 + (np.log(N) - 19) ** 2)


def test_a_line_through_two_budgets_is_doubted():
    rows = [(n, c / 6 / n, c) for c in (1e18, 1e20) for n in (c / 120) ** 0.5 * np.geomspace(0.2, 5, 6)]
    t = pd.DataFrame(rows, columns=["n_params", "n_tokens", "flops"])
    t["loss"] = 1.8 + 480 / t.n_params**0.35 + 2100 / t.n_tokens**0.37
    text = fit_file(t, **QUICK, flops="flops", approach=["isoflop"]).to_text()
    assert "from 2 budgets" in text and "WARNING: a line through two points" in text


def test_a_value_that_has_no_log_says_which_rows_to_take():
    t = table()
    t.loc[3, "loss"] = -1.0
    with pytest.raises(ValueError, match="holds -1 in row 3; logs need .* leave it out \\(--where 'loss > 0'\\)"):
        fit_file(t, **QUICK)
