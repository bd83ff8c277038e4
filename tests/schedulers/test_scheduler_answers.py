"""What schedulers answer, as it was recorded; of which versions, and from where: tests/golden/answers/README.md.

The commands are stand-ins that print a recorded answer. A real Slurm, with Torque's commands: test_cluster_pbs.py.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN

from scalade.launch.cluster import status as states
from scalade.launch.cluster.cancel import cancel
from scalade.launch.cluster.jobs import SubmitOptions
from scalade.launch.cluster.submit import submit_study
from scalade.launch.schedulers import base
from scalade.launch.schedulers.ask import Answer, SchedulerError
from scalade.launch.schedulers.base import ALL, Limits, Task
from scalade.launch.schedulers.flux import Flux
from scalade.launch.schedulers.flux_id import f58, number_of
from scalade.launch.schedulers.lsf import Lsf
from scalade.launch.schedulers.pbs import Pbs
from scalade.launch.schedulers.slurm import Slurm
from scalade.launch.schedulers.state import State

ANSWERS = GOLDEN / "answers"
WORDS = json.loads((ANSWERS / "qstat-words.json").read_text())
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


def recorded(name):
    return (ANSWERS / name).read_text()


@pytest.fixture
def says(monkeypatch):
    """Puts a function of a command's words in the place of the command."""
    asked = []

    def put(function):
        def answer(who, words, *more):
            asked.append(list(words))
            told = function(*words)
            return told if isinstance(told, Answer) else Answer(0, told, "")

        monkeypatch.setattr(base, "answer", answer)
        return asked

    return put


def failing(words):
    return Answer(words["status"], words.get("out", ""), words.get("err", ""))


# PBS


def test_pbs_jobs_are_read_as_each_qstat_prints_them(says):
    texts = {name: recorded(f"{name}-qstat-f.txt") for name in ("pbspro", "torque", "slurm-torque")}
    of = {
        "68350.mycluster": "pbspro",
        "69301.mycluster": "pbspro",
        "74165.mycluster": "pbspro",
        "549159": "torque",
        "555716": "torque",
        "1": "slurm-torque",
        "2": "slurm-torque",
    }

    def qstat(*words):
        job = words[-1]
        text = texts[of[job]]
        return next(f"Job Id: {part}" for part in text.split("Job Id:")[1:] if part.split()[0] == job) if job else ""

    says(qstat)
    told = {name: tasks[0] for name, tasks in Pbs().tasks({job: job for job in of}).items()}
    assert told == {
        "68350.mycluster": Task(State.WAITING, "Not Running: Node is in an ineligible state: offline"),
        "69301.mycluster": Task(
            State.RUNNING,
            "Job run at Sat Apr 20 at 01:36 on (b141:ncpus=16)+(b142:ncpus=16)+(b143:ncpus=16)+(b144:ncpus=16)",
            "b141+b142+b143+b144",
            "64:26:16",
        ),
        "74165.mycluster": Task(State.WAITING),
        "549159": Task(State.WAITING),
        "555716": Task(State.RUNNING, "", "r2i4n13+r1i2n12+r1i2n11+r1i1n15", "41:45:13"),
        "1": Task(State.RUNNING, "", "n1"),
        "2": Task(State.DONE, "it has ended; how is not said", "n1"),
    }


@pytest.mark.parametrize("first", ["no history", "refused", "xml"])
def test_a_running_job_of_a_pbs_without_history_is_running(says, first):
    """-x prints nothing and exits with 0, is refused, or means XML."""
    running = recorded("pbspro-qstat-f.txt")

    def qstat(*words):
        if "-x" in words or (first == "refused" and "-t" in words):
            return failing(WORDS[first])
        return "Job Id: " + running.split("Job Id: ")[2].replace("69301", words[-1].partition(".")[0])

    asked = says(qstat)
    told = Pbs().tasks({"a": "12.mycluster", "b": "13.mycluster"})
    assert {name: tasks[0].state for name, tasks in told.items()} == {"a": "running", "b": "running"}
    assert len(asked) == {"refused": 4}.get(first, 3), "the form that was answered is asked first from then on"


@pytest.mark.parametrize("words", WORDS["unknown"], ids=lambda words: words["of"])
def test_what_pbs_says_it_does_not_know_is_left_out(says, words):
    says(lambda *command: failing(WORDS["no history"]) if "-x" in command else failing(words))
    assert Pbs().tasks({"a": "12.pbs"}) == {}


@pytest.mark.parametrize("words", WORDS["away"], ids=lambda words: f"{words['of']} {words['status']}")
def test_a_pbs_that_is_away_is_silent(says, words):
    says(lambda *command: failing(words))
    with pytest.raises(SchedulerError, match="cannot connect|Problem loading"):
        Pbs().tasks({"a": "12.pbs"})
    with pytest.raises(SchedulerError):
        Pbs().find(Path("job.sh"))
    assert Pbs().limits() == Limits(10_000)


def test_three_submits_to_a_pbs_without_history_are_one_job_and_it_is_cancelled(says, tmp_path):
    """As the command line does it: job 12 runs, `qstat -x` says nothing, and exits with 0."""
    study, results = tmp_path / "study.toml", tmp_path / "r"
    study.write_text(
        'name = "s"\nmodel.size = "tiny-100k"\nmodel.seq_len = 64\nrecipe.global_batch = 8\n'
        "budget.steps = 5\nlayout.dp_replicate = 1\n"
    )

    def pbs(*words):
        if words[0] in ("qsub", "qdel"):
            return "12.pbs\n" if words[0] == "qsub" else ""
        running = "Job Id: 12.pbs\n    job_state = R\n    exec_host = n1/0*2\n"
        return failing(WORDS["no history"]) if "-x" in words else running

    asked = says(pbs)
    options = SubmitOptions(scheduler="pbs", launcher="torchrun")
    told = [submit_study(study, results, options) for _ in range(3)]
    assert [(each.runs, each.active) for each in told] == [(1, 0), (0, 1), (0, 1)]
    ((line,), doubts) = states.status(results)
    assert (line.state, line.where, line.job, doubts) == ("running", "n1", "12.pbs", [])
    assert cancel(results) == ["cancelled: 12.pbs"]
    assert [words for words in asked if words[0] != "qstat"] == [["qsub", asked[1][1]], ["qdel", "12.pbs"]]


def test_a_pbs_that_prints_nothing_at_all_has_not_said_that_a_job_is_gone(says):
    says(lambda *command: failing(WORDS["no history"]))
    with pytest.raises(SchedulerError, match="not configured to maintain job history"):
        Pbs().tasks({"a": "12.pbs"})


def test_a_pbs_array_by_its_tasks_or_as_a_whole(says):
    array = "Job Id: 12[].pbs\n    Job_Name = job\n    job_state = B\n\n"
    tasks = "".join(f"Job Id: 12[{n}].pbs\n    job_state = {state}\n\n" for n, state in enumerate("RQX"))
    says(lambda *words: array + tasks * ("-t" in words))
    pbs = Pbs()
    told = pbs.tasks({"a": "12[].pbs"})["a"]
    assert {n: task.state for n, task in told.items() if n != ALL} == {0: "running", 1: "waiting", 2: "done"}
    assert pbs.find(Path("/x/job.sh")) == "12[].pbs" and pbs.find(Path("/x/other.sh")) is None
    assert pbs.task_name("12[].pbs", 3) == "12[3].pbs"
    says(lambda *words: array if "-t" not in words else failing(WORDS["refused"]))
    assert pbs.tasks({"a": "12[].pbs"}) == {"a": {ALL: Task(State.RUNNING)}}


def test_what_qsub_prints_is_an_id_or_an_error(says):
    says(lambda *words: "There was an error running the Slurm sbatch command.\nThe command was:\n")
    with pytest.raises(SchedulerError, match="gave no job id: There was an error"):
        Pbs().submit(Path("/x/job.sh"), 1)
    for told in ("12", "12.pbs-server.site", "12[].pbs"):
        says(lambda *words, told=told: f"{told}\n")
        assert Pbs().submit(Path("/x/job.sh"), 1) == told


def test_the_largest_array_is_asked_for(says):
    says(lambda *words: "Server: pbs\n    server_state = Active\n    max_array_size = 500\n")
    assert Pbs().limits().array == 500
    says(lambda *words: "MAX_JOB_ARRAY_SIZE = 2500\n")
    assert Lsf().limits().array == 2500
    config = "MaxArraySize            = 1001\nMaxJobCount             = 10000\n"
    says(lambda *words: config)
    assert Slurm().limits() == Limits(1001, 9999, "MaxJobCount = 10000")
    says(lambda *words: "MaxArraySize            = 0\n")
    assert Slurm().limits().array == 1
    says(lambda *words: Answer(1, "", AWAY))
    assert Slurm().limits() == Limits(1000) == Lsf().limits()


# Flux


@pytest.mark.parametrize("number, forms", json.loads(recorded("flux-ids.json")), ids=lambda value: str(value)[:20])
def test_flux_ids_in_each_form(number, forms):
    for form in forms:
        if number is None:
            with pytest.raises(ValueError, match="no job id of Flux"):
                number_of(form)
        else:
            assert number_of(form) == number
    if number is not None:
        assert f58(number) in forms or forms == ["1.2.3.4"] or forms == ["a.b.c.d"]


@given(st.integers(0, 2**64 - 1))
def test_f58_and_back(number):
    assert number_of(f58(number)) == number_of(f58(number, "ƒ")) == number


def flux_jobs(*words):
    """As flux-jobs does it: one object for one id, an error a line of ids that it does not know."""
    jobs = json.loads(recorded("flux-jobs.json"))["jobs"]
    ids = [word for word in words[3:] if not word.startswith("-")]
    if not ids:
        return json.dumps({"jobs": jobs})
    known = {str(each["id"]): each for each in jobs}
    found = [known[one] for one in ids if one in known]
    err = "".join(f"JobID {one} unknown\n" for one in ids if one not in known)
    if not found:
        return Answer(1, "", err)
    return Answer(0, json.dumps(found[0] if len(ids) == 1 else {"jobs": found}), err)


def test_flux_gives_numbers_and_was_given_f58(says):
    says(flux_jobs)
    flux = Flux()
    numbers = (44258295808, 49727668224, 35114713088, 406008627200, 5)
    ids = ",".join(f58(number, prefix) for number, prefix in zip(numbers, "ƒfƒff", strict=True))
    assert ids.startswith("ƒ2ARxLQf,"), "as the recorded dependency names it"
    assert flux.tasks({"job": ids}) == {
        "job": {
            0: Task(State.RUNNING, "", "asp,asp,asp,asp", "12 s"),
            1: Task(State.WAITING),
            2: Task(State.DONE, "", "asp"),
            3: Task(State.FAILED, "TIMEOUT: resource allocation expired"),
        }
    }
    assert flux.tasks({"job": f58(44258295808)})["job"][0].state == State.RUNNING, "one id: one object"
    assert flux.tasks({"job": "f5"}) == {}
    assert flux.find(Path("/x/scalade-demo-c0ffee-0.sh")) == "44258295808,49727668224,35114713088,406008627200"
    assert flux.find(Path("/x/scalade-demo-c0ffee-1.sh")) is None
    says(
        lambda *words: Answer(
            1, "", "flux-jobs: ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found"
        )
    )
    with pytest.raises(SchedulerError, match="Unable to connect"):
        flux.tasks({"job": "f5"})


def test_a_flux_submission_that_ends_half_way_is_found_by_its_tasks_names(says):
    def batch(*words):
        return "ƒ2ARxLQf\n" if words[2].endswith("c0ffee-0.0") else Answer(1, "", "flux-batch: ERROR: no such queue")

    asked = says(batch)
    with pytest.raises(SchedulerError, match="no such queue") as caught:
        Flux().submit(Path("/x/scalade-demo-c0ffee-0.sh"), 3)
    assert caught.value.unsure and len(asked) == 2
    assert asked[1][2:4] == ["--job-name=scalade-demo-c0ffee-0.1", "--env=SCALADE_TASK=1"]


# LSF


def test_lsf_answers(says):
    content = json.loads(recorded("lsf-bjobs.json"))
    jobs = {"done": "22005", "held": "58652", "array": "12345678", "gone": "99"}
    says(lambda *words: content["waiting"] + json.dumps(content["answer"]))
    assert Lsf().tasks(jobs) == {
        "done": {0: Task(State.DONE, "", "tbi-cn019", "00:00:01")},
        "held": {0: Task(State.WAITING)},
        "array": {
            1: Task(State.FAILED, "TERM_OWNER: job killed by owner", "", "16038 second(s)"),
            0: Task(State.WAITING, "New job is waiting for scheduling;"),
        },
    }
    assert Lsf().find(Path("/x/job.sh")) == "22005"
    says(lambda *words: Answer(255, "", content["unknown"]))
    assert Lsf().tasks({"gone": "99"}) == {} and Lsf().find(Path("/x/job.sh")) is None
    says(lambda *words: Answer(255, "", content["away"]))
    with pytest.raises(SchedulerError, match="not responding"):
        Lsf().tasks(jobs)
    assert Lsf().task_name("12345678", 0) == "12345678[1]"


# Slurm


def test_slurm_away_is_silent_and_a_controller_that_forgot_is_believed_before_accounting(says):
    says(lambda *words: Answer(1, "", AWAY))
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
        Slurm().tasks({"a": "12"})
    accounting = "12_[1-2,4%1]|CANCELLED by 0|00:00:00|None assigned|0:0|None\n12_0|RUNNING|01:00:00|n1|0:0|None\n"
    says(lambda *words: accounting if words[0] == "sacct" else "")
    told = Slurm().tasks({"a": "12", "b": "13"})
    states = {n: task.state for n, task in told["a"].items()}
    assert states == {0: "lost", 1: "cancelled", 2: "cancelled", 4: "cancelled"}
    assert "the controller does not know it" in told["a"][0].reason and set(told) == {"a"}


def test_a_word_of_slurm_that_is_not_known_here_is_no_failure(says):
    says(lambda *words: "12|EXPEDITING|0:00|a||None\n" if words[0] == "squeue" else "")
    assert Slurm().tasks({"a": "12"})["a"][0].state == State.UNKNOWN


def test_slurm_finds_a_job_by_name_while_the_controller_knows_it_and_then_by_accounting(says):
    says(lambda *words: "12\n12\n" if words[0] == "squeue" else "")
    assert Slurm().find(Path("/x/job.sh")) == "12"
    says(lambda *words: "" if words[0] == "squeue" else "13_0\n13_1\n")
    assert Slurm().find(Path("/x/job.sh")) == "13"
    says(lambda *words: "" if words[0] == "squeue" else Answer(1, "", "Slurm accounting storage is disabled"))
    assert Slurm().find(Path("/x/job.sh")) is None
