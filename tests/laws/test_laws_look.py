"""Tables that a law must not be fitted to: one line that names cause, rows and what to do, and no number of a fit."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scalade.cli.app import app
from scalade.results.laws import Objective, fit, fit_file, get_law, rows, with_profiles
from scalade.results.laws.copies import decimals, whole_copies
from scalade.results.laws.curves import effective_rows


def table(seed=0, n=48, noise=0.004, **changed) -> pd.DataFrame:
    """A sound table: a Chinchilla law over three decades of N and D."""
    rng = np.random.default_rng(seed)
    N, D = np.exp(rng.uniform(17, 23, n)), np.exp(rng.uniform(20, 26, n))
    t = pd.DataFrame(dict(n_params=N, n_tokens=D))
    for name, change in changed.items():
        t[name] = change(t)
    t["loss"] = (480 / t.n_params**0.35 + 2100 / t.n_tokens**0.37 + 1.8) * np.exp(noise * rng.standard_normal(n))
    return t


def said(t: pd.DataFrame, **more) -> str:
    with pytest.raises(ValueError) as error:
        fit_file(t, params="n_params", tokens="n_tokens", **({"bootstrap": 0} | more))
    return str(error.value)


def fitted(t: pd.DataFrame, **more):
    more = dict(bootstrap=0, sensitivity=False) | more
    return fit_file(t, params="n_params", tokens="n_tokens", **more)


@pytest.mark.parametrize("law", ["chinchilla", "skaling", "kaplan", "overtraining"])
def test_a_sound_table_is_fitted(law):
    assert not [n for n in fitted(table(), law=law, profile=False).notes if "WARNING" in n]


@pytest.mark.parametrize("off", [0.0, 0.03, 0.08])
@pytest.mark.parametrize("law", ["chinchilla", "kaplan", "skaling"])
def test_a_ladder_is_refused(off, law):
    wobble = np.exp(off * np.random.default_rng(1).standard_normal(48))
    line = said(table(n_tokens=lambda t: 20 * t.n_params * wobble), law=law)
    assert "params" in line and "all 48 rows" in line and "cannot be told apart" in line and "--law" in line
    assert "tokens = 20" in line or "tokens = 19." in line


def test_one_budget_is_a_ladder_too():
    line = said(table(n_tokens=lambda t: 1e20 / (6 * t.n_params)))
    assert "params x tokens = 1.67e+19" in line


def test_a_ladder_with_parameters_held_is_the_users_choice():
    t = table(n_tokens=lambda t: 20 * t.n_params)
    assert fitted(t, fix={"beta": 0.37, "B": 2100.0}).parameters[0].value > 0


@pytest.mark.parametrize(
    "columns, says",
    [
        ({"n_params": 1e-6}, ["'n_params'", "millions"]),
        ({"n_params": 1e-9}, ["'n_params'", "billions"]),
        ({"n_params": 1e-6, "n_tokens": 1e-9}, ["millions", "'n_tokens'", "billions"]),
        ({"n_tokens": 1e-9}, ["'n_tokens'", "billions"]),
        ({"n_tokens": 1e-6}, ["'n_tokens'", "millions"]),
        ({"n_params": 1e-3, "n_tokens": 1.0}, ["'n_params'", "thousands"]),
        ({"n_tokens": 1e-3}, ["'n_tokens'", "thousands"]),
    ],
)
def test_units_are_refused_by_column(columns, says):
    t = table()
    for name, unit in columns.items():
        t[name] = t[name] * unit
    line = said(t)
    assert all(word in line for word in says) and "all 48 rows" in line and ("multiply" in line or "counts" in line)


@pytest.mark.parametrize("log, base", [(np.log10, "10"), (np.log2, "2"), (np.log, "e")])
def test_logs_as_columns_are_refused(log, base):
    t = table()
    line = said(t.assign(n_params=log(t.n_params), n_tokens=log(t.n_tokens)))
    assert "logarithms" in line and f"{base}^n_params" in line and f"{base}^n_tokens" in line


@pytest.mark.parametrize("column, unit", [("n_params", 1e6), ("n_tokens", 1e9)])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.9])
def test_units_that_change_within_a_column_are_said_with_rows(column, unit, share):
    t = table(n_params=lambda t: t.n_params.clip(upper=2e9))
    k = round(share * len(t))
    t.loc[t.index[:k], column] /= unit
    line = said(t)
    assert "units are mixed" in line and column in line
    assert ("millions" if unit == 1e6 else "billions") in line
    assert "rows 0, 1, 2" in line if share <= 0.5 else "row" in line


def test_a_constant_loss_is_refused():
    assert "'loss' is 3 in all 48 rows" in said(table().assign(loss=3.0))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_an_accuracy_is_refused(scale):
    t = table()
    line = said(t.assign(loss=scale * (1 - 0.15 * t.loss)))
    assert "rises with params and tokens" in line and "1 - accuracy" in line


def test_a_perplexity_is_warned_of_and_bits_are_not():
    t = table()
    r = fitted(t.assign(loss=np.exp(1.4 * t.loss)), profile=False)
    assert "perplexity" in r.notes[0] and r.notes[0].startswith("WARNING") and "all 48 rows" in r.notes[0]
    bits = fitted(t.assign(loss=t.loss / np.log(2)), profile=False)
    assert bits.parameters[1].value == pytest.approx(fitted(t).parameters[1].value, rel=1e-3) and len(bits.notes) == 0


@pytest.mark.parametrize("bad", [1, 3])
@pytest.mark.parametrize("objective", ["huber", "squares"])
def test_diverged_runs_are_named(bad, objective):
    t = table()
    t.loc[t.index[5 : 5 + bad], "loss"] = [10.8, 7.6, 9.9][:bad]
    line = said(t, objective=objective)
    assert ("row 5 looks diverged" if bad == 1 else "rows 5, 6 and 7 look diverged") in line
    assert "--where 'loss < " in line
    limit = float(line.split("loss < ")[1].split("'")[0])
    assert fitted(t, where=f"loss < {limit}").parameters[1].value == pytest.approx(0.35, abs=0.05)


def test_outliers_of_a_few_per_cent_are_no_divergence():
    t = table()
    t.loc[t.index[:3], "loss"] *= 1.2
    assert fitted(t).parameters[1].value


@pytest.mark.parametrize("seed", range(4))
def test_noise_gives_no_parameter_and_no_optimum(seed):
    t = table(seed)
    noise = t.assign(loss=3 * np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(t))))
    r = fitted(noise, target_flops=[1e23], bootstrap=50, sensitivity=True, compare=())
    assert r.notes[0].startswith("WARNING: loss: a constant describes all 48 rows as well")
    assert all(p.value is p.low is p.high is p.profile is None for p in r.parameters) and not r.sensitivity
    assert r.optima[0].params is None and r.optima[0].params_interval is None
    assert r.to_text().index("WARNING") < r.to_text().index("parameter ")


@pytest.mark.parametrize("column", ["n_params", "n_tokens"])
def test_a_column_that_hardly_varies_is_refused(column):
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.01):
        line = said(table(**{column: lambda t, s=spread: 1e9 * (1 + s * rng.random(len(t)))}))
        assert column.removeprefix("n_") in line and "all 48 rows" in line and "add runs" in line


def test_anyway_fits_and_warns():
    r = fitted(table(n_tokens=lambda t: 20 * t.n_params), anyway=True)
    assert any(n.startswith("WARNING: params, tokens: tokens = 20 params") for n in r.notes)


def test_the_command_says_one_line_and_no_number_of_a_fit(tmp_path):
    t = table(n_tokens=lambda t: 20 * t.n_params)
    path = tmp_path / "t.csv"
    t.to_csv(path, index=False)
    args = [sys.executable, "-m", "scalade", "fit", str(path), "--params", "n_params", "--tokens", "n_tokens"]
    done = subprocess.run([*args, "--target-flops", "1e23"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert CliRunner().invoke(app, [*args[3:], "--anyway", "--bootstrap", "0"]).exit_code in (0, 1)


def test_a_seed_is_one_answer_in_every_process(tmp_path):
    path = tmp_path / "t.csv"
    table(n=24).to_csv(path, index=False)
    code = (
        "from scalade.results.laws import fit_file\n"
        f"r = fit_file({str(path)!r}, params='n_params', tokens='n_tokens', bootstrap=40, sensitivity=False)\n"
        "print([(e.low, e.high, e.profile) for e in r.parameters])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": str(s)}
        ).stdout
        for s in (0, 1)
    }
    assert len(seen) == 1 and "(" in seen.pop()


def of(t, run=None):
    return rows(get_law("chinchilla"), t, dict(params="n_params", tokens="n_tokens"), "loss", run=run)


def test_copies_are_copies_of_whole_rows():
    t = table(n=12).round({"loss": 2})
    seeds = pd.concat([t.assign(seed=0), t.assign(seed=1)], ignore_index=True)  # two seeds, the same rounded loss
    assert of(seeds).copies == 0 and of(seeds).clusters == 24
    again = pd.concat([seeds, seeds.iloc[:5]], ignore_index=True)
    assert of(again).copies == 5 and of(again).clusters == 24
    assert whole_copies(pd.DataFrame({"a": [1, 1, 2], "b": ["x", "x", None]})).tolist() == [0, 0, 1]


@pytest.mark.parametrize("digits", [None, 3, 4])
@pytest.mark.parametrize("run", [None, "run"])
def test_a_run_logged_twice_is_one_run_and_said(digits, run):
    t = table(n=20).assign(run=[f"r{i}" for i in range(20)])
    other = t.assign(run=t.run + "_copy")
    other = other if digits is None else other.assign(loss=other.loss.round(digits), n_params=other.n_params.round(-3))
    both = pd.concat([t, other.iloc[:8]], ignore_index=True)
    r = of(both, run)
    assert r.clusters == 20 and r.twins[:2] == ((0, 20), (1, 21)) and len(r.twins) == 8
    note = " ".join(fitted(both, run=run, profile=False).notes)
    assert "8 pairs of rows hold one run twice" in note and "0 and 20, 1 and 21" in note


def test_runs_that_branched_from_one_trunk_are_two():
    t = pd.DataFrame(dict(n_params=1e8, n_tokens=1e8 * np.arange(1, 21), loss=4 - 0.0512345 * np.arange(20)))
    other = t.assign(loss=t.loss.where(t.index < 15, t.loss - 0.0312345))
    far = t.assign(n_params=5e8, loss=t.loss - 0.312345)
    both = pd.concat([t.assign(run="a"), other.assign(run="b"), far.assign(run="c")], ignore_index=True)
    given = rows(get_law("chinchilla"), both, dict(params="n_params", tokens="n_tokens"), "loss", "run")
    assert given.clusters == 3 and given.twins == ()
    logged = pd.concat([both, t.assign(run="again", loss=t.loss.round(4))], ignore_index=True)
    assert rows(get_law("chinchilla"), logged, dict(params="n_params", tokens="n_tokens"), "loss", "run").clusters == 3


def test_seeds_of_one_size_are_no_copies():
    rng = np.random.default_rng(0)
    t = table(n=30)
    losses = [t.assign(loss=(t.loss * np.exp(0.003 * rng.standard_normal(30))).round(4), seed=s) for s in range(3)]
    r = of(pd.concat(losses, ignore_index=True).drop(columns="seed"))
    assert r.twins == () and r.clusters == 90


def test_repeats_of_a_case_that_end_at_one_loss_are_one_run():
    t = table(n=12).assign(case_id=[f"c{i}" for i in range(12)])
    both = pd.concat([t.assign(step_time_s=1.0), t.assign(step_time_s=1.1)], ignore_index=True)
    assert of(both).clusters == 12 and of(both).copies == 12
    assert of(both.drop(columns="case_id")).clusters == 24  # other rows, however alike


def test_decimals_are_counted():
    assert decimals(np.array([2.5, 2.917, 3.0, 1 / 3])).tolist() == [1, 3, 0, 12]


def curves(seed=0, runs=6, points=60, even=True, deviation=0.01, alpha=0.35) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    out = []
    for i, n in enumerate(np.geomspace(5e7, 5e9, runs)):
        at = np.linspace(4e8, 2e10, points) if even else np.geomspace(4e8, 2e10, points)
        loss = (1.8 + 480 / n**alpha + 2100 / at**0.37) * np.exp(
            rng.normal(0, deviation) + rng.normal(0, 0.002, points)
        )
        out.append(pd.DataFrame(dict(run=f"m{i}", n_params=n, n_tokens=at, loss=loss)))
    return pd.concat(out, ignore_index=True)


@pytest.mark.parametrize("even", [True, False])
def test_curves_without_a_run_column_are_seen(even):
    t = curves(even=even)
    r = fitted(t.drop(columns="run"), bootstrap=20)
    assert r.runs == 6 and r.bootstrap_draws == 0 and all(e.profile is None for e in r.parameters)
    assert "look like points of 6 training curves" in " ".join(r.notes) and "--run" in " ".join(r.notes)
    assert "too few runs" in " ".join(r.notes)


def test_a_ladder_of_runs_is_no_curve():
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 5e9, 6), 1e9 * 2.0 ** np.arange(10)))
    t = pd.DataFrame(dict(n_params=N, n_tokens=D, loss=1.8 + 480 / N**0.35 + 2100 / D**0.37))
    assert fitted(t, profile=False).runs == 60
    named = curves().assign(name=lambda t: [f"run-{i}" for i in range(len(t))]).drop(columns="run")
    assert fitted(named, profile=False).runs == len(named)  # every row has its own name


@pytest.mark.slow
def test_profiles_of_curves_cover_the_truth():
    """Rows of a run share its deviation: a profile by rows covers alpha in a third of these tables."""
    inside = {"by run": 0, "by row": 0}
    for seed in range(20):
        t = curves(seed, runs=14, points=8, deviation=0.01)
        for how, run in (("by run", "run"), ("by row", None)):
            r = of(t, run)
            p = {p.name: p for p in with_profiles(fit("chinchilla", r, objective=Objective("squares"))).profiles}
            low, high = p["alpha"].low, p["alpha"].high
            inside[how] += (low is None or low < 0.35) and (high is None or high > 0.35)
    assert inside["by run"] >= 17 and inside["by row"] <= 14


def test_profiles_of_few_runs_that_each_have_their_own_sizes_cover_the_truth():
    inside = 0
    for seed in range(200, 230):
        rng, some = np.random.default_rng(seed), []
        for i in range(14):
            N = np.exp(rng.uniform(np.log(1e7), np.log(3e9)))
            D = N * np.exp(rng.uniform(np.log(5), np.log(100))) * np.arange(1, 9) / 8
            off = 0.01 * rng.standard_normal()
            L = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(off + 0.0005 * rng.standard_normal(8))
            some.append(pd.DataFrame(dict(run=f"r{i}", n_params=N, n_tokens=D, loss=L)))
        f = with_profiles(fit("chinchilla", of(pd.concat(some, ignore_index=True), "run")))
        low, high = next((p.low, p.high) for p in f.profiles if p.name == "alpha")
        inside += (low is None or low < 0.35) and (high is None or high > 0.35)
    assert inside >= 26  # 24 with G/(G - q)


def test_effective_rows():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(20), 10)
    assert effective_rows(np.repeat(rng.standard_normal(20), 10), cluster) == pytest.approx(20, rel=0.01)
    assert effective_rows(rng.standard_normal(200), cluster) > 120
    assert effective_rows(rng.standard_normal(200), np.arange(200)) == 200
