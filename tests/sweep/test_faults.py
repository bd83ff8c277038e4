"""Faults at random steps: no finished row is lost, none comes twice, no process stays, and the study comes to its end.

Each fault is injected once here, and 20 times under the marker `cluster`. What a user sees of each is docs/faults.md.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from fault_lab import Lab
from faults.files import fill
from faults.processes import hurt_ranks

OFTEN = (pytest.mark.cluster, pytest.mark.slow)
SEEDS = [pytest.param(1, 11, id="once"), pytest.param(20, 2026, id="20 times", marks=OFTEN)]
injected = pytest.mark.parametrize("times, seed", SEEDS)


@pytest.fixture
def lab(tmp_path):
    made = []

    def make(*arguments, **options):
        made.append(Lab(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@injected
def test_sigkill_of_any_rank(lab, times, seed):
    lab = lab(seed, repeats=times)
    hurt, process = hurt_ranks(lab, signal.SIGKILL)
    assert len(hurt) == times and process.returncode == 1
    attempts = lab.finish()
    failed = attempts[attempts["status"] == "failed"]
    assert len(failed) == times and failed["reason"].str.contains(r"rank [01] was killed by SIGKILL at step \d+").all()
    again = attempts[attempts["attempt"] == 2]
    assert set(again["restarts"]) == {1} and again["lost_steps"].between(0, 4).all()  # a checkpoint every 4


@injected
def test_sigkill_of_the_supervisor(lab, times, seed):
    """Anywhere: also before the ranks have been started, or between two runs."""
    lab = lab(seed, repeats=3 if times > 1 else 2, ranks="[1, 2]", steps=60)
    killed = 0
    while killed < times:
        process = lab.sweep()
        before = lab.rows()
        if times == 1:
            while not lab.step():
                time.sleep(0.005)
        time.sleep(lab.rng.uniform(0, 1.5 if times > 1 else 0.3))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it had come to its end: the next one needs work
            lab.one_more()
        after = lab.rows()
        assert before == {name: after[name] for name in before}
    attempts = lab.finish()
    assert set(attempts["attempt"]) == {1}  # who was killed wrote no row


@injected
def test_a_rank_that_is_stopped_hangs_all(lab, times, seed):
    lab = lab(seed, repeats=times, hang_limit_s=1.0)
    hurt, process = hurt_ranks(lab, signal.SIGSTOP)
    assert len(hurt) == times and process.returncode == 1
    hung = lab.finish()
    hung = hung[hung["status"] == "timeout"]
    said = r"hang: no step for \d+ s at step \d+ of 20; rank [01] was stopped by a signal; stacks in runs/.+/stacks"
    assert len(hung) == times and hung["reason"].str.fullmatch(said).all(), list(hung["reason"])
    for run_id in hung["run_id"]:
        stacks = sorted((lab.results / "runs" / run_id / "stacks").iterdir())
        assert [file.name for file in stacks] == ["a1-rank-0.txt", "a1-rank-1.txt"]
        assert all("in program" in file.read_text() for file in stacks)


@injected
def test_rank_0_is_killed_while_it_writes_its_row(lab, times, seed):
    """Before each of the calls that write a row, in the middle of its files: a row is there wholly or not at all."""
    rng, rows = random.Random(seed), 0
    for number in range(times):
        lab_ = lab(seed + number, repeats=number + 1, steps=3)  # one more run each time
        call = number % 9 if times > 1 else rng.randrange(5)
        process = lab_.sweep(FAKE_RANK=f"0:die-writing-{call}@2")
        process.communicate(timeout=60)
        written = [name for name in lab_.rows() if name.endswith("/a1") and f"-r{number}/" in name]
        rows += len(written)
        lab_.finish()
    assert times == 1 or 0 < rows <= times


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small disk: needs root")
@injected
def test_the_disk_is_full(lab, tmp_path, times, seed):
    """The row of the run that is on has its room; else the sweep ends with one line, and goes on when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "scalade-test", str(disk)]).returncode:
        pytest.skip("this container mounts nothing")
    try:
        lab = lab(seed, repeats=times, results=disk / "r")
        for _ in range(times):
            process = lab.sweep()
            begun, aim = time.monotonic(), lab.rng.randrange(0, 18)
            while process.poll() is None and not ((now := lab.step()) and now[1] >= aim):
                assert time.monotonic() - begun < 60
                time.sleep(0.002)
            fill(disk / "filler")
            before = lab.rows()
            out, err = process.communicate(timeout=60)
            if process.returncode:
                assert process.returncode == 2 and err.startswith("scalade: ") and len(err.splitlines()) == 1, err
                assert "No space left on device" in err and "start it again when there is room" in err
            (disk / "filler").unlink()
            assert before.items() <= lab.rows().items()
        attempts = lab.finish()
        assert set(attempts["status"]) == {"ok"}  # a full disk is no fault of a run
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times, seed", [pytest.param(2, 5, marks=pytest.mark.slow, id="twice"), SEEDS[1]])
def test_the_link_goes_down(lab, times, seed):
    """Real gloo ranks, whose connections end in the middle of a step."""
    rng = random.Random(seed)
    hurt = ",".join(f"{rng.randrange(2)}/r{repeat}:cut@{rng.randrange(1, 18)}" for repeat in range(times))
    lab = lab(seed, repeats=times, FAKE_TORCH="1", FAKE_SYNC="0")
    process = lab.sweep(FAKE_RANK=hurt)
    process.communicate(timeout=500)
    assert process.returncode == 1
    lab.isolation = "pool"  # the good runs need one start
    attempts = lab.finish()
    failed = attempts[attempts["status"] == "failed"]
    assert len(failed) == times and failed["reason"].str.match(r"rank [01]: ").all(), list(failed["reason"])


@pytest.mark.slow
@injected
def test_two_sweeps_at_once_one_of_which_is_killed(lab, times, seed):
    lab = lab(seed, repeats=6 if times > 1 else 2, ranks="[1, 2]", steps=40)
    both = [lab.sweep(), lab.sweep()]
    for _ in range(times):
        time.sleep(lab.rng.uniform(0.2, 1.2))
        victim = lab.rng.randrange(2)
        both[victim].kill()
        both[victim].wait()
        both[victim] = lab.sweep()
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    attempts = lab.finish()
    assert set(attempts["attempt"]) == {1}


@pytest.mark.filterwarnings("ignore::scalade.results.table.read.DamagedFile")
def test_unreadable_files_cost_their_own_run(lab):
    """A row cut off, a foreign file in the place of steps: these two run again, and nothing of the third changes."""
    lab = lab(17, repeats=3, steps=3)
    lab.sweep().communicate(timeout=60)
    rows = lab.rows()
    cut, foreign, _ = sorted(rows)
    (lab.results / cut / "run.json").write_bytes(rows[cut][: len(rows[cut]) // 2])
    (lab.results / foreign / "steps.arrow").write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    lab.damaged.add(foreign)  # its attempt is kept
    (lab.results / foreign).with_name("starts.jsonl").write_bytes(os.urandom(99))
    out, err = (process := lab.sweep()).communicate(timeout=60)
    assert process.returncode == 0 and "2 ok; 1 had been done before" in out, (out, err)
    attempts = lab.check()
    assert sorted(attempts["attempt"]) == [1, 1, 2, 2]
