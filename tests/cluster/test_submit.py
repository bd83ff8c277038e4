"""What is submitted, packed, remembered and shown; the scheduler is a stand-in whose answers the test sets.

A real Slurm is in test_cluster_slurm.py.
"""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields, replace

import pytest
from fake_cluster import SLURM, Fake
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from scalade.cli import app as cli
from scalade.launch.cluster import status as states
from scalade.launch.cluster.cancel import cancel
from scalade.launch.cluster.jobs import SubmitOptions, nodes_of
from scalade.launch.cluster.pack import TRIES, PackedRun, Packer, Started, Tally, next_run, packed_runs, read_job
from scalade.launch.cluster.submissions import submissions
from scalade.launch.cluster.submit import submit_study
from scalade.launch.host.clock import Moment
from scalade.launch.process.goodput import StartLog
from scalade.launch.schedulers import SCHEDULERS
from scalade.launch.schedulers.ask import SchedulerError
from scalade.launch.schedulers.base import Limits, Task
from scalade.launch.schedulers.site import Kubernetes, Site, clock, load_site, parse_time
from scalade.launch.schedulers.slurm import Slurm
from scalade.launch.schedulers.state import State
from scalade.launch.study.errors import StudyError
from scalade.launch.study.study import load_study
from scalade.launch.sweep.plan import PlannedRun
from scalade.results.store.store import RunStore

STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 24
[budget]
steps = 5
[layout]
dp_replicate = [1, 2, 5, 4]
[run]
repeats = 2
time_limit_s = 100
"""


@pytest.fixture
def fake(monkeypatch):
    stand_in = Fake()
    monkeypatch.setitem(SCHEDULERS, "slurm", stand_in)
    return stand_in


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 16))
def test_a_case_takes_the_fewest_nodes_that_hold_as_many_ranks_each(ranks, most):
    nodes, per_node = nodes_of(ranks, most)
    assert nodes * per_node == ranks and per_node <= most
    assert all(ranks % count for count in range(per_node + 1, most + 1))


def test_submitting_again_starts_nothing_twice(study, tmp_path, fake):
    results = tmp_path / "r"
    first = submit_study(study, results, SLURM)
    assert (first.runs, first.skipped, len(fake.handed)) == (6, 1, 3)  # 5 ranks do not divide the batch
    fake.all(first.submission, State.WAITING, "Priority")
    again = submit_study(study, results, SLURM)
    assert (again.runs, again.active, len(fake.handed)) == (0, 3, 3)
    fake.all(first.submission, State.FAILED, "NODE_FAIL")  # and not queued again
    third = submit_study(study, results, SLURM)
    assert (third.runs, third.active, len(fake.handed)) == (6, 0, 6)
    assert len(submissions(results)) == 2


def test_the_exit_status_of_submit_is_that_of_run_once_there_is_nothing_to_hand_over(study, tmp_path, fake, capsys):
    results = tmp_path / "r"

    def submit(*options):
        try:
            cli.app(["submit", str(study), "--scheduler", "slurm", "--results", str(results), *options])
        except SystemExit as end:
            return end.code or 0, capsys.readouterr().out

    code, out = submit()
    assert code == 0 and "submitted: 6 runs, 1 case skipped\n  1 x " in out
    (submission,) = submissions(results)
    fake.all(submission, State.RUNNING)
    assert submit()[0] == 0  # under way
    fake.all(submission, State.DONE)
    store = RunStore(results)
    for case in load_study(study).all_cases:
        for repeat in range(2):
            if not case.refusal():
                ended = {"status": "failed", "reason": "E"} if case.ranks == 4 and repeat else {"status": "ok"}
                row = {"run_id": f"{case.case_id}-r{repeat}"} | ended
                store.write_run(row | {"case_id": case.case_id, "repeat": repeat, "started_at": "2026-01-01"})
    code, out = submit()
    assert code == 1 and "nothing to submit: 0 runs, 6 had been done before, 1 failed before" in out
    told = json.loads(submit("--json")[1])
    assert told["exit_code"] == 1 and [each["status"] for each in told["failed"].values()] == ["failed"]
    lines, _ = states.status(results)  # the scheduler calls all of them done
    assert {line.ranks: line.failed for line in lines} == {1: False, 2: False, 4: True}
    assert submit("--retry-failed")[0] == 0


def test_a_dry_run_writes_nothing(study, tmp_path, fake):
    done = submit_study(study, tmp_path / "r", SLURM, dry_run=True)
    assert len(done.scripts) == 3 and not fake.handed and not (tmp_path / "r").exists()


def test_a_submission_that_was_cut_off_is_looked_for_by_name_and_never_doubled(study, tmp_path, fake):
    """Killed between sbatch and the record: the job is found by its name, or may have come and gone."""
    results = tmp_path / "r"
    first = submit_study(study, results, SLURM).submission
    for job in first.jobs:
        job.job_id = ""
    first.save()
    again = submit_study(study, results, SLURM)
    assert (again.runs, again.active, again.unheard_cases, len(fake.handed)) == (0, 0, 3, 3)
    assert again.unheard == {job.name: "lost" for job in first.jobs}
    lines, _ = states.status(results)
    assert {line.state for line in lines} == {"lost"} and "cut off" in lines[0].reason
    fake.answers[first.jobs[0].name] = {0: Task(State.RUNNING)}
    assert [line.job for line in states.status(results)[0]] == ["777", "?", "?"]
    said = cancel(results)
    assert fake.cancelled == ["777"] and [line.partition(":")[0] for line in said] == ["cancelled", *["forgotten"] * 2]
    assert submit_study(study, results, SLURM, dry_run=True).active == 1, "on its way out"
    fake.answers.clear()
    assert submit_study(study, results, SLURM, dry_run=True).runs == 6
    assert {line.state for line in states.status(results)[0]} == {"cancelled"}


def test_what_the_scheduler_has_forgotten_is_lost_and_starts_again_only_when_told(study, tmp_path, fake, capsys):
    results = tmp_path / "r"
    first = submit_study(study, results, SLURM).submission
    lines, doubts = states.status(results)
    assert {line.state for line in lines} == {"lost"} and not doubts
    assert "2 runs missing: `scalade submit --resubmit`" in lines[0].reason
    command = ["submit", str(study), "--scheduler", "slurm", "--results", str(results)]
    with pytest.raises(SystemExit) as end:
        cli.app(command)
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "not started again" in line]
    assert end.value.code == 1 and len(fake.handed) == 3
    assert "3 cases of 101 (lost), 102 (lost), 103 (lost)" in told and "--resubmit" in told
    with pytest.raises(SystemExit) as end:
        cli.app([*command, "--resubmit"])
    assert not end.value.code and len(fake.handed) == 6
    fake.all(second := submissions(results)[1], State.FAILED, "NODE_FAIL")
    third = submit_study(study, results, SLURM)
    assert (third.runs, third.unheard_cases) == (6, 0), "nobody waits for the jobs that were given up"
    fake.all(first, State.RUNNING)  # it is there, after all
    fake.all(submissions(results)[2], State.FAILED)
    assert submit_study(study, results, SLURM, dry_run=True).active == 3
    assert second.id != first.id


def test_while_the_controller_is_away_a_running_job_is_unknown_and_nothing_is_started(study, tmp_path, fake, capsys):
    results = tmp_path / "r"
    first = submit_study(study, results, SLURM).submission
    fake.all(first, State.RUNNING)
    states.status(results)
    fake.away = True
    lines, doubts = states.status(results)
    assert {line.state for line in lines} == {"unknown"} and "Unable to contact slurm controller" in doubts[0]
    assert all(line.wanting and not line.failed for line in lines)
    with pytest.raises(SchedulerError, match="Unable to contact.*nothing is submitted.*--resubmit"):
        submit_study(study, results, SLURM)
    with pytest.raises(SchedulerError, match="Unable to contact"):
        cancel(results)
    assert len(fake.handed) == 3 and not any(job.closed for job in submissions(results)[0].jobs)
    assert submit_study(study, results, replace(SLURM, resubmit=True)).runs == 6 and len(fake.handed) == 6
    fake.away = False
    assert Counter(line.state for line in states.status(results)[0]) == {"running": 3, "lost": 3}


def test_while_the_controller_is_away_what_is_done_stays_done(study, tmp_path, fake):
    results = tmp_path / "r"
    fake.all(submit_study(study, results, SLURM).submission, State.DONE)
    states.status(results)
    fake.away = True
    lines, doubts = states.status(results)
    assert {line.state for line in lines} == {"done"} and not doubts, "it need not be asked"


def test_a_submission_that_nobody_answered_is_not_taken_for_a_refusal(study, tmp_path, fake, monkeypatch):
    """sbatch was waited for in vain: its job may be there, and is looked for by its name."""

    def slow(script, tasks):
        if fake.handed:
            raise SchedulerError("slurm: `sbatch` gave no answer within 240 s", unsure=True)
        fake.handed.append(script)
        return "101"

    monkeypatch.setattr(fake, "submit", slow)
    with pytest.raises(SchedulerError, match="no answer"):
        submit_study(study, tmp_path / "r", SLURM)
    (record,) = submissions(tmp_path / "r")
    assert [(job.job_id, job.closed) for job in record.jobs] == [("101", ""), ("", ""), ("", "failed")]
    fake.answers[record.jobs[1].name] = {0: Task(State.WAITING)}
    again = submit_study(study, tmp_path / "r", SLURM, dry_run=True)
    assert (again.active, again.unheard_cases, again.runs) == (1, 1, 2)


@pytest.mark.parametrize("most, arrays", [(2, [2, 2, 1]), (1000, [5]), (1, [1] * 5)])
def test_arrays_are_as_large_as_the_cluster_takes(study, tmp_path, fake, most, arrays):
    study.write_text(
        STUDY.replace("dp_replicate = [1, 2, 5, 4]", "dp_replicate = 1").replace(
            "global_batch = 24", "global_batch = 24\nlr = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]"
        )
    )
    fake.most = Limits(most)
    done = submit_study(study, tmp_path / "r", SLURM)
    assert [len(job.cases) for job in done.submission.jobs] == arrays
    assert len({case for job in done.submission.jobs for case in job.cases}) == 5
    for job in done.submission.jobs:
        text = done.scripts[job.script]
        assert [case in text for case in job.cases] == [True] * len(job.cases)
        assert (f"#SBATCH --array=0-{len(job.cases) - 1}\n" in text) == (len(job.cases) > 1)
    assert done.submission.jobs[0].labels[0] == "tiny-100k single lr=0.001"
    lines, _ = states.status(tmp_path / "r")
    assert len({line.what for line in lines}) == 5, "lines of cases that differ show in what"


def test_what_the_cluster_has_no_room_for_is_left_for_later(study, tmp_path, fake, capsys):
    fake.most = Limits(1000, 2, "MaxJobCount = 2")
    with pytest.raises(SystemExit) as end:
        cli.app(["submit", str(study), "--scheduler", "slurm", "--results", str(tmp_path / "r")])
    out = capsys.readouterr().out
    assert not end.value.code and "submitted: 4 runs" in out
    assert "left for later: 1 case, since MaxJobCount = 2: submit again" in out
    packed = submit_study(study, tmp_path / "p", replace(SLURM, mode="packed"))
    assert (packed.runs, packed.left) == (6, 0)


def test_a_refusal_is_remembered_and_what_was_taken_stays(study, tmp_path, fake):
    fake.refuses = 1
    with pytest.raises(SchedulerError, match="Invalid account.*1 job of it had been taken"):
        submit_study(study, tmp_path / "r", SLURM)
    (record,) = submissions(tmp_path / "r")
    assert [job.job_id for job in record.jobs] == ["101", "", ""]
    assert [line.state for line in states.status(tmp_path / "r")[0]][1:] == ["failed", "failed"]


def test_a_refusal_in_a_record_of_before_is_still_one(study, tmp_path, fake):
    """`closed` held the sentence once."""
    fake.refuses = 1
    with pytest.raises(SchedulerError):
        submit_study(study, tmp_path / "r", SLURM)
    (file,) = (tmp_path / "r").glob("submissions/*/submission.json")
    content = json.loads(file.read_text())
    said = "refused: slurm: `sbatch` failed: Invalid account"
    closed = [(job["closed"], job.pop("refusal")) for job in content["jobs"]]
    assert closed == [("", ""), ("failed", said), ("failed", said)]
    for job in content["jobs"][1:]:
        job["closed"] = said
    file.write_text(json.dumps(content))
    lines, _ = states.status(tmp_path / "r")
    assert [(line.state, line.reason) for line in lines][-2:] == [("failed", said)] * 2


def test_an_end_that_was_seen_is_kept_when_the_scheduler_forgets(study, tmp_path, fake):
    first = submit_study(study, tmp_path / "r", SLURM).submission
    fake.all(first, State.FAILED, "TIMEOUT: TimeLimit")
    states.status(tmp_path / "r")
    fake.answers.clear()
    lines, _ = states.status(tmp_path / "r")
    assert {(line.state, line.reason) for line in lines} == {("failed", "TIMEOUT: TimeLimit")}


def test_a_job_that_nobody_remembers_is_judged_by_its_rows(study, tmp_path, fake):
    results = tmp_path / "r"
    submit_study(study, results, SLURM)
    store = RunStore(results)
    for case in load_study(study).all_cases:
        for repeat in range(2):
            row = case.columns() | {"run_id": f"{case.case_id}-r{repeat}", "repeat": repeat, "world_size": case.ranks}
            store.write_run(row | {"status": "ok"})
    lines, _ = states.status(results)
    assert {line.state for line in lines} == {"done"} and lines[0].runs == {"ok": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 3}', '{"jobs": 3}', "\0"])
def test_a_damaged_record_is_named(study, tmp_path, fake, text):
    submit_study(study, tmp_path / "r", SLURM)
    (file,) = (tmp_path / "r").glob("submissions/*/submission.json")
    file.write_text(text or file.read_text().replace('"job_id": "101"', '"job_id": "--user=root"'))
    with pytest.raises(ValueError, match=f"{file.parent.name}/submission.json: is no record"):
        submit_study(study, tmp_path / "r", SLURM)


def test_squeue_is_read_with_whatever_stands_in_a_reason(monkeypatch):
    told = "\n".join(
        [
            "12_0|COMPLETED|0:05|job|n[1-2]|None",
            "12_3|RUNNING|1-02:03:04|job|n3|None",
            "12_4|PENDING|0:00|job||Resources",
            "13|FAILED|0:01|other|n1|a|b (c)",
            "14|NODE_FAIL|0:01|stranger|n1|x",
            "99_1|PENDING|0:00|job||an older job of that name",
            "",
        ]
    )
    slurm = Slurm()
    monkeypatch.setattr(slurm, "ask", lambda words: told if words[0] == "squeue" else "")
    found = slurm.tasks({"job": "12", "other": "13"})
    assert {number: task.state for number, task in found["job"].items()} == {0: "done", 3: "running", 4: "waiting"}
    assert found["job"][3] == Task("running", "", "n3", "1-02:03:04")
    assert found["other"] == {0: Task("failed", "FAILED: a|b (c", "n1", "0:01")}
    assert set(found) == {"job", "other"}


# packing


def packed(nodes, bound_s=10.0, resumes=False, repeat=0):
    return PackedRun(PlannedRun(None, repeat), nodes, 1, bound_s, resumes)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.floats(1, 50)), min_size=1, max_size=20),
    st.integers(8, 12),
    st.floats(50, 200),
)
def test_packing_never_overfills_never_overruns_and_runs_all_that_fits(wanted, nodes, seconds):
    """The packer's rule, played through: every run takes its bound."""
    pending = sorted((packed(count, bound) for count, bound in wanted), key=lambda each: -each.nodes)
    order = list(pending)
    free, now, on, started = nodes, 0.0, [], []
    while pending or on:
        while found := next_run(pending, free, seconds - now, seconds):
            pending.remove(found)
            on.append((now + found.bound_s, found))
            started.append((now, found))
            free -= found.nodes
            assert free >= 0 and now + found.bound_s <= seconds
        if not on:
            break
        on.sort(key=lambda pair: pair[0])
        now, ended = on.pop(0)
        free += ended.nodes
    assert free == nodes and len(started) + len(pending) == len(wanted)
    assert started[0][1] is order[0], "the largest first"
    assert all(each.bound_s > seconds - now for each in pending), "what is left does not fit into the time"


@pytest.mark.parametrize(
    "tally, code",
    [
        (Tally(ended={"a": "ok"}, kept={"b": "ok"}), 0),
        (Tally(kept={"b": "ok"}), 0),
        (Tally(), 1),
        (Tally(ended={"a": "ok"}, kept={"b": "diverged"}), 1),
        (Tally(ended={"a": "failed"}), 1),
        (Tally(left=[packed(1)]), 1),
        (Tally(left=[packed(1, resumes=True)]), 75),
        (Tally(left=[packed(1)], gone=["n2"]), 75),
        (Tally(ended={"a": "ok"}, received="SIGTERM"), 143),
        (Tally(ended={"a": "ok"}, warned=True), 0),
    ],
)
def test_the_exit_status_of_a_packed_job_is_what_stands_in_the_table(tally, code):
    assert tally.exit_code == code


def test_what_can_never_fit_starts_where_it_can_go_on():
    assert next_run([packed(1, 500.0)], 4, 100.0, 100.0) is None
    assert next_run([packed(1, 500.0, resumes=True)], 4, 100.0, 100.0) is not None
    assert next_run([packed(1, 500.0, resumes=True)], 4, 5.0, 100.0) is None, "too little is left to get anywhere"
    assert next_run([packed(1, 50.0, resumes=True)], 4, 20.0, 100.0) is None, "it fits whole into the next one"


def test_packed_runs_are_the_missing_runs_largest_first(study, tmp_path, fake):
    done = submit_study(study, tmp_path / "r", SubmitOptions(scheduler="slurm", mode="packed"))
    (job_file,) = done.submission.folder.glob("scalade-*.json")
    job, store = read_job(job_file), RunStore(tmp_path / "r")
    found = packed_runs(load_study(job.study), store, job)
    assert [(each.nodes, each.run.repeat) for each in found] == [(4, 0), (4, 1), (2, 0), (2, 1), (1, 0), (1, 1)]
    assert {each.bound_s for each in found} == {100.0}
    first = found[0].run
    store.write_run(
        first.case.columns() | {"run_id": first.run_id, "repeat": 0, "world_size": 4, "status": "ok", "wall_s": 4.0}
    )
    again = packed_runs(load_study(job.study), store, job)
    assert len(again) == 5 and again[0].bound_s == 36.0, "1.5 times what the first repeat took, and 30 s"
    job_file.write_text("{}")
    with pytest.raises(ValueError, match="is no job file"):
        read_job(job_file)


@pytest.mark.parametrize("alone", [False, True])
def test_runs_side_by_side_or_one_at_a_time(study, tmp_path, fake, monkeypatch, alone):
    done = submit_study(study, tmp_path / "r", SubmitOptions(scheduler="slurm", mode="packed", nodes=8, alone=alone))
    (job_file,) = done.submission.folder.glob("scalade-*.json")
    job, store = read_job(job_file), RunStore(tmp_path / "r")
    beside = []

    class Sleeping(Packer):
        def _start(self, packed):
            hosts, self.free = self.free[: packed.nodes], self.free[packed.nodes :]
            packed.tries = TRIES
            self.on.append(Started(packed, hosts, subprocess.Popen(["sleep", "0.3"])))
            beside.append(len(self.on))

    tally = Sleeping(job, store, [f"n{number}" for number in range(8)], job_file, time.monotonic()).run(
        packed_runs(load_study(job.study), store, job)
    )
    assert len(beside) == len(tally.given_up) == 6
    assert max(beside) == 1 if alone else max(beside) > 1


@pytest.mark.parametrize("known", [True, False])
def test_a_node_that_crashes_takes_its_run_and_no_other(study, tmp_path, fake, monkeypatch, known):
    """Eight nodes, of which n1 ends every run on it. known: Slurm says so at once."""
    done = submit_study(study, tmp_path / "r", SubmitOptions(scheduler="slurm", mode="packed", nodes=8))
    (job_file,) = done.submission.folder.glob("scalade-*.json")
    job, store = read_job(job_file), RunStore(tmp_path / "r")
    monkeypatch.setattr(Slurm, "ask", lambda self, words, *more: "n0|alloc\nn1|alloc*\n" if known else "")
    started = []

    class Crashing(Packer):
        def _start(self, packed):
            hosts, self.free = self.free[: packed.nodes], self.free[packed.nodes :]
            packed.tries, packed.rows = packed.tries + 1, len(store.attempts(packed.run.run_id))
            started.append((packed.run.run_id, hosts))
            log = StartLog(store.run_folder(packed.run.run_id), store.scratch(packed.run.run_id))
            log.begin(Moment.now(), 1, "")
            if "n1" not in hosts:
                log.end(time.time(), "ok")
                store.write_run(
                    packed.run.case.columns()
                    | {"run_id": packed.run.run_id, "repeat": packed.run.repeat, "world_size": 4, "status": "ok"}
                )
            self.on.append(Started(packed, hosts, subprocess.Popen(["true"])))

    def pack_on(count):
        hosts = [f"n{number}" for number in range(count)]
        return Crashing(job, store, hosts, job_file, time.monotonic()).run(
            packed_runs(load_study(job.study), store, job)
        )

    tally = pack_on(8)
    assert set(tally.ended.values()) == {"ok"} and len(tally.ended) == 6 and not tally.left and not tally.given_up
    lost = [run_id for run_id, hosts in started if "n1" in hosts]
    assert tally.gone == (["n1"] if known else []) and len(lost) >= 1
    assert not known or len(lost) == 1, "nothing more starts there"
    shutil.rmtree(store.runs)
    store = RunStore(tmp_path / "r")
    tally = pack_on(4)  # the largest need all four
    assert len(tally.left) >= 1 and not tally.given_up and tally.exit_code == 75
    assert {run.run.case.ranks for run in tally.left} == {4}


def test_packed_jobs_take_the_nodes_of_the_largest_case(study, tmp_path, fake):
    options = SubmitOptions(scheduler="slurm", mode="packed", nodes=3)
    with pytest.raises(ValueError, match="--nodes 3: the largest case takes 4 nodes of 1 rank"):
        submit_study(study, tmp_path / "r", options)


# the site profile


@pytest.mark.parametrize(
    "text, says",
    [
        ("partitoin = 'x'", "partitoin: unknown key; did you mean partition?"),
        ("gpus_per_node = '4'", 'gpus_per_node = "4": must be an integer'),
        ("modules = 'cuda'", 'modules = "cuda": must be a list of strings'),
        ("account = 'a\\nb'", "must be letters, digits"),
        ("partition = '$(x)'", 'partition = "$(x)": must be letters, digits'),
        ("scheduler = 'slrum'", "allowed are slurm, pbs, flux, lsf, kubernetes"),
        ("time_limit = '90'", "must be [days-]HH:MM:SS"),
        ("gpus_per_node = 2\nranks_per_node = 4", "there are 2 GPUs on a node"),
        ('options = ["-x\\n#SBATCH --y"]', "must be one printable option"),
        ("[environment]\n'A B' = 'x'", "no name of an environment variable"),
        ("[environment]\nA = true", "environment.A = true: must be a string"),
        ('[environment]\nA = "\\u0000"', "holds a zero byte"),
        ("mpi = 'openmpi'", "mpirun and mpi: give both or none"),
        ("[kubernetes]\nimge = 'x'", "kubernetes.imge: unknown key; did you mean image?"),
        ("x = [", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_profile_is_one_line(tmp_path, text, says):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        load_site(path, SCHEDULERS)
    assert says in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_times():
    assert [parse_time(text) for text in ("00:10:00", "1-00:00:30", "10", "0:00:00")] == [600, 86430, None, None]
    assert [clock(seconds) for seconds in (1, 60, 3601)] == ["00:01:00", "00:01:00", "01:01:00"]


@pytest.mark.parametrize(
    "options, says",
    [
        ([], "which scheduler? --scheduler slurm|pbs|flux|lsf|kubernetes"),
        (["--scheduler", "slrum"], "did you mean slurm?"),
        (["--scheduler", "slurm", "--mode", "pack"], "did you mean packed?"),
        (["--scheduler", "slurm", "--time-limit", "90"], "--time-limit 90: must be [days-]HH:MM:SS"),
        (["--scheduler", "slurm", "--launcher", "srum"], "did you mean srun?"),
        (["--scheduler", "flux", "--launcher", "srun"], "flux starts ranks by torchrun, not by srun"),
        (["--scheduler", "kubernetes"], "needs a profile with an image"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(study, tmp_path, options, says, monkeypatch, capsys):
    code, said = scalade(monkeypatch, capsys, "submit", study, "--results", tmp_path / "r", *options)
    assert code == 2 and says in said and len(said.splitlines()) == 1
    assert not list(tmp_path.glob("r/submissions/*/*"))


def test_without_the_schedulers_commands_that_is_said(study, tmp_path, monkeypatch, capsys):
    """And nothing is started later: what cannot be asked might be running."""
    monkeypatch.setenv("PATH", "/nowhere")
    code, said = scalade(monkeypatch, capsys, "submit", study, "--results", tmp_path / "r", "--scheduler", "slurm")
    assert code == 2 and "slurm: there is no `sbatch` here; is this a login node? (script: " in said


def scalade(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["scalade", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err


def test_counts_of_a_study_that_changed_meanwhile(study, tmp_path, fake):
    """Jobs that wait run the copy; a worker that is given a case its study does not have says so."""
    done = submit_study(study, tmp_path / "r", SLURM)
    study.write_text(STUDY.replace("steps = 5", "steps = 6"))
    fake.all(done.submission, State.WAITING)
    again = submit_study(study, tmp_path / "r", SLURM, dry_run=True)
    assert (again.runs, again.active) == (6, 0), "other cases: they are missing"
    assert Counter(line.state for line in states.status(tmp_path / "r")[0]) == {"waiting": 3}
    assert "steps = 5" in (done.submission.folder / "study.toml").read_text()


def test_the_docs_name_every_key_of_a_profile():
    page = (ROOT / "docs" / "clusters.md").read_text()
    names = [each.name for each in fields(Site) if each.name not in ("environment", "fabric", "kubernetes")]
    names += [f"kubernetes.{each.name}" for each in fields(Kubernetes)] + ["[environment]", "[fabric]"]
    assert [name for name in names if f"`{name}`" not in page] == []
