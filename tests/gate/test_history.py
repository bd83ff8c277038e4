"""Change points over the runs of results folders."""

from __future__ import annotations

import json
from math import log, sqrt

import numpy as np
import pytest
from gate_rows import run, runs, stored

from scalade.results.gate.history import autocorrelation, change_points, history, to_dict, to_text


def noise(random, count, phi=0.0):
    series = random.standard_normal(count)
    for step in range(1, count):
        series[step] = phi * series[step - 1] + sqrt(1 - phi**2) * series[step]
    return 0.02 * series


def test_one_change_is_found_where_it_is():
    values = noise(np.random.default_rng(1), 40)
    values[25:] += log(1.1)
    ((position, p),) = change_points(values, 0.05)
    assert position == 25 and p < 0.01


def test_two_changes_are_found():
    values = noise(np.random.default_rng(1), 60)
    values[20:40] += log(1.1)
    positions = [position for position, _ in change_points(values, 0.05)]
    assert len(positions) == 2 and np.abs(np.subtract(positions, [20, 40])).max() <= 1


def test_short_constant_and_far_apart_series():
    assert change_points(np.zeros(7), 0.05) == change_points(np.zeros(50), 0.05) == []
    step = np.repeat([-600.0, 600.0], 10)
    assert [position for position, _ in change_points(step, 0.05)] == [10]
    assert autocorrelation(np.zeros(7), []) is None and autocorrelation(np.zeros(8), []) == 0.0


def rates(random, trials, count, phi):
    false = np.mean([bool(change_points(noise(random, count, phi), 0.05)) for _ in range(trials)])
    step = np.repeat([0.0, log(1.05)], count // 2)
    found = np.mean([bool(change_points(noise(random, count, phi) + step, 0.05)) for _ in range(trials)])
    return false, found


def test_drift_is_no_change_quick(monkeypatch):
    monkeypatch.setattr("scalade.results.gate.history.SIMULATED", 199)
    false, found = rates(np.random.default_rng(2), 20, 40, 0.0)
    assert false <= 0.2 and found >= 0.8
    false, _ = rates(np.random.default_rng(3), 20, 40, 0.5)
    assert false <= 0.2  # what 5% exceeds once in 300


@pytest.mark.slow
@pytest.mark.parametrize(("count", "phi"), [(20, 0.0), (40, 0.0), (40, 0.3), (40, 0.5)])
def test_false_alarms_and_power(count, phi):
    false, found = rates(np.random.default_rng(4), 200, count, phi)
    print(f"\n{count} runs, 2% noise, autocorrelation {phi}: false alarms {false:.1%}, a 5% step found {found:.1%}")
    assert false <= 0.05 + 3.1 * sqrt(0.05 * 0.95 / 200)
    assert found >= (0.9 if phi == 0 and count >= 40 else 0.5)


def series(times, commit=None, start=0, **more):
    return [
        row | {"git_commit": commit, "torch_version": "2.6" if k < 12 else "2.7"}
        for k, row in enumerate(runs(times, minutes=range(start, start + len(times)), **more))
    ]


def test_history_of_a_folder_says_when_how_much_and_what_else_changed(tmp_path):
    times = 0.1 * np.exp(0.005 * np.sin(np.arange(24) * 2.4))
    times[12:] *= 1.08
    path = stored(tmp_path / "night", series(times) + [run("d" * 16, 0, 0.2, minute=3)])
    changed, short = history(path)
    (change,) = changed.changes
    assert change.position == 12 and change.ratio == pytest.approx(1.08, rel=0.01)
    assert change.changed == ("torch_version 2.6 -> 2.7",)
    assert change.last_before.startswith("cccccccccccccccc-r11 ")
    assert change.first_after.startswith("cccccccccccccccc-r12 ")
    assert not short.judged and short.changes == ()
    text = to_text([changed, short])
    assert "24 runs, change points: 1, auto" in text[0] and "(x 1.079" in text[1] and "torch_version" in text[2]
    assert text[3].endswith("1 run, too few runs: 8 are needed")
    content = json.loads(json.dumps(to_dict([changed, short]), allow_nan=False))
    assert content["cases"][0]["changes"][0]["position"] == 12


def test_nights_are_folders_and_a_copied_run_counts_once(tmp_path):
    for night in range(5):
        times = [0.1 + 0.001 * k + (0.02 if night >= 3 else 0) for k in range(3)]
        stored(tmp_path / "nights" / f"n{night}", series(times, commit=f"c{night}", start=100 * night))
    (one,) = history(tmp_path / "nights")
    assert len(one.values) == 15 and [change.position for change in one.changes] == [9]
    assert one.changes[0].changed == ("git_commit c2 -> c3",)
    (again,) = history([tmp_path / "nights", tmp_path / "nights" / "n0"])
    assert again.values == one.values


def test_only_ok_runs_count_and_mistakes_are_told(tmp_path):
    rows = series([0.1] * 9)
    rows[4] |= {"status": "failed", "reason": "so"}
    (one,) = history(stored(tmp_path / "r", rows))
    assert len(one.values) == 8 and one.changes == ()
    with pytest.raises(ValueError, match="no results at"):
        history(tmp_path / "nothing")
    with pytest.raises(ValueError, match="did you mean step_time_s"):
        history(tmp_path / "r", metric="step_times")
    assert to_text(history(stored(tmp_path / "e", []))) == ["no ok run that says when it started"]
