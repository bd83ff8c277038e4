"""Every command that reads, over results folders that somebody hostile wrote: status 0, 1 or 2, never a trace, never a
sequence that drives the terminal. `tests/programs/hostile.py` makes the folders; here are the seeds."""

import os
import random
import re

import hostile
import pytest

from scalade.results.schema.schema import columns
from scalade.results.store.store import RunStore

SEEDS = int(os.environ.get("HOSTILE_SEEDS", 4))  # the first two in every run of the tests; `make faults` has more
OURS = ("run_id", "attempt", "row_sha256", "schema_version")


def fitting(column, value) -> bool:
    if value is None:
        return not column.required
    kinds = {"string": (str,), "int64": (int,), "float64": (int, float), "bool": (bool,)}
    return type(value) in kinds[column.type]


def changes(seed: int) -> dict[int, dict]:
    """Some rows with some columns changed to what their type allows."""
    chance, known = random.Random(seed), columns("runs")
    found = {}
    for number in chance.sample(range(9), chance.randrange(1, 9)):
        row = {}
        for name in chance.sample([name for name in known if name not in OURS], chance.randrange(1, 25)):
            allowed = [value for value in hostile.VALUES if fitting(known[name], value)]
            row |= {name: chance.choice(allowed)} if allowed else {}
        if chance.random() < 0.4:
            row |= {"status": chance.choice(hostile.STATUSES), "reason": chance.choice([hostile.ESCAPE, None, "x"])}
        found[number] = row
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, SEEDS))])
def test_rows_of_any_values(tmp_path, seed):
    folder = hostile.write(tmp_path / "r", changes(seed))
    for words in hostile.commands(folder, tmp_path):
        assert (wrong := hostile.called(words)) is None, wrong


@pytest.mark.filterwarnings("ignore")
def test_text_that_drives_terminals_is_escaped_by_every_command(tmp_path):
    text = {name for name, column in columns("runs").items() if column.type == "string" and not column.values}
    row = dict.fromkeys(text - {*OURS, "case_id", "started_at", "ranks_json"}, hostile.ESCAPE)
    folder = hostile.write(tmp_path / "r", {0: row | {"status": "failed"}, 4: row | {"reason": None}})
    os.mkdir(folder / "runs" / f"x{hostile.ESCAPE}")
    (folder / "runs" / f"x{hostile.ESCAPE}" / "a1").mkdir()
    for words in hostile.commands(folder, tmp_path):
        assert (wrong := hostile.called(words)) is None, wrong
    page = (tmp_path / "report.html").read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)


JOB = {"name": "j", "array": False, "cases": ["c"], "labels": ["l"], "nodes": 1, "ranks": 1, "script": "j.sh"}
RECORD = {"id": "s", "scheduler": "slurm", "study": "s.toml", "submitted_at": "2026-01-01T00:00:00Z", "jobs": [JOB]}


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b"9" * 5000,
        {},
        RECORD | {"jobs": 5},
        RECORD | {"jobs": [5]},
        RECORD | {"jobs": [JOB | {"cases": [5]}]},
        RECORD | {"jobs": [JOB | {"cases": ["../../x"]}]},
        RECORD | {"jobs": [JOB | {"seen": {"x": {}}}]},
        RECORD | {"jobs": [JOB | {"seen": {"0": {"state": 3}}}]},
        RECORD | {"jobs": [JOB | {"seen": []}]},
        RECORD | {"jobs": [JOB | {"nodes": "1"}]},
        RECORD | {"study": "../s.toml"},
        RECORD | {"repeats": 10**12},
        RECORD | {"repeats": "x"},
        RECORD | {"jobs": [JOB | {"job_id": "--uid=0"}]},
        RECORD | {"scheduler": hostile.ESCAPE},
        RECORD | {"jobs": [JOB | {"name": hostile.ESCAPE}]},
    ],
)
def test_records_of_submissions_cost_one_line(tmp_path, record):
    import json

    RunStore(tmp_path)
    (tmp_path / "submissions" / "s").mkdir(parents=True)
    content = record if isinstance(record, bytes) else json.dumps(record).encode()
    (tmp_path / "submissions" / "s" / "submission.json").write_bytes(content)
    for command in ("status", "logs", "cancel"):
        assert (wrong := hostile.called([command, str(tmp_path)])) is None, wrong


@pytest.mark.parametrize("name", ["submission.json", "s", "submissions"])
@pytest.mark.parametrize("what", ["link", "pipe", "device"])
def test_submissions_that_are_no_files(tmp_path, name, what):
    results = tmp_path / "r"
    RunStore(results)
    path = {
        "submissions": results / "submissions",
        "s": results / "submissions/s",
        "submission.json": results / "submissions/s/submission.json",
    }[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if what == "device" else tmp_path)
    for command in ("status", "logs"):
        assert (wrong := hostile.called([command, str(results)])) is None, wrong
