"""Rows of older schema versions: the columns they hold wrong read as null everywhere, and each reader says so."""

import json
import subprocess
import sys

import pandas as pd
import pytest

import scalade
from scalade.results.check.command import check
from scalade.results.efficiency.command import efficiency
from scalade.results.gate.compare import compare
from scalade.results.report.source import read_source
from scalade.results.schema.schema import SCHEMA_VERSION, known_column
from scalade.results.store.store import RunStore
from scalade.results.table import errata, show
from scalade.results.table.errata import Erratum
from scalade.results.table.filter import mask
from scalade.results.table.read import OldRows, exported_runs, noted, runs_table

SHIPPED = errata.ERRATA
WHY = "the clock ran backwards"
MADE_UP = Erratum(
    before=SCHEMA_VERSION,
    where="layout == dp2",
    columns={"runs": ("step_time_s", "tokens_per_s", "val_loss"), "steps": ("step_time_s",), "evals": ("val_loss",)},
    why=WHY,
)
ROW = {
    "repeat": 0,
    "status": "ok",
    "world_size": 2,
    "global_batch": 8,
    "tokens_per_step": 1024,
    "step_time_s": 0.5,
    "tokens_per_s": 2048.0,
    "loss": 2.0,
    "val_loss": 2.5,
    "params_total": 1000,
    "tokens_seen": 4096,
}


def add(folder, name, version=SCHEMA_VERSION, **row):
    """A run with one step and one evaluation, as that version of the schema wrote it."""
    identity = {"run_id": f"{name}-r0", "case_id": name, "started_at": f"2026-01-01T00:00:{len(name):02}Z"}
    rows = {"step": [0], "step_time_s": [0.5], "loss": [2.0]}, {"step": [1], "val_loss": [2.5]}
    file = RunStore(folder).write_run(ROW | identity | row, *rows) / "run.json"
    content = json.loads(file.read_text()) | {"schema_version": version, "row_sha256": None}
    file.write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """One row that the erratum is about, one of the same version that it is not, one of today."""
    monkeypatch.setattr(errata, "ERRATA", (MADE_UP,))
    folder = tmp_path / "results"
    add(folder, "wrong", SCHEMA_VERSION - 1, layout="dp2")
    add(folder, "right", SCHEMA_VERSION - 1, layout="single", world_size=1)
    add(folder, "today", layout="dp2")
    return folder


def by_run(frame):
    return frame.set_index("run_id")


def test_the_wrong_columns_of_old_rows_are_null_and_the_row_says_why(results):
    with pytest.warns(OldRows, match=f"1 row of runs is read without step_time_s, tokens_per_s, val_loss.*{WHY}"):
        runs = by_run(scalade.read_runs(results))
    assert runs["step_time_s"].isna().to_dict() == {"right-r0": False, "today-r0": False, "wrong-r0": True}
    assert runs["val_loss"].isna().to_dict() == {"right-r0": False, "today-r0": False, "wrong-r0": True}
    assert runs["loss"].tolist() == [2.0] * 3
    assert runs["superseded_columns"].fillna("").tolist() == ["", "", "step_time_s, tokens_per_s, val_loss"]
    assert runs["superseded_reason"].fillna("").tolist() == ["", "", WHY]
    for name, column in (("steps", "step_time_s"), ("evals", "val_loss")):
        with pytest.warns(OldRows, match=f"1 row of {name} is read without {column}"):
            rows = by_run(getattr(scalade, f"read_{name}")(results))
        assert rows[column].isna().to_dict() == {"right-r0": False, "today-r0": False, "wrong-r0": True}
    assert json.loads((results / "runs/wrong-r0/a1/run.json").read_text())["step_time_s"] == 0.5  # as it was written


def test_a_row_that_held_nothing_wrong_is_not_counted(results):
    add(
        results,
        "skipped",
        SCHEMA_VERSION - 1,
        layout="dp2",
        status="skipped",
        reason="no room",
        **dict.fromkeys(("step_time_s", "tokens_per_s", "val_loss")),
    )
    add(results, "partly", SCHEMA_VERSION - 1, layout="dp2", tokens_per_s=None)
    with pytest.warns(OldRows, match="2 rows of runs are read without"):
        runs = by_run(scalade.read_runs(results))
    assert runs["superseded_columns"].isna()["skipped-r0"]
    assert runs.loc["partly-r0", "superseded_columns"] == "step_time_s, val_loss"


def test_a_column_has_its_own_reason():
    row = {"superseded_columns": "step_time_s, comm_time_s", "superseded_reason": "; ".join(e.why for e in SHIPPED)}
    assert errata.why_missing(row, "step_time_s") == SHIPPED[0].why
    assert errata.why_missing(row, "comm_time_s") == SHIPPED[1].why
    assert errata.why_missing(row, "loss") is None
    assert errata.why_missing(row | {"superseded_reason": "of tomorrow"}, "step_time_s") == "of tomorrow"


def test_the_folder_of_one_run_reads_so_too(results):
    with pytest.warns(OldRows):
        assert scalade.read_runs(results / "runs" / "wrong-r0")["val_loss"].isna().all()
    with noted() as told:
        scalade.read_runs(results / "runs" / "right-r0"), scalade.read_steps(results, ["right-r0"])
    assert told == []


def test_an_exported_file_keeps_what_was_taken_out_and_an_old_one_is_read_as_old(results, tmp_path, monkeypatch):
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    with pytest.warns(OldRows):
        show.export(results, new)
    monkeypatch.setattr(errata, "ERRATA", ())
    show.export(results, old)
    steps = tmp_path / "steps.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(show, "SCHEMA_VERSION", SCHEMA_VERSION - 1)
        show.export(results, steps, table="steps")
    assert (by_run(scalade.read_runs(new)).loc["wrong-r0", ["superseded_reason"]] == WHY).all()
    assert scalade.read_runs(old)["step_time_s"].notna().all()  # nothing is known to be wrong
    monkeypatch.setattr(errata, "ERRATA", (MADE_UP,))
    for file in (old, new):
        with pytest.warns(OldRows):
            runs = by_run(scalade.read_runs(file))
        assert runs["step_time_s"].isna().tolist() == [False, False, True]
        assert runs.loc["wrong-r0", "superseded_columns"] == "step_time_s, tokens_per_s, val_loss"
        assert runs.loc["wrong-r0", "superseded_reason"] == WHY
    with pytest.warns(OldRows, match="does not say of which runs"):
        assert scalade.read_steps(steps)["step_time_s"].isna().all()


def test_an_exported_csv_is_known_by_its_columns(results, tmp_path, monkeypatch):
    monkeypatch.setattr(errata, "ERRATA", ())
    file = tmp_path / "runs.csv"
    show.export(results, file)
    frame = pd.read_csv(file).copy().assign(mine=1)
    frame.to_csv(file, index=False)
    frame.drop(columns="schema_version").to_csv(tmp_path / "other.csv", index=False)
    monkeypatch.setattr(errata, "ERRATA", (MADE_UP,))
    assert exported_runs(pd.read_csv(tmp_path / "other.csv")) is None
    with pytest.warns(OldRows):
        found = exported_runs(pd.read_csv(file))
    assert found["mine"].tolist() == [1, 1, 1]
    assert by_run(found)["val_loss"].isna().to_dict() == {"right-r0": False, "today-r0": False, "wrong-r0": True}


def test_a_filter_sees_null_and_says_which_rows_that_cost(results):
    with noted() as told:
        kept = runs_table(results, where="step_time_s > 0")
    assert kept["run_id"].to_pylist() == ["right-r0", "today-r0"] and WHY in told[0]
    with noted() as told:
        kept = runs_table(results, where="layout == single")
    assert len(kept) == 1 and told == []


def test_every_reader_says_what_it_leaves_out(results, tmp_path):
    source = read_source(results, None, ("weak",), None, (), "palm", 0.95)
    for notes in (efficiency(results, mode="weak").notes, source.notes):
        assert sum(WHY in note and "of runs is read without step_time_s" in note for note in notes) == 1
    assert any(WHY in one.why for one in efficiency(results, mode="weak").refused)
    assert WHY in check(results).to_text()
    found = compare(results, results)
    assert any(WHY in note for note in found.notes)
    assert [WHY in (one.reason or "") for one in found.findings if one.metric == "step_time_s"].count(True) == 1
    text = tmp_path / "shown.txt"
    with text.open("w") as file:
        from rich.console import Console

        show.show(results, console=Console(file=file, width=200))
    assert WHY in text.read_text()


@pytest.mark.parametrize("name", ["folder", "parquet", "csv", "semicolons.csv"])
def test_a_fit_never_sees_them_nor_runs_that_are_not_ok(results, tmp_path, monkeypatch, name):
    from scalade.cli.fit import read_for_fit

    add(results, "failed", status="failed", reason="killed")
    given = results
    if name != "folder":
        monkeypatch.setattr(errata, "ERRATA", ())
        given = tmp_path / f"runs.{name}"
        show.export(results, given)
        if name.startswith("semicolons"):  # as a spreadsheet saves it
            pd.read_csv(given).to_csv(given, index=False, sep=";", decimal=",")
        monkeypatch.setattr(errata, "ERRATA", (MADE_UP,))
    with pytest.warns(OldRows):
        frame, ours = read_for_fit(given)
    assert ours and by_run(frame)["val_loss"].isna().to_dict() == {
        "right-r0": False,
        "today-r0": False,
        "wrong-r0": True,
    }


def test_the_command_line_says_it_in_one_line(tmp_path):
    code = (
        "import sys; import scalade.results.table.errata as e; from scalade.cli.app import main; "
        f"e.ERRATA = (e.Erratum({SCHEMA_VERSION}, 'layout == dp2', {{'runs': ('loss',)}}, '{WHY}'),); "
        "sys.argv = ['scalade', 'export', *sys.argv[1:]]; main()"
    )
    add(tmp_path / "results", "wrong", SCHEMA_VERSION - 1, layout="dp2")
    command = [sys.executable, "-c", code, str(tmp_path / "results"), str(tmp_path / "runs.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"warning: 1 row of runs is read without loss, written before schema version {SCHEMA_VERSION}: {WHY}"
    ]


OUTER = {
    "outer_algorithm": "diloco",
    "outer_placement": "distributed",
    "outer_sync_every": 30,
    "outer_steps": 2,
    "steps": 63,
    "timed_steps": 60,
    "measure_warmup_steps": 3,
    "comm_bytes_per_step": 7,
}


def sized(model, vocab, tied):
    return {"outer_algorithm": "none", "model": model, "model_vocab": vocab, "model_tied": tied}


WRONG = {  # what an old row says -> (columns read as null, columns that stay)
    "whole rounds": ({}, "comm_bytes_per_step", "step_time_s val_loss"),
    "59 steps": ({"timed_steps": 56}, "step_time_s tokens_per_s comm_bytes_per_step", "val_loss loss"),
    "resumed": ({"resumed_from_step": 30}, "step_time_s", "val_loss"),
    "recorded": ({"parity": "not checked"}, "step_time_s tokens_per_s", "comm_bytes_per_step val_loss"),
    "delayed": ({"outer_algorithm": "delayed"}, "step_time_s", "val_loss"),
    "folded": ({"outer_placement": "folded"}, "", "step_time_s comm_bytes_per_step val_loss"),
    "every step": ({"outer_sync_every": 1}, "", "step_time_s comm_bytes_per_step val_loss"),
    "no outer step": ({"outer_steps": 0, "timed_steps": 22}, "val_loss step_time_s", "loss"),
    "a fragment never": (
        {"outer_algorithm": "streaming", "outer_overlap_steps": 1, "steps": 30, "timed_steps": 30},
        "val_loss",
        "step_time_s loss",
    ),
    "data parallel": ({"outer_algorithm": "none", "timed_steps": 56}, "", "step_time_s comm_bytes_per_step val_loss"),
    "declared": ({"outer_algorithm": "none", "parity": "not checked"}, "tokens_per_step tokens_per_s", "step_time_s"),
    "declared as told": (
        {"outer_algorithm": "none", "parity": "not checked", "tokens_seen": 1024},
        "",
        "tokens_per_step tokens_per_s",
    ),
    "a name of 35 M at 19 M": (sized("diloco-35m", 256, True), "model", "step_time_s"),
    "a head of its own": (sized("diloco-1.3b", 32768, False), "model", "step_time_s"),
    "as named": (sized("diloco-35m", 32768, True), "", "model step_time_s"),
    "tiny, of other data": (sized("tiny-2m", 512, True), "model", "step_time_s"),
    "tiny": (sized("tiny-2m", 256, False), "", "model step_time_s"),
    "never said": ({"outer_algorithm": None, "timed_steps": 56}, "", "step_time_s comm_bytes_per_step val_loss"),
}


@pytest.mark.filterwarnings("ignore::scalade.results.table.read.OldRows")
@pytest.mark.parametrize("name", WRONG)
def test_what_version_1_wrote_wrong(tmp_path, name):
    said, wrong, right = WRONG[name]
    add(tmp_path, "old", 1, **OUTER | said)
    add(tmp_path, "new", **OUTER | said)
    runs = by_run(scalade.read_runs(tmp_path))
    assert runs.loc["old-r0", wrong.split()].isna().all() and runs.loc["new-r0", wrong.split()].notna().all()
    assert runs.loc["old-r0", right.split()].notna().all()
    assert (runs.loc["old-r0", "superseded_reason"] is not pd.NA) == bool(wrong)


def test_the_registry_names_columns_that_exist_and_rows_below_todays_version(results):
    table = runs_table(results / "runs" / "today-r0")
    for one in SHIPPED:
        assert 1 < one.before <= SCHEMA_VERSION and one.why and "\n" not in one.why
        assert len(mask(table, "runs", one.where)) == 1
        for name, names in one.columns.items():
            assert not any(known_column(name, column).required for column in names)
