"""Losses of different held-out sequences are not set side by side; where a row does not tell its own, that is said."""

import io
import json
import re

import numpy as np
import pytest
from efficiency_table import steps_of
from gate_rows import run, stored
from report_table import several
from rich.console import Console

import scalade
from scalade.results.check.command import check
from scalade.results.efficiency.command import efficiency
from scalade.results.gate.compare import compare
from scalade.results.laws.command import fit_file
from scalade.results.report import outer_law, tables
from scalade.results.report.comparable import loss_column
from scalade.results.report.source import read_source
from scalade.results.store.store import RunStore
from scalade.results.table import show
from scalade.results.table.held_out import refusal, unknown
from scalade.results.table.read import noted

ONE, OTHER = "1111aaaa1111aaaa", "2222bbbb2222bbbb"
BOTH = rf"different sequences are not compared: val_hash is {ONE} in .*, {OTHER} in .*; keep one, as with "


def seeds(val_hash, case, val_loss=3.0):
    return [
        run(case + str(i), 0, loss=3.1, val_loss=val_loss + i / 1000, val_hash=val_hash, seed=i, tokens_seen=100)
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("base", "head", "verdict", "said"),
    [
        (ONE, ONE, "same", None),
        (ONE, OTHER, "missing", BOTH),
        (None, None, "same", "val_hash is null in all 6 rows"),
        (None, ONE, "same", "val_hash is null in 3 of 6 rows: held-out losses"),
    ],
)
def test_compare(tmp_path, base, head, verdict, said):
    done = compare(stored(tmp_path / "a", seeds(base, "a")), stored(tmp_path / "b", seeds(head, "a")))
    (found,) = done.losses
    assert found.loss == "val_loss" and found.verdict == verdict and found.fails == (verdict == "missing")
    told = [*done.notes, found.reason or ""]
    if said is None:
        assert "val_hash" not in " ".join(told)
    else:
        (line,) = [line for line in told if "val_hash" in line]
        assert re.search(said, line) and "\n" not in line


def ladder(folder, hashes):
    """12 runs on Chinchilla's law."""
    store = RunStore(folder)
    for i, val_hash in zip(range(12), hashes, strict=True):
        n, d = 1e6 * 2 ** (i % 4), 1e7 * 4 ** (i // 4)
        row = run(f"case{i:02}", 0, val_hash=val_hash, params_total=int(n), tokens_seen=int(d))
        row["val_loss"] = row["loss"] = 1.7 + 400 / n**0.34 + 400 / d**0.28
        store.write_run({name: value for name, value in row.items() if value is not None})
    return folder


def fitted(frame, loss="val_loss"):
    return fit_file(
        frame, params="params_total", tokens="tokens_seen", loss=loss, bootstrap=0, profile=False, sensitivity=False
    )


def test_fit(tmp_path):
    mixed = scalade.read_runs(ladder(tmp_path / "m", [ONE] * 6 + [OTHER] * 6))
    with pytest.raises(ValueError, match=BOTH):
        fitted(mixed)
    assert not any("val_hash" in note for note in fitted(mixed, "loss").notes)  # the training loss is another matter
    assert fitted(mixed.drop(columns="val_hash")).rows == 12  # another's table: nothing is asked
    kept = fit_file(
        mixed,
        params="params_total",
        tokens="tokens_seen",
        loss="val_loss",
        bootstrap=0,
        profile=False,
        sensitivity=False,
        where=f"val_hash == '{ONE}'",
    )
    assert kept.rows == 6  # what the message says
    half = fitted(scalade.read_runs(ladder(tmp_path / "h", [ONE] * 6 + [None] * 6)))
    assert any("val_hash is null in 6 of 12 rows" in note for note in half.notes)


def source(folder):
    return read_source(folder, None, ("strong",), None, (), "mfu_palm", 0.95)


def test_report(tmp_path):
    mixed = source(ladder(tmp_path / "m", [ONE] * 6 + [OTHER] * 6))
    assert any(refusal(mixed.ok) == note for note in mixed.notes)
    assert loss_column(mixed.ok) == "loss" and outer_law.loss_column is loss_column
    whole = source(ladder(tmp_path / "w", [ONE] * 12))
    assert not any("val_hash" in note for note in whole.notes) and loss_column(whole.ok) == "val_loss"


def test_a_warning_of_a_run_is_in_check_and_report(tmp_path):
    store = RunStore(tmp_path)
    for row in several(1, 0.1, 5, val_hash=ONE, val_warning="val_loss 1.0 is below 2.0"):
        store.write_run(row)
    for notes in (check(tmp_path).notes, source(tmp_path).notes):
        (line,) = [note for note in notes if "val_loss 1.0 is below 2.0" in note]
        assert "-r0" in line and " and more: val_loss" in line


def column(table, header):
    (at,) = [i for i, (name, _) in enumerate(table.columns) if name == header]
    return {row[at].text for row in table.rows}


def test_the_tables_of_a_report(tmp_path):
    for name, hashes in (("one", (ONE, ONE)), ("two", (ONE, OTHER))):
        store = RunStore(tmp_path / name)
        for devices, val_hash in zip((1, 2), hashes, strict=True):
            for row in several(devices, 0.1, 2, val_hash=val_hash):
                store.write_run(row)
    one, two = source(tmp_path / "one"), source(tmp_path / "two")
    assert column(tables.layouts(one), "held-out") == {"3.0000"}
    assert "held-out" not in {name for name, _ in tables.layouts(two).columns}  # and the note says why
    assert "they are of different sequences" in tables.layouts(two).note
    assert column(tables.runs(two), "held-out set") == {ONE, OTHER}
    assert "held-out set" not in {name for name, _ in tables.runs(one).columns}


def test_efficiency_to_a_loss(tmp_path):
    store = RunStore(tmp_path)
    for devices, val_hash in ((1, ONE), (2, OTHER)):
        for row in several(devices, 0.1 / devices, 2, val_hash=val_hash):
            curve = steps_of(row, np.linspace(5, 2, 30).tolist())
            store.write_run(row, {"step": [*range(30)], "loss": [one["loss"] for one in curve]})
    with pytest.raises(ValueError, match=f"{BOTH}.*--allow val_hash"):
        efficiency(tmp_path, target_loss=3.0)
    assert efficiency(tmp_path, target_loss=3.0, allow=("val_hash",)).exit_code == 0
    assert efficiency(tmp_path).exit_code == 0  # no loss is compared


def test_efficiency_of_two_lengths_is_two_series(tmp_path):
    """Of other lengths are other sequences, and nobody sets them beside each other."""
    store = RunStore(tmp_path)
    for length, val_hash in ((128, ONE), (256, OTHER)):
        for devices in (1, 2):
            case = f"{length}-{devices}"
            for row in several(devices, 0.1 / devices, 2, val_hash=val_hash, model_seq_len=length, case_id=case):
                curve = steps_of(row, np.linspace(5, 2, 30).tolist())
                store.write_run(row, {"step": [*range(30)], "loss": [one["loss"] for one in curve]})
    assert efficiency(tmp_path, target_loss=3.0).exit_code == 0


def test_show_says_that_there_are_two_sets(tmp_path):
    stored(tmp_path, seeds(ONE, "a") + seeds(OTHER, "b"))
    console = Console(file=io.StringIO(), width=200)
    show.show(tmp_path, console=console)
    assert "val_loss is over 2 sets of held-out sequences" in console.file.getvalue()


@pytest.mark.parametrize(
    ("asked", "batch", "wrong"), [(64, 24, True), (64, 16, False), (64, 64, False), (0, 24, False), (8, 64, True)]
)
def test_old_rows_whose_set_followed_the_batch_have_no_held_out_loss(tmp_path, asked, batch, wrong):
    row = run("old", 0, measure_eval_sequences=asked, global_batch=batch, val_loss=3.0, val_bits_per_byte=4.3, loss=3.1)
    stored(tmp_path, [row])
    (file,) = tmp_path.glob("runs/*/*/run.json")
    today = json.loads(file.read_text()) | {"row_sha256": None}
    file.write_text(json.dumps(today | {"schema_version": 1}))
    with noted() as told:
        old = scalade.read_runs(tmp_path)
    assert old[["val_loss", "val_bits_per_byte"]].isna().all(axis=None) == wrong and old["loss"].notna().all()
    assert any("rounded to whole batches" in line for line in told) == wrong
    file.write_text(json.dumps(today))
    assert scalade.read_runs(tmp_path)["val_loss"].notna().all()


def test_a_trainer_that_is_not_ours_tells_its_sequences(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 256, (7, 33))
    with scalade.record(tmp_path, name="theirs") as recorder:
        recorder.step(loss=3.0, tokens=64, step_time_s=0.1)
        recorder.evaluate(val_loss=2.5, val_sequences=7, val_hash=scalade.val_hash(tokens))
    (row,) = scalade.read_runs(tmp_path).to_dict("records")
    assert row["val_hash"] == scalade.val_hash(tokens) and row["val_sequences"] == 7
    assert scalade.read_evals(tmp_path)["val_hash"].tolist() == [row["val_hash"]]


def test_rows_without_a_loss_say_nothing():
    rows = [{"val_hash": ONE, "val_loss": None}, {"val_hash": OTHER, "val_loss": 3.0}, {"val_hash": None}]
    assert refusal(rows) is None and unknown(rows) is None
    assert unknown([{"val_loss": 1.0}]) == unknown([{"val_loss": 1.0, "val_hash": None}])
