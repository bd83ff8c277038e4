"""What a sweep runs, keeps, skips and shares; and what the commands say. Real processes, no torch."""

import json
import os
import pty
import subprocess
import sys

import pytest
from places import PROGRAMS

from scalade.launch.host.link import LINK
from scalade.launch.run import counted, run_study, to_dict, to_text
from scalade.launch.study.study import load_study
from scalade.launch.sweep.plan import make_plan, wanted
from scalade.launch.sweep.summary import Summary
from scalade.results.store.store import RunStore

FAKE = PROGRAMS.joinpath("fake_rank.py")
COMMAND = [sys.executable, str(FAKE)]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 12
[budget]
steps = 5
[layout]
dp_replicate = {ranks}
[run]
max_ranks = 4
repeats = {repeats}
launcher = "{launcher}"
"""
SWEEP = """
import sys
from pathlib import Path
from scalade.launch.run import to_text, run_study
summary, folder = run_study(Path(sys.argv[1]), Path(sys.argv[2]), command=sys.argv[3:])
print("\\n".join(to_text(summary, folder)))
sys.exit(summary.exit_code)
"""


def write_study(folder, ranks="[1, 2]", repeats=1, launcher="local"):
    path = folder / "study.toml"
    path.write_text(STUDY.format(ranks=ranks, repeats=repeats, launcher=launcher))
    return path


def run(path, folder, **options):
    return run_study(path, folder, quiet=True, command=COMMAND, **options)[0]


def statuses(summary):
    return [outcome.status for outcome in summary.outcomes.values()]


def test_only_what_is_missing_runs(tmp_path, monkeypatch):
    path, results = write_study(tmp_path), tmp_path / "r"
    monkeypatch.setenv("FAKE_RANK", "1:raise@0")
    first = run(path, results)
    assert statuses(first) == ["ok", "failed"] and first.exit_code == 1
    second = run(path, results)
    assert statuses(second) == [] and sorted(second.kept.values()) == ["failed", "ok"]
    assert second.exit_code == 1  # nothing was run, and a failed run stands in the table
    assert "1 run had failed before" in "\n".join(to_text(second, results))
    assert "  1 x failed: rank 1: KeyError: 'no such thing'" in to_text(second, results)
    (before,) = to_dict(second, results)["failed_before"].values()
    assert before["status"] == "failed" and to_dict(second, results)["exit_code"] == 1
    monkeypatch.delenv("FAKE_RANK")
    third = run(path, results, retry_failed=True)
    assert statuses(third) == ["ok"] and list(third.kept.values()) == ["ok"] and third.exit_code == 0
    more = run(write_study(tmp_path, repeats=2), results)
    assert statuses(more) == ["ok", "ok"] and len(more.kept) == 2
    assert all(run_id.endswith("-r1") for run_id in more.outcomes)


@pytest.mark.parametrize(
    "status, plain, retrying",
    [(None, True, True), ("cancelled", True, True), ("skipped", True, True), ("ok", False, False)]
    + [(status, False, True) for status in ("failed", "oom", "timeout", "diverged")],
)
def test_what_counts_as_missing(status, plain, retrying):
    assert (wanted(status, False), wanted(status, True)) == (plain, retrying)


def test_a_case_that_cannot_run_has_one_row_with_its_reason(tmp_path):
    path, results = write_study(tmp_path, ranks="[5, 1]", repeats=2), tmp_path / "r"
    for _ in range(2):
        summary = run(path, results)
        assert summary.skipped == 1 and summary.exit_code == 0
    store = RunStore(results)
    rows = [store.row(run_id) for run_id in store.begun()]
    (skipped,) = [row for row in rows if row["status"] == "skipped"]
    assert skipped["attempt"] == 1 and skipped["started_at"] is None and skipped["dp_replicate"] == 5
    assert "12" in skipped["reason"] and skipped["model_layers"] == 2


def test_a_failed_run_of_a_case_that_cannot_run_any_more_still_stands(tmp_path, monkeypatch):
    path, results = write_study(tmp_path), tmp_path / "r"
    monkeypatch.setenv("FAKE_RANK", "1:raise@0")
    assert run(path, results).exit_code == 1
    path.write_text(path.read_text().replace("max_ranks = 4", "max_ranks = 1"))
    summary = run(path, results)
    assert (summary.skipped, summary.exit_code, len(summary.failed_before)) == (1, 1, 1)


def test_what_was_measured_stands_where_it_cannot_run_any_more(tmp_path):
    path, results = write_study(tmp_path, ranks="[2]"), tmp_path / "r"
    assert run(path, results).exit_code == 0
    path.write_text(path.read_text().replace("max_ranks = 4", "max_ranks = 1"))
    summary = run(path, results)
    assert (summary.skipped, summary.exit_code, list(summary.kept.values())) == (1, 0, ["ok"])
    assert not make_plan(load_study(path), RunStore(results)).unfinished  # nothing more is asked of this machine
    assert not any("nothing was measured" in line for line in to_text(summary, results))


@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_a_sweep_that_measures_nothing_is_no_success(tmp_path, launcher):
    path = write_study(tmp_path, ranks="[5, 7, 8, 10]", repeats=2, launcher=launcher)
    for _ in range(2):  # also when the rows are there
        done = scalade("run", path, "--results", tmp_path / "r", "-q")
        assert done.returncode == 1 and "nothing was measured" in done.stdout and not done.stderr
        told = json.loads(scalade("run", path, "--results", tmp_path / "r", "--json").stdout)
        assert told["exit_code"] == 1 and sum(told["skip_reasons"].values()) == told["skipped"] == 4


def test_each_reason_for_skips_is_shown_once_with_its_count(tmp_path):
    path = write_study(tmp_path, ranks="[5, 1, 6]")
    path.write_text(path.read_text().replace("[layout]", "[measure]\nprofile_steps = [0, 1]\n[layout]"))
    summary = run(path, tmp_path / "r")
    assert summary.exit_code == 0 and summary.skipped == 4
    lines = to_text(summary, tmp_path / "r")
    at = lines.index("4 cases skipped:")
    assert len(lines[at + 1 : -1]) == 2
    assert lines[at + 1].startswith("  2 x ") and lines[at + 2] == "  2 x needs 6 ranks, run.max_ranks is 4"
    many = counted({f"reason {number:02}": number for number in range(1, 31)})
    assert len(many) == 21 and many[0] == "  30 x reason 30"
    assert many[-1].startswith("  55 more, for 10 other reasons: ")


def test_quiet_still_says_what_failed(tmp_path):
    path = write_study(tmp_path, repeats=2)
    command = [sys.executable, "-c", SWEEP.replace("command=", "quiet=True, command="), str(path), str(tmp_path / "r")]
    done = subprocess.run(
        [*command, *COMMAND], capture_output=True, text=True, env=os.environ | {"FAKE_RANK": "1:raise@0"}, timeout=60
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("failed  ") and line.endswith("'no such thing'") for line in lines)


def test_runs_are_interleaved_by_repeat(tmp_path):
    study = load_study(write_study(tmp_path, ranks="[1, 2]", repeats=3))
    plan = make_plan(study, RunStore(tmp_path / "r"))
    assert [(run.repeat, run.case.ranks) for run in plan.pending] == [(r, n) for r in range(3) for n in (1, 2)]


def test_a_worker_leaves_cases_of_other_worlds_alone(tmp_path):
    study = load_study(write_study(tmp_path, ranks="[1, 2, 4, 5]", launcher="torchrun"))
    plan = make_plan(study, RunStore(tmp_path / "r"), size=2)
    assert [run.case.ranks for run in plan.pending] == [2]
    assert plan.other_sizes == {1: 1, 4: 1, 5: 1} and not plan.to_skip
    nothing = Summary.of(make_plan(study, RunStore(tmp_path / "r"), size=3))
    assert nothing.nothing_measured and nothing.exit_code == 1  # a world for which the study has no case


def test_two_sweeps_share_the_work(tmp_path):
    path, results = write_study(tmp_path, repeats=4), tmp_path / "r"
    command = [sys.executable, "-c", SWEEP, str(path), str(results), *COMMAND]
    env = os.environ | {"FAKE_STEP_S": "0.02"}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    store = RunStore(results)
    runs = sorted(store.begun())
    assert len(runs) == 8
    assert all(store.attempts(run_id) == [1] and store.finished(run_id) == "ok" for run_id in runs)
    assert not list(store.runs.glob("*/scratch"))


def test_runs_over_another_link_are_not_taken_for_these(tmp_path, monkeypatch):
    path, results = write_study(tmp_path), tmp_path / "r"
    link = {"lab": "a", "link_rate_asked_bits_per_s": 1e9, "link_rtt_asked_s": 0.02, "link_rtt_measured_s": 0.0201}
    monkeypatch.setenv(LINK, json.dumps(link))
    run(path, results)
    monkeypatch.setenv(LINK, json.dumps(link | {"lab": "b", "link_rtt_measured_s": 0.0203}))  # such a link again
    assert not make_plan(load_study(path), RunStore(results)).pending
    monkeypatch.setenv(LINK, json.dumps(link | {"link_rtt_asked_s": None}))
    with pytest.raises(ValueError, match="over a lab's link of 1gbit,20ms, this would be over a lab's link of 1gbit:"):
        make_plan(load_study(path), RunStore(results))
    monkeypatch.delenv(LINK)
    with pytest.raises(ValueError, match="over the machine's own link: give each link its own --results"):
        make_plan(load_study(path), RunStore(results))


def test_a_claimed_run_is_passed_over_and_reported(tmp_path):
    path, results = write_study(tmp_path), tmp_path / "r"
    store = RunStore(results)
    held = make_plan(load_study(path), store).pending[0].run_id
    with store.claim(held):
        summary = run(path, results)
    assert summary.elsewhere == [held] and statuses(summary) == ["ok"] and summary.exit_code == 0


def test_a_row_that_the_ranks_wrote_stands(tmp_path, monkeypatch):
    """Rank 1 fails while it leaves: rank 0 has measured and written."""
    monkeypatch.setenv("FAKE_RANK", "1:exit-once-written@4")
    summary = run(write_study(tmp_path, ranks="[2]"), tmp_path / "r")
    assert statuses(summary) == ["ok"] and summary.exit_code == 0


def test_bars_in_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SWEEP, str(write_study(tmp_path)), str(tmp_path / "r"), *COMMAND]
    env = {key: value for key, value in os.environ.items() if key != "CI"}
    env |= {"FAKE_STEP_S": "0.15", "TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side has closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait(60) == 0
    text = seen.decode()
    assert "study" in text and "runs" in text and "100 tokens/s" in text and "loss " in text and "\x1b[" in text
    assert text.count("ok  ") == 2


def test_progress_in_a_pipe_is_one_line_a_run(tmp_path):
    path = write_study(tmp_path, repeats=2)
    command = [sys.executable, "-c", SWEEP, str(path), str(tmp_path / "r"), *COMMAND]
    env = os.environ | {"FAKE_RANK": "1:raise@0", "FAKE_STEP_S": "0.1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    lines = done.stderr.splitlines()
    said = [line.split()[:2] for line in lines if line.startswith("[")]
    assert said == [["[1/4]", "ok"], ["[2/4]", "failed"], ["[3/4]", "ok"], ["[4/4]", "failed"]]
    assert any("KeyError" in line for line in lines)
    assert "\x1b" not in done.stderr and done.returncode == 1


def scalade(*arguments, **env):
    command = [sys.executable, "-m", "scalade", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=60)


@pytest.mark.parametrize("command", ["run", "worker"])
def test_a_users_mistake_is_one_line_and_status_2(tmp_path, command):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[modle]\nsize = 'tiny-100k'\n")
    file = tmp_path / "file"
    file.touch()
    good = write_study(tmp_path)
    mistakes = [[command, wrong], [command, tmp_path / "none.toml"]]
    mistakes += [["run", good, "--results", file / "r"]] if command == "run" else [["worker", good]]
    for mistake in mistakes:
        done = scalade(*mistake)
        assert done.returncode == 2, done
        assert done.stdout == "" and done.stderr.startswith("scalade: ") and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr


def test_a_full_disk_is_one_line(tmp_path):
    program = """
import errno, sys
from scalade.launch import run
from scalade.results.store.run_folder import RunFolder

def full(self, row, **tables):
    raise OSError(errno.ENOSPC, "cannot write the row: No space left on device", str(self.path))

RunFolder.write = full
run.run_study.__kwdefaults__["command"] = sys.argv[3:]
sys.argv = ["scalade", "run", sys.argv[1], "--results", sys.argv[2]]
from scalade.cli.app import main
main()
"""
    results = tmp_path / "r"
    command = [sys.executable, "-c", program, str(write_study(tmp_path)), str(results), *COMMAND]
    env = os.environ | {"FAKE_RANK": "0:raise@0"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 2
    (run_id,) = (folder.name for folder in (results / "runs").iterdir() if not (folder / "a1").exists())
    assert done.stderr == (
        f"scalade: cannot write the row: No space left on device; run {run_id} is not finished, "
        f"what is finished stays: start it again when there is room: {results}\n"
    )


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nsys.argv = ['scalade', '--help']\nfrom scalade.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'pyarrow', 'rich', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]", done


def test_the_parent_of_a_run_does_not_import_torch(tmp_path):
    program = SWEEP.replace("sys.exit", "print([n for n in ('torch', 'pandas') if n in sys.modules]); sys.exit")
    command = [sys.executable, "-c", program, str(write_study(tmp_path)), str(tmp_path / "r"), *COMMAND]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]"
