"""Steps and H that do not go together: refused or warned of with both numbers, in the output and in the row."""

import sys
from types import SimpleNamespace

import pytest
from places import PROGRAMS

from scalade.launch.rank.measured_columns import loss_columns
from scalade.launch.run import run_study
from scalade.launch.study.study import load_study
from scalade.results.store.store import RunStore

COMMAND = [sys.executable, str(PROGRAMS.joinpath("fake_rank.py"))]
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 12
[budget]
{budget}
[measure]
{measure}
[outer]
placement = "folded"
{outer}
"""


def load(folder, outer, budget="steps = 52", measure=""):
    path = folder / "study.toml"
    outer = outer if "replicas" in outer else f"{outer}; replicas = 2"
    path.write_text(STUDY.format(outer="\n".join(outer.split("; ")), budget=budget, measure=measure))
    return load_study(path)


@pytest.mark.parametrize(
    ("outer", "steps", "said"),
    [
        (
            "algorithm = 'diloco'; sync_every = 30",
            29,
            "29 steps and outer.sync_every = 30: no outer step would be taken",
        ),
        ("algorithm = 'localsgd'", 1, "1 step and outer.sync_every = 30: no outer step"),
        ("algorithm = 'delayed'; sync_every = 10", 19, "one round later, after the end; at least 20"),
        ("algorithm = 'eager'; sync_every = 10", 9, "no outer step would be taken; at least 20"),
        ("algorithm = 'streaming'; sync_every = 10; overlap_steps = 3", 12, "outer.overlap_steps = 3: some fragments"),
        ("algorithm = 'diloco'; sync_every = 30", 30, None),
        ("algorithm = 'delayed'; sync_every = 10", 20, None),
        ("algorithm = 'streaming'; sync_every = 10; overlap_steps = 3", 13, None),
        ("algorithm = 'none'; replicas = 1", 1, None),
    ],
)
def test_a_run_that_would_end_on_start_weights_is_refused(tmp_path, outer, steps, said):
    (planned,) = load(tmp_path, outer, f"steps = {steps}").cases()
    assert planned.skip_reason is None if said is None else said in planned.skip_reason


@pytest.mark.parametrize(
    ("outer", "budget", "said"),
    [
        ("algorithm = 'diloco'", "steps = 52", "52 steps and outer.sync_every = 30: the last 22 inner steps are"),
        ("algorithm = 'diloco'", "steps = 61", "the last inner step is in no outer step, and so not in val_loss"),
        ("algorithm = 'diloco'; sync_every = [30, 40]", "steps = 120", None),
        ("algorithm = 'diloco'", f"tokens = {12 * 64 * 100 - 1}", "100 steps and outer.sync_every = 30: the last 10"),
        ("algorithm = 'diloco'", "steps = 60", None),
        ("algorithm = 'diloco'", "steps = 61", "with 60 or 90 steps none is lost (1 case)"),
        ("algorithm = 'delayed'", "steps = 61", "90 steps none is lost but the last round's, which is on its way"),
        (
            "algorithm = 'streaming'; overlap_steps = 4",
            "steps = 60",
            "outer.overlap_steps = 4: the last 26 inner steps of",
        ),
        ("algorithm = 'streaming'; overlap_steps = 4", "steps = 64", None),
    ],
)
def test_inner_steps_that_no_outer_step_takes_in_are_said(tmp_path, outer, budget, said):
    told = load(tmp_path, outer, budget).warnings()
    assert told == [] if said is None else said in told[0] and told[0].endswith("(1 case)")
    if said:
        assert load(tmp_path, outer, budget, "eval_sequences = 0").warnings() == []  # nothing looks at those weights


@pytest.mark.parametrize(
    ("outer", "steps", "warmup", "said"),
    [
        ("algorithm = 'diloco'; sync_every = 20", 40, 40, False),  # no step is timed at all: the row says so
        ("algorithm = 'diloco'; sync_every = 20", 40, 39, False),  # the outer step after step 40 is
        ("algorithm = 'diloco'; sync_every = 20", 50, 40, True),
        ("algorithm = 'eager'; sync_every = 20", 40, 3, False),
        ("algorithm = 'streaming'; sync_every = 20", 41, 30, False),
        ("algorithm = 'streaming'; sync_every = 20", 40, 30, True),  # sent after step 40, applied after 41
    ],
)
def test_a_run_whose_outer_step_is_not_timed_is_said(tmp_path, outer, steps, warmup, said):
    measure = f"eval_sequences = 0\nwarmup_steps = {warmup}"
    told = load(tmp_path, outer, f"steps = {steps}", measure).warnings()
    assert bool(told) == said
    if said:
        fragments = "1 of the 2 times at which a fragment is sent or applied is not timed"
        which = fragments if "streaming" in outer else "no outer step is timed"
        assert f"measure.warmup_steps = {warmup}: {which}" in told[0] and "so the run has no step time" in told[0]


def test_run_says_both_quiet_or_not_and_the_row_has_the_reason(tmp_path, capfd):
    study = load(tmp_path, "algorithm = 'diloco'; sync_every = [30, 60]")
    summary, folder = run_study(study.path, tmp_path / "r", quiet=True, command=COMMAND)
    assert [outcome.status for outcome in summary.outcomes.values()] == ["ok"] and summary.skipped == 1
    assert "warning: 52 steps and outer.sync_every = 30: the last 22 inner steps are" in capfd.readouterr().err
    store, refused = RunStore(folder), next(case for case in study.all_cases if case.outer.sync_every == 60)
    row = store.row(f"{refused.case_id}-r0")
    assert row["status"] == "skipped" and "52 steps and outer.sync_every = 60" in row["reason"]


@pytest.mark.parametrize(
    ("done", "behind", "why"),
    [(52, 22, None), (60, 0, None), (25, 25, "no outer step in 25 inner steps: the first needs 30")],
)
def test_the_row_says_how_many_are_missing_and_has_no_loss_of_start_weights(tmp_path, done, behind, why):
    case = load(tmp_path, "algorithm = 'diloco'", f"steps = {max(done, 30)}").all_cases[0]
    evals = [{"step": case.recipe.steps, "val_loss": 2.5, "val_sequences": 8, "kind": "outer"}]
    row = loss_columns(case, {"loss": [3.0] * done}, SimpleNamespace(evals=evals))
    assert row["steps_after_outer"] == behind and row.get("val_loss_reason") == why
    assert row["val_loss"] == (2.5 if why is None else None)
