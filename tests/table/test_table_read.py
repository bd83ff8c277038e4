"""Reading: damaged files cost their own row and a warning, types are the schema's, versions are told apart."""

import json
import os
import random
import subprocess
import sys
import warnings

import pandas as pd
import pyarrow as pa
import pytest

import scalade
from scalade.results.schema.schema import SCHEMA_VERSION, columns
from scalade.results.store.store import RunStore
from scalade.results.table import show
from scalade.results.table.read import DamagedFile

DTYPES = {"string": "string", "int64": "Int64", "float64": "Float64", "bool": "boolean"}


@pytest.fixture
def results(tmp_path):
    """Three runs; the second failed once and has two attempts."""
    store = RunStore(tmp_path / "results")
    steps = {"step": [0, 1], "loss": [3.0, 2.0], "step_time_s": [0.5, 0.25]}
    for n in range(3):
        row = {"run_id": f"case{n}-r0", "case_id": f"case{n}", "repeat": 0, "started_at": f"2026-01-01T00:00:0{9 - n}Z"}
        if n == 1:
            store.write_run(row | {"status": "timeout", "reason": "over 60 s", "tp": 2}, {"step": [0], "loss": [3.5]})
        more = {"status": "ok", "tp": n, "loss": 2.0 + n, "git_dirty": n == 0, "model": "tiny 100k"}
        store.write_run(row | more, steps, {"step": [2], "val_loss": [2.5]})
    return tmp_path / "results"


def read(path, **more):
    """The runs and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = scalade.read_runs(path, **more)
    assert all(issubclass(one.category, DamagedFile) for one in caught), [str(one.message) for one in caught]
    return runs, [str(one.message) for one in caught]


@pytest.mark.parametrize("table", ["runs", "steps", "evals"])
def test_columns_and_types_are_the_schemas(results, tmp_path, table):
    reader = getattr(scalade, f"read_{table}")
    (tmp_path / "none").mkdir()
    for frame in (reader(results), reader(tmp_path / "none")):
        assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
            name: DTYPES[column.type] for name, column in columns(table).items()
        }
    assert len(frame) == 0


def test_one_row_per_run_or_per_attempt(results):
    assert scalade.read_runs(results)[["run_id", "attempt", "status"]].values.tolist() == [
        ["case0-r0", 1, "ok"],
        ["case1-r0", 2, "ok"],
        ["case2-r0", 1, "ok"],
    ]
    every = scalade.read_runs(results, all_attempts=True)
    assert every[every["run_id"] == "case1-r0"]["status"].tolist() == ["timeout", "ok"]
    assert scalade.read_steps(results, ["case1-r0"])["loss"].tolist() == [3.0, 2.0]
    both = scalade.read_steps(results, "case1-r0", all_attempts=True)
    assert both[["attempt", "loss"]].values.tolist() == [[1, 3.5], [2, 3.0], [2, 2.0]]
    one = results / "runs" / "case1-r0"
    assert scalade.read_runs(one)["attempt"].tolist() == [2] and len(scalade.read_steps(one)) == 2


def test_steps_of_filtered_runs(results):
    runs = scalade.read_runs(results, where="tp >= 1")
    assert scalade.read_steps(results, runs)["run_id"].unique().tolist() == ["case1-r0", "case2-r0"]
    assert len(scalade.read_evals(results, [])) == 0


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("tp == 1", [1]),
        ("tp != 1", [0, 2]),
        ("tp>0 and tp<2", [1]),
        ("loss >= 2.5", [1, 2]),
        ("tp <= 1e0", [0, 1]),
        ('model == "tiny 100k"', [0, 1, 2]),
        ("case_id == case2", [2]),
        ("git_dirty == true", [0]),
        ("git_dirty != true", [1, 2]),
        ("val_loss == null", [0, 1, 2]),
        ("val_loss != null", []),
        ("val_loss < 9", []),
        ("val_loss != 9", []),
        ("run_id == 'a and b'", []),
        ("case_id > case0 and git_dirty == false", [1, 2]),
    ],
)
def test_filters(results, where, kept):
    assert scalade.read_runs(results, where=where)["case_id"].tolist() == [f"case{n}" for n in kept]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("", None),
        ("tp", "not a condition"),
        ("tp = 1", "cannot read"),
        ("tp == 1 or", "ends where"),
        ("tp == 1 and", "ends where"),
        ("__import__('os')", "no column"),
        ("tp == two", "a number"),
        ("git_dirty == 1", "true or false"),
        ("git_dirty < true", "== and !="),
        ("los == 1", "'loss'"),
        ("loss == @x", "cannot read"),
        ('tp == "1', "cannot read"),
    ],
)
def test_a_wrong_filter_costs_one_line(results, where, told):
    if told is None:
        assert len(scalade.read_runs(results, where=where)) == 3
        return
    with pytest.raises(ValueError, match=told) as error:
        scalade.read_runs(results, where=where)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_results(results, tmp_path):
    with pytest.raises(ValueError, match="no results at"):
        scalade.read_runs(tmp_path / "nowhere")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 junk PAR1")
    with pytest.raises(ValueError, match="not an exported Parquet file"):
        scalade.read_runs(tmp_path / "junk.parquet")
    pd.DataFrame({"run_id": ["x"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no table of ours"):
        scalade.read_runs(tmp_path / "other.parquet")


def test_an_older_row_reads_with_nulls_and_a_newer_one_is_refused(results):
    file = results / "runs/case2-r0/a1/run.json"
    row = json.loads(file.read_text()) | {"row_sha256": None}
    del row["tp"], row["step_rows"], row["eval_rows"]
    file.write_text(json.dumps(row | {"schema_version": SCHEMA_VERSION - 1, "a_column_of_old": 1}))
    runs, told = read(results)
    assert told == [] and runs["tp"].isna().tolist() == [False, False, True]
    assert len(scalade.read_steps(results, ["case2-r0"])) == 2
    file.write_text(json.dumps(row | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(ValueError, match="upgrade scalade"):
        scalade.read_runs(results)


def test_a_row_cut_at_every_length_is_left_out_and_named(results):
    file = results / "runs/case1-r0/a2/run.json"
    whole = file.read_bytes().rstrip()  # without the last newline the object is whole
    lengths = sorted({0, 1, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 150)})
    for length in lengths:
        file.write_bytes(whole[:length])
        runs, told = read(results / "runs/case1-r0")
        assert len(told) == 1 and str(file) in told[0] and "\n" not in told[0]
        assert runs["attempt"].tolist() == [1]  # the last attempt that can be read
    runs, told = read(results)
    assert len(runs) == 3 and len(told) == 1


def test_steps_cut_at_every_length_are_left_out_and_named(results):
    file = results / "runs/case1-r0/a2/steps.arrow"
    whole = file.read_bytes()
    for length in range(0, len(whole), 17):
        file.write_bytes(whole[:length])
        with pytest.warns(DamagedFile, match="steps.arrow left out"):
            steps = scalade.read_steps(results)
        assert steps["run_id"].tolist() == ["case0-r0"] * 2 + ["case2-r0"] * 2
    file.unlink()
    with pytest.warns(DamagedFile, match="No such file"):
        assert len(scalade.read_steps(results)) == 4
    (results / "runs/case0-r0/a1/evals.arrow").write_bytes((results / "runs/case0-r0/a1/steps.arrow").read_bytes())
    with pytest.warns(DamagedFile, match="its content changed after it was written"):
        assert len(scalade.read_evals(results)) == 2


def test_text_that_is_not_text_is_left_out_and_named(results):
    file = results / "runs/case1-r0/a2/evals.arrow"
    content = file.read_bytes()
    assert content.count(b"model") == 1
    file.write_bytes(content.replace(b"model", b"\xff\xfe\xff\xff\xff"))
    with pytest.warns(DamagedFile, match="evals.arrow left out"):
        assert len(scalade.read_evals(results)) == 2


FLIP = """
import random, sys, warnings
from pathlib import Path
import scalade
warnings.simplefilter("ignore")
results, file, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
whole, chance, damaged = file.read_bytes(), random.Random(seed), 0
for _ in range(int(sys.argv[4])):
    content = bytearray(whole)
    for _ in range(chance.randrange(1, 6)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    file.write_bytes(content)
    try:
        runs, steps = scalade.read_runs(results), scalade.read_steps(results)
    except ValueError as error:  # a digit of the schema's version went up
        assert "upgrade scalade" in str(error) and file.name == "run.json"
        continue
    assert {"case0-r0", "case2-r0"} <= set(runs["run_id"]) and len(steps) >= 4
    steps.to_dict("list")  # touches every value, text too
file.write_bytes(whole)
"""


@pytest.mark.parametrize("flips", [30, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["steps.arrow", "run.json"])
def test_flipped_bytes_never_crash_the_reader(results, name, flips):
    """In a process of its own: what is looked for is a crash of the interpreter."""
    file = results / "runs/case1-r0/a2" / name
    done = subprocess.run([sys.executable, "-c", FLIP, results, file, "0", str(flips)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.filterwarnings("ignore::scalade.results.table.read.DamagedFile")
def test_strange_things_in_the_folder(results):
    runs_folder = results / "runs"
    (runs_folder / "loop").symlink_to("loop")
    (runs_folder / "up").symlink_to("..")
    (runs_folder / "a file").write_bytes(os.urandom(100))
    (runs_folder / ".hidden").write_text("not looked at")
    (runs_folder / "claimed-r0" / "scratch").mkdir(parents=True)
    os.mkfifo(runs_folder / "claimed-r0" / "a1")
    strange = {
        "quo'te\"-r0": b"\x00\xff\xfe junk",
        "new\nline-r0": b"[" * 100_000,
        "$(touch x)-r0": b"[]",
        "two-r0": b'{"schema_version": "1"}',
        "wide-r0": b'{"schema_version": 1e400}',
        "huge-r0": b"1" * 5000,
        "other-r0": (runs_folder / "case0-r0/a1/run.json").read_bytes(),
        "pipe-r0": None,
        "folder-r0": None,
    }
    for name, content in strange.items():
        (runs_folder / name / "a1").mkdir(parents=True)
        if content is not None:
            (runs_folder / name / "a1" / "run.json").write_bytes(content)
    os.mkfifo(runs_folder / "pipe-r0/a1/run.json")
    (runs_folder / "folder-r0/a1/run.json").mkdir()
    runs, told = read(results)
    assert len(scalade.read_steps(results, runs)) == 6
    assert runs["run_id"].tolist() == ["case0-r0", "case1-r0", "case2-r0"]
    assert len(told) == len(strange) + 4  # and the loop, the link up, the plain file, the pipe in an attempt's place
    assert sum("a symbolic link, and links below a results folder are not followed" in text for text in told) == 2
    assert all(text.isprintable() for text in told)
    assert sum("new\\nline-r0" in text for text in told) == 1 and sum("$(touch x)" in text for text in told) == 1


@pytest.mark.parametrize("format", ["parquet", "csv"])
@pytest.mark.parametrize("table", ["runs", "steps", "evals"])
def test_exports_read_back(results, tmp_path, table, format):
    out = tmp_path / f"out.{format}"
    frame = getattr(scalade, f"read_{table}")(results)
    assert show.export(results, out, table=table) == len(frame)
    if format == "parquet":
        back = getattr(scalade, f"read_{table}")(out)
        others = {"runs", "steps", "evals"} - {table}
        with pytest.raises(ValueError, match=f"holds the table {table}"):
            getattr(scalade, f"read_{others.pop()}")(out)
        if table != "runs":
            one = getattr(scalade, f"read_{table}")(out, ["case1-r0"])
            assert set(one["run_id"]) == {"case1-r0"}
    else:
        back = pd.read_csv(out).astype(frame.dtypes)
    pd.testing.assert_frame_equal(back, frame)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "results"]


def test_csv_tells_nan_from_missing_and_quotes_text(tmp_path):
    reason = 'line one\nline "two", and $(x)'
    row = {"run_id": "c-r0", "case_id": "c", "repeat": 0, "status": "diverged", "reason": reason}
    RunStore(tmp_path / "r").write_run(row, {"step": [0, 1], "loss": [float("nan"), None]})
    show.export(tmp_path / "r", tmp_path / "steps.csv", table="steps")
    lines = (tmp_path / "steps.csv").read_text().splitlines()
    assert [line.split(",")[5] for line in lines] == ['"loss"', "nan", ""]
    show.export(tmp_path / "r", tmp_path / "runs.csv")
    assert pd.read_csv(tmp_path / "runs.csv")["reason"].tolist() == [reason]


def test_export_tells_the_users_mistakes(results, tmp_path):
    for arguments, told in (
        ({"out": tmp_path / "x.xlsx"}, "csv, parquet"),
        ({"out": tmp_path / "x.csv", "table": "rows"}, "runs, steps"),
        ({"out": tmp_path / "no" / "x.csv"}, "cannot write"),
        ({"out": tmp_path}, "csv, parquet"),
        ({"out": tmp_path / "x.csv", "table": "steps", "where": "tp == 1"}, "steps has no column 'tp'"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            show.export(results, **arguments)
        assert "\n" not in str(error.value)
    assert show.export(results, tmp_path / "x.csv", table="steps", where="loss < 3") == 3


def test_no_file_is_ever_unpickled(results, tmp_path):
    """An Arrow file may carry a pandas extension type's metadata; nothing of it is executed."""
    marked = tmp_path / "executed"
    evil = f"cos\nsystem\n(S'touch {marked}'\ntR.".encode()
    file = results / "runs/case1-r0/a2/steps.arrow"
    table = pa.ipc.open_file(file).read_all()
    field = pa.field(
        "loss",
        pa.binary(),
        metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil},
    )
    table = table.drop(["loss"]).append_column(field, pa.array([evil, evil], pa.binary()))
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    (results / "runs/case0-r0/a1/run.json").write_bytes(evil)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        scalade.read_runs(results), scalade.read_steps(results)
    assert not marked.exists()
