"""The published tables: what each fit must reach, and where the published number is not the optimum."""

from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pandas as pd
import pytest
from places import ROOT, TESTS
from published_laws import AUTHORS, DATA, FITTED, PUBLISHED_R2, curve_rows, curves, mean_r2

from scalade.results.laws import (
    Objective,
    choose_strength,
    fit,
    fit_file,
    fit_with_prior,
    forecast,
    get_law,
    isoflop,
    rows,
    with_profiles,
)
from scalade.results.laws.resample import resample_weights
from scalade.results.laws.solver import minimise

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared tables are not beside the checkout")

ND = dict(params="n_params", tokens="n_tokens")
OPTIMUM = dict(A=477.83, B=2143.42, E=1.81722, alpha=0.347311, beta=0.367172)
PUBLISHED = dict(A=482.01, B=2085.43, E=1.8172, alpha=0.3478, beta=0.3658)


@pytest.fixture(scope="module")
def chinchilla():
    frame = pd.read_csv(DATA / "chinchilla_epoch.csv")
    return rows(get_law("chinchilla"), frame[~frame.outlier], ND, "loss")


def objective_at(r, natural) -> float:
    """Sum of Huber(1e-3), written out again in float64 without our solver."""
    z = np.stack(
        [
            np.log(natural["A"]) - natural["alpha"] * np.log(r.columns["params"]),
            np.log(natural["B"]) - natural["beta"] * np.log(r.columns["tokens"]),
            np.full(len(r.y), np.log(natural["E"])),
        ]
    )
    a = np.abs(np.log(r.y) - np.logaddexp.reduce(z))
    return float(np.where(a < 1e-3, a**2 / 2, 1e-3 * (a - 5e-4)).sum())


def test_chinchilla_is_at_the_true_minimum(chinchilla):
    f = fit("chinchilla", chinchilla)
    assert f.value == pytest.approx(0.00101827401780, abs=2e-13)
    assert f.value == pytest.approx(objective_at(chinchilla, f.natural), rel=1e-9)
    assert f.value <= objective_at(chinchilla, PUBLISHED) and f.value <= objective_at(chinchilla, OPTIMUM)
    for name, want in OPTIMUM.items():
        assert f.natural[name] == pytest.approx(want, rel=1e-5), name
    assert f.convergence.at_optimum == f.convergence.starts == 16
    assert f.convergence.gradient < 1e-6
    assert 3e3 < f.convergence.condition < 5e3 and f.convergence.condition_natural > 1e13


def test_the_published_point_is_the_limit_of_small_delta(chinchilla):
    f = fit("chinchilla", chinchilla, objective=Objective("l1"))
    for name, want in PUBLISHED.items():
        assert f.natural[name] == pytest.approx(want, rel=1e-3), name


@pytest.mark.slow
def test_chinchilla_bootstrap_standard_errors(chinchilla):
    f = fit("chinchilla", chinchilla, bootstrap_draws=4000)
    se = dict(zip(f.law.names, f.natural_draws().std(0), strict=True))
    for name, want, tolerance in (
        ("A", 124.5, 0.1),
        ("B", 1293, 0.25),
        ("E", 0.0257, 0.1),
        ("alpha", 0.0154, 0.1),
        ("beta", 0.0206, 0.1),
    ):
        assert se[name] == pytest.approx(want, rel=tolerance), name  # B has a heavy tail: its se moves with the seed
    assert f.draws_converged > 0.999


@pytest.mark.slow
def test_resamples_started_at_the_optimum_end_where_many_starts_end(chinchilla):
    f = fit("chinchilla", chinchilla)
    w = resample_weights(chinchilla.cluster, 100, np.random.default_rng(0))
    one = minimise(f.law, f.inputs, f.log_y, np.repeat(f.theta[None], 100, 0), weights=w)
    starts = f.law.starts(f.inputs, f.log_y)[::2]
    many = minimise(f.law, f.inputs, f.log_y, np.tile(starts, (100, 1)), weights=np.repeat(w, len(starts), 0))
    best = many.objective.reshape(100, -1).min(1)
    assert np.mean(one.objective <= best * (1 + 1e-6)) >= 0.99


@pytest.mark.parametrize(
    "replicas, A, alpha",
    [(0, 18.129, -0.0953), (1, 18.363, -0.0961), (2, 18.768, -0.0969), (4, 19.762, -0.0992), (8, 21.051, -0.1018)],
)
def test_diloco_table_7(replicas, A, alpha):
    r = fit_file(
        DATA / "diloco_losses.csv",
        law="diloco",
        params="n_params_nominal",
        objective="squares",
        where=f"split == 'fit' and replicas_M == {replicas}",
        bootstrap=0,
    )
    got = r.fit.natural
    assert round(got["alpha"], 4) == pytest.approx(alpha, abs=1.01e-4)  # the table has four digits
    assert got["A"] == pytest.approx(A, rel=3e-3)


def test_diloco_joint():
    r = fit_file(
        DATA / "diloco_losses.csv",
        law="diloco_joint",
        params="n_params_nominal",
        columns={"replicas": "replicas_M"},
        objective="squares",
        where="split == 'fit' and replicas_M > 0",
        bootstrap=0,
        profile=False,
        sensitivity=False,
    )
    got = r.fit.natural
    assert got["A"] == pytest.approx(19.226, rel=3e-3)
    assert got["alpha"] == pytest.approx(-0.0985, abs=1e-4) and got["beta"] == pytest.approx(0.0116, abs=1e-4)


def test_gadre_five_points_predict_the_two_large_runs():
    frame = pd.read_csv(DATA / "gadre_losses_long.csv")
    frame = frame[(frame.dataset == "rpj") & (frame.val == "c4_val")]
    small = frame.N < 1e9
    fitted = frame[(small & (frame.mult == 1)) | ((frame.N < 2e7) & (frame.mult == 16))]
    far = frame[(frame.N > 1e9) & ((frame.mult == 32) | (frame.N > 2e9))].sort_values("N")
    law = get_law("overtraining")
    f = fit(
        law,
        rows(law, fitted, dict(params="N", tokens="D"), "loss"),
        objective=Objective("raw_squares"),
        bootstrap_draws=100,
    )
    assert len(fitted) == 5 and "too few runs" in f.no_draws
    error = np.abs(f.predict({"params": far.N.to_numpy(), "tokens": far.D.to_numpy()}) / far.loss.to_numpy() - 1)
    assert error == pytest.approx([0.0071, 0.0073], abs=1e-4)


def muennighoff(**more):
    fix = {
        "A": float(np.exp(6.255414)),
        "B": float(np.exp(7.3049974)),
        "E": float(np.exp(0.6254804)),
        "alpha": 0.3526596,
        "beta": 0.3526596,
    }
    return fit_file(
        DATA / "datablations_c4_182.csv",
        law="data_constrained",
        params="N",
        tokens="D",
        columns={"unique_tokens": "U"},
        fix=fix,
        sensitivity=False,
        **more,
    )


@pytest.mark.slow
def test_the_published_repetition_constant_is_refused():
    r = muennighoff(bootstrap=600)
    by_name = {e.name: e for e in r.parameters}
    data = by_name["R_D*"]
    assert data.value is None and not data.identified and "not identified" in r.to_text()
    assert 4 < data.low < 9 and data.high > 1e9  # laws.md: 6.5 to 2e11
    assert data.profile[0] < 15.39 and data.profile[1] is None
    assert by_name["R_N*"].identified
    published = r.fit.law.theta(r.fit.natural | {"R_D*": 15.387756, "R_N*": 5.309743}, r.fit.inputs.centre)
    a = np.abs(r.fit.log_y - r.fit.law.log_predict(published[None], r.fit.inputs, derivatives=False)[0][0])
    q = np.minimum(a, 1e-3)
    assert (q * (a - q / 2)).sum() == pytest.approx(0.0158259, rel=1e-5)  # the authors' own minimum
    assert r.objective_value < 0.0158259


@pytest.mark.slow
def test_farseer_chinchilla_and_the_end_of_additivity():
    r = fit_file(DATA / "farseer_dense.csv", **ND, loss="loss_bits_per_char", bootstrap=1000, sensitivity=False)
    e = {p.name: p for p in r.parameters}
    assert e["alpha"].value == pytest.approx(0.2805, abs=2e-4) and e["beta"].value == pytest.approx(0.3117, abs=2e-4)
    assert e["E"].value == pytest.approx(0.3687, abs=2e-4)
    assert (e["alpha"].low, e["alpha"].high) == pytest.approx((0.231, 0.339), abs=0.012)
    assert (e["beta"].low, e["beta"].high) == pytest.approx((0.290, 0.333), abs=0.006)
    s = fit_file(
        DATA / "farseer_dense.csv", law="skaling", **ND, loss="loss_bits_per_char", bootstrap=300, sensitivity=False
    )
    k = s.parameters[-1]
    assert k.name == "k" and k.value == pytest.approx(0.475, abs=0.01) and k.high < 1 and k.profile[1] < 1
    own = fit("farseer", s.fit.rows)
    assert own.value < s.objective_value < r.objective_value and own.convergence.at_optimum >= 8


@pytest.mark.parametrize("size", AUTHORS)
def test_the_authors_parameters_predict_as_they_say(size):
    """Our reading of the schedules is theirs, the jump at the record included."""
    law = get_law("multipower")
    given = curve_rows(law, curves(size, FITTED))
    centre = law.prepare(given.columns).centre
    theirs = law.theta(dict(zip(law.names, AUTHORS[size], strict=True)), centre)
    f = fit(law, given, start=theirs)  # its centre is what the prediction needs
    assert mean_r2(f, theirs, size) == pytest.approx(PUBLISHED_R2[size], abs=2e-4)


@pytest.mark.slow
def test_schedules_predict_the_curves_left_out():
    law, tissue = get_law("multipower"), get_law("annealing")
    given = {size: curve_rows(law, curves(size, FITTED)) for size in AUTHORS}
    strength, tried = choose_strength(law, list(given.values()))
    assert strength < tried[-1][0] and strength == 3000  # the grid does not end what the runs choose
    for size, rows_ in given.items():
        f = fit_with_prior(law, rows_, strength)
        assert f.convergence.at_optimum >= 8 and f.convergence.gradient < 1e-5
        assert mean_r2(f, f.theta, size) >= PUBLISHED_R2[size]
        # the plain minimum fits better and predicts worse; the authors' parameters are no minimum of their objective
        theirs = law.theta(dict(zip(law.names, AUTHORS[size], strict=True)), f.inputs.centre)
        at_theirs = f.objective.of(f.log_y, law.log_predict(theirs[None], f.inputs, derivatives=False)[0][0])
        assert f.plain.value < f.value and f.plain.value < 0.6 * at_theirs
        assert mean_r2(f, f.plain.theta, size) < mean_r2(f, f.theta, size) - 5e-4
        g = fit(tissue, curve_rows(tissue, curves(size, FITTED)))
        assert mean_r2(g, g.theta, size) >= 0.997  # published: 0.993 to 0.996


def test_isoflop_follows_the_published_exponents():
    frame = pd.read_csv(DATA / "porian_isoflop_points.csv")
    for hparams, decay, count, want in (
        ("base", "kaplan", "kaplan", 0.88),
        ("base", "chinchilla", "standard", 0.56),
        ("tuned", "const", "standard", 0.50),
    ):
        f = frame[
            (frame.file == "summary_df_owt2")
            & (frame.hparams == hparams)
            & (frame.decay == decay)
            & (frame.param_count == count)
        ]
        got = isoflop(f.N, f.flops, f.loss, nearest=7)
        assert (
            got.exponent == pytest.approx(want, abs=0.03)
            and got.exponent_interval[0] < got.exponent < got.exponent_interval[1]
        )


def sweeps():
    frame = pd.read_csv(DATA / "gadre_losses_long.csv")
    law, own = get_law("chinchilla"), dict(params="N", tokens="D")
    # of the three only this: the others are in `test_forecasts_that_miss_their_goal_miss_it_as_docs_laws_says`
    yield rows(law, frame[(frame.dataset == "rpj") & (frame.val == "c4_val")], own, "loss")
    yield rows(law, pd.read_csv(DATA / "farseer_dense.csv"), ND, "loss_bits_per_char")
    frame = pd.read_csv(DATA / "chinchilla_epoch.csv")
    yield rows(law, frame[~frame.outlier], ND, "loss")
    frame = pd.read_csv(DATA / "porian_isoflop_points.csv")
    for _, f in frame[(frame["file"] == "summary_df_owt2") & (frame.warmup == "short")].groupby("decay"):
        yield rows(law, f, own, "loss")
    long = (frame["file"] == "summary_df_owt2") & (frame.warmup == "long") & (frame.param_count == "standard")
    yield rows(law, frame[long], own, "loss")  # the laws alone do not foresee the error above


@pytest.mark.slow
def test_calibrated_intervals_hold_above_the_fitted_compute_where_plain_ones_do_not():
    plain, calibrated, width = [], [], []
    for r in sweeps():
        compute = 6 * r.columns["params"] * r.columns["tokens"]
        top = compute > np.quantile(compute, 0.85)
        train, test = r.take(~top), r.take(top)
        c = forecast(["chinchilla", "skaling", "kaplan"], train, compute[~top])
        _, low, high = c.predict(test.columns)
        calibrated.append(np.mean((low <= test.y) & (test.y <= high)))
        width.append(np.median(high / low - 1))
        f = fit("chinchilla", train, bootstrap_draws=150)
        a, b = np.exp(np.percentile(f.log_predict(test.columns, f.draws), [2.5, 97.5], axis=0))
        plain.append(np.mean((a <= test.y) & (test.y <= b)))
    assert np.sum(np.array(plain) < 0.35) >= 4
    assert min(calibrated) >= 0.9 and max(width) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gadre c4_original", "gadre rw_original", "datablations, up to 4 epochs", "diloco, M of 1 to 8"]
)
def test_forecasts_that_miss_their_goal_miss_it_as_docs_laws_says(name):
    """The sweeps on which coverage is below .9 or the rival scores better: mended is as wrong here as worse."""
    docs = (ROOT / "docs" / "laws.md").read_text()
    cells = next(line for line in docs.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")
    said, rival = ([float(v.rstrip("%")) for v in cell.split(", ")] for cell in cells[-2:])
    assert said[0] < 90 or said[2] > rival[2]
    spec = spec_from_file_location("forecast_intervals", TESTS / "benchmarks" / "forecast_intervals.py")
    bench = module_from_spec(spec)
    spec.loader.exec_module(bench)
    law, table = next((law, table) for sweep, law, table in bench.sweeps(DATA) if sweep == name)
    coverage, width, score = bench.judged(bench.ours, law, *bench.split(law, table))
    known = [said, *([[100.0, 37.6, 0.490]] if name == "gadre rw_original" else [])]  # without AVX-512: docs/laws.md
    found = (100 * coverage, 100 * width, score)
    assert any(found == pytest.approx(tuple(each), rel=0.03, abs=0.01) for each in known), found


def test_report_on_the_issues_own_command():
    r = fit_file(
        DATA / "chinchilla_epoch.csv",
        law="chinchilla",
        params="n_params",
        tokens="n_tokens",
        loss="loss",
        where="outlier == False",
        bootstrap=500,
        target_flops=[5.76e23],
        flops="train_flops",
    )
    text = r.to_text()
    assert "240 rows of 240 runs from chinchilla_epoch.csv; 5 left out (where)" in text
    assert "with the 5 rows left out by where   245" in text and "16 of 16 starts" in text
    low, high = r.optima[0].params_interval
    assert low < r.optima[0].params < high and 0.45 < r.optima[0].exponent < 0.58


def test_sensitivity_shows_that_five_outliers_move_beta(chinchilla):
    r = fit_file(DATA / "chinchilla_epoch.csv", **ND, where="outlier == False", bootstrap=0, profile=False)
    rest = next(s for s in r.sensitivity if "left out by where" in s.setting)
    assert rest.n == 245 and rest.parameters["beta"] > 0.42
    assert {s.setting for s in r.sensitivity} >= {"huber 0.0001", "huber 0.01", "huber 0.1", "l1", "squares"}


def test_profile_knows_the_chinchilla_table_identifies_everything(chinchilla):
    f = with_profiles(fit("chinchilla", chinchilla))
    assert all(p.identified for p in f.profiles)
    for p in f.profiles:
        assert p.low < f.natural[p.name] < p.high
        assert min(p.rise) == 0.0  # no profile found a lower point
