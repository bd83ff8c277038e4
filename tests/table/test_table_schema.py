"""The schema: generated files are fresh, its rules hold, and the study's case fits into the table."""

import copy
import json
import math
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scalade.bench.data import DataSpec
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import SIZES, ModelShape
from scalade.launch.study.case import Case
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout
from scalade.results.schema import schema
from scalade.results.schema.columns import COLLECTIVES, MESH_DIMS, TABLES, Column
from scalade.results.schema.schema import SchemaError

ROW = {
    "run_id": "c0ffee-r0",
    "case_id": "c0ffee",
    "repeat": 0,
    "attempt": 1,
    "status": "ok",
    "step_rows": 0,
    "eval_rows": 0,
    "schema_version": schema.SCHEMA_VERSION,
}


def a_case() -> Case:
    shape = ModelShape(**{"kv_heads": 2, "vocab": 256, "seq_len": 64} | SIZES["tiny-100k"])
    return Case(shape, DataSpec(), Recipe(global_batch=8, steps=4), Layout(), Outer(), Measure(), "tiny-100k")


@pytest.mark.parametrize("path", [schema.SCHEMA_FILE, schema.DOC_FILE], ids=lambda path: path.name)
def test_generated_files_are_fresh(path):
    message = f"{path.name} is stale: run `python -m scalade.results.schema.schema`"
    assert path.read_text() == schema.rendered()[path], message


def test_every_field_of_a_case_is_a_column():
    columns = a_case().columns()
    missing = sorted(set(columns) - set(schema.columns("runs")))
    assert not missing, f"a case has fields that are no columns: add {missing} to results/schema/columns.py"
    row = schema.checked_row("runs", ROW | columns)
    assert {name: row[name] for name in columns} == columns | {"case_id": a_case().case_id}


@pytest.mark.parametrize("table", TABLES)
def test_column_names_are_unique_and_carry_their_units(table):
    flat = [column for group in TABLES[table].values() for column in group]
    assert len({column.name for column in flat}) == len(flat)
    counted = ("bytes", "bytes_per_step", "bytes_per_rank", "bytes_per_round")
    suffix = {"s": ("_s",), "bytes": counted, "J": ("_j",), "MB": ("_mb",)}
    for column in flat:
        assert column.doc and column.doc == column.doc.strip()
        if column.name.startswith("comm_bytes_"):
            assert column.unit == "bytes"
        elif column.unit in suffix:
            assert column.name.endswith(suffix[column.unit]), column
        if column.name.endswith("_s"):
            assert column.unit.endswith("/s") if "_per_" in column.name else column.unit == "s", column


def test_the_parts_of_communication_are_columns():
    known = schema.columns("runs")
    assert {f"comm_bytes_{name}" for name in COLLECTIVES} <= set(known)
    assert {f"comm_bytes_dim_{name}" for name in MESH_DIMS} <= set(known)


def test_json_schema_is_one_and_takes_rows():
    document = schema.json_schema()
    validator = jsonschema.Draft202012Validator(document)
    validator.check_schema(document)
    validator.validate(schema.checked_row("runs", ROW))
    validator.validate(schema.checked_row("runs", ROW | a_case().columns()))
    for wrong in ({"status": "fine"}, {"repeat": "0"}, {"repeat": None}, {"losss": 1.0}, {"loss": "3"}, {"compile": 1}):
        assert not validator.is_valid(ROW | wrong), wrong
    steps = document["$defs"]["steps"]
    jsonschema.validate({"run_id": "x-r0", "attempt": 1, "step": 0, "loss": 2.5}, steps)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"losss": 1.0}, "losss"),
        ({"loss": "3"}, "loss"),
        ({"repeat": 1.5}, "repeat"),
        ({"repeat": True}, "repeat"),
        ({"compile": 1}, "compile"),
        ({"compile": 0.5}, "compile"),
        ({"status": "fine"}, "status"),
        ({"run_id": None}, "run_id"),
        ({"tokens_seen": 2**63}, "tokens_seen"),
        ({"git_commit": b"ab"}, "git_commit"),
        ({"ranks_json": []}, "ranks_json"),
    ],
)
def test_a_wrong_row_is_refused_by_name(wrong, named):
    with pytest.raises(SchemaError, match=named):
        schema.checked_row("runs", ROW | wrong)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(), st.binary()))
def test_checked_gives_the_columns_type_or_refuses(value):
    kinds = {"string": str, "int64": int, "float64": float, "bool": bool}
    for kind in kinds:
        try:
            found = schema.checked(Column("x", kind, "", "."), value)
        except SchemaError as error:
            assert "column x" in str(error)
            continue
        assert found is None or type(found) is kinds[kind]
        if found is None:
            assert value is None or (kind == "float64" and not math.isfinite(value))
        else:
            assert kind == "string" or found == (float(value) if kind == "float64" else value)
            json.dumps(found, allow_nan=False).encode()


def test_scalars_of_numpy_and_torch_are_unwrapped_and_nan_kept_only_where_said():
    assert type(schema.checked(Column("n", "int64", "", "."), np.int32(3))) is int
    assert type(schema.checked(Column("b", "bool", "", "."), np.bool_(True))) is bool
    assert type(schema.checked(Column("n", "int64", "", "."), torch.tensor(4096.0))) is int
    assert schema.checked(Column("b", "bool", "", "."), torch.tensor(1.0)) is True
    assert schema.checked(Column("f", "float64", "", "."), np.float32("nan")) is None
    assert math.isnan(schema.checked(Column("f", "float64", "", ".", keeps_nan=True), float("nan")))
    assert schema.checked(Column("f", "float64", "", ".", keeps_nan=True), math.inf) == math.inf


def test_a_breaking_change_needs_a_new_version(tmp_path, monkeypatch, capsys):
    old = copy.deepcopy(schema.json_schema())
    runs = old["$defs"]["runs"]["properties"]
    assert schema.breaking_changes(old, schema.json_schema()) == []
    del old["$defs"]["runs"]["properties"]["loss"]  # loss is new: nobody is misled
    assert schema.breaking_changes(old, schema.json_schema()) == []
    runs["gone"] = {"type": "string"}
    runs["wall_s"]["unit"] = "ms"
    runs["lr"]["type"] = "string"
    found = "; ".join(schema.breaking_changes(old, schema.json_schema()))
    assert "runs.gone" in found and "runs.wall_s" in found and "runs.lr" in found

    stored = tmp_path / "schema.json"
    stored.write_text(json.dumps(old))
    monkeypatch.setattr(schema, "SCHEMA_FILE", stored)
    monkeypatch.setattr(schema, "DOC_FILE", tmp_path / "table.md")
    assert schema.main() == 1 and json.loads(stored.read_text()) == old
    assert "SCHEMA_VERSION" in capsys.readouterr().out
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    assert schema.main() == 0 and json.loads(stored.read_text())["schema_version"] == schema.SCHEMA_VERSION


def test_importing_scalade_is_light():
    code = "import scalade, sys; print(sorted({'torch', 'pandas', 'pyarrow', 'numpy', 'rich'} & set(sys.modules)));"
    code += "scalade.read_runs; print('torch' in sys.modules, 'pandas' in sys.modules, bool(scalade.__version__))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["[]", "False False True"]
