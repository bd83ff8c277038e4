"""`scalade predict STUDY --trace`: the table, the JSON, the exit status."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from scalade.cli.app import app
from scalade.parallelism.predict.messages import TorchRank

STUDY = """
name = "traced"
[model]
size = "tiny-100k"
[recipe]
global_batch = 64
[budget]
steps = 5
[[layout]]
dp_shard = 64
[[layout]]
engine = "deepspeed"
dp_shard = 64
"""


@pytest.fixture
def traced(tmp_path):
    path = tmp_path / "traced.toml"
    path.write_text(STUDY)
    return lambda *options: CliRunner().invoke(app, ["predict", str(path), "--trace", *options])


def test_predicted_and_traced_stand_side_by_side(traced):
    shown = traced()
    assert "dp_shard bytes" in shown.output and "peak memory" in shown.output
    assert "not traced: tiny-100k deepspeed.zero3-64: engine deepspeed asks its tensors for values" in shown.output
    assert "1 case traced" in shown.output


def test_a_disagreement_ends_with_1(traced, monkeypatch):
    monkeypatch.setattr(TorchRank, "_gathers", lambda rank, stage: (1, 1))
    shown = traced("--json")
    assert shown.exit_code == 1
    report = json.loads(shown.output)
    (case,) = (each for each in report["cases"] if each["reason"] is None)
    wrong = {each["what"]: each["ratio"] for each in case["compared"] if not each["agrees"]}
    assert not report["agrees"] and not case["agrees"]
    assert 0 < wrong["dp_shard bytes"] < 1 and 0 < wrong["dp_shard calls"] < 1


def test_a_table_is_not_traced(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("a\n1\n")
    failed = CliRunner().invoke(app, ["predict", str(path), "--trace"])
    assert failed.exit_code and "is a table of measured runs" in str(failed.exception)
