"""The injector of faults: a short run of it, and that it sees what it is there to see."""

import os
import subprocess

import faults
import pytest
from injector import campaign, draw, inject


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_run_of_random_faults():
    """`make faults` is the long one, with the kinds that take long."""
    assert campaign(draw(18, 2026, slow=False)) == []


def test_a_seed_says_which_faults_and_each_kind_comes_before_one_comes_twice():
    kinds = faults.load()
    assert draw(200, 7) == draw(200, 7) != draw(200, 8)
    drawn = [name for name, _ in draw(3 * len(kinds), 7)]
    able = {name for name in kinds if os.geteuid() == 0 or not kinds[name].root}
    assert set(drawn[: len(able)]) == able
    assert {kind.area for kind in kinds.values()} == {
        "ranks",
        "sweeps",
        "guards",
        "disks",
        "files",
        "checkpoints",
        "clocks",
        "hosts",
        "neighbours",
    }


def change_a_row(lab):
    """As a sweep would that rewrites what stands."""
    finish = lab.sweep

    def sweep(**options):
        (row,) = lab.results.glob("runs/*-r0/a1/run.json")
        row.write_bytes(row.read_bytes().replace(b'"faults"', b'"other!"'))
        return finish(**options)

    lab.ended(lab.sweep())
    lab.sweep = sweep


def leave_an_orphan(lab):
    lab.ended(lab.sweep())
    subprocess.Popen(["sleep", "60"], env=lab.env, start_new_session=True)
    lab.settled = lambda: type(lab).settled(lab, limit_s=0.2)


def lose_a_run(lab):
    """Whose row says that it was computed, with another loss."""
    lab.ended(lab.sweep())
    lab.steps -= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hurt", "said"),
    [(change_a_row, "rows that stood have changed"), (leave_an_orphan, "orphans"), (lose_a_run, "undisturbed run")],
    ids=["row", "orphan", "loss"],
)
def test_what_is_violated_is_found(tmp_path, monkeypatch, hurt, said):
    monkeypatch.setitem(faults.load(), "hurt", faults.Kind("hurt", "ranks", hurt, {"repeats": 1, "steps": 3}))
    problem, told = inject("hurt", 1, tmp_path)
    assert said in problem and told == "seed 1\n"
