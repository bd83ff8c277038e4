"""Large tables: a sample, sums over all rows and one Newton step a resample give what the whole machinery gives."""

import numpy as np
import pandas as pd
import pytest

from scalade.cli import fit as cli_fit
from scalade.results.laws import Objective, fit, fit_file, large, with_profiles
from scalade.results.laws.table import Rows


def table(n=3000, runs=None, E=1.8, seed=0) -> Rows:
    rng = np.random.default_rng(seed)
    N, D = np.exp(rng.uniform(16, 23, n)), np.exp(rng.uniform(18, 27, n))
    cluster = np.arange(n) if runs is None else np.repeat(np.arange(runs), n // runs)
    shared = 0.0 if runs is None else 0.01 * rng.standard_normal(runs)[cluster]
    y = (480 / N**0.35 + 2100 / D**0.37 + E) * np.exp(0.01 * rng.standard_normal(n) + shared)
    return Rows({"params": N, "tokens": D}, y, cluster, np.arange(n))


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(large, "LARGE", 600)
    monkeypatch.setattr(large, "BLOCK", 700)  # no divisor of the rows


@pytest.mark.parametrize("objective", [Objective(), Objective("squares"), Objective("huber", 0.01)])
@pytest.mark.parametrize("runs", [None, 150])
def test_the_large_way_is_the_other_way(small_limit, monkeypatch, objective, runs):
    r = table(runs=runs)
    quick = with_profiles(fit("chinchilla", r, objective=objective, bootstrap_draws=300))
    assert quick.sample is not None and 300 < len(quick.sample.rows.y) < 900
    monkeypatch.setattr(large, "LARGE", 10**9)
    whole = fit("chinchilla", r, objective=objective, bootstrap_draws=300)
    assert whole.sample is None and quick.value == pytest.approx(whole.value, rel=1e-9)
    assert quick.convergence.gradient < 1e-4
    for name, value in whole.natural.items():
        assert quick.natural[name] == pytest.approx(value, rel=1e-4), name
    assert quick.natural_draws().std(0) == pytest.approx(whole.natural_draws().std(0), rel=0.2)
    if runs is None:
        for p, q in zip(with_profiles(whole).profiles, quick.profiles, strict=True):
            assert q.high - q.low == pytest.approx(p.high - p.low, rel=0.35)
            assert q.low < quick.natural[p.name] < q.high


def test_a_large_table_at_a_bound_and_with_a_parameter_held(small_limit, monkeypatch):
    r = table(E=0.0)
    a, b = fit("chinchilla", r), fit("chinchilla", r, fix={"beta": "alpha"})
    monkeypatch.setattr(large, "LARGE", 10**9)
    assert a.value <= fit("chinchilla", r).value * (1 + 1e-7)
    assert b.value <= fit("chinchilla", r, fix={"beta": "alpha"}).value * (1 + 1e-7)
    assert b.natural["beta"] == pytest.approx(b.natural["alpha"], rel=1e-9)


def test_the_report_says_what_is_of_the_sample_and_progress_is_told(small_limit):
    r, seen = table(), []
    t = pd.DataFrame(dict(params=r.columns["params"], tokens=r.columns["tokens"], loss=r.y))
    report = fit_file(t, bootstrap=100, progress=lambda stage, share: seen.append(stage))
    assert "a random 600 of them" in report.to_text() and report.rows == 3000
    assert {"search on a sample", "all rows", "bootstrap", "sensitivity"} <= set(seen)
    assert max(s.n for s in report.sensitivity) == 600


def test_progress_is_for_terminals(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert cli_fit._progress() is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    cli_fit._progress()("all rows", 0.5)
    assert "all rows: 50%" in capsys.readouterr().err
