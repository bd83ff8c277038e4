"""Small files that say they are huge: left out or refused, in one line, within a gigabyte and seconds."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import scalade
from scalade.results.schema.schema import SCHEMA_VERSION
from scalade.results.store import digests, parquet_file
from scalade.results.store.store import RunStore
from scalade.results.table import show
from scalade.results.table.read import EXPORT_KEY, DamagedFile

ABOUT = {EXPORT_KEY: json.dumps({"table": "steps", "schema_version": SCHEMA_VERSION})}


@pytest.fixture
def results(tmp_path):
    for name in ("good-r0", "bad-r0"):
        row = {"run_id": name, "case_id": name[:-3], "repeat": 0, "status": "ok", "loss": 3.5}
        RunStore(tmp_path / "r").write_run(row, {"step": [0, 1], "loss": [4.0, 3.5]})
    return tmp_path / "r"


def plant(results, table=None, rows=None, content=None, options=None):
    """In place of the bad run's steps, of whose digest nothing is known; rows: that its row tells."""
    folder = results / "runs/bad-r0/a1"
    if content is None:
        with pa.ipc.new_file(folder / "steps.arrow", table.schema, options=options) as writer:
            writer.write_table(table)
    else:
        (folder / "steps.arrow").write_bytes(content)
    row = json.loads((folder / "run.json").read_text())
    row |= {"tables_sha256": None, "step_rows": len(table) if rows is None else rows}
    (folder / "run.json").write_bytes(digests.sealed(row))
    return folder / "steps.arrow"


def left_out(results, told):
    with pytest.warns(DamagedFile, match=told):
        assert set(scalade.read_steps(results)["run_id"]) == {"good-r0"}


def test_a_plain_file_without_a_digest_is_read(results):
    plant(results, pa.table({"step": [0, 1, 2], "loss": [1.0, 2.0, 3.0]}))
    assert len(scalade.read_steps(results)) == 5


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_arrow_file_is_left_out(results, codec):
    table = pa.table({"step": pa.array([0] * 10_000_000, pa.int64())})
    file = plant(results, table, options=pa.ipc.IpcWriteOptions(compression=codec))
    assert file.stat().st_size < 2**20
    left_out(results, "a compressed file")


def test_an_arrow_file_of_nothing_but_nulls_is_left_out(results):
    table = pa.table({"step": pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])})
    file = plant(results, table)
    assert file.stat().st_size < 2**12
    left_out(results, "column step is of the type null")


def test_an_arrow_file_without_columns_is_left_out(results):
    """Its batches may still say how many rows they have, of which ours then makes columns of nulls."""
    batch = pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), 2**31 - 1, [None]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    plant(results, content=sink.getvalue().to_pybytes(), rows=2**31 - 1)
    left_out(results, f"{2**31 - 1:,} rows in .* bytes")


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a" * 2**16] * 3).dictionary_encode(),
        pa.array([[0.0]] * 3),
        pa.array([b"x"] * 3),
        pa.array([{"a": 1}] * 3),
    ],
)
def test_types_that_are_not_ours_are_left_out(results, column):
    plant(results, pa.table({"step": column}))
    left_out(results, "column step is of the type")


def test_files_of_a_terabyte_are_not_read(results):
    for name in ("steps.arrow", "run.json"):
        with open(results / "runs/bad-r0/a1" / name, "r+b") as file:
            file.truncate(2**40)
        left_out(results, f"{name} left out: {2**40} bytes, and no more than")


def refused(path, told, table="steps"):
    with pytest.raises(ValueError, match=told) as error:
        getattr(scalade, f"read_{table}")(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_parquet_of_a_billion_equal_rows_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"step": pa.array([7], pa.int64()).take(pa.array([0] * 2_000_000))})
    with pq.ParquetWriter(path, table.schema.with_metadata(ABOUT)) as writer:
        for _ in range(50):
            writer.write_table(table.replace_schema_metadata(ABOUT), row_group_size=2_000_000)
    assert path.stat().st_size < 2**20
    refused(path, "100,000,000 rows of 1 columns in a file of")


def test_parquet_of_one_long_text_a_million_times_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array(["a" * 2**20]))
    pq.write_table(pa.table({"run_id": texts}).replace_schema_metadata(ABOUT), path, compression="zstd")
    assert path.stat().st_size < 2**21
    refused(path, f"texts of {1_000_000 * 2**20} bytes in a file of")


def test_parquet_whose_pages_unpack_to_a_multiple_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "LEAST", 2**22)  # else it takes seconds to write the file
    path = tmp_path / "x.parquet"
    table = pa.table({"run_id": ["a" * 2**22] * 3}).replace_schema_metadata(ABOUT)
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    assert path.stat().st_size < 2**20
    refused(path, "pages that unpack to more than")


def test_parquet_of_texts_that_repeat_the_one_before_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"run_id": ["a" * 2**20] * 100}).replace_schema_metadata(ABOUT)
    pq.write_table(table, path, use_dictionary=False, column_encoding={"run_id": "DELTA_BYTE_ARRAY"})
    refused(path, "DELTA_BYTE_ARRAY")


@pytest.mark.parametrize(
    "about",
    [
        b"[]",
        b"3",
        b"null",
        b"\xff",
        b"{",
        b"[" * 100_000,
        b'{"table": 5, "schema_version": 2}',
        b'{"table": "steps"}',
        b'{"table": "steps", "schema_version": "2"}',
        b'{"table": "steps", "schema_version": [2]}',
        b"9" * 100_000,
        b'{"table": ["steps"], "schema_version": 2}',
        b'{"schema_version": 2}',
    ],
)
def test_what_an_exported_file_says_about_itself_may_be_anything(tmp_path, about):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"step": [1]}).replace_schema_metadata({EXPORT_KEY: about}), path)
    refused(path, "is not an exported Parquet file")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_flipped_bytes_of_an_exported_file_cost_one_line(results, tmp_path, seed):
    """In a process of its own, which must not crash: 60 files with up to 5 bytes flipped."""
    show.export(results, tmp_path / "x.parquet", table="runs")
    program = (
        "import random, sys, warnings, scalade\n"
        "from pathlib import Path\n"
        "warnings.simplefilter('ignore')\n"
        "path, chance = Path(sys.argv[1]), random.Random(int(sys.argv[2]))\n"
        "whole = path.read_bytes()\n"
        "for _ in range(60):\n"
        "    content = bytearray(whole)\n"
        "    for _ in range(chance.randrange(1, 6)):\n"
        "        content[chance.randrange(len(content))] = chance.randrange(256)\n"
        "    path.write_bytes(content)\n"
        "    try: scalade.read_runs(path).describe()\n"
        "    except ValueError as error: assert '\\n' not in str(error), error\n"
        "peak_kib = int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "assert peak_kib < 2**20, peak_kib\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "x.parquet", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
