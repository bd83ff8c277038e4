"""Bytes that changed after they were written, and still parse, are seen: in a row and in its other files."""

import json

import pytest

import scalade
from scalade.results.store import digests
from scalade.results.store.store import RunStore
from scalade.results.table.read import DamagedFile


@pytest.fixture
def results(tmp_path):
    for name in ("good-r0", "bad-r0"):
        row = {"run_id": name, "case_id": name[:-3], "repeat": 0, "status": "ok", "loss": 3.5}
        RunStore(tmp_path).write_run(row, {"step": [0, 1], "loss": [4.0, 3.5]})
    return tmp_path


def test_a_changed_number_of_a_step_is_seen(results):
    file = results / "runs/bad-r0/a1/steps.arrow"
    content = bytearray(file.read_bytes())
    at = content.index(b"\0\0\0\0\0\0\x0c\x40")  # 3.5
    content[at + 6] ^= 0x01  # and 3.53125: a file of Arrow's as good as before
    file.write_bytes(content)
    with pytest.warns(DamagedFile, match=r"bad-r0/a1/steps\.arrow left out: its content changed after it was written"):
        steps = scalade.read_steps(results)
    assert steps["run_id"].tolist() == ["good-r0"] * 2


def test_a_changed_number_of_a_row_is_seen_and_the_run_counts_as_missing(results):
    file = results / "runs/bad-r0/a1/run.json"
    file.write_bytes(file.read_bytes().replace(b'"loss": 3.5', b'"loss": 3.6'))
    with pytest.warns(DamagedFile, match=r"bad-r0/a1/run\.json left out: its content changed after it was written"):
        runs = scalade.read_runs(results)
    assert runs["run_id"].tolist() == ["good-r0"]
    assert RunStore(results).finished("bad-r0") is None and RunStore(results).finished("good-r0") == "ok"


def test_a_row_that_was_written_anew_by_another_program_is_seen(results):
    file = results / "runs/bad-r0/a1/run.json"
    file.write_text(json.dumps(json.loads(file.read_text())))
    with pytest.warns(DamagedFile, match="its content changed"):
        assert len(scalade.read_runs(results)) == 1


def test_rows_of_before_there_were_digests_are_read(results):
    file = results / "runs/bad-r0/a1/run.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if not name.endswith("_sha256")}
    file.write_text(json.dumps(old))
    assert len(scalade.read_runs(results)) == 2 and len(scalade.read_steps(results)) == 4


@pytest.mark.parametrize("text", ["3", "[1]", "{", "[" * 100_000, '{"steps": 5}'])
def test_a_digest_that_is_none_is_damage(results, text):
    file = results / "runs/bad-r0/a1/run.json"
    row = json.loads(file.read_text())
    file.write_bytes(digests.sealed(row | {"tables_sha256": text}))
    with pytest.warns(DamagedFile, match=r"steps\.arrow left out"):
        assert len(scalade.read_steps(results)) == 2
