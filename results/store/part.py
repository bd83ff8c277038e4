"""A part: many finished attempts in one folder, by column, so that 100,000 runs are ten files and not 600,000.

    <results>/table/p<number>/part.json     version of this layout; rows, size and SHA-256 of the files beside it
                             /index.arrow   run_id, attempt, status, and its rows in each of the other tables
                             /runs.arrow    the rows of `runs`, in the order of the index; without columns that are null
                             /digests.arrow a digest of each attempt's rows in each file (row_digests.py)
                             /kept.arrow    what else there was: columns of other versions (JSON), starts.jsonl
                             /steps.arrow   and evals, comm, ops: the rows of each attempt, in the order of the index
                    /lock                   held (flock) by the process that writes a part

A part is written aside, synced and renamed; nothing in it changes afterwards. Of an attempt that two parts hold, the
part with the larger number counts. The files are Arrow IPC streams, not compressed: a column is read where it lies
(mmap), and takes no more memory than the file has bytes, for any content. Any file whose SHA-256 is another than
part.json says, or whose content is not the schema's, is not read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .. import files
from ..schema.columns import TABLES
from ..schema.schema import SchemaError, arrow_schema, columns
from ..wording import count_of
from .arrow_file import PLAIN, batch
from .attempts import OTHERS, RUN_ID

VERSION = 1
FOLDER = "table"  # in the results folder
NAME = re.compile(r"p([1-9][0-9]{0,8})")
MANIFEST, LOCK = "part.json", "lock"
KEYS = ("run_id", "attempt", "status")  # columns of `runs` that the index has
INDEX = pa.schema(
    [*zip(KEYS, (pa.string(), pa.int64(), pa.string()), strict=True), *((name, pa.int64()) for name in OTHERS)]
)
KEPT = pa.schema([("other_json", pa.string()), ("starts", pa.string())])
DIGESTS = pa.schema([(name, pa.string()) for name in TABLES])
MOST_ATTEMPTS = 10**9 - 1  # of a run, as its folders can be named
PIECE = 2**20  # bytes hashed at a time
DAMAGE = (OSError, ValueError, TypeError, LookupError, MemoryError, RecursionError, SchemaError, pa.ArrowException)

_verified: set[tuple] = set()  # files that this process has hashed, as the system knew them then


class NewerPart(ValueError):
    """A part that only a newer Scalade reads."""


class Part:
    """A part as it lies on the disk.

    Raises
    ------
    FileNotFoundError: it is gone
    DAMAGE: it is no part, or its index is damaged
    NewerPart: a newer Scalade wrote it
    """

    def __init__(self, folder: Path, below: Path) -> None:
        self.folder, self.below = folder, below
        manifest = files.read_json(folder / MANIFEST, below)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise SchemaError(f"{MANIFEST} is not a part's")
        if not isinstance(manifest.get("version"), int) or manifest["version"] < 1:
            raise SchemaError(f"{MANIFEST} says no version")
        if manifest["version"] > VERSION:
            raise NewerPart(f"{folder} was written by a newer Scalade: upgrade scalade")
        self.files: Mapping[str, dict] = manifest["files"]
        self.index = self.table("index", INDEX)
        self._check_index()

    def _check_index(self) -> None:
        """Raises SchemaError where the index holds what no run has, or counts rows that are not there."""
        index = self.index
        if not index.num_rows:
            return
        if any(index[name].null_count for name in INDEX.names):
            raise SchemaError("index.arrow holds a null")
        named = pc.match_substring_regex(index["run_id"], f"^(?:{RUN_ID.pattern})\\z")
        if not pc.all(named).as_py():
            other = index["run_id"].filter(pc.invert(named))[0].as_py()
            raise SchemaError(f"index.arrow: {other[:40]!r} is no name of a run")
        attempts = pc.min_max(index["attempt"]).as_py()
        if attempts["min"] < 1 or attempts["max"] > MOST_ATTEMPTS:
            raise SchemaError(f"index.arrow: an attempt {attempts['min']}, or {attempts['max']}")
        _sound(index.select(["status"]), columns("runs")["status"])
        for name in OTHERS:
            counts = pc.min_max(index[name]).as_py()
            if counts["min"] < 0:
                raise SchemaError("index.arrow counts below zero")
            if counts["max"] > self._count(name):
                raise SchemaError(f"index.arrow counts more rows of {name} than there are")

    def _count(self, name: str) -> int:
        """Rows of a file, as part.json says: no more than it has bytes, as every row of ours takes some."""
        known = self.files.get(f"{name}.arrow")
        if known is None:
            return 0
        count, size = known["rows"], known["bytes"]
        if type(count) is not int or type(size) is not int or not 0 <= count <= size:
            raise SchemaError(f"{MANIFEST} says {count!s:.20} rows in {size!s:.20} bytes of {name}.arrow")
        return count

    def __len__(self) -> int:
        return self.index.num_rows

    @property
    def stored(self) -> list[str]:
        """Columns of `runs` that the part holds."""
        return self._schema("runs").names

    def runs(self, names: Sequence[str]) -> pa.Table:
        """Rows of `runs` in the order of the index; a column that no row has is null. Raises DAMAGE."""
        wanted = arrow_schema("runs")
        return self.as_runs(self._beside("runs", pa.schema([wanted.field(name) for name in names])), self.index)

    def as_runs(self, table: pa.Table, index: pa.Table) -> pa.Table:
        """Rows of `runs` after a look at their values; index: theirs, which has the keys. Raises DAMAGE."""
        known = columns("runs")
        for name in table.column_names:
            table = table if name in KEYS else _sound(table, known[name])
        for at, name in enumerate(table.column_names):
            if name in KEYS:
                table = table.set_column(at, table.schema.field(at), index[name])
        return table

    def rows(self, name: str, names: Sequence[str]) -> pa.Table:
        """Every row of another table, in the order of the index, without run_id and attempt. Raises DAMAGE."""
        wanted = arrow_schema(name)
        table = self.table(name, pa.schema([wanted.field(one) for one in names]))
        if len(table) != (pc.sum(self.index[name]).as_py() or 0):
            raise SchemaError(f"{name}.arrow has {count_of(len(table), 'row')}, the index says otherwise")
        return table

    def verify(self) -> None:
        """Read every file. Raises DAMAGE."""
        self.runs(self.stored)
        self.kept()
        self.digests()
        for name in OTHERS:
            self.rows(name, rows_schema(name).names)

    def kept(self) -> pa.Table:
        return self._beside("kept", KEPT)

    def _beside(self, name: str, schema: pa.Schema) -> pa.Table:
        """As `table`, of a file that has a row for each of the index."""
        if self._count(name) != len(self.index):
            raise SchemaError(f"{name}.arrow has {self._count(name)} rows, the index {len(self.index)}")
        return self.table(name, schema)

    def digests(self) -> pa.Table:
        """DIGESTS in the order of the index; all null in a part that was written without. Raises DAMAGE."""
        if "digests.arrow" not in self.files:
            return pa.table([pa.nulls(len(self), pa.string())] * len(DIGESTS), schema=DIGESTS)
        return self._beside("digests", DIGESTS)

    def batches(self, name: str) -> Iterator[pa.RecordBatch]:
        """What a damaged file still holds, as far as it can be followed, and of no value that is believed.

        Raises DAMAGE: it holds other types than ours, or is not there
        """
        descriptor = files.open_file(self.folder / f"{name}.arrow", self.below)
        try:
            size = min(os.fstat(descriptor).st_size, self.files[f"{name}.arrow"]["bytes"])
            buffer = pa.py_buffer(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)
        schema = pa.ipc.read_schema(buffer)
        if any(field.type not in PLAIN for field in schema):
            raise SchemaError(f"{name}.arrow holds columns of other types than ours")
        for message in pa.ipc.MessageReader.open_stream(buffer):
            if message.type == "record batch":
                if batch(message.metadata.to_pybytes())[1]:
                    return
                try:
                    yield pa.ipc.read_record_batch(message, schema)
                except DAMAGE:
                    return

    def table(self, name: str, schema: pa.Schema) -> pa.Table:
        """The columns of one file under the schema; those that it does not have are null. Raises DAMAGE."""
        count = self._count(name)
        there = self._schema(name) if f"{name}.arrow" in self.files else pa.schema([])
        held = [field.name for field in schema if field.name in there.names]
        table = self._read(name, there, held) if held else None
        if table is not None and len(table) != count:
            raise SchemaError(f"{name}.arrow has {count_of(len(table), 'row')}, {MANIFEST} says {count}")
        nothing = {kind: pa.chunked_array([pa.nulls(count, kind)]) for kind in {field.type for field in schema}}
        arrays = [
            nothing[field.type] if table is None or field.name not in held else table[field.name].cast(field.type)
            for field in schema
        ]
        return pa.table(arrays, schema=schema)

    def _schema(self, name: str) -> pa.Schema:
        schema = pa.ipc.read_schema(self._buffer(f"{name}.arrow"))
        if any(field.type not in PLAIN for field in schema) or len(set(schema.names)) != len(schema.names):
            raise SchemaError(f"{name}.arrow holds columns of other types than ours")
        return schema

    def _read(self, name: str, there: pa.Schema, held: Sequence[str]) -> pa.Table:
        buffer = self._buffer(f"{name}.arrow")
        options = pa.ipc.IpcReadOptions(included_fields=[there.names.index(one) for one in held], use_threads=False)
        with pa.ipc.open_stream(pa.BufferReader(buffer), options=options) as reader:
            table = reader.read_all()
        table.validate(full=True)
        return table

    def _buffer(self, name: str) -> pa.Buffer:
        """The file's bytes where they lie, verified once."""
        known = self.files[name]
        descriptor = files.open_file(self.folder / name, self.below)
        try:
            state = os.fstat(descriptor)
            if state.st_size != known["bytes"] or not state.st_size:
                raise SchemaError(f"{name} has {state.st_size} bytes, {MANIFEST} says {known['bytes']}")
            buffer = pa.py_buffer(mmap.mmap(descriptor, state.st_size, prot=mmap.PROT_READ))
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, known["sha256"])
            if key not in _verified:
                if _sha256(descriptor) != known["sha256"]:
                    raise SchemaError(f"{name}: its content changed after it was written: its SHA-256 is another")
                _refuse_compressed(buffer)
                _verified.add(key)
        finally:
            os.close(descriptor)
        return buffer


class PartWriter:
    """Writes the files of a part into a folder of its own, and part.json last. Use as a context."""

    def __init__(self, folder: Path, stored: Sequence[str], below: Path) -> None:
        """stored: columns of `runs` to write."""
        self.folder, self.below = folder, below
        wanted = arrow_schema("runs")
        self.schemas = {"index": INDEX, "kept": KEPT, "digests": DIGESTS}
        self.schemas |= {"runs": pa.schema([wanted.field(name) for name in stored])}
        self.schemas |= {name: rows_schema(name) for name in OTHERS}
        self._open: dict[str, tuple] = {}

    def __enter__(self) -> PartWriter:
        files.make_folder(self.folder, self.below)
        return self

    def add(self, name: str, table: pa.Table) -> None:
        """More rows of one file."""
        if name not in self._open:
            if not len(table) and name in OTHERS:
                return
            sink = _Hashed(files.open_file(self.folder / f"{name}.arrow", self.below, os.O_WRONLY | os.O_CREAT))
            self._open[name] = sink, pa.ipc.new_stream(pa.PythonFile(sink, "w"), self.schemas[name])
        self._open[name][1].write_table(table.select(self.schemas[name].names), max_chunksize=2**16)
        self._open[name][0].rows += len(table)

    def finish(self) -> None:
        """Everything on the disk, part.json last."""
        known = {}
        for name, (sink, writer) in self._open.items():
            writer.close()
            sink.flush()
            os.fsync(sink.descriptor)
            known[f"{name}.arrow"] = {"rows": sink.rows, "bytes": sink.size, "sha256": sink.digest.hexdigest()}
        manifest = json.dumps({"version": VERSION, "files": known}, indent=1) + "\n"
        files.write(self.folder / MANIFEST, manifest, self.below)
        files.sync_folder(self.folder, self.below)

    def __exit__(self, *error) -> None:
        for sink, _ in self._open.values():
            os.close(sink.descriptor)


class _Hashed:
    """A file that counts and hashes what is written to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.digest, self.size, self.rows, self.closed = descriptor, hashlib.sha256(), 0, 0, False

    def write(self, content: bytes) -> int:
        left = memoryview(content)
        self.digest.update(left)
        self.size += len(left)
        while left:
            left = left[os.write(self.descriptor, left) :]
        return self.size

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass  # the descriptor is closed by the part's writer


def rows_schema(name: str) -> pa.Schema:
    """Columns of a file of another table than runs: all but those that the index says."""
    return pa.schema([field for field in arrow_schema(name) if field.name not in ("run_id", "attempt")])


def part_names(results: Path) -> list[str]:
    """Names of the parts in a results folder, in the order in which they were written. OSError: it cannot be read."""
    present = files.names(results / FOLDER, results)
    return sorted((name for name in present if NAME.fullmatch(name)), key=lambda name: int(name[1:]))


def _sha256(descriptor: int) -> str:
    digest, at = hashlib.sha256(), 0
    while piece := os.pread(descriptor, PIECE, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()


def _refuse_compressed(buffer: pa.Buffer) -> None:
    """Raises SchemaError where a message is compressed or a dictionary: it could unpack to any size."""
    for message in pa.ipc.MessageReader.open_stream(buffer):
        if message.type not in ("schema", "record batch"):
            raise SchemaError(f"holds a {message.type}")
        if message.type == "record batch" and batch(message.metadata.to_pybytes())[1]:
            raise SchemaError("is compressed")


def _sound(table: pa.Table, column) -> pa.Table:
    """The table, after a look at one column of `runs`: what checked() asks of each value."""
    values = table[column.name]
    if column.name == "schema_version" and values.null_count:
        raise SchemaError("a row without its schema_version")
    if column.values:
        unknown = set(pc.unique(values).to_pylist()) - {*column.values, None}
        if unknown:
            raise SchemaError(f"column {column.name} is one of {', '.join(column.values)}, found {unknown.pop()!r}")
    if column.type == "float64" and not column.keeps_nan and values.null_count < len(values):
        return _finite(table, column.name)
    return table


def _finite(table: pa.Table, name: str) -> pa.Table:
    """The table with null for NaN and infinities in this column."""
    finite = pc.is_finite(table[name])
    if pc.all(finite, skip_nulls=True).as_py():
        return table
    at = table.schema.get_field_index(name)
    nothing = pa.scalar(None, pa.float64())
    return table.set_column(at, table.schema.field(at), pc.if_else(finite, table[name], nothing))
