"""Tables that hold rows of two kinds: what is said of them, and that sound tables are left alone."""

import numpy as np
import pandas as pd
import pytest

from scalade.results.laws import fit_file


def table(n=48, seed=0, noise=0.004) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(1e7), np.log(3e9), n))
    D = N * np.exp(rng.uniform(np.log(2), np.log(200), n))
    L = (480 / N**0.35 + 2100 / D**0.37 + 1.8) * np.exp(noise * rng.standard_normal(n))
    return pd.DataFrame(dict(n_params=N, n_tokens=D, loss=L))


def warnings(t: pd.DataFrame, **more) -> list[str]:
    r = fit_file(t, params="n_params", tokens="n_tokens", bootstrap=0, profile=False, sensitivity=False, **more)
    return [note for note in r.notes if note.startswith("WARNING")]


def refusal(t: pd.DataFrame) -> str:
    with pytest.raises(ValueError) as error:
        fit_file(t, params="n_params", tokens="n_tokens", bootstrap=0, profile=False)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sound_table_wants_no_word():
    t = table()
    assert warnings(t) == [] and warnings(t.assign(host=["a", "b"] * 24)) == []


@pytest.mark.parametrize("column, unit", [("n_params", 1e3), ("n_tokens", 1e3)])
def test_thousands_in_half_of_the_rows_are_refused(column, unit):
    t = table()
    t.loc[::2, column] /= unit  # no gap in the column itself
    line = refusal(t)
    assert "units are mixed" in line and "tokens a parameter" in line and "rows " in line and "--anyway" in line


def test_two_ratios_that_the_law_holds_are_a_design():
    t = table()
    t.loc[::2, "n_tokens"] = 20 * t.n_params[::2] * np.exp(0.1 * np.random.default_rng(1).standard_normal(24))
    t.loc[1::2, "n_tokens"] = 6000 * t.n_params[1::2]
    t["loss"] = 480 / t.n_params**0.35 + 2100 / t.n_tokens**0.37 + 1.8
    assert warnings(t) == []


@pytest.mark.parametrize("objective", ["huber", "squares"])
def test_one_row_in_other_units_is_named(objective):
    t = table()
    t.loc[7, "n_tokens"] /= 1e3
    (line,) = warnings(t, objective=objective)
    assert "row 7 lies -" in line and "% off the law" in line and "check units" in line


def test_training_and_validation_in_one_column_are_told_apart():
    t = table()
    both = pd.concat([t.assign(split="val"), t.assign(split="train", loss=0.97 * t.loss)], ignore_index=True)
    (line,) = warnings(both)
    assert "column 'split' tells" in line and "'train' lies 3.1% below 'val'" in line
    assert "--where \"split == 'val'\"" in line and warnings(both, where="split == 'val'") == []
    (line,) = warnings(both.drop(columns="split"))
    assert "48 pairs of rows agree in params and tokens and differ in it by 3.1% each" in line


def test_repeats_with_other_seeds_are_no_two_kinds():
    t = pd.concat([table(noise=0), table(noise=0)], ignore_index=True)
    t["loss"] *= np.exp(0.01 * np.random.default_rng(0).standard_normal(len(t)))
    assert warnings(t) == []


def test_a_column_that_names_the_runs_is_no_kind():
    t = table(6, noise=0.0)
    rng = np.random.default_rng(0)
    some = [t.assign(n_tokens=t.n_tokens * k / 8) for k in range(1, 9)]
    curves = pd.concat(some, ignore_index=True)
    curves["loss"] = 480 / curves.n_params**0.35 + 2100 / curves.n_tokens**0.37 + 1.8
    curves["loss"] *= np.exp(np.tile(0.02 * rng.standard_normal(6), 8))
    assert warnings(curves.assign(name=np.tile(list("abcdef"), 8))) == []


def test_bits_among_nats_scatter_as_no_sweep_does():
    t = table()
    t.loc[::2, "loss"] /= np.log(2)
    (line,) = warnings(t)
    assert "scatter by" in line and "mixed" in line
