"""Figures against values by hand, the split's refusals, and both naive predictions."""

from pathlib import Path

import numpy as np
import pytest

from scalade.parallelism.predict.naive import Work, constant_mfu, smallest_scale
from scalade.parallelism.predict.tables.judge import judge_table
from scalade.parallelism.predict.tables.metrics import memory_figures, regret, time_figures
from scalade.parallelism.predict.tables.report import to_dict, to_text
from scalade.parallelism.predict.tables.runs import read_runs
from scalade.parallelism.predict.tables.split import REPEATS, split

MAP = """
name = "tiny"
compete = ["nodes"]
[fields]
model = "name"
gpus = "devices"
global_batch = "batch"
seq_len = { value = 4096 }
micro_batch = "mbs"
tp = "tp"
machine = { column = "card", words = { H100 = "h100", H200 = "h200" } }
stack = { value = "nemo" }
step_time_s = "seconds"
memory_bytes = { column = "gb", factor = 1e9 }
status = { column = "end", words = { ok = "ok", OOM = "oom" } }
"""
HEADER = "name,nodes,devices,batch,mbs,tp,card,seconds,gb,end"


def write(folder: Path, rows: list[str], name: str = "runs.csv") -> Path:
    (folder / "map.toml").write_text(MAP)
    (folder / name).write_text("\n".join([HEADER, *rows]) + "\n")
    return folder / name


def rows_of(nodes: tuple[int, ...], factor: float = 1.0, card: str = "H100") -> list[str]:
    """Runs of 8B on these nodes, two layouts each, 0.7 s of work, and a bit for the layout and the nodes."""
    return [
        f"Llama 3.1 8B,{n},{8 * n},{16 * n},1,{tp},{card},{factor * (0.7 + 0.02 * tp + 0.005 * n)},40,ok"
        for n in nodes
        for tp in (2, 4)
    ]


def test_errors_order_regret_and_coverage_by_hand():
    measured = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0])
    predicted = np.array([1.1, 1.8, 1.5, 4.0, np.nan, 5.0])
    found = time_figures(measured, predicted, list("aaabbb"), predicted * 0.8, predicted * 1.05)
    assert found.n == 5
    assert found.mape == pytest.approx((0.1 + 0.1 + 0.5 + 0 + 0) / 5)
    assert found.median == pytest.approx(0.1)
    # a: 1-2 right, 1-3 right, 2-3 wrong; b: 4-5 right (the row without a prediction counts nowhere)
    assert (found.pairs, found.order) == (4, 0.75)
    assert found.regret_mean == 0 and found.groups == 2
    assert found.coverage == pytest.approx(3 / 5)  # 2 is above 1.89, 3 above 1.575


def test_ties_of_a_prediction_count_half_and_choose_evenly():
    found = time_figures(np.array([1.0, 3.0]), np.array([2.0, 2.0]), ["a", "a"])
    assert found.order == 0.5
    assert regret(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == 1.0


def test_pairs_measured_alike_are_no_pairs():
    assert time_figures(np.array([1.0, 1.0]), np.array([2.0, 3.0]), ["a", "a"]).pairs == 0


def test_memory_by_hand():
    status = np.array(["ok", "ok", "oom", "oom", "ok"])
    measured, predicted = np.array([10.0, 20, np.nan, np.nan, np.nan]), np.array([11.0, 16, 90, 70, 5])
    found = memory_figures(measured, predicted, predicted > 80, status)
    assert found.mape == pytest.approx(0.15) and found.n == 2
    assert (found.failures, found.flagged, found.good, found.false) == (2, 0.5, 2, 0.0)


def test_naive_predictions():
    def work(peak, devices, model, machine="h100", precision="bf16"):
        n = len(peak)
        names = (np.array([each] * n) for each in (machine, precision))
        return Work(np.array(peak, float), np.array(devices, float), *names, np.array(model))

    known = work([1, 1, 2], [8, 16, 8], ["a", "a", "b"])
    measured = np.array([2.0, 3.0, 8.0])
    asked = work([1, 1, 1], [64, 64, 64], ["a", "b", "c"])
    assert constant_mfu(known, measured, asked) == pytest.approx([3, 3, 3])  # the median of 2, 3 and 4
    assert smallest_scale(known, measured, asked) == pytest.approx([2, 4, 3])
    other = work([1], [64], ["a"], precision="fp8")
    assert smallest_scale(known, measured, other) == pytest.approx([3])  # another precision is another run


def test_nothing_is_judged_on_what_it_was_fitted_on(tmp_path):
    table = read_runs(write(tmp_path, rows_of((1, 2, 4))), tmp_path / "map.toml")
    with pytest.raises(ValueError, match="2 rows in both --calibrate and --judge"):
        split(table, "nodes <= 2", "nodes >= 2")
    with pytest.raises(ValueError, match="is the table that is judged"):
        split(table, str(table.path), None)
    with pytest.raises(ValueError, match="none is left to judge"):
        split(table, "nodes >= 1", None)
    with pytest.raises(ValueError, match="--judge 'nodes == 3': chooses no row"):
        split(table, None, "nodes == 3")
    parted = split(table, "nodes <= 2", None)
    assert [run.row for run in parted.calibration] == [0, 1, 2, 3] and [run.row for run in parted.judged] == [4, 5]


def test_a_row_that_repeats_a_calibration_row_is_not_judged(tmp_path):
    rows = rows_of((1, 2, 4))
    table = read_runs(write(tmp_path, [*rows, rows[0]]), tmp_path / "map.toml")
    parted = split(table, "nodes == 1 and tp == 2 and devices < 0 or nodes == 1 and tp == 4", "nodes > 1")
    assert REPEATS not in parted.table.reasons()
    twice = read_runs(write(tmp_path, [*rows, rows[0].replace(",1,8,", ",9,8,")]), tmp_path / "map.toml")
    parted = split(twice, "nodes == 1", "nodes > 1")
    assert parted.table.refused == {6: REPEATS}
    assert len(parted.judged) == 4


def test_a_calibration_helps_and_everything_is_reported(tmp_path):
    path = write(tmp_path, rows_of((1, 2, 4, 8), factor=1.4))
    verdict = judge_table(path, tmp_path / "map.toml", calibrated_on="nodes <= 2", judged_on="nodes >= 4", by="nodes")
    plain = judge_table(path, tmp_path / "map.toml", judged_on="nodes >= 4")
    assert verdict.figures.model.mape < 0.1 < plain.figures.model.mape
    found = to_dict(verdict)
    assert found["calibration_rows"] == [0, 1, 2, 3] and [each["row"] for each in found["predictions"]] == [4, 5, 6, 7]
    assert set(found["by"]) == {"4", "8"}
    for each in found["predictions"]:
        assert each["predicted_step_time_low_s"] <= each["predicted_step_time_s"] <= each["predicted_step_time_high_s"]
        assert each["constant_mfu_step_time_s"] > 0 and each["predicted_memory_bytes"] > 0
    text = "\n".join(to_text(verdict))
    for words in (
        "calibrated on 4 rows of h100 under nemo",
        "judged on 4 rows",
        "constant MFU",
        "as at smallest scale",
    ):
        assert words in text


def test_a_machine_without_rows_takes_the_calibration_of_its_stack(tmp_path):
    path = write(tmp_path, rows_of((1, 2), factor=1.4) + rows_of((4,), factor=1.4, card="H200"))
    verdict = judge_table(path, tmp_path / "map.toml", calibrated_on="nodes <= 2")
    assert verdict.figures.model.mape < 0.2


def test_a_column_that_is_not_there(tmp_path):
    path = write(tmp_path, rows_of((1, 2)))
    with pytest.raises(ValueError, match="--by colour: no such column"):
        judge_table(path, tmp_path / "map.toml", by="colour")
    with pytest.raises(ValueError, match="--calibrate: filter"):
        judge_table(path, tmp_path / "map.toml", calibrated_on="colour == 1")
    with pytest.raises(ValueError, match="no such map"):
        judge_table(path, "mpa.toml")
