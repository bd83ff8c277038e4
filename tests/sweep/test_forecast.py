"""The sweep uses predictions: longest runs first, the time that is left, a limit from what was predicted."""

import json

import pytest

from scalade.launch.dry_run import dry_run, to_dict
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study
from scalade.launch.sweep.forecast import STARTUP_S, Duration, Forecast, span
from scalade.launch.sweep.plan import make_plan
from scalade.parallelism.predict.machine import FOLDER
from scalade.results.store.store import RunStore

STUDY = """
name = "sizes"
[model]
size = ["tiny-100k", "tiny-800k", "tiny-300k"]
seq_len = 32
[recipe]
global_batch = 4
[budget]
steps = 2
[measure]
warmup_steps = 1
eval_sequences = 0
[run]
device = "cpu"
threads_per_rank = 1
max_ranks = 1
repeats = 2
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    profile = tmp_path / "mine.toml"
    profile.write_text((FOLDER / "h100.toml").read_text())
    monkeypatch.setenv("SCALADE_MACHINE", str(profile))
    path = tmp_path / "sizes.toml"
    path.write_text(STUDY)
    return path


def plan_of(study, tmp_path):
    return make_plan(load_study(study), RunStore(tmp_path / "none")).pending


def test_the_longest_run_of_each_repeat_is_first(study, tmp_path):
    pending = plan_of(study, tmp_path)
    step = {"tiny-100k": 1.0, "tiny-300k": 2.0}
    predicted = {
        run.case.case_id: {"predicted_step_time_s": step[run.case.model_name]}
        for run in pending
        if run.case.model_name in step
    }
    ordered = [(run.repeat, run.case.model_name) for run in Forecast(predicted).largest_first(pending)]
    names = ["tiny-300k", "tiny-100k", "tiny-800k"]  # the last was not predicted
    assert ordered == [(repeat, name) for repeat in (0, 1) for name in names]
    assert Forecast({}).largest_first(pending) == list(pending)


def test_the_time_that_is_left_is_the_sum_and_counts_what_is_unknown(study, tmp_path):
    pending = plan_of(study, tmp_path)
    columns = {"predicted_step_time_s": 10.0, "predicted_step_time_low_s": 5.0, "predicted_step_time_high_s": 20.0}
    forecast = Forecast({pending[0].case.case_id: columns})
    assert forecast.duration(pending[0]) == Duration(STARTUP_S + 10, STARTUP_S + 20, STARTUP_S + 40)
    assert forecast.left(pending) == "predicted: 2 runs in 1 min 00 s (40 s to 1 min 40 s); 4 runs without a prediction"
    assert Forecast({}).left(pending) is None


def test_a_limit_is_the_lesser_of_the_fixed_and_the_predicted_one(study, tmp_path):
    run, other = plan_of(study, tmp_path)[:2]
    forecast = Forecast({run.case.case_id: {"predicted_step_time_s": 10.0, "predicted_step_time_high_s": 20.0}})
    assert forecast.time_limit_s(run, 1800.0, 3.0) == 3 * (STARTUP_S + 2 * 20)
    assert forecast.time_limit_s(run, 100.0, 3.0) == 100.0
    assert forecast.time_limit_s(run, 1800.0, 0.0) == 1800.0
    assert forecast.time_limit_s(other, 1800.0, 3.0) == 1800.0


@pytest.mark.parametrize(
    "seconds, text",
    [(45.2, "45 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)
def test_spans_for_people(seconds, text):
    assert span(seconds) == text


def test_a_dry_run_shows_the_order_and_the_time(study, tmp_path):
    dry = dry_run(study, tmp_path / "results")
    table = json.loads(json.dumps(to_dict(dry)))
    assert [case["model"] for case in table["cases"]] == ["tiny-800k", "tiny-300k", "tiny-100k"]
    assert all(case["predicted_duration_s"]["expected"] > STARTUP_S for case in table["cases"])
    assert dry.forecast.left(dry.plan.pending).startswith("predicted: 6 runs in 1 min 0")


def test_a_run_that_takes_far_longer_than_predicted_is_ended(study, tmp_path, capsys):
    """The H100's profile predicts microseconds; the start-up alone is more than a ten-thousandth of the allowance."""
    study.write_text(STUDY.replace("repeats = 2", "time_limit_factor = 0.0001"))
    summary, _ = run_study(study, tmp_path / "results")
    assert {outcome.status for outcome in summary.outcomes.values()} == {"timeout"}
    assert all("time limit 0.001" in str(outcome.reason) for outcome in summary.outcomes.values())
    printed = capsys.readouterr().err
    assert printed.startswith("predicted: 3 runs in 30 s")
    assert printed.index("tiny-800k") < printed.index("tiny-300k") < printed.index("tiny-100k")
