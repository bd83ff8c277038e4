"""Packing moves attempts into parts: at any moment, whoever is killed, the table reads the same."""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scalade
from scalade.results.check.command import check
from scalade.results.schema.schema import SCHEMA_VERSION
from scalade.results.store import packing, salvage
from scalade.results.store.damage import damaged_tables
from scalade.results.store.loose import Notes
from scalade.results.store.part import Part
from scalade.results.store.snapshot import Packed
from scalade.results.store.store import RunStore
from scalade.results.table import read
from scalade.results.table.read import DamagedFile

TABLES = ("steps", "evals", "comm", "ops")


def row(run_id, **more):
    return {"run_id": run_id, "case_id": run_id.split("-")[0], "repeat": 0, "status": "ok", "loss": 2.5} | more


def failed(run_id):
    return row(run_id, status="failed", reason="rank 1 was killed", loss=None)


def write(store, number, status="ok"):
    run_id = f"case{number}-r0"
    steps = {"step": list(range(number % 4)), "loss": [float("nan"), 1.5, 2.5, 3.5][: number % 4]}
    one = row(run_id, tokens_seen=number) if status == "ok" else failed(run_id)
    return store.write_run(one, steps if number % 4 else None, {"step": [number], "val_loss": [number / 3]})


def everything(path):
    """The whole content, as plain lists."""
    runs = read.runs_table(path, all_attempts=True)
    return [
        runs.to_pylist(),
        read.runs_table(path).to_pylist(),
        *(str(read.rows_table(path, name, None, True).to_pylist()) for name in TABLES),
    ]


def inodes(path):
    return sum(1 for _ in Path(path).rglob("*"))


@pytest.fixture
def results(tmp_path):
    """20 runs; every third failed once before."""
    store = RunStore(tmp_path / "results")
    for number in range(20):
        for status in ("failed", "ok") if number % 3 == 0 else ("ok",):
            write(store, number, status)
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_packed_table_reads_as_before_and_back_again(results):
    before, files, rows = everything(results), inodes(results), {}
    for file in (results / "runs").rglob("*.json"):
        rows[str(file.relative_to(results))] = file.read_bytes()
    done = packing.compact(results)
    assert (done.packed, done.left, done.parts) == (27, 0, 1)
    assert everything(results) == before and list((results / "runs").iterdir()) == []
    assert (files, inodes(results)) == (122, 11)  # now `runs`, `table`, its lock, and a part with seven files
    assert packing.unpack(results) == 27
    assert everything(results) == before
    for name, content in rows.items():
        assert (results / name).read_bytes() == content
    assert [path.name for path in (results / "table").iterdir()] == ["lock"]


def test_the_store_knows_what_lies_in_parts(results):
    packing.compact(results)
    store = RunStore(results)
    assert store.attempts("case3-r0") == [1, 2] and store.attempts("case1-r0") == [1] and store.attempts("new-r0") == []
    assert store.finished("case3-r0") == "ok" and store.finished("new-r0") is None
    assert store.row("case3-r0")["tokens_seen"] == 3 and store.row("case3-r0")["attempt"] == 2
    assert store.run("case3-r0").brief(("status", "loss")) == store.run("case3-r0").brief(("status", "loss"))
    assert dict(store.run("case3-r0").brief(("status", "loss"))) == {"status": "ok", "loss": 2.5}
    assert store.begun() == {f"case{n}-r0" for n in range(20)}
    with store.claim("case3-r0") as claim:
        assert claim.attempt == 3
        with pytest.raises(FileExistsError, match="attempt 2 of run case3-r0 was written already"):
            store.write_run(row("case3-r0", attempt=2))
        store.write_run(failed("case3-r0"))
    assert store.finished("case3-r0") == "failed" and store.attempts("case3-r0") == [1, 2, 3]
    assert scalade.read_runs(results).set_index("run_id")["status"]["case3-r0"] == "failed"


def test_a_store_sees_what_another_process_packs(results):
    store = RunStore(results)
    assert store.finished("case1-r0") == "ok"
    code = (
        "import sys; from pathlib import Path; from scalade.results.store.packing import compact\n"
        "compact(Path(sys.argv[1]))"
    )
    for number in (1, 2, 30):
        if number == 30:
            write(RunStore(results), 30)
        subprocess.run([sys.executable, "-c", code, results], check=True)
        assert store.finished(f"case{number}-r0") == "ok"
        assert store.attempts(f"case{number}-r0") == [1]


def test_starts_go_with_the_run_and_come_back_when_it_runs_again(results):
    store = RunStore(results)
    (results / "runs/case1-r0/starts.jsonl").write_text('{"event": "start"}\n')
    (results / "runs/case2-r0/scratch").mkdir()
    (results / "runs/case4-r0/a1/of another").write_text("kept")
    done = packing.compact(results)
    assert done.left == 1 and sorted(path.name for path in (results / "runs").iterdir()) == ["case2-r0", "case4-r0"]
    with store.claim("case1-r0"):
        assert (results / "runs/case1-r0/starts.jsonl").read_text() == '{"event": "start"}\n'
    assert not (results / "runs/case2-r0/a1").exists() and (results / "runs/case4-r0/a1/run.json").exists()


def test_a_run_that_is_held_stays(results):
    with RunStore(results).claim("case1-r0"):
        before = everything(results)
        packing.compact(results)
        assert [path.name for path in (results / "runs").iterdir()] == ["case1-r0"]
        assert everything(results) == before
    packing.compact(results)
    assert list((results / "runs").iterdir()) == [] and everything(results) == before


def test_a_lock_that_a_packing_removed_is_no_claim(results):
    """A claimer that has opened the lock just before the packing removed it must not hold the run with it."""
    store, open_file = RunStore(results), packing.files.open_file
    opened = []

    def slow(file, *more):
        descriptor = open_file(file, *more)
        if Path(file).name == "lock" and Path(file).parent.name == "case1-r0" and not opened:
            opened.append(descriptor)
            packing.compact(results)
            assert not (results / "runs/case1-r0").exists()
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing.files, "open_file", slow)
        claim = store.claim("case1-r0")
    with claim:
        assert opened and RunStore(results).claim("case1-r0") is None


def test_old_rows_and_columns_of_others_go_through(results):
    file = results / "runs/case1-r0/a1/run.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if "sha256" not in name}
    del old["tp"], old["eval_rows"]
    old |= {"schema_version": 1, "column_of_another_version": [1, {"a": None}]}
    file.write_text(json.dumps(old))
    before = everything(results)
    packing.compact(results)
    assert everything(results) == before and not (results / "runs/case1-r0").exists()
    packing.unpack(results)
    assert everything(results) == before
    back = json.loads(file.read_text())
    assert back["column_of_another_version"] == [1, {"a": None}] and "eval_rows" not in back


def test_what_is_damaged_or_newer_stays_where_it_is(results):
    (results / "runs/case1-r0/a1/run.json").write_text("{")
    (results / "runs/case2-r0/a1/steps.arrow").write_bytes(b"junk")
    with pytest.warns(DamagedFile):
        before = everything(results)
    assert packing.compact(results).left == 1
    assert sorted(path.name for path in (results / "runs").iterdir()) == ["case1-r0", "case2-r0"]
    with pytest.warns(DamagedFile):
        assert everything(results) == before
    shutil.rmtree(results / "runs/case1-r0"), shutil.rmtree(results / "runs/case2-r0")
    write(RunStore(results), 31)
    file = results / "runs/case31-r0/a1/run.json"
    text = file.read_text().partition(',\n "row_sha256"')[0] + "}"
    file.write_text(text.replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION + 1}'))
    packing.compact(results)
    assert file.exists()
    with pytest.raises(ValueError, match="upgrade scalade"):
        everything(results)


@pytest.mark.parametrize("name", ["index.arrow", "part.json"])
def test_a_damaged_part_costs_its_rows_and_one_line_that_names_them(results, name):
    packing.compact(results)
    write(RunStore(results), 50)
    file = results / "table/p1" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content if name != "part.json" else b"{")
    with pytest.warns(DamagedFile) as told:
        runs = scalade.read_runs(results)
    assert runs["run_id"].tolist() == ["case50-r0"] and len(told) == 1
    line = str(told[0].message)
    assert "table/p1" in line and "\n" not in line
    store = RunStore(results)
    assert store.finished("case1-r0") is None and store.claim("case1-r0").attempt == 1  # it runs again
    packing.compact(results)
    assert (results / "table/p1").is_dir()  # never removed, and nothing is taken from it


def test_a_damaged_table_of_a_part_costs_that_table(results):
    packing.compact(results)
    file = results / "table/p1/steps.arrow"
    content = file.read_bytes()[:-8]
    file.unlink()
    file.write_bytes(content)
    assert len(scalade.read_runs(results)) == 20
    with pytest.warns(DamagedFile, match="steps.arrow left out: the steps of 0 of 27 runs lost: .* has"):
        assert len(scalade.read_steps(results)) == 30  # it was only its end that was cut off
    file.write_bytes(content[:600])
    with pytest.warns(DamagedFile, match="steps.arrow left out: the steps of 15 of 27 runs lost .case1-r0"):
        assert len(scalade.read_steps(results)) == 0
    assert len(scalade.read_evals(results)) == 20
    shutil.copytree(results, results.with_name("cut"))
    os.truncate(results.with_name("cut") / "table/p1/runs.arrow", 100)
    with pytest.raises(ValueError, match="no runs at .*cut.; .*table/p1 left out: "):
        check(results.with_name("cut"))
    (results / "table/p1/digests.arrow").unlink()  # what vouches for the rows of each run
    file.write_bytes(content)
    with pytest.warns(DamagedFile, match="the steps of 15 of 27 runs lost"):
        assert len(scalade.read_steps(results)) == 0


def changed(file, before, after):
    content = file.read_bytes()
    assert content.count(before) == 1
    file.unlink()
    file.write_bytes(content.replace(before, after))


def test_damage_of_one_run_in_a_part_costs_that_run(results):
    write(RunStore(results), 50)
    RunStore(results).write_run(row("mine-r0", tokens_seen=77), {"step": [4711, 4712]}, {"step": [1], "val_loss": [2]})
    RunStore(results).write_run(failed("mine-r1") | {"case_id": "mine"}, {"step": [815]})
    packing.compact(results)
    before = read.runs_table(results).to_pylist()
    part = results / "table/p1"
    changed(part / "steps.arrow", (4712).to_bytes(8, "little"), (4713).to_bytes(8, "little"))
    with pytest.warns(DamagedFile, match="steps.arrow left out: the steps of 1 of 30 runs lost .mine-r0.: "):
        assert set(scalade.read_steps(results)["run_id"]) == {row["run_id"] for row in before if row["step_rows"]} - {
            "mine-r0"
        }
    assert read.runs_table(results).to_pylist() == before  # its row is whole
    store = RunStore(results)
    undone = [one["run_id"] for one in before if store.finished(one["run_id"]) is None]
    assert undone == ["mine-r0"] and "table/p1/steps.arrow: " in store.run("mine-r0").lost()
    line = damaged_tables([Packed(Part(part, results), ["run_id"], Notes())])
    assert len(line) == 1 and "the steps of 1 of 30 runs lost (mine-r0): " in line[0]
    changed(part / "steps.arrow", (815).to_bytes(8, "little"), (816).to_bytes(8, "little"))
    assert RunStore(results).finished("mine-r1") == "failed"  # of a run that came to nothing the row counts
    changed(part / "runs.arrow", (77).to_bytes(8, "little"), (78).to_bytes(8, "little"))
    with pytest.warns(DamagedFile, match="runs.arrow left out: the rows of 1 of 30 runs lost .mine-r0.: "):
        assert read.runs_table(results).to_pylist() == [one for one in before if one["run_id"] != "mine-r0"]
    with RunStore(results).claim("mine-r0"):
        pass
    RunStore(results).write_run(row("mine-r0", tokens_seen=77), {"step": [4711, 4712]}, {"step": [1], "val_loss": [2]})
    store = RunStore(results)
    assert store.finished("mine-r0") == "ok" and store.run("mine-r0").lost() is None
    with pytest.warns(DamagedFile):
        assert [one["run_id"] for one in read.runs_table(results).to_pylist()] == [one["run_id"] for one in before]
        assert scalade.read_steps(results, "mine-r0")["step"].tolist() == [4711, 4712]


def test_a_lost_attempt_does_not_hand_the_run_to_the_one_before_it(results):
    packing.compact(results)
    assert RunStore(results).attempts("case18-r0") == [1, 2]
    changed(results / "table/p1/runs.arrow", (18).to_bytes(8, "little"), (19).to_bytes(8, "little"))
    store = RunStore(results)
    assert store.finished("case18-r0") is None and store.run("case18-r0").lost() and store.attempts("case18-r0") == [1]
    assert store.finished("case17-r0") == "ok"


@pytest.mark.parametrize("name", ["steps", "runs"])
def test_wherever_a_part_is_damaged_what_is_read_is_as_it_was_written(results, name):
    packing.compact(results)
    file, chance = results / f"table/p1/{name}.arrow", random.Random(7)
    content = file.read_bytes()
    rows = {
        "steps": lambda: read.rows_table(results, "steps", None, True),
        "runs": lambda: read.runs_table(results, all_attempts=True),
    }[name]
    before = [str(one) for one in rows().to_pylist()]
    kept = []
    value = content.index(struct.pack("<d", 1.5 if name == "steps" else 2.5))  # a loss
    for place in [*range(value, value + 8), *(chance.randrange(len(content)) for _ in range(52))]:
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << chance.randrange(8)
        file.unlink()
        file.write_bytes(spoiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedFile)
            now = [str(one) for one in rows().to_pylist()]
        assert set(now) <= set(before)
        kept.append(len(now) / len(before))
        assert place not in range(value, value + 8) or 0.85 < kept[-1] < 1
    assert sum(share > 0.85 for share in kept) > 15  # most bytes are framing and padding in so small a file


def forged(part, name, table, **options):
    """A file in the part that its manifest vouches for."""
    import hashlib

    aside = part / "aside"  # the table lies in the file that is replaced
    with pa.ipc.new_stream(aside, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    content = aside.read_bytes()
    aside.replace(part / name)
    manifest = json.loads((part / "part.json").read_text())
    manifest["files"][name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (part / "part.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("what", ["compressed", "type", "null type", "status", "dictionary", "twice", "counts"])
def test_a_forged_part_is_left_out(results, what):
    packing.compact(results)
    part = results / "table/p1"
    runs = Part(part, results).runs(Part(part, results).stored)
    at = runs.schema.get_field_index("status")
    if what == "compressed":
        forged(part, "runs.arrow", runs, compression="zstd")
    elif what == "type":
        forged(part, "runs.arrow", runs.set_column(at, "status", pa.array([b"ok"] * len(runs))))
    elif what == "null type":
        forged(part, "runs.arrow", runs.set_column(at, "status", pa.nulls(len(runs))))
    elif what == "status":
        at = runs.schema.get_field_index("schema_version")
        forged(part, "runs.arrow", runs.set_column(at, "schema_version", pa.nulls(len(runs), pa.int64())))
    elif what == "dictionary":
        forged(part, "runs.arrow", runs.set_column(at, "status", runs["status"].dictionary_encode()))
    elif what == "twice":
        forged(part, "runs.arrow", runs.append_column("status", runs["status"]))
    else:
        index = Part(part, results).index
        at = index.schema.get_field_index("steps")
        forged(part, "index.arrow", index.set_column(at, "steps", pa.array([2**62] * len(index))))
    with pytest.warns(DamagedFile, match="table/p1"):
        assert len(scalade.read_runs(results)) == 0


def test_numbers_that_are_not_finite_in_a_forged_part_are_null(results):
    packing.compact(results)
    part = results / "table/p1"
    runs = Part(part, results).runs(Part(part, results).stored)
    at = runs.schema.get_field_index("loss")
    forged(part, "runs.arrow", runs.set_column(at, "loss", pa.array([float("inf")] * len(runs))))
    assert scalade.read_runs(results)["loss"].isna().all()


def test_links_and_pipes_in_the_places_of_a_part(results, tmp_path):
    packing.compact(results)
    shutil.move(results / "table/p1", tmp_path / "elsewhere")
    (results / "table/p1").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(DamagedFile, match="link"):
        assert len(scalade.read_runs(results)) == 0
    (results / "table/p1").unlink()
    shutil.move(tmp_path / "elsewhere", results / "table/p1")
    (results / "table/p1/runs.arrow").unlink()
    os.mkfifo(results / "table/p1/runs.arrow")
    with pytest.warns(DamagedFile, match="pipe"):
        assert len(scalade.read_runs(results)) == 0


def test_runs_by_hand_win_over_parts(results, tmp_path):
    packing.compact(results)
    other = RunStore(tmp_path / "other")
    write(other, 99)
    other.write_run(row("case1-r0", tokens_seen=77))
    shutil.copytree(tmp_path / "other/runs", results / "runs", dirs_exist_ok=True)
    for _ in range(2):
        runs = scalade.read_runs(results).set_index("run_id")
        assert len(runs) == 21 and runs["tokens_seen"]["case1-r0"] == 77 and runs["tokens_seen"]["case99-r0"] == 99
        packing.compact(results)
    shutil.copytree(results / "table/p1", tmp_path / "other/table/p7") if (results / "table/p1").is_dir() else None


def test_a_results_folder_that_may_not_be_written_is_read(results):
    write(RunStore(results), 60)
    before = everything(results)
    packing.compact(results)
    names = [results, *(path for path in results.rglob("*"))]
    try:
        for path in names:
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert everything(results) == before
    finally:
        for path in names:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_one_run_is_read_wherever_it_lies(results):
    one = results / "runs/case3-r0"
    before = everything(one)
    assert len(before[0]) == 2
    packing.compact(results)
    assert everything(one) == before
    with pytest.raises(ValueError, match="no results at"):
        scalade.read_runs(results.parent / "nowhere")


def test_many_rows_are_written_at_once(tmp_path, monkeypatch):
    store, synced = RunStore(tmp_path), []
    store.write_run(row("done-r0"))
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), fsync(fd)))
    given = [row(f"s{n}-r0", status="skipped", reason="tp 8 is more than the heads", loss=None) for n in range(300)]
    held, left = store.claim("s1-r0"), store.claim("s2-r0")
    left.release()
    with held:
        store.write_rows([*given, row("done-r0", status="skipped", reason="x", loss=None)])
    assert len(synced) < 30
    runs = scalade.read_runs(tmp_path).set_index("run_id")
    assert len(runs) == 300 and "s1-r0" not in runs.index and runs["status"]["done-r0"] == "ok"
    assert (runs["status"] == "skipped").sum() == 299 and store.finished("s2-r0") == "skipped"
    store.write_rows(given[5:9])
    assert len(scalade.read_runs(tmp_path, all_attempts=True)) == 300


class Killed(BaseException):
    """A process that ends between two system calls: nothing after it runs, no cleaning up."""


CALLS = ("write", "rename", "replace", "fsync", "mkdir", "unlink", "rmdir")


def killed_at(moment, doing):
    """Run it, and stop before its `moment`-th change to the disk. True: it was killed."""
    real, count, dead = {name: getattr(os, name) for name in CALLS}, [0], [False]

    def wrapped(name):
        def call(*args, **more):
            if dead[0]:
                raise Killed  # the dead do not tidy up
            count[0] += 1
            if count[0] == moment:
                dead[0] = True
                if name == "write":
                    real[name](args[0], bytes(args[1])[: len(args[1]) // 2])
                raise Killed
            return real[name](*args, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrapped(name))
        try:
            doing()
        except Killed:
            return True
    return False


def content(path):
    """Rows but for what a seal of their own file says, and the steps."""
    rows = read.runs_table(path, all_attempts=True).to_pylist()
    steps = read.rows_table(path, "steps", None, True)
    return [{name: value for name, value in one.items() if name != "row_sha256"} for one in rows], str(
        steps.to_pylist()
    )


def moments(every):
    """The changes to the disk that a process is killed at: all of them, or some that the tests share out."""
    return range(1, 1000) if every else range(1, 1000, 61)


ALL = [False, *([True] if "HOSTILE_SEEDS" in os.environ else [])]  # all of them in `make faults`


@pytest.mark.parametrize("every", ALL)
def test_a_packing_killed_at_every_moment_loses_and_doubles_nothing(tmp_path, every):
    store = RunStore(tmp_path / "all")
    for number in (1, 2):
        write(store, number)
    packing.compact(tmp_path / "all")  # so that a part is merged
    for number in (0, 3):
        write(store, number, "failed" if number == 3 else "ok")
    before = content(tmp_path / "all")
    for moment in moments(every):
        results = tmp_path / str(moment)
        shutil.copytree(tmp_path / "all", results)
        killed = killed_at(moment, lambda here=results: packing.compact(here))
        assert content(results) == before, moment
        after = RunStore(results)
        assert [after.attempts(f"case{n}-r0") for n in range(4)] == [[1]] * 4, moment
        packing.compact(results)
        assert content(results) == before and not list((results / "runs").iterdir()), moment
        shutil.rmtree(results)
        if not killed:
            break
    assert not killed and moment > 40


@pytest.mark.parametrize("every", ALL)
def test_an_unpacking_killed_at_every_moment_loses_and_doubles_nothing(tmp_path, every):
    store = RunStore(tmp_path / "all")
    for number in (1, 2):
        write(store, number)
    before = content(tmp_path / "all")
    packing.compact(tmp_path / "all")
    for moment in moments(every):
        results = tmp_path / str(moment)
        shutil.copytree(tmp_path / "all", results)
        killed = killed_at(moment, lambda here=results: packing.unpack(here))
        assert content(results) == before, moment
        packing.unpack(results)
        assert content(results) == before, moment
        shutil.rmtree(results)
        if not killed:
            break
    assert not killed and moment > 20


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 5), st.sampled_from(["ok", "failed"])),
    st.tuples(st.just("compact"), st.integers(1, 120), st.just("")),
    st.tuples(st.just("unpack"), st.integers(1, 120), st.just("")),
    st.tuples(st.just("rows"), st.integers(1, 60), st.just("")),
)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=1, max_size=6))
def test_any_order_of_writing_packing_and_dying_reads_as_plain_writing(steps):
    with tempfile.TemporaryDirectory() as folder:
        packed, loose = Path(folder) / "packed", Path(folder) / "loose"
        RunStore(packed), RunStore(loose)
        for number, (what, at, status) in enumerate(steps):
            if what == "write":
                for path in (packed, loose):
                    write(RunStore(path), at, status)
            elif what == "rows":
                rows = [row(f"s{number}n{n}-r0", status="skipped", reason="x", loss=None) for n in range(3)]
                killed_at(at, lambda rows=rows: RunStore(packed).write_rows(rows))
                RunStore(packed).write_rows(rows)  # the sweep is started again
                for one in rows:
                    RunStore(loose).write_run(one)
            else:
                killed_at(at, lambda what=what: getattr(packing, what)(packed))
            assert content(packed) == content(loose), (number, what)


def test_a_part_that_goes_between_its_rows_and_its_steps_is_read_again(tmp_path, monkeypatch):
    """Packed into another by then: nothing is damaged, and the second reading has it all."""
    store = RunStore(tmp_path)
    for number in range(3):
        with store.claim(f"case{number}-r0"):
            write(store, number)
    packing.compact(tmp_path)
    (part,) = (tmp_path / "table").glob("p*")
    rows_of_part, aside = salvage.rows_of_part, tmp_path / "gone"

    def away_then(one, name, names):
        part.rename(aside)
        monkeypatch.setattr(salvage, "rows_of_part", rows_of_part)
        try:
            return rows_of_part(one, name, names)
        finally:
            aside.rename(part)

    monkeypatch.setattr(salvage, "rows_of_part", away_then)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(scalade.read_steps(tmp_path)) == sum(number % 4 for number in range(3))


def test_packing_while_one_writes_and_another_reads(tmp_path):
    code = (
        "import sys; from pathlib import Path; from scalade.results.store.packing import compact\n"
        "while True:\n    compact(Path(sys.argv[1])); print('.', flush=True)"
    )
    store = RunStore(tmp_path)
    packers = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) for _ in range(2)]
    wrong, over = [], threading.Event()

    def look():
        seen = 0
        while not over.is_set():
            runs = read.runs_table(tmp_path)
            steps = read.rows_table(tmp_path, "steps", runs["run_id"].to_pylist())
            if len(runs) < seen or len(steps) != sum(runs["step_rows"].to_pylist()):
                wrong.append((seen, len(runs), len(steps)))
            seen = len(runs)

    reader = threading.Thread(target=look)
    try:
        for packer in packers:
            packer.stdout.readline()
        reader.start()
        for number in range(30):
            with store.claim(f"case{number}-r0") as claim:
                assert claim.attempt == 1
                write(store, number)
                assert store.row(f"case{number}-r0")["tokens_seen"] == number
    finally:
        over.set()
        reader.join()
        for packer in packers:
            packer.kill()
            packer.communicate()
    assert wrong == []
    runs, steps = scalade.read_runs(tmp_path, all_attempts=True), scalade.read_steps(tmp_path)
    assert runs["tokens_seen"].sort_values().tolist() == list(range(30))
    assert len(steps) == sum(number % 4 for number in range(30))
