"""Calibration: what was planted is found again, few rows move little, and what is outside is refused in one line."""

import numpy as np
import pytest

from scalade.parallelism.predict.calibration import Calibration
from scalade.parallelism.predict.configs import Configs
from scalade.parallelism.predict.fit import calibrate, uncalibrated
from scalade.parallelism.predict.machine import load_machine
from scalade.parallelism.predict.stack import STACKS
from scalade.parallelism.predict.step import predict_step
from scalade.parallelism.predict.tuning import Tuning

MACHINE, STACK = load_machine("h100"), STACKS["nanotron"]


def sweep(n: int = 300, seed: int = 0) -> Configs:
    """Layouts of two models on 1 to 16 nodes."""
    draw = np.random.default_rng(seed)
    tp, pp = 2 ** draw.integers(0, 4, n), 2 ** draw.integers(0, 3, n)
    dp = np.maximum(2 ** draw.integers(3, 8, n) // (tp * pp), 1)
    wide = draw.integers(0, 2, n)
    size = {"layers": 16 + 12 * wide, "width": 2048 + 1024 * wide, "ffn": 8192}
    micro = np.minimum(2 ** draw.integers(0, 4, n), 256 // dp)
    work = {"vocab": 131072, "seq_len": 4096, "global_batch": 256, "microbatches": 256 // dp // micro}
    return Configs(**size, **work, heads=32, kv_heads=32, dp_replicate=dp, tp=tp, pp=pp)


def test_planted_factors_are_found():
    configs = sweep()
    planted = Tuning(matmul=1.25, between=1.8, host=1.5)
    times = predict_step(configs, MACHINE, STACK, planted).step_time_s
    noise = np.exp(np.random.default_rng(1).normal(0, 0.02, len(times)))
    found = calibrate(configs, times * noise, MACHINE, STACK)
    again = found.predict(sweep(seed=5))
    truth = predict_step(sweep(seed=5), MACHINE, STACK, planted).step_time_s
    assert np.median(np.abs(again.step_time_s / truth - 1)) < 0.02
    assert np.quantile(np.abs(again.step_time_s / truth - 1), 0.95) < 0.08


def test_three_rows_move_the_whole_by_what_they_say():
    configs = sweep()
    three = configs.take(np.array([3, 30, 60]))
    times = predict_step(three, MACHINE, STACK).step_time_s * 1.3
    before = uncalibrated(MACHINE, STACK).predict(configs).parts.step_time_s
    after = calibrate(three, times, MACHINE, STACK).predict(configs).parts.step_time_s
    assert np.median(after / before) == pytest.approx(1.3, abs=0.08)


def test_parts_sum_to_the_step_and_bound_is_below():
    prediction = uncalibrated(MACHINE, STACK).predict(sweep())
    parts = prediction.parts
    total = parts.compute_time_s + parts.bubble_time_s + parts.optimizer_time_s + parts.exposed_comm_time_s
    np.testing.assert_allclose(total + parts.outer_exposed_s + parts.data_time_s, prediction.step_time_s)
    assert (prediction.low_s < prediction.step_time_s).all()
    assert (prediction.step_time_s < prediction.high_s).all()
    assert (parts.bound_time_s <= prediction.low_s).all()


def test_what_is_far_outside_is_refused_with_its_axis():
    configs = sweep()
    found = calibrate(configs, predict_step(configs, MACHINE, STACK).step_time_s, MACHINE, STACK)
    far = sweep(4)
    refused = found.predict(Configs(**{**vars(far), "dp_replicate": far.dp_replicate * 10000, "global_batch": 2.56e6}))
    assert all(reason and reason.startswith("ranks") and "times outside" in reason for reason in refused.refused)
    assert np.isnan(refused.step_time_s).all()
    assert found.predict(far).refused == [None] * 4


def test_a_table_of_it_says_the_same():
    configs = sweep()
    found = calibrate(configs, predict_step(configs, MACHINE, STACK).step_time_s * 1.2, MACHINE, STACK)
    again = Calibration.from_table(found.to_table(), MACHINE, STACK)
    np.testing.assert_allclose(again.predict(configs).step_time_s, found.predict(configs).step_time_s)


@pytest.mark.parametrize("times", [[], [1.0, 2.0], [0.0, 1.0, 1.0, 1.0]])
def test_rows_that_cannot_be(times):
    with pytest.raises(ValueError, match="^calibrate: "):
        calibrate(sweep(4), np.array(times), MACHINE, STACK)


def test_a_precision_that_no_row_had_widens_the_interval():
    configs = sweep(40)
    found = calibrate(configs, predict_step(configs, MACHINE, STACK).step_time_s, MACHINE, STACK)
    asked = [found.predict(Configs(**{**vars(configs), "precision": each})) for each in (1, 2)]  # bf16, fp8
    seen, unseen = (np.log(each.high_s / each.low_s) for each in asked)
    assert (unseen > 1.2 * seen).all() and asked[1].refused == [None] * 40
