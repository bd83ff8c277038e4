"""Parts (results/store/part.py) that were damaged, or that somebody else wrote: commands give a line or a right table,
within memory, and write nothing outside. `make faults` tries more seeds."""

import hashlib
import json
import os
import random
import resource
import shutil
import warnings

import hostile
import pyarrow as pa
import pytest

from scalade.results.store import packing
from scalade.results.store.part import Part
from scalade.results.store.store import RunStore
from scalade.results.table import read
from scalade.results.table.read import DamagedFile

SEEDS = int(os.environ.get("HOSTILE_SEEDS", 4))  # the first two in every run of the tests; `make faults` has more
EVALS = {"step": [2], "val_loss": [2.5]}
NUMBERS = (
    None, True, -1, 0, 1, 2**31, 2**40, 2**62, 2**63 - 1, 10**400, 1.5, 1e308, float("nan"), "9", [], {}, "x" * 9999,
)  # fmt: skip
NAMES = (
    "../../precious",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "runs.arrow/../../x",
    "\0",
    hostile.ESCAPE,
    "p1",
    "lock",
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    store = RunStore(folder / "r")
    for number in range(9):
        store.write_run(hostile.base_row(number), {"step": [0, 1, 2], "loss": [3.0, 2.5, 2.0]}, EVALS)
    packing.compact(folder / "r")
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("years of work")
    return folder


@pytest.fixture
def place(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "x")
    return tmp_path / "x"


def outside(place):
    """Everything beside the results folder, and what is in it."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in place.rglob("*")
        if not path.is_relative_to(place / "r") and not path.is_relative_to(place / "out")
    }


def content(results):
    """Rows, and steps by run, as far as they are read."""
    runs = read.runs_table(results, columns=["run_id", "attempt", "status", "loss", "tokens_per_s", "layout"])
    steps = read.rows_table(results, "steps", None)
    return runs.to_pylist(), steps.select(["run_id", "step", "loss"]).to_pylist()


def vouch(part, name, data=None):
    """part.json says of the file what it is."""
    file = part / name
    if data is not None:
        file.unlink()
        file.write_bytes(data)
    manifest = json.loads((part / "part.json").read_text())
    data = file.read_bytes()
    manifest["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (part / "part.json").write_text(json.dumps(manifest))


def forged(part, name, table):
    """This table in place of the file's, vouched for, with as many rows as it has."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    manifest = json.loads((part / "part.json").read_text())
    manifest["files"][name]["rows"] = len(table)
    (part / "part.json").write_text(json.dumps(manifest))
    vouch(part, name, sink.getvalue().to_pybytes())


def files_of(part):
    return sorted(path.name for path in part.iterdir())


def flip(chance, part, keep_digest=True):
    name = chance.choice(files_of(part))
    data = bytearray((part / name).read_bytes())
    for _ in range(chance.randrange(1, 9)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    (part / name).unlink()
    (part / name).write_bytes(data)
    return name


def flip_and_vouch(chance, part):
    name = chance.choice([name for name in files_of(part) if name.endswith(".arrow")])
    data = bytearray((part / name).read_bytes())
    for _ in range(chance.randrange(1, 9)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    vouch(part, name, data)


def forge_manifest(chance, part):
    manifest = json.loads((part / "part.json").read_text())
    for _ in range(chance.randrange(1, 4)):
        what = chance.randrange(6)
        some = chance.choice(sorted(manifest["files"])) if isinstance(manifest.get("files"), dict) else None
        if what == 0:
            manifest["version"] = chance.choice([1, *NUMBERS])
        elif what == 1:
            manifest = chance.choice([[], None, 3, {"version": 1}, {"version": 1, "files": chance.choice(NUMBERS)}])
            break
        elif what == 2:
            manifest["files"][some] = chance.choice([*NUMBERS, {"rows": 3}])
        elif what == 3:
            manifest["files"].pop(some)
            manifest["files"][chance.choice(NAMES)] = {"rows": 9, "bytes": 9, "sha256": "0" * 64}
        elif isinstance(manifest["files"][some], dict):
            manifest["files"][some][chance.choice(["rows", "bytes", "sha256"])] = chance.choice(NUMBERS)
    (part / "part.json").write_text(json.dumps(manifest))


def forge_index(chance, part):
    index = Part(part, part.parents[1]).index
    name = chance.choice(index.column_names)
    at = index.schema.get_field_index(name)
    kind = index.schema.field(at).type
    values = index[name].to_pylist()
    for place in chance.sample(range(len(values)), chance.randrange(1, len(values))):
        words = [*NAMES, *values, "x" * 9999, "failed"]
        values[place] = chance.choice(words if kind == pa.string() else [0, -1, 1, 2, 3, 10, 2**31, 2**62, 2**63 - 1])
    forged(part, "index.arrow", index.set_column(at, name, pa.array(values, kind)))


def double(chance, part):
    """The part again under another number; or runs twice in one index."""
    if chance.random() < 0.5:
        shutil.copytree(part, part.with_name(chance.choice(["p2", "p999999999", "p01", "p0", "p", "p1x"])))
        return
    known = Part(part, part.parents[1])
    for name in ("index", "runs", "kept"):
        table = known.index if name == "index" else known.runs(known.stored) if name == "runs" else known.kept()
        forged(part, f"{name}.arrow", pa.concat_tables([table, table]))


def other_file(chance, part):
    target = chance.choice([part, part.parent, part / chance.choice(files_of(part)), part.parent / "lock"])
    aside = part.parents[2] / "moved"
    os.rename(target, aside)
    what = chance.randrange(4)
    if what == 0:
        os.mkfifo(target)
    elif what == 1:
        target.symlink_to(aside)
    elif what == 2:
        target.symlink_to("/dev/zero")
    elif target.name in ("p1", "table"):
        target.write_bytes(b"x")
    else:
        target.mkdir()


def forge_kept(chance, part):
    kept = Part(part, part.parents[1]).kept()
    texts = ["{", "[1]", "3", '{"run_id": "../../x"}', "[" * 50_000, '{"loss": {}}', hostile.ESCAPE, "9" * 5000, "\0"]
    arrays = [pa.array([chance.choice([None, *texts]) for _ in range(len(kept))], pa.string()) for _ in range(2)]
    forged(part, "kept.arrow", pa.table(arrays, schema=kept.schema))


KINDS = (flip, flip_and_vouch, forge_manifest, forge_index, double, other_file, forge_kept)
SAME = (flip, other_file)  # after which what is read is right


def commands(chance, results, out):
    """Some that read, both that write, and one that reads what these left."""
    kept = ("show", "check", "export", "efficiency", "history", "ops", "compare", "fit")
    read = [words for words in hostile.commands(results, out) if words[0] in kept]
    return [
        *chance.sample(read, 3),
        ["compact", str(results)],
        ["compact", str(results), "--undo"],
        ["show", str(results)],
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, SEEDS))])
def test_a_part_of_somebody_else_costs_a_line(place, kind, seed):
    whole, results, chance = content(place / "r"), place / "r", random.Random(f"{kind.__name__}{seed}")
    kind(chance, results / "table" / "p1")
    (place / "out").mkdir()
    before, peak = outside(place), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind in SAME:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                runs, steps = content(results)
            except (ValueError, OSError):
                runs, steps = [], []
        assert all(row in whole[0] for row in runs) and all(row in whole[1] for row in steps)
    for words in commands(chance, results, place / "out"):
        assert (wrong := hostile.called(words)) is None, wrong
    assert outside(place) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**19  # KiB


@pytest.mark.parametrize("name", ["index.arrow", "runs.arrow", "kept.arrow", "steps.arrow"])
@pytest.mark.parametrize("rows", [2**31, 2**40, 10**400])
def test_rows_that_a_file_cannot_hold_take_no_memory(place, name, rows):
    """Columns that a file does not have are nulls: as many as part.json says there are rows."""
    part = place / "r/table/p1"
    forged(part, name, pa.table({"unknown": [1]}))
    manifest = json.loads((part / "part.json").read_text())
    manifest["files"][name]["rows"] = rows
    (part / "part.json").write_text(json.dumps(manifest))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs, steps = content(place / "r")
    if name != "kept.arrow":  # which nothing reads here
        assert {one.category for one in told} == {DamagedFile} and "table/p1" in str(told[0].message)
        assert not steps and (name == "steps.arrow" or not runs)
    assert packing.unpack(place / "r") == 0  # it is damaged, and stays
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**18


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("run_id", "../../precious", "is no name of a run"),
        ("attempt", 0, "attempt 0"),
        ("attempt", 2**62, "attempt"),
        ("status", "owned", "status"),
    ],
)
def test_an_index_of_names_and_numbers_that_no_run_has_is_left_out(place, column, value, said):
    part = place / "r/table/p1"
    index = Part(part, place / "r").index
    at = index.schema.get_field_index(column)
    values = [value, *index[column].to_pylist()[1:]]
    forged(part, "index.arrow", index.set_column(at, column, pa.array(values, index.schema.field(at).type)))
    with pytest.warns(DamagedFile, match=said):
        assert content(place / "r") == ([], [])
    assert RunStore(place / "r").claim("case1-r0").attempt == 1  # it runs again
