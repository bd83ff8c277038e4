"""What a user reads and what a program gets: the text, the JSON, and one clear line for every mistake."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from scalade.results.laws import fit_file


def frame(n=24) -> pd.DataFrame:
    """A Chinchilla table with a deterministic ripple for noise."""
    k = np.arange(n)
    N, D = 1e8 * 1.25 ** (k % 12), 2e9 * 1.9 ** ((k * 5) % 11)
    L = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(0.004 * np.sin(7.0 * k))
    return pd.DataFrame(
        {
            "n_params": N,
            "n_tokens": D,
            "loss": L,
            "flops": 6.6 * N * D,
            "run": [f"r{i}" for i in k],
            "n_nonembedding": N * 0.8,
            "device_hours": N * D / 1e17,
            "outlier": k == 5,
        }
    )


@pytest.fixture
def csv(tmp_path):
    def write(table=None, name="runs.csv"):
        path = tmp_path / name
        (frame() if table is None else table).to_csv(path, index=False)
        return path

    return write


ND = dict(params="n_params", tokens="n_tokens")

GOLDEN = """\
chinchilla: L = E + A / N^alpha + B / D^beta
  Hoffmann et al. 2022, arXiv 2203.15556, section 3.3
  23 rows of 23 runs from runs.csv; 1 left out (where)
  objective: squares on log residuals = 8.0044063e-05; rms log residual 0.002638

  parameter   value  se  95% by run  95% profile
  A            1031   -           -            -
  alpha      0.3954   -           -            -
  B            2242   -           -            -
  beta       0.3731   -           -            -
  E           1.859   -           -            -

  converged: 16 of 16 starts at the optimum, gradient tiny, condition 2e+04 (natural parameters: 2.3e+13)

sensitivity
                                              rows      A   alpha     B    beta      E
  delta: huber 0.0001                           23   2146  0.4389  1740  0.3612  1.901
  delta: huber 0.001                            23   1679  0.4244  1826  0.3635  1.888
  delta: huber 0.01                             23   1031  0.3954  2242  0.3731  1.859
  delta: huber 0.1                              23   1031  0.3954  2242  0.3731  1.859
  objective: l1                                 23   2263  0.4420  1765  0.3619  1.904
  outliers: without the 1 worst row             22   2155  0.4391  1997  0.3678  1.906
  outliers: with the 1 row left out by where    24   1085  0.3983  2276  0.3738  1.863
  convention: params = n_nonembedding           23  944.1  0.3954  2242  0.3731  1.859

compute optimum (C = 6 N D)
  FLOPs         N*  95% by run         D*  95% by run
  1e+22  7.891e+09           -  2.112e+11           -
  N* ~ C^0.486 -

note: under the FLOPs of column 'flops' (C = 6.6 N D) N* at 1e+22 is 7.534e+09, not 7.891e+09
"""


def test_the_text_reads_as_expected(csv):
    r = fit_file(
        csv(),
        **ND,
        where="outlier == False",
        objective="squares",
        bootstrap=0,
        profile=False,
        target_flops=[1e22],
        flops="flops",
        alternatives={"params": "n_nonembedding"},
        compare=(),
    )
    assert re.sub(r"gradient \S+,", "gradient tiny,", r.to_text()) == GOLDEN  # the gradient left is rounding


def test_json_has_no_nan_and_every_part(csv):
    r = fit_file(
        csv(),
        **ND,
        bootstrap=100,
        target_flops=[1e22],
        run="run",
        budget_device_hours=1e6,
        device_hours="device_hours",
        compare=["overtraining"],
    )
    d = json.loads(json.dumps(r.to_dict(), allow_nan=False))
    assert d["rows"] == d["runs"] == 24 and d["bootstrap_draws"] == 100
    assert [p["name"] for p in d["parameters"]] == ["A", "alpha", "B", "beta", "E"]
    assert set(d["parameters"][0]) >= {"value", "se", "low", "high", "profile", "identified", "reason"}
    assert d["convergence"]["at_optimum"] <= d["convergence"]["starts"] and d["convergence"]["gradient"] < 1e-4
    assert d["optima"][0]["params_interval"][0] < d["optima"][0]["params"] < d["optima"][0]["params_interval"][1]
    assert {s["what"] for s in d["sensitivity"]} == {"delta", "objective", "outliers"}
    assert d["calibration"]["level"] == 0.95 and d["next_runs"][0]["device_hours"] <= 1e6
    assert "fit" not in d


def test_parquet_reads_as_csv_does(csv, tmp_path):
    frame().to_parquet(tmp_path / "runs.parquet")
    kw = dict(**ND, bootstrap=0, profile=False, sensitivity=False)
    a, b = fit_file(csv(), **kw), fit_file(tmp_path / "runs.parquet", **kw)
    assert a.objective_value == pytest.approx(b.objective_value, rel=1e-9)


def test_a_law_of_any_column_against_device_hours(csv):
    table = frame()
    table["loss"] = 1.5 + 9.0 * table.device_hours**-0.2
    r = fit_file(csv(table), law="power_constant", columns={"x": "device_hours"}, objective="squares", bootstrap=100)
    assert r.fit.natural == pytest.approx({"a": 9.0, "c": -0.2, "E": 1.5}, rel=1e-3)


def test_the_response_of_another_law_is_named_by_its_role(csv):
    table = frame()
    table["best_lr"] = 1.79 * table.n_params**-0.713 * table.n_tokens**0.307
    r = fit_file(csv(table), law="step_law_lr", **ND, columns={"lr": "best_lr"}, bootstrap=0)
    assert r.fit.natural == pytest.approx({"c": 1.79, "p": -0.713, "q": 0.307}, rel=1e-6)


def test_null_rows_are_left_out_and_counted(csv):
    table = frame()
    table.loc[[2, 3], "loss"] = np.nan
    r = fit_file(csv(table), **ND, bootstrap=0, profile=False, sensitivity=False)
    assert r.rows == 22 and r.left_out["null"] == 2 and "2 left out (null)" in r.to_text()


def test_copied_rows_are_one_run(csv):
    r = fit_file(csv(pd.concat([frame(), frame().head(3)])), **ND, bootstrap=50, profile=False, sensitivity=False)
    assert r.rows == 27 and r.runs == 24 and any("3 rows are exact copies" in n for n in r.notes)


def test_progress_is_told(csv):
    seen = []
    fit_file(csv(), **ND, bootstrap=1200, progress=lambda stage, share: seen.append((stage, share)))
    shares = [s for stage, s in seen if stage == "bootstrap"]
    assert shares == sorted(shares) and shares[-1] == 1.0 and {s for s, _ in seen} == {"bootstrap", "sensitivity"}


def with_value(column, value, row=4):
    table = frame().astype({column: object} if isinstance(value, str) else {})
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    "table, arguments, says",
    [
        (None, dict(law="chinchila"), "did you mean 'chinchilla'"),
        (None, dict(params="n_param", tokens="n_tokens"), "params: unknown column 'n_param': did you mean 'n_params'"),
        (None, dict(params="n_params", tokens="nope!"), "tokens: unknown column 'nope!'"),
        (None, dict(**ND, loss="losss"), "loss: unknown column 'losss': did you mean 'loss'"),
        (None, dict(**ND, columns={"replicas": "run"}), "unknown role 'replicas'"),
        (with_value("loss", -1.0), ND, "loss: column 'loss' holds -1 in row 4"),
        (with_value("loss", 0.0), ND, "logs need finite positive values"),
        (with_value("n_tokens", np.inf), ND, "tokens: column 'n_tokens' holds inf in row 4"),
        (with_value("loss", "diverged"), ND, "loss: column 'loss' holds 'diverged' in row 4, not a number"),
        (frame(5), ND, "too few rows: 'chinchilla' has 5 free parameters"),
        (pd.concat([frame(4)] * 9), ND, "4 distinct usable rows"),
        (frame().assign(n_params=1e8), ND, "params: every row has the value 1e\\+08"),
        (frame().assign(loss=np.nan), ND, "24 more have nulls"),
        (None, dict(**ND, where="loss < 0"), "no row is left"),
        (None, dict(**ND, where="loss.mean()"), "cannot read '.mean"),
        (None, dict(**ND, holdout="loss > 100"), "matches no row"),
        (None, dict(**ND, objective="hubris"), "unknown objective 'hubris'"),
        (None, dict(**ND, delta=0.0), "delta must be positive"),
        (None, dict(**ND, level=95), "level must lie between 0 and 1"),
        (None, dict(**ND, bootstrap=-1), "bootstrap must be 0 or more"),
        (None, dict(**ND, fix={"E": "alhpa"}), "did you mean 'alpha'"),
        (None, dict(**ND, run="runs"), "run: unknown column 'runs': did you mean 'run'"),
        (None, dict(**ND, flops="flop", target_flops=[1e20]), "flops: unknown column 'flop'"),
        (None, dict(**ND, approach=["iso"]), "approach: unknown 'iso'"),
        (None, dict(**ND, approach=["envelope"]), "name the column that tells runs apart"),
        (None, dict(**ND, budget_device_hours=10.0, compare=[]), "needs a cost"),
        (None, dict(law="multipower", columns={"step": "n_params", "lr": "loss"}), "reads curves: name the column"),
        (
            None,
            dict(law="power", columns={"x": "flops"}, compare=["chinchilla"]),
            "laws are stacked over the same columns",
        ),
        (None, dict(law="power", columns={"x": "flops"}, target_flops=[1e20]), "has no compute optimum"),
    ],
)
def test_mistakes_get_one_clear_line(csv, table, arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        fit_file(csv(table), **({"bootstrap": 20, "profile": False, "sensitivity": False} | arguments))
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path, csv):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("n_params,n_tokens,loss\n")
    (tmp_path / "bad.parquet").write_text("no")
    for name, says in (
        ("no.csv", "no such file"),
        ("empty.csv", "cannot be read"),
        ("head.csv", "has no rows"),
        ("bad.parquet", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            fit_file(tmp_path / name, **ND)
        assert "\n" not in str(error.value)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match="unknown suffix"):
        fit_file(tmp_path / "t.json", **ND)


def test_a_step_twice_in_a_curve_is_named(csv):
    table = pd.DataFrame({"run": "a", "step": [1, 2, 2, 3], "lr": 1e-3, "loss": 3.0})
    with pytest.raises(ValueError, match="run 'a' has step 2 twice"):
        fit_file(
            csv(
                pd.concat(
                    [
                        table.assign(loss=np.linspace(4, 3, 4)),
                        table.assign(run="b", step=[1, 2, 3, 4], loss=np.linspace(4.1, 3, 4)),
                    ]
                )
            ),
            law="annealing",
            run="run",
        )


def test_numbers_read_well():
    from scalade.results.laws.text import number

    assert [number(x) for x in (477.83, 0.347310, 2143.4, 1.3e12, 1e-5, 0.0, None, math.nan)] == [
        "477.8",
        "0.3473",
        "2143",
        "1.300e+12",
        "1.000e-05",
        "0",
        "-",
        "-",
    ]


def test_approaches_1_and_2_stand_in_the_report(csv):
    budgets = np.repeat(np.geomspace(1e19, 1e21, 5), 9)
    best = (480 / 2100) ** (1 / 0.7) * (budgets / 6) ** 0.5
    N = best * np.tile(np.geomspace(0.25, 4, 9), 5)
    table = pd.DataFrame({"n_params": N, "flops": budgets, "n_tokens": budgets / 6 / N})
    table["loss"] = 1.8 + 480 / table.n_params**0.35 + 2100 / table.n_tokens**0.35
    kw = dict(**ND, flops="flops", bootstrap=0, profile=False, sensitivity=False)
    r = fit_file(csv(table), approach=["isoflop"], **kw)
    assert r.frontiers[0].exponent == pytest.approx(0.5, abs=0.01)
    assert "isoflop: N* = G C^a from 5 budgets, a = 0.5" in r.to_text()
    sizes, steps = np.geomspace(1e7, 3e9, 12), np.geomspace(3e7, 3e12, 60)
    curves = pd.DataFrame(
        {"n_params": np.repeat(sizes, 60), "n_tokens": np.tile(steps, 12), "run": np.repeat(np.arange(12), 60)}
    )
    curves["flops"] = 6 * curves.n_params * curves.n_tokens
    curves["loss"] = 1.8 + 480 / curves.n_params**0.35 + 2100 / curves.n_tokens**0.35
    r = fit_file(csv(curves), approach=["envelope"], run="run", **kw)
    assert r.runs == 12 and r.frontiers[0].exponent == pytest.approx(0.5, abs=0.03)
    assert "at the edge of the sizes trained" in r.to_text()
