"""`scalade predict STUDY`: columns of every case, what is refused and why, the profile that is in use."""

import json
import math
import time
from dataclasses import replace

import pytest

from scalade.launch.predict.cases import predict_cases, work
from scalade.launch.predict.profile import find_machine, own_profile
from scalade.launch.predict.report import derived, predict_study, to_dict
from scalade.launch.study.study import load_study
from scalade.parallelism.predict.machine import load_machine
from scalade.results.schema.schema import checked_row

STUDY = """
name = "predicted"
[model]
size = "tiny-300k"
tied = false
[recipe]
global_batch = 8
[budget]
steps = 24
[measure]
warmup_steps = 4
[[layout]]
dp_replicate = [1, 2]
[[layout]]
pp = 2
microbatches = 4
[[layout]]
tp = 3
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "predicted.toml"
    path.write_text(STUDY)
    return path


def test_every_case_has_its_columns_and_the_parts_add_up(study):
    machine, predictions, refused = predict_study(study, "h100")
    assert [each.case.layout_name for each in predictions] == ["single", "dp2", "pp2-1F1B.m4"]
    for each in predictions:
        row = each.columns
        parts = ("compute_time_s", "exposed_comm_time_s", "bubble_time_s", "optimizer_time_s", "data_time_s")
        total = sum(row[f"predicted_{part}"] for part in parts) + row["predicted_outer_exposed_s"]
        assert total == pytest.approx(row["predicted_step_time_s"])
        assert 0 < row["predicted_bound_time_s"] < row["predicted_step_time_s"]
        needed = {"run_id": "x", "case_id": "y", "repeat": 0, "attempt": 1, "status": "ok", "step_rows": 0}
        assert checked_row("runs", needed | {"eval_rows": 0, "schema_version": 2} | row)
    assert [reason for _, reason in refused] == ["heads 4 is not a multiple of tp 3"]


def test_what_follows_from_the_step_time(study):
    machine, (single, *_), _ = predict_study(study, "h100")
    more, step, case = derived(single, machine), single.columns["predicted_step_time_s"], single.case
    assert more["tokens_per_s"] == pytest.approx(8 * case.shape.seq_len / step)
    assert more["mfu_causal"] == pytest.approx(work(case) / step / machine.peaks["fp32"])
    assert more["device_hours"] == pytest.approx(24 * step / 3600)


def test_bytes_are_those_of_all_ranks(study):
    """One process sends nothing; two data-parallel ranks each reduce the gradients, fp32, and the norm's one number."""
    _, (single, two, pipeline), _ = predict_study(study, "h100")
    name = "predicted_comm_bytes_per_step"
    assert single.columns[name] == 0 and pipeline.columns[name] > 0
    assert two.columns[name] == pytest.approx(2 * 4 * two.case.shape.params_total, rel=1e-3)


def test_the_naive_predictions(study):
    """The smallest scale: half the work for each of two ranks. A constant MFU: of the reference."""
    cases = [each.case for each in load_study(study).cases_elsewhere()][:2]
    single, two = predict_cases(cases, replace(load_machine("h100"), reference_mfu=0.4))
    name = "predicted_smallest_scale_step_time_s"
    assert single.columns[name] == pytest.approx(single.step_time_s) == pytest.approx(2 * two.columns[name])
    naive = two.columns["predicted_constant_mfu_step_time_s"]
    assert naive == pytest.approx(work(two.case) / (2 * 0.4 * 67e12))


def test_energy_is_of_the_timed_steps_and_null_without_a_power(study):
    cases, machine = [each.case for each in load_study(study).cases_elsewhere()][1:2], load_machine("h100")
    (row,) = (each.columns for each in predict_cases(cases, machine))
    compute, step = row["predicted_compute_time_s"], row["predicted_step_time_s"]
    assert row["predicted_energy_j"] == pytest.approx(20 * 2 * (680 * compute + 100 * (step - compute)))
    (row,) = (each.columns for each in predict_cases(cases, replace(machine, busy_w=0)))
    assert "predicted_energy_j" not in row and row["predicted_step_time_s"] == step


def test_a_precision_without_a_peak_is_refused_by_name(study):
    machine = load_machine("h100")
    cases = [each.case for each in load_study(study).cases_elsewhere()][:1]
    (found,) = predict_cases(cases, replace(machine, peaks={"bf16": machine.peaks["bf16"]}))
    assert found.step_time_s is None
    assert found.columns["predicted_step_time_s_reason"] == "machine h100 has no peak for fp32"


def test_what_is_offloaded_has_no_predicted_time(study):
    cases = [each.case for each in load_study(study).cases_elsewhere()][:2]
    away = replace(cases[0], layout=replace(cases[0].layout, engine="deepspeed", offload_optimizer="cpu"))
    offloaded, plain = predict_cases([away, cases[1]], load_machine("h100"))
    assert offloaded.step_time_s is None and plain.step_time_s
    assert offloaded.columns["predicted_step_time_s_reason"].startswith("the time of offloading is not modelled")


def test_json_is_complete_and_finite(study):
    read = json.loads(json.dumps(to_dict(*predict_study(study, "h100"))))
    assert read["machine"] == "h100" and len(read["cases"]) == 3 and len(read["refused"]) == 1
    numbers = [value for case in read["cases"] for value in case.values() if isinstance(value, float)]
    assert numbers and all(math.isfinite(value) for value in numbers)


def test_where_the_profile_of_this_machine_lies(tmp_path, monkeypatch):
    assert own_profile({"XDG_CONFIG_HOME": "/x"}).as_posix() == "/x/scalade/machines/this.toml"
    assert own_profile({"SCALADE_MACHINE": "/y.toml"}).as_posix() == "/y.toml"
    monkeypatch.setenv("SCALADE_MACHINE", str(tmp_path / "mine.toml"))
    with pytest.raises(ValueError, match=r"no profile of this machine .*mine.toml.*: run `scalade calibrate`, or name"):
        find_machine(None)
    (tmp_path / "mine.toml").write_text((load_machine.__globals__["FOLDER"] / "h100.toml").read_text())
    assert find_machine(None) == find_machine("this") == find_machine(str(tmp_path / "mine.toml"))


def test_hundreds_of_cases_take_less_than_a_second(tmp_path):
    """Processor time, which other work on the machine does not lengthen; without torch."""
    sizes = ", ".join(str(8 * n) for n in range(1, 101))
    (tmp_path / "many.toml").write_text(STUDY.replace("global_batch = 8", f"global_batch = [{sizes}]"))
    predict_study(tmp_path / "many.toml", "h100")  # modules are loaded
    begin = time.process_time()
    _, predictions, _ = predict_study(tmp_path / "many.toml", "h100")
    assert len(predictions) == 300 and time.process_time() - begin < 1.0
