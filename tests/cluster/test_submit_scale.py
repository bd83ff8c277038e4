"""Submissions of very many cases: work that grows with their number and no faster, and lines that tell them apart."""

import json
import time

import pytest
from fake_cluster import SLURM, Fake

from scalade.cli import app as cli
from scalade.launch.cluster import status as states
from scalade.launch.cluster.cancel import cancel
from scalade.launch.cluster.status import counted_states, shortened
from scalade.launch.cluster.submissions import submissions
from scalade.launch.cluster.submit import submit_study
from scalade.launch.schedulers import SCHEDULERS
from scalade.launch.schedulers.base import Limits, Task
from scalade.launch.schedulers.state import State
from scalade.launch.study.labels import labels
from scalade.launch.study.study import load_study

STUDY = """
name = "many"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 8
lr = [{lr}]
seed = [{seeds}]
[budget]
steps = 5
[layout]
dp_replicate = 1
"""
SEEDS = 100


@pytest.fixture
def fake(monkeypatch):
    stand_in = Fake()
    stand_in.most = Limits(1001)
    monkeypatch.setitem(SCHEDULERS, "slurm", stand_in)
    return stand_in


def write_study(folder, cases):
    path = folder / f"{cases}.toml"
    lr = ", ".join(f"{(n + 1) * 1e-6:.6g}" for n in range(cases // SEEDS))
    path.write_text(STUDY.format(lr=lr, seeds=", ".join(map(str, range(SEEDS)))))
    return path


def spent(function, *arguments):
    begun = time.process_time()
    return function(*arguments), time.process_time() - begun


@pytest.mark.slow
def test_ten_times_the_cases_take_ten_times_the_work(tmp_path, fake, monkeypatch):
    """Submit, submit again while all wait, status and cancel: a step that looks at each case for each case takes a
    hundred times as much."""
    saved = []
    costs = {}
    for cases in (500, 1_000, 10_000):  # the first pays for what is done once in a process
        results, study = tmp_path / str(cases), write_study(tmp_path, cases)
        handed = len(fake.handed)
        done, first = spent(submit_study, study, results, SLURM)
        assert len(fake.handed) - handed == len(done.submission.jobs) == -(-cases // 1001)
        fake.all(done.submission, State.WAITING, "Priority")
        again, second = spent(submit_study, study, results, SLURM)
        assert (again.runs, again.active) == (0, cases)
        (lines, _), third = spent(states.status, results)
        assert len({line.what for line in lines}) == len({line.job for line in lines}) == cases
        monkeypatch.setattr(type(done.submission), "save", lambda self: saved.append(self))
        said, fourth = spent(cancel, results)
        monkeypatch.undo()
        monkeypatch.setitem(SCHEDULERS, "slurm", fake)
        assert len(said) == -(-cases // 1001)
        costs[cases] = (first, second, third, fourth)
    for few, many in zip(costs[1_000], costs[10_000], strict=True):
        assert many < 30 * few + 0.5, costs
    assert len(saved) == 3, "the record is written once, not once for each job"


def test_the_record_is_not_written_anew_for_each_of_many_jobs(tmp_path, fake, monkeypatch):
    """Handing over is at most a tenth writing; and an id that was not written is found by the job's name."""
    fake.most = Limits(2)
    clock, saved = [0.0], []

    def save(self):
        clock[0] += 1.0
        saved.append([job.job_id for job in self.jobs])

    monkeypatch.setattr("scalade.launch.cluster.submissions.Submission.save", save)
    monkeypatch.setattr("scalade.launch.cluster.submit.time.monotonic", lambda: clock[0])
    fake_submit = fake.submit

    def submit(script, tasks):
        clock[0] += 0.5
        return fake_submit(script, tasks)

    monkeypatch.setattr(fake, "submit", submit)
    done = submit_study(write_study(tmp_path, 100), tmp_path / "r", SLURM)
    assert len(done.submission.jobs) == 50 and all(job.job_id for job in done.submission.jobs)
    assert 3 <= len(saved) <= 7 and all(saved[-1]), "at the beginning, now and then, and at the end"


def test_status_shows_first_what_needs_a_look_and_counts_the_rest(tmp_path, fake, capsys):
    study = write_study(tmp_path, 300)
    done = submit_study(study, tmp_path / "r", SLURM)
    fake.all(done.submission, State.WAITING)
    told = fake.answers[done.submission.jobs[0].name]
    told[250], told[299] = Task(State.FAILED, "NODE_FAIL"), Task(State.RUNNING)
    with pytest.raises(SystemExit) as end:
        cli.app(["status", str(tmp_path / "r"), "--limit", "5"])
    out = capsys.readouterr().out
    assert end.value.code == 1 and "NODE_FAIL" in out and "running" in out
    assert len([line for line in out.splitlines() if line.startswith("101_")]) == 5
    assert "5 of 300 jobs are shown (--limit): 1 failed, 1 running, 298 waiting" in out
    lines, _ = states.status(tmp_path / "r")
    assert shortened(lines, 0) == lines == shortened(lines, 300) and len(shortened(lines, 299)) == 299
    assert counted_states(lines) == {"failed": 1, "running": 1, "waiting": 298}
    with pytest.raises(SystemExit):
        cli.app(["status", str(tmp_path / "r"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert len(told["jobs"]) == 300 and told["states"] == {"failed": 1, "running": 1, "waiting": 298}


def test_the_count_is_said_while_jobs_are_handed_over(tmp_path, fake, capsys, monkeypatch):
    monkeypatch.setattr("scalade.cli.cluster.TELL_S", 0.0)
    fake.most = Limits(40)
    with pytest.raises(SystemExit):
        cli.app(["submit", str(write_study(tmp_path, 100)), "--scheduler", "slurm", "--results", str(tmp_path / "r")])
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"scalade: {n} of 3 jobs handed over" for n in (1, 2)]
    assert "submitted: 100 runs" in said.out and "jobs: 101, 102, 103\n" in said.out
    (submission,) = submissions(tmp_path / "r")
    assert [job.job_id for job in submission.jobs] == ["101", "102", "103"]


def test_labels_say_what_tells_cases_apart_and_nothing_twice(tmp_path):
    path = tmp_path / "s.toml"
    text = STUDY.format(lr="1e-3, 3e-3", seeds="0").replace("seed = [0]\n", "")
    path.write_text(text.replace("dp_replicate = 1", "dp_replicate = [1, 2]"))
    assert labels(load_study(path).all_cases) == [
        f"tiny-100k {layout} lr={lr}" for lr in ("0.001", "0.003") for layout in ("single", "dp2")
    ]
    path.write_text(text.replace("1e-3, 3e-3", "1e-3").replace("dp_replicate = 1", "dp_replicate = [1, 2]"))
    assert labels(load_study(path).all_cases) == ["tiny-100k single", "tiny-100k dp2"]
    path.write_text(text.replace("lr = [1e-3, 3e-3]", "").replace("steps = 5", "tokens_per_param = [1, 2]"))
    told = labels(load_study(path).all_cases)
    assert len(set(told)) == 2 and all(label.count("=") == 1 for label in told), "a budget is several fields"
    path.write_text(text.replace("seq_len = 64", "seq_len = [32, 64]").replace("1e-3, 3e-3", "1e-3"))
    assert labels(load_study(path).all_cases) == [f"tiny-100k single model_seq_len={n}" for n in (32, 64)]
    assert labels([]) == []
