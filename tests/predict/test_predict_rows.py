"""Every row of `run` carries what was predicted before it, where this machine has a profile."""

import pytest

from scalade.launch.predict import cases
from scalade.launch.predict.cases import predict_cases
from scalade.launch.predict.rows import predicted_columns
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study
from scalade.parallelism.predict.machine import FOLDER, load_machine
from scalade.results.store.store import RunStore

STUDY = """
name = "rows"
[model]
size = "tiny-100k"
seq_len = 32
[recipe]
global_batch = 4
[budget]
steps = 3
[measure]
warmup_steps = 1
eval_sequences = 0
[run]
device = "cpu"
threads_per_rank = 1
max_ranks = 1
[[layout]]
dp_replicate = [1, 2]
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "rows.toml"
    path.write_text(STUDY)
    return path


def test_a_row_has_what_the_profile_predicts(study, tmp_path, monkeypatch):
    """Two ranks are not run here; their prediction is made all the same, and the base of the naive one is the same."""
    profile = tmp_path / "mine.toml"
    profile.write_text((FOLDER / "h100.toml").read_text())
    monkeypatch.setenv("SCALADE_MACHINE", str(profile))
    summary, folder = run_study(study, tmp_path / "results", quiet=True)
    assert summary.exit_code == 0
    planned = [case for case in load_study(study).all_cases]
    expected = {each.case.case_id: each.columns for each in predict_cases(planned, load_machine("h100"))}
    rows = {row["case_id"]: row for row in map(RunStore(folder).row, summary.outcomes)}
    for case_id, row in rows.items():
        columns = {name: value for name, value in expected[case_id].items() if name != "predicted_memory_bytes"}
        assert {name: row[name] for name in columns} == pytest.approx(columns)
        assert row["predicted_step_time_s"] > 0
        low, predicted, high = (row[f"predicted_memory_{end}bytes"] for end in ("low_", "", "high_"))
        assert 0 < low < predicted < high
        assert ", machine h100: " in row["predicted_by"]


def test_without_a_profile_nothing_is_guessed(study, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALADE_MACHINE", str(tmp_path / "none.toml"))
    assert predicted_columns(load_study(study)) == {}


def test_a_damaged_profile_costs_the_prediction_and_no_run(study, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.toml").write_text("[peaks\n")
    monkeypatch.setenv("SCALADE_MACHINE", str(tmp_path / "bad.toml"))
    summary, folder = run_study(study, tmp_path / "results", quiet=True)
    assert summary.exit_code == 0
    (row,) = map(RunStore(folder).row, summary.outcomes)
    assert row["predicted_step_time_s"] is None and row["predicted_by"] is None
    assert "warning: nothing is predicted: " in capsys.readouterr().err


def test_cases_that_differ_in_learning_rate_alone_are_one_evaluation(study, tmp_path, monkeypatch):
    """A grid of a hundred thousand of them is planned by every worker that starts."""
    profile = tmp_path / "mine.toml"
    profile.write_text((FOLDER / "h100.toml").read_text())
    monkeypatch.setenv("SCALADE_MACHINE", str(profile))
    study.write_text(STUDY.replace("global_batch = 4", "global_batch = 4\nlr = [1e-3, 2e-3, 3e-3]"))
    asked = []
    monkeypatch.setattr(
        cases, "predict_cases", lambda some, machine: asked.extend(some) or predict_cases(some, machine)
    )
    columns = predicted_columns(load_study(study))
    assert len(asked) == 2 and len(columns) == 6
    assert len({each["predicted_step_time_s"] for each in columns.values()}) == 2
