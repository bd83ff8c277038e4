"""Efficiency from simulated tables: exact values, refusals that name exactly what differs, exact intervals."""

import json
from math import fsum

import numpy as np
import pytest
from efficiency_table import as_columns, repeats, run, steps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, mannwhitneyu

from scalade.results.efficiency import efficiency
from scalade.results.efficiency.breakdown import breakdown
from scalade.results.efficiency.grouping import groups
from scalade.results.efficiency.loss import steps_to_loss
from scalade.results.efficiency.report import EfficiencyReport
from scalade.results.efficiency.series import Options, read_series
from scalade.results.efficiency.workload import MUST_MATCH, TOKENS, allowed, guess_mode
from scalade.results.schema.schema import columns
from scalade.results.stats import rank_intervals as ranks
from scalade.results.store.store import RunStore


def read(rows, steps=None, mode="strong", **options):
    return read_series(groups(rows)[0], steps or {}, Options(mode, draws=0, **options))


def only(series):
    (one,) = series
    return one


@given(st.lists(st.integers(1, 512), min_size=2, max_size=6, unique=True), st.floats(1e-3, 1e3), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_perfect_strong_scaling_is_one(counts, time_s, runs):
    series, refused = read([row for n in counts for row in repeats(n, time_s / n, runs)])
    base, *points = only(series).points
    assert not refused and base.group.devices == min(counts) and base.efficiency is None
    assert sorted(p.group.devices for p in points) == sorted(counts)[1:]
    for point in points:
        assert point.efficiency.value == pytest.approx(1, rel=1e-9)
        assert point.speedup.value == pytest.approx(point.group.devices / base.group.devices, rel=1e-9)
        assert point.ideal_tokens_per_s == pytest.approx(point.tokens_per_s.value, rel=1e-9)
        assert (point.efficiency.low is None) == (runs < 6)


@given(st.lists(st.integers(1, 64), min_size=2, max_size=6, unique=True), st.floats(0.2, 1.5))
@settings(max_examples=40, deadline=None)
def test_weak_scaling_is_the_ratio_of_times(counts, slower):
    smallest = min(counts)
    rows = [row for n in counts for row in repeats(n, 1.0 if n == smallest else slower, global_batch=4 * n)]
    series, refused = read(rows, mode="weak")
    assert not refused and guess_mode(groups(rows)[0]) == "weak"
    for point in only(series).points[1:]:
        assert point.efficiency.value == pytest.approx(1 / slower, rel=1e-9)


def test_throughput_and_step_time_are_one_efficiency_and_two_speedups():
    rows = [*repeats(1, 1.0, global_batch=8), *repeats(4, 1.25, global_batch=32)]
    by_rate = only(read(rows, mode="weak")[0]).points[1]
    by_time = only(read(rows, mode="weak", form="step_time")[0]).points[1]
    assert by_rate.efficiency == by_time.efficiency and by_rate.efficiency.value == pytest.approx(0.8)
    assert (by_rate.speedup.value, by_time.speedup.value) == (pytest.approx(3.2), pytest.approx(0.8))


def another(name: str, value: object) -> object:
    """A value of the column's type that is not this one."""
    kind = columns("runs")[name].type
    if kind == "bool":
        return not value
    return f"{value}x" if kind == "string" else (value or 0) + 1


@given(st.sets(st.sampled_from((*MUST_MATCH, TOKENS)), min_size=1))
@settings(max_examples=80, deadline=None)
def test_a_refusal_names_exactly_the_columns_that_differ(names):
    base, other = run(1, 1.0), run(4, 0.3)
    other |= {name: another(name, other.get(name)) for name in names}
    series, (refusal,) = read([base, other])
    assert set(refusal.columns) == names and len(refusal.columns) == len(names)
    assert refusal.run_ids == (other["run_id"],) and all(name in refusal.why for name in names)
    assert len(only(series).points) == 1  # the base alone: no ratio was formed
    series, refused = read([base, other], allow=tuple(names))
    assert not refused and set(only(series).points[1].allowed) == names


@given(st.integers(2, 32), st.integers(1, 40))
def test_weak_scaling_refuses_another_batch_per_device(devices, batch):
    rows = [run(1, 1.0, global_batch=8), run(devices, 1.0, global_batch=batch)]
    series, refused = read(rows, mode="weak")
    assert [one.columns for one in refused] == ([] if batch == 8 * devices else [(TOKENS,)])


def test_what_is_not_part_of_the_work_may_differ():
    rows = [run(1, 1.0), run(4, 0.3, seed=7, study="other", data_path="/elsewhere", git_commit="def")]
    series, refused = read(rows)
    assert not refused and only(series).points[1].efficiency.value == pytest.approx(1 / 1.2)


def test_seeds_of_a_case_are_its_repeats():
    rows = [run(n, 1 / n, case_id=f"{n}-{seed}", seed=seed) for n in (1, 2) for seed in range(6)]
    point = only(read(rows)[0]).points[1]
    assert point.efficiency.runs == 6 and point.efficiency.low is not None


def test_more_threads_on_one_process_are_another_device():
    rows = [run(1, 1.0, device_type="cpu", threads_per_rank=2), run(2, 0.6, device_type="cpu")]
    _, (refusal,) = read(rows)
    assert refusal.columns == ("threads_per_rank",)
    assert refusal.why.startswith(
        "differs from single on 1 rank in threads_per_rank (1, there 2): set "
        "run.threads_per_rank = 1 in the study and run it again"
    )
    assert not read(rows, allow=("threads_per_rank",))[1]


def test_values_stand_beside_the_column_that_they_are_of():
    """One thread waits for none, and the tokens of a step differ, too."""
    rows = [
        run(1, 1.0, device_type="cpu", threads_per_rank=2, omp_wait_policy="passive"),
        run(2, 0.6, device_type="cpu", global_batch=32),
    ]
    assert (
        "in threads_per_rank (1, there 2), omp_wait_policy, tokens_per_step (4,096 against 8,192): set "
        "run.threads_per_rank = 1" in read(rows)[1][0].why
    )


def test_repeats_whose_threads_waited_otherwise_are_not_one_group():
    """An older table that is gone on with: r0 spun, r1 sleeps."""
    waits = (None, "passive", "passive")
    for device, sizes in (("cpu", [1, 2]), ("cuda", [3])):
        rows = [run(1, 1.0, i, device_type=device, omp_wait_policy=policy) for i, policy in enumerate(waits)]
        assert sorted(len(group.rows) for group in groups(rows)[0]) == sizes


def test_series_of_one_model_say_what_tells_them_apart(tmp_path):
    store = RunStore(tmp_path)
    for n, lr in ((1, 1e-3), (2, 1e-3), (1, 3e-3), (2, 3e-3)):
        row = run(n, 1 / n, lr=lr, case_id=f"{n}-{lr}", run_id=f"{n}-{lr}-r0")
        store.write_run({name: value for name, value in row.items() if name not in ("step_rows", "eval_rows")})
    titles = [line for line in efficiency(tmp_path, draws=0).to_text().splitlines() if line.startswith("torch, dp")]
    assert [title.rsplit(", ", 1)[1] for title in titles] == ["lr 0.001", "lr 0.003"]
    alone = efficiency(tmp_path, draws=0, where="lr == 0.001").to_text()
    assert ", lr " not in alone


def test_threads_that_wait_otherwise_are_another_device_only_where_they_compute():
    """A table written before the column was, beside runs of today: one thread waits for none, two do."""
    for device, there in (("cpu", True), ("cuda", False)):
        rows = [run(1, 1.0, device_type=device), run(2, 0.6, device_type=device, omp_wait_policy="passive")]
        refused = read(rows)[1]
        assert [one.columns for one in refused] == ([("omp_wait_policy",)] if there else [])
        assert all("(passive, there not told): run both again" in one.why for one in refused)


@pytest.mark.parametrize("device, columns_named", [("cpu", ("cpu_model",)), ("cuda", None)])
def test_another_processor_is_another_device_only_where_it_computes(device, columns_named):
    rows = [run(1, 1.0, device_type=device, cpu_model="a"), run(2, 0.6, device_type=device, cpu_model="b")]
    _, refused = read(rows)
    assert [one.columns for one in refused] == ([columns_named] if columns_named else [])


def test_each_family_has_its_own_smallest_base_and_a_single_process_serves_all():
    def family(n, time_s, **degrees):
        name = "-".join(f"{k}{v}" for k, v in degrees.items())
        return run(n, time_s, **({"dp_replicate": 1} | degrees | {"layout": name}))

    rows = [family(2, 1.0, tp=2), family(4, 0.5, tp=4), family(4, 0.8, dp_shard=4), family(8, 0.4, dp_shard=8)]
    series, refused = read(rows)
    assert not refused
    found = {one.family: (one.base.group.devices, [p.efficiency.value for p in one.points[1:]]) for one in series}
    assert found == {"tp": (2, [pytest.approx(1)]), "fsdp": (4, [pytest.approx(1)])}
    series, _ = read([run(1, 1.6), *rows])
    found = {one.family: [round(p.efficiency.value, 6) for p in one.points[1:]] for one in series}
    assert found == {"tp": [0.8, 0.8], "fsdp": [0.5, 0.5]}


def test_another_engine_needs_a_declared_base():
    rows = [run(1, 1.0), run(2, 0.5), run(2, 0.4, layout="deepspeed.dp2", engine="deepspeed")]
    series, refused = read(rows)
    assert not refused and {one.engine: len(one.points) for one in series} == {"torch": 2, "deepspeed": 1}
    found = groups(rows)[0]
    series, refused = read_series(found, {}, Options("strong", draws=0), declared=[found[0]])
    ratios = {one.engine: one.points[1].efficiency.value for one in series}
    assert not refused and ratios == {"torch": pytest.approx(1.0), "deepspeed": pytest.approx(1.25)}


def test_the_outer_algorithm_is_work_and_its_replicas_are_layout():
    outer = {"outer_algorithm": "diloco", "outer_sync_every": 8, "dp_replicate": 1}
    rows = [run(1, 1.0), *(run(n, 1 / n, layout="single", outer_replicas=n, **outer) for n in (2, 4))]
    series, (refusal,) = read(rows)
    assert refusal.columns == ("outer_algorithm", "outer_sync_every") and refusal.base == "single on 1 rank"
    diloco = next(one for one in series if one.family == "diloco")
    assert [p.group.devices for p in diloco.points] == [2, 4]
    series, refused = read(rows, allow=allowed(["outer"]))
    assert not refused and {p.group.devices for one in series for p in one.points[1:]} == {2, 4}


def test_allowed_names_are_checked():
    with pytest.raises(ValueError, match="'lrr': is no column of the runs; did you mean 'lr'"):
        allowed(["lrr"])
    with pytest.raises(ValueError, match="'seed': need not match"):
        allowed(["seed"])


# intervals


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from((0.8, 0.9, 0.95, 0.99)))
def test_the_mann_whitney_cut_is_exact(m, n, level):
    """Against scipy's exact distribution: P(U <= k) from the p-value of samples whose U is known."""

    def tail(u):  # P(U <= u), by a pair of samples with U = u
        whole, part = divmod(u, n) if n else (0, 0)
        y = np.arange(n) * 2.0
        x = [-1.0] * (m - whole - (part > 0)) + ([2.0 * part - 1] if part else []) + [2.0 * n] * whole
        x = np.array(x) + np.linspace(0, 0.1, m)
        assert mannwhitneyu(x, y).statistic == u
        return mannwhitneyu(x, y, alternative="less", method="exact").pvalue

    cut, achieved = ranks.mann_whitney_cut(m, n, level)
    if cut is None:
        assert 1 - 2 * tail(0) < level
    else:
        assert achieved == pytest.approx(1 - 2 * tail(cut)) and achieved >= level
        assert 2 * (cut + 1) >= m * n or 1 - 2 * tail(cut + 1) < level


@given(st.integers(1, 60), st.sampled_from((0.8, 0.95, 0.99)))
def test_the_order_statistic_cut_is_exact(n, level):
    cut, achieved = ranks.order_statistic_cut(n, level)
    if cut is None:
        assert 1 - 2 * binom.cdf(0, n, 0.5) < level
    else:
        assert achieved == pytest.approx(1 - 2 * binom.cdf(cut, n, 0.5)) and achieved >= level
        assert 2 * (cut + 1) >= n or 1 - 2 * binom.cdf(cut + 1, n, 0.5) < level


@pytest.mark.parametrize("runs", [6, 9])
@pytest.mark.parametrize("shape", ["normal", "heavy", "skewed"])
def test_intervals_cover_at_the_stated_rate(shape, runs):
    """2,000 simulated efficiencies: the share covered is the exact level, within three standard errors."""
    rng = np.random.default_rng(runs)
    draw = {
        "normal": lambda: rng.normal(0, 0.03, (2000, runs)),
        "heavy": lambda: 0.02 * rng.standard_t(2, (2000, runs)),
        "skewed": lambda: rng.exponential(0.05, (2000, runs)),
    }[shape]
    above, below = np.exp(draw()) * 0.8, np.exp(draw())
    found = [ranks.ratio(a, b) for a, b in zip(above, below, strict=True)]
    achieved = found[0].achieved
    assert 0.95 <= achieved < 0.98
    covered = np.mean([one.low <= 0.8 <= one.high for one in found])
    assert abs(covered - achieved) < 3 * np.sqrt(achieved * (1 - achieved) / 2000)
    medians = [ranks.median(x) for x in below]
    truth = np.exp(0.05 * np.log(2)) if shape == "skewed" else 1.0
    covered = np.mean([one.low <= truth <= one.high for one in medians])
    achieved = medians[0].achieved
    assert abs(covered - achieved) < 3 * np.sqrt(achieved * (1 - achieved) / 2000)


def test_too_few_runs_give_the_range_and_no_interval():
    found = ranks.ratio([2.0, 3.0, 4.0], [1.0, 2.0] * 4)
    assert (found.low, found.high, found.note) == (None, None, "too few runs")
    assert (found.least, found.most) == (pytest.approx(1), pytest.approx(4)) and found.runs == 3
    assert ranks.ratio([1.0] * 6, [1.0] * 6).note is None


def test_one_wild_run_moves_a_ratio_little():
    calm, wild = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0], [1.0, 1.01, 0.99, 1.02, 0.98, 50.0]
    assert ranks.ratio(wild, calm).value == pytest.approx(ranks.ratio(calm, calm).value, rel=0.01)
    assert ranks.median(wild).value == pytest.approx(1.005)


def test_laws_are_fitted_to_the_fastest_layout_of_each_count():
    def pipeline(n, time_s, microbatches):
        degrees = {"dp_replicate": 1, "pp": n, "pp_schedule": "1F1B", "microbatches": microbatches}
        return repeats(n, time_s, 3, 0.3, np.random.default_rng(1), layout=f"pp{n}.m{microbatches}", **degrees)

    cases = [(n, slower / n, m) for n in (2, 4, 8) for m, slower in ((4, 1.3), (8, 1.0))]
    rows = [*repeats(1, 1.0), *(row for case in cases for row in pipeline(*case))]
    only_fast = [row for row in rows if row["microbatches"] != 4]
    both, fast = (next(s for s in read(some)[0] if s.family == "pp-1F1B") for some in (rows, only_fast))
    assert len(both.points) == 7 and len(fast.points) == 4
    assert [fit.to_dict() for fit in both.laws] == [fit.to_dict() for fit in fast.laws]


def test_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive"):
        ranks.ratio([1.0, 0.0], [1.0])


# where the time went


def test_the_breakdown_adds_up_and_what_was_not_measured_is_null():
    rows = repeats(4, 1.0, pp=4, pp_schedule="1F1B", microbatches=8, data_time_s=0.05, comm_time_s=0.4)
    bare = breakdown(rows, {})
    assert (bare.compute_s, bare.residual_s, bare.residual_flagged, bare.outer_s) == (None,) * 4
    assert (bare.data_s, bare.comm_unhidden_s) == (0.05, 0.4)
    assert bare.bubble_share_theory == pytest.approx(3 / 11)
    assert breakdown([row | {"optimizer_time_s": 0.1} for row in rows], {}).residual_s is None
    rows = [row | {"compute_time_s": 0.7, "optimizer_time_s": 0.1} for row in rows]
    assert breakdown(rows, {}).residual_s == pytest.approx(0.15) and breakdown(rows, {}).residual_flagged
    assert (breakdown(rows, {}).bubble_share, breakdown(rows, {}).compute_s) == (None, 0.7)
    rows = [row | {"exposed_comm_time_s": 0.2, "exposed_comm_time_min_s": 0.15} for row in rows]
    steps = {row["run_id"]: steps_of(row, [3.0] * 25) for row in rows}
    for some in steps.values():
        some[10]["outer_exposed_s"] = 2.0
        for row in some:
            row["outer_exposed_s"] = row["outer_exposed_s"] or 0.0
    steps = {run_id: as_columns(some) for run_id, some in steps.items()}
    assert breakdown(rows, steps).outer_s is None  # no outer loop: nothing was waited for
    rows = [row | {"outer_algorithm": "diloco"} for row in rows]
    less = breakdown([row | {"compute_time_s": 0.74} for row in rows], steps)
    assert less.residual_s == pytest.approx(0.01) and less.residual_flagged is False
    full = breakdown(rows, steps)
    assert full.compute_s == pytest.approx(0.5) and full.exposed_comm_s == pytest.approx(0.2)
    assert full.exposed_comm_min_s == 0.15 and full.optimizer_s == pytest.approx(0.1)
    assert full.outer_s == pytest.approx(2.0 / 20)  # 25 steps, 5 of them warm-up
    parts = (full.compute_s, full.exposed_comm_s, full.data_s, full.optimizer_s, full.outer_s, full.residual_s)
    assert sum(parts) == pytest.approx(full.step_s)
    amortised = breakdown([row | {"outer_round_exposed_s": 6.0, "outer_sync_every": 30} for row in rows], steps)
    assert amortised.outer_s == pytest.approx(6.0 / 30)  # of the period, not of the steps that the run has


def test_waits_are_taken_out_of_the_parts_they_are_in():
    times = {
        "data_time_s": 0.01,
        "compute_time_s": 0.7,
        "optimizer_time_s": 0.2,
        "exposed_comm_time_s": 0.12,
        "bubble_time_s": 0.24,
        "optimizer_wait_s": 0.1,
    }
    (row,) = repeats(2, 1.0, 1, pp=2, pp_schedule="1F1B", microbatches=4, **times)
    found = breakdown([row], {})
    assert found.optimizer_s == pytest.approx(0.1) and found.compute_s == pytest.approx(0.7 + 0.1 - 0.12 - 0.24)
    assert found.bubble_share == pytest.approx(0.24 / 0.8) and found.bubble_share_theory == pytest.approx(1 / 5)
    assert found.residual_s == pytest.approx(0.09) and found.residual_flagged
    parts = (found.compute_s, found.exposed_comm_s, found.bubble_s, found.optimizer_s, found.data_s, found.residual_s)
    assert sum(parts) == pytest.approx(1.0)


def test_the_text_tells_the_waits_the_bubble_beside_the_formula_and_the_residual():
    times = {
        "data_time_s": 0.01,
        "compute_time_s": 0.7,
        "optimizer_time_s": 0.2,
        "exposed_comm_time_s": 0.12,
        "exposed_comm_time_min_s": 0.05,
        "bubble_time_s": 0.24,
        "optimizer_wait_s": 0.1,
    }
    piped = repeats(2, 1.0, pp=2, dp_replicate=1, pp_schedule="1F1B", microbatches=4, layout="pp2-1F1B.m4", **times)
    (piped, *_), _ = read_series(groups([*repeats(1, 2.0), *piped])[0], {}, Options("strong"))
    lines = EfficiencyReport("r", Options("strong"), (piped,), (), ()).to_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "where the step went" in line)
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        "ranks layout step ms compute exposed comm bubble data optimizer outer residual of f+b by formula".split(),
        "1 single 2000.0 - - - - - - - - -".split(),
        "2 pp2-1F1B.m4 1000.0 44.0 12.0 (5.0) 24.0 1.0 10.0 - 9.0 ! 30.0 20.0".split(),
    ]
    assert lines[start + 4].strip() == (
        "of f+b: the bubble in forward and backward as measured; by formula (p-1)/(vm+p-1)"
    )
    assert lines[start + 5].strip() == "! more than 5% of the step is in no part that was measured"
    assert max(map(len, lines)) < 120


def test_a_part_that_one_run_lacks_is_null():
    rows = repeats(1, 1.0, 2, data_time_s=0.1)
    rows[1]["data_time_s"] = None
    assert breakdown(rows, {}).data_s is None


@pytest.mark.parametrize("schedule, share", [("GPipe", 1 / 5), ("Interleaved1F1B", 1 / 9), ("ZBVZeroBubble", None)])
def test_the_bubble_of_theory(schedule, share):
    stages = 2 if schedule != "GPipe" else 1
    (row,) = repeats(2, 1.0, 1, pp=2, pp_schedule=schedule, microbatches=4, virtual_stages=stages)
    assert breakdown([row], {}).bubble_share_theory == (share and pytest.approx(share))


# time to loss


@given(st.lists(st.floats(1, 10), min_size=1, max_size=40), st.integers(1, 12), st.floats(1, 10))
def test_steps_to_loss_is_the_first_window_below(losses, window, target):
    steps = as_columns([{"step": i, "loss": x} for i, x in enumerate(losses)][::-1])
    means = {end: np.mean(losses[end - window : end]) for end in range(window, len(losses) + 1)}
    reached = [end for end, mean in means.items() if mean <= target]
    found = steps_to_loss(steps, target, window)
    if not any(abs(mean - target) < 1e-9 for mean in means.values()):
        assert found == (min(reached) if reached else None)


def test_a_window_without_a_loss_reaches_nothing():
    steps = as_columns([{"step": i, "loss": x} for i, x in enumerate([1.0, None, 1.0, float("nan"), 1.0, 1.0])])
    assert steps_to_loss(steps, 2.0, 2) == 6 and steps_to_loss(steps, 2.0, 3) is None


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 9), st.integers(-3, 3))
def test_a_mean_that_is_the_target_reaches_it(tenths, window, target):
    """Sums of tenths are not exact: what counts is the mean as `fsum` has it."""
    losses = [x / 10 for x in tenths]
    wanted = next(
        (end for end in range(window, len(losses) + 1) if fsum(losses[end - window : end]) / window <= target / 10),
        None,
    )
    steps = as_columns([{"step": i, "loss": x} for i, x in enumerate(losses)])
    assert steps_to_loss(steps, target / 10, window) == wanted


def test_time_to_loss_is_steps_times_step_time():
    falling = [4.0 - 0.1 * i for i in range(30)]
    slower = [4.0 - 0.05 * i for i in range(30)]
    base, fast, never = run(1, 1.0), run(2, 0.5), run(4, 0.25)
    curves = ((base, falling), (fast, slower), (never, [4.0] * 30))
    steps = {row["run_id"]: as_columns(steps_of(row, losses)) for row, losses in curves}
    series, (refusal,) = read([base, fast, never], steps, form="loss", target_loss=3.2, loss_window=1)
    one = only(series)
    assert one.base.time_to_loss_s.value == 9.0 and one.points[1].time_to_loss_s.value == 17 * 0.5
    assert one.points[1].efficiency.value == pytest.approx(9.0 / 8.5 / 2)
    assert refusal.run_ids == (never["run_id"],)
    assert refusal.why == "loss 3.2 not reached in 30 steps, lowest loss of a step 4"
    series, _ = read([base, fast], {}, form="loss", target_loss=3.2)
    assert series == []


# from a results folder


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(3)
    store = RunStore(tmp_path / "results")
    rows = [r for n in (1, 2, 4, 8) for r in repeats(n, 0.1 + 0.9 / n, 6, 0.01, rng)]
    rows.append(run(16, None, status="oom", reason="rank 3: out of memory"))
    for row in rows:
        store.write_run({k: v for k, v in row.items() if k not in ("step_rows", "eval_rows")})
    return tmp_path / "results"


def test_a_folder_to_text_and_json(folder):
    report = efficiency(folder, published="mfu_palm", draws=200)
    assert report.exit_code == 0 and report.options.mode == "strong"
    content = json.loads(json.dumps(report.to_dict()))
    (series,) = content["series"]
    assert [p["devices"] for p in series["points"]] == [1, 2, 4, 8]
    assert series["points"][3]["efficiency"]["value"] == pytest.approx(1 / (1 + 0.1 * 7), rel=0.03)
    laws = {fit["law"]: fit for fit in series["laws"]}
    s = laws["amdahl"]["parameters"]["s"]
    assert s["low"] < 0.1 < s["high"] and s["high"] - s["low"] < 0.03
    assert {row["devices"] for row in series["curve"]} == {1, 2, 4, 8, 16}
    assert series["curve"][-1]["ideal_tokens_per_s"] > series["curve"][-1]["amdahl_tokens_per_s"]
    assert [one["why"] for one in content["refused"]] == ["oom: rank 3: out of memory"]
    text = report.to_text()
    for said in ("strong scaling, throughput", "base: single on 1 rank", "amdahl: s 0.1", "not compared"):
        assert said in text
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mode": "medium"}, "mode 'medium': allowed are strong, weak"),
        ({"form": "loss"}, "form loss and target_loss go together"),
        ({"base": "layout == nothing"}, "base 'layout == nothing': matches no run with status ok"),
        ({"where": "status == oom"}, "no timed run with status ok among the 1 run that match"),
        ({"published": "mfu"}, "published convention 'mfu': allowed are mfu_palm"),
        ({"level": 1.0}, "level must lie between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        efficiency(folder, **arguments)
    assert "\n" not in str(error.value)


def test_a_mixed_table_asks_for_the_mode(tmp_path):
    rows = [run(1, 1.0, global_batch=8), run(2, 1.0, global_batch=16), run(4, 1.0, global_batch=16)]
    with pytest.raises(ValueError, match=r"tokens_per_step is neither the same in all runs \(1,024, 2,048\) nor per"):
        guess_mode(groups(rows)[0])
    assert guess_mode(groups(rows[:2])[0]) == "weak"
    longer = [run(n, 1.0, model_seq_len=length) for n in (1, 2) for length in (128, 256)]  # two workloads, not a mix
    assert guess_mode(groups(longer)[0]) == "strong"


def test_a_declared_base(folder):
    report = efficiency(folder, base="world_size == 2", draws=0)
    found = {one.family: one for one in report.series}
    assert {one.base.group.devices for one in report.series} == {2}
    assert [p.group.devices for p in found["dp"].points[1:]] == [4, 8]
    assert found["single"].points[1].efficiency.value == pytest.approx(1.1, rel=0.02)


def test_nothing_comparable_is_a_verdict(tmp_path):
    store = RunStore(tmp_path)
    for row in (run(1, 1.0), run(2, 0.5, lr=2e-3)):
        store.write_run({k: v for k, v in row.items() if k not in ("step_rows", "eval_rows")})
    report = efficiency(tmp_path)
    assert report.exit_code == 1
    assert "differs from single on 1 rank in lr" in report.to_text()
