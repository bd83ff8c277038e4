"""A results folder that was damaged, or that somebody else wrote: a sweep says what it found, in one line, loses
nothing that is finished, and touches nothing outside. Real sweeps of a fake rank."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from places import PROGRAMS

import scalade
from scalade.launch.host.clock import Moment
from scalade.launch.process.goodput import LOG, StartLog, goodput_columns, read_log
from scalade.launch.run import run_study
from scalade.results.check.command import check
from scalade.results.store.packing import compact
from scalade.results.store.store import RunStore

COMMAND = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
[recipe]
global_batch = 2
[budget]
steps = 4
[run]
repeats = 2
"""


class Swept:
    """A study of two runs that are done, in a folder of its own. `run` sweeps again."""

    def __init__(self, folder):
        self.study, self.results, self.precious = folder / "s.toml", folder / "r", folder / "precious"
        self.store = RunStore(self.results)
        self.good, self.bad = sorted(os.listdir(self.store.runs))
        self.folder = self.store.run_folder(self.bad)

    def run(self):
        return run_study(self.study, self.results, quiet=True, command=COMMAND)[0]

    def untouched(self):
        return [(each.name, each.read_text()) for each in self.precious.iterdir()] == [("thesis.txt", "years of work")]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    (folder / "s.toml").write_text(STUDY)
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("years of work")
    assert len(run_study(folder / "s.toml", folder / "r", quiet=True, command=COMMAND)[0].outcomes) == 2
    return folder


@pytest.fixture
def swept(done, tmp_path):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    return Swept(tmp_path)


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "flipped": flipped,
    "gone": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
}


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("flipped", "steps.arrow"),
        ("gone", "steps.arrow"),
        ("flipped", "run.json"),
        ("cut", "run.json"),
        *(
            pytest.param(how, name, marks=pytest.mark.slow)
            for how, name in [
                ("emptied", "steps.arrow"),
                ("cut", "steps.arrow"),
                ("emptied", "run.json"),
                ("gone", "run.json"),
            ]
        ),
    ],
)
def test_a_damaged_attempt_is_kept_and_its_run_runs_again(swept, capfd, name, how):
    file = swept.folder / "a1" / name
    DAMAGE[how](file)
    damaged = file.read_bytes() if file.exists() else None
    summary = swept.run()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: run {swept.bad} runs again, what is there is kept: a1/{name}: ")
    assert list(summary.outcomes) == [swept.bad] and list(summary.kept) == [swept.good]
    assert swept.store.attempts(swept.bad) == [1, 2] and (file.read_bytes() if file.exists() else None) == damaged
    assert scalade.read_runs(swept.results)["attempt"].tolist() == [1, 2]
    assert len(scalade.read_steps(swept.results)) == 8
    assert not swept.run().outcomes  # once


def test_of_a_damaged_part_the_damaged_run_alone_runs_again(swept, capfd):
    compact(swept.results)
    assert not swept.run().outcomes
    (file,) = swept.results.glob("table/p*/runs.arrow")
    content = file.read_bytes()
    at = content.index(b"ok", content.index(swept.bad.encode()))  # a status, of the first row
    first = min(swept.good, swept.bad)
    file.write_bytes(content[:at] + b"xx" + content[at + 2 :])
    capfd.readouterr()
    summary = swept.run()
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: run {first} runs again, what is there is kept: table/p1/runs.arrow: ")
    assert list(summary.outcomes) == [first] and len(summary.kept) == 1
    assert not swept.run().outcomes  # once


def test_a_damaged_part_is_named_and_its_runs_run_again_once(swept, capfd):
    compact(swept.results)
    flipped(swept.results / "table" / "p1" / "index.arrow")
    with pytest.raises(ValueError, match="no runs at .*table/p1 left out: index.arrow: "):
        check(swept.results)
    capfd.readouterr()
    assert len(swept.run().outcomes) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: part p1 is damaged, and runs that are nowhere else run again: index.arrow: ")
    assert not swept.run().outcomes and "warning" not in capfd.readouterr().err


def test_a_part_of_a_newer_version_stops_a_sweep(swept):
    """Its runs are done: nothing is done twice."""
    compact(swept.results)
    manifest = swept.results / "table" / "p1" / "part.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="table/p1 was written by a newer Scalade: upgrade scalade"):
        swept.run()
    assert not list((swept.results / "runs").iterdir())


def test_check_names_what_is_damaged(swept):
    flipped(swept.folder / "a1" / "steps.arrow")
    said = [line for line in check(swept.results).to_text().splitlines() if "steps.arrow" in line]
    assert len(said) == 1 and "its content changed after it was written" in said[0]


@pytest.mark.parametrize("what", ["a link", "a pipe", "a folder"])
@pytest.mark.parametrize("name", ["lock", "scratch", LOG])
def test_what_is_no_file_or_folder_of_ours_costs_one_line(swept, name, what):
    (swept.folder / "a1" / "run.json").unlink()  # so that the run has to run again
    path = swept.folder / name
    if path.exists():
        path.unlink()
    if what == "a link":
        path.symlink_to(swept.precious if name == "scratch" else swept.precious / "thesis.txt")
    elif what == "a pipe":
        os.mkfifo(path)
    elif name != "scratch":
        path.mkdir()
    else:
        pytest.skip("a scratch folder is one")
    with pytest.raises(OSError) as refused:
        swept.run()
    assert refused.value.strerror and "\n" not in str(refused.value)
    words = {
        "a link": "a symbolic link, and links below a results folder are not followed",
        "a pipe": "a named pipe",
        "a folder": "a folder, not a file",
    }
    assert words[what] in refused.value.strerror and str(refused.value.filename).endswith(f"{swept.bad}/{name}")
    assert swept.untouched()


def test_a_link_among_the_runs_is_refused_and_nothing_behind_it_is_touched(swept):
    aside = swept.precious.parent / "archive"
    os.rename(swept.folder, aside)
    swept.folder.symlink_to(aside)
    with pytest.raises(OSError, match="a symbolic link, and links below a results folder are not followed"):
        swept.run()
    assert sorted(os.listdir(aside)) == ["a1", "lock", LOG]
    with pytest.warns(UserWarning, match="a symbolic link"):
        assert scalade.read_runs(swept.results)["run_id"].tolist() == [swept.good]


def test_the_results_folder_itself_may_be_a_link(swept, tmp_path):
    (tmp_path / "named").symlink_to(swept.results)
    swept.results = tmp_path / "named"
    assert len(swept.run().kept) == 2 and len(scalade.read_runs(swept.results)) == 2


def log_of(folder):
    """Three starts, as a sweep logs them."""
    log = StartLog(folder, folder)
    for number in range(3):
        log.begin(Moment(100.0 * number), 1, "")
        log.end(100.0 * number + 50, "failed")
    return folder / LOG


@pytest.mark.parametrize("gone", range(5))
def test_a_line_that_is_gone_is_seen(tmp_path, gone):
    file = log_of(tmp_path)
    assert read_log(tmp_path).damage is None
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    assert "is damaged, or lines before it are gone" in read_log(tmp_path).damage


@pytest.mark.parametrize("garbage", [b"\0" * 40, b"\xff\xfe", b"[]", b'{"event": "start", "at": "x"}', b"9" * 5000])
def test_garbage_is_seen_and_costs_no_other_line(tmp_path, garbage):
    file = log_of(tmp_path)
    file.write_bytes(file.read_bytes() + garbage + b"\n")
    known = read_log(tmp_path)
    assert len(known.starts) == 3 and "line 7 is damaged" in known.damage


def test_a_line_that_was_cut_off_is_no_damage(tmp_path):
    file = log_of(tmp_path)
    log = StartLog(tmp_path, tmp_path)
    log.begin(Moment(900.0), 1, "")
    whole = file.read_bytes()
    for cut in (3, 40, 100):
        file.write_bytes(whole + b'{"event": "end", "at": 930.5, "cause": "failed", "trained_from": null, "tra'[:cut])
        log.settle()
        known = read_log(tmp_path)
        assert known.damage is None and len(known.starts) == 4 and known.starts[-1].cause == "gone"


def test_a_damaged_log_gives_no_wrong_numbers(swept):
    """The row of the run says that it does not know, and why."""
    good = swept.store.row(swept.good)
    assert good["restarts"] == 0 and good["goodput"] > 0 and good["goodput_reason"] is None
    (swept.folder / "a1" / "run.json").unlink()
    with open(swept.folder / LOG, "ab") as file:
        file.write(b"\0" * 100 + b"\n")
    swept.run()
    row = swept.store.row(swept.bad)
    assert row["status"] == "ok" and row["useful_step_time_s"] > 0
    assert all(row[name] is None for name in ("restarts", "held_s", "elapsed_s", "lost_steps", "goodput"))
    assert row["goodput_reason"] == f"not known over all starts: {LOG}: line 3 is damaged, or lines before it are gone"


def test_a_log_that_is_gone_is_known_by_the_checkpoint(tmp_path):
    log = StartLog(tmp_path, tmp_path)
    log.begin(Moment(100.0), 1, "")
    (tmp_path / "progress.json").write_text(
        json.dumps({"phase": "training", "step": 30, "steps": 40, "trained_from": 20, "trained_at": 110.0})
    )
    log.end(150.0, "ok")
    known = read_log(tmp_path)
    assert known.damage is None
    row = goodput_columns(known.starts, 5.0, known.damage)
    assert row["useful_step_time_s"] == 5.0 and "goodput" not in row
    assert "a start went on from step 20, and starts.jsonl has none before it" in row["goodput_reason"]
