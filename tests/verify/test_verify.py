"""Verifying layouts: what is compared with what, when a difference counts, and that a broken layout is found."""

import io
import json
import math
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import PROGRAMS
from rich.console import Console

from scalade.launch.study.case import Case
from scalade.launch.study.study import load_study
from scalade.launch.verify.command import (
    STEPS,
    SYNC_EVERY,
    TOLERANCE,
    Shortened,
    checks_of,
    compared,
    difference,
    prepare,
    verify_study,
)
from scalade.launch.verify.report import labels, notes, print_verification, to_dict
from scalade.parallelism.layout import Layout

HERE = PROGRAMS
FAKE = [sys.executable, str(HERE / "fake_training.py")]
HEAD = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 8
{recipe}
[budget]
steps = 500
[run]
max_ranks = 2
threads_per_rank = 1
{run}
"""
FOUR = "[[layout]]\ndp_replicate = [1, 2, 16]\n[[layout]]\ntp = 2\n"


def write(folder, layouts=FOUR, recipe="", run=""):
    path = folder / "study.toml"
    path.write_text(HEAD.format(recipe=recipe, run=run) + layouts)
    return path


def verdicts(done):
    return {verdict.check.case.layout.name(): verdict for verdict in done.verdicts}


def verify(path, **more):
    return verify_study(path, quiet=True, command=FAKE, **more)


@pytest.mark.parametrize(
    "reference, value, expected",
    [(2.0, 2.0, 0), (2.0, 1.0, 0.5), (-2.0, -2.5, 0.25), (0.0, 0.0, 0), (0.0, 1e-9, math.inf)]
    + [(math.nan, math.nan, math.inf), (1.0, math.nan, math.inf), (math.inf, math.inf, math.inf)]
    + [(1.0, None, math.inf)],
)
def test_a_difference_is_relative_to_the_reference(reference, value, expected):
    assert difference(reference, value) == expected


SERIES = {"loss": [5 - 0.1 * i for i in range(STEPS)], "grad_norm": [1 / (1 + i) for i in range(STEPS)]}


@given(
    column=st.sampled_from(["loss", "grad_norm"]),
    step=st.integers(0, STEPS - 1),
    over=st.booleans(),
    sign=st.sampled_from([1, -1]),
    tolerance=st.sampled_from([1e-6, 1e-4, 1e-2]),
)
def test_one_step_over_the_tolerance_fails_and_is_named(column, step, over, sign, tolerance):
    share = sign * tolerance * (1.01 if over else 0.99)
    mine = {name: list(values) for name, values in SERIES.items()}
    mine[column][step] *= 1 + share
    verdict = compared(None, SERIES, mine, tolerance)
    assert verdict.verdict == ("fail" if over else "pass")
    assert getattr(verdict, column) == pytest.approx(abs(share), rel=1e-6)
    assert getattr(verdict, {"loss": "grad_norm", "grad_norm": "loss"}[column]) == 0
    if over:
        assert f"{column.replace('grad_norm', 'gradient norm')} " in verdict.reason
        assert f"at step {step}:" in verdict.reason
        assert ("forward" in verdict.reason) == (column == "loss" and step == 0)
        assert ("gradient does not" in verdict.reason) == (column == "grad_norm" and step == 0)


@pytest.mark.parametrize("missing", ["loss", "grad_norm"])
def test_a_step_that_is_not_there_fails(missing):
    for reference, mine in ((SERIES, SERIES | {missing: SERIES[missing][1:]}), (SERIES | {missing: []}, SERIES)):
        assert compared(None, reference, mine, TOLERANCE).verdict == "fail"


def test_each_model_data_recipe_and_layout_once(tmp_path):
    path = write(
        tmp_path, recipe='precision = ["bf16", "fp32"]\nlr = [1e-3, 2e-3]\nwarmup_steps = 100', run="seeds = [3, 4]"
    )
    study = load_study(path)
    checks = checks_of(study)
    assert len(study.all_cases) == 32 and len(checks) == 8
    assert {(check.case.recipe.lr, check.case.layout.name()) for check in checks} == {
        (lr, layout) for lr in (1e-3, 2e-3) for layout in ("single", "dp2", "dp16", "tp2")
    }
    for check in checks:
        recipe = check.case.recipe
        assert (recipe.steps, recipe.precision, recipe.seed) == (STEPS, "fp32", 3) and recipe.warmup_steps < STEPS / 2
        assert check.reference == replace(check.case, layout=Layout())
    assert len({check.reference.case_id for check in checks}) == 2
    names = labels(checks)
    assert len(set(names)) == 8 and ("tiny-100k", "dp2 lr=0.002") in names
    assert len(notes(study)) == 3


def test_replicas_are_compared_with_the_same_replicas_in_one_process(tmp_path):
    outer = """
[[outer]]
algorithm = "streaming"
replicas = 2
sync_every = 100
overlap_steps = 20
lr = 0.3
[[outer]]
algorithm = "diloco"
replicas = 2
sync_every = 2
placement = "folded"
offload = true
"""
    study = load_study(write(tmp_path, "[layout]\ntp = 2\n" + outer))
    streaming, diloco = checks_of(study)
    assert streaming.case.ranks == 4 and streaming.reference.ranks == 1
    assert streaming.reference.outer == replace(streaming.case.outer, placement="folded")
    assert (streaming.case.outer.sync_every, streaming.case.outer.lr) == (SYNC_EVERY, 0.3)
    assert streaming.case.outer.overlap_steps < SYNC_EVERY
    assert diloco.case.outer.sync_every == 2 and diloco.case.outer.offload and not diloco.reference.outer.offload
    assert [name for _, name in labels([streaming, diloco])] == ["streaming.M2.H4.tp2", "diloco.M2.H2.folded.tp2"]


def test_what_cannot_run_or_has_no_reference_is_skipped_with_the_reason(tmp_path):
    layouts = "[[layout]]\ndp_replicate = [2, 3]\n[[layout]]\ndp_shard = 8\n"
    path = write(tmp_path, layouts, run='device = "cuda"\ndevice_memory_gib = 0.01')
    path.write_text(path.read_text().replace("max_ranks = 2", "max_ranks = 8").replace("tiny-100k", "tiny-800k"))
    study = load_study(path)
    checks = checks_of(study)
    assert [plan.skip_reason is None for plan in study.cases()] == [False, False, True]  # only fsdp8 fits
    skipped, runs = prepare(study, checks)
    dp2, dp3, fsdp8 = (skipped[check.case.case_id] for check in checks)
    assert "GPU" in dp2 and "multiple" in dp3
    assert fsdp8.startswith("one process cannot be the reference (verify a smaller size): predicted")
    assert runs.all_cases == ()


def test_references_run_once_and_first(tmp_path):
    study = load_study(write(tmp_path, recipe="lr = [1e-3, 2e-3]"))
    skipped, runs = prepare(study, checks_of(study))
    assert len(skipped) == 2  # dp16, for both
    order = [(case.recipe.lr, case.layout.name()) for case in runs.all_cases]
    assert order == [(lr, layout) for lr in (1e-3, 2e-3) for layout in ("single", "dp2", "tp2")]
    assert runs.run.repeats == 1


def test_a_layout_that_trains_otherwise_fails(tmp_path, monkeypatch):
    path, results = write(tmp_path), tmp_path / "kept"
    monkeypatch.setenv("FAKE_TRAINING", "tp2:loss@4=3e-4,dp2:grad_norm@0=5e-5")
    done, code = verify(path, results=results)
    found = verdicts(done)
    assert code == 1 and not done.passed
    assert {name: verdict.verdict for name, verdict in found.items()} == {
        "single": "reference",
        "dp2": "pass",
        "dp16": "skipped",
        "tp2": "fail",
    }
    assert found["tp2"].loss == pytest.approx(3e-4) and found["dp2"].grad_norm == pytest.approx(5e-5)
    assert "at step 4" in found["tp2"].reason and "multiple" in found["dp16"].reason

    text = io.StringIO()
    print_verification(done, Console(file=text, width=100))
    lines = text.getvalue().splitlines()
    (line,) = [line for line in lines if line.split()[1:2] == ["tp2"]]
    assert line.split() == ["tiny-100k", "tp2", "2", "fail", "3.0e-04", "0"]
    assert "fail: tiny-100k tp2: loss 4.60138 instead of 4.6 at step 4" in text.getvalue()
    assert "1 passed, 1 failed, 1 the reference itself, 1 skipped" in lines and f"the runs: {results}" in lines

    told = json.loads(json.dumps(to_dict(done), allow_nan=False))
    assert not told["passed"] and told["counts"]["fail"] == 1 and told["results"] == str(results)
    assert [one["verdict"] for one in told["layouts"]] == ["reference", "pass", "skipped", "fail"]

    with pytest.raises(ValueError, match="holds runs already"):  # a verdict of before says nothing about now
        verify(path, results=results)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_tolerance_is_a_number_above_0(tmp_path, wrong):
    with pytest.raises(ValueError, match="tolerance"):
        verify(write(tmp_path), tolerance=wrong)


@pytest.mark.parametrize(
    "broken, layout, said",
    [
        ("dp2:kill", "dp2", "failed: rank 0 was killed"),
        ("dp2:diverge", "dp2", "diverged: loss nan at step 9"),
        ("single:kill", "dp2", "its reference, one process: failed"),
    ],
)
def test_a_run_that_fails_is_a_fail_with_its_reason(tmp_path, monkeypatch, broken, layout, said):
    monkeypatch.setenv("FAKE_TRAINING", broken)
    path = write(tmp_path, "[layout]\ndp_replicate = [1, 2]\n")
    done, code = verify(path, results=tmp_path / "r")
    verdict = verdicts(done)[layout]
    assert code == 1 and verdict.verdict == "fail" and said in verdict.reason, verdict


def test_the_runs_are_kept_only_where_a_layout_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = write(tmp_path, "[layout]\ntp = 2\n")
    monkeypatch.setenv("FAKE_TRAINING", "tp2:loss@4=3e-4")
    done, code = verify(path, tolerance=1e-3)
    assert code == 0 and done.passed and done.results is None and not list((tmp_path / "tmp").iterdir())
    done, code = verify(path)
    assert code == 1 and done.results.is_relative_to(tmp_path / "tmp")


def test_nothing_verified_is_no_pass(tmp_path):
    done, code = verify(write(tmp_path, "[layout]\ndp_replicate = 16\n"))
    assert code == 1 and not done.passed
    text = io.StringIO()
    print_verification(done, Console(file=text, width=100))
    assert "no layout could be verified here" in text.getvalue()


def test_interrupted_it_says_what_it_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TRAINING", "dp2:interrupt")
    done, code = verify(write(tmp_path))
    assert code == 130 and done.interrupted == "SIGINT" and not done.passed
    assert {name: verdict.verdict for name, verdict in verdicts(done).items()} == {
        "single": "reference",
        "dp2": "not run",
        "dp16": "skipped",
        "tp2": "not run",
    }


def test_a_short_case_is_still_one_that_runs(tmp_path):
    made = Shortened()
    for path in (HERE.parent / "studies").glob("*.toml"):
        study = load_study(path)
        for case in study.all_cases:
            short = made.case(case)
            assert short.refusal() == case.refusal()
            assert made.reference(short).ranks == 1


@pytest.mark.slow
def test_real_layouts_pass_and_a_real_mistake_is_found(tmp_path):
    path = write(tmp_path, "[[layout]]\ndp_replicate = 2\n[[layout]]\ntp = 2\n")
    done, code = verify_study(path, quiet=True)
    assert code == 0 and [verdict.verdict for verdict in done.verdicts] == ["pass", "pass"]
    assert all(0 < verdict.loss < 1e-5 and 0 < verdict.grad_norm < 1e-5 for verdict in done.verdicts)
    broken = [sys.executable, str(HERE / "broken_rank.py")]
    done, code = verify_study(path, tmp_path / "broken", quiet=True, command=broken)
    assert code == 1 and {name: v.verdict for name, v in verdicts(done).items()} == {"dp2": "fail", "tp2": "pass"}
    assert "forward" in verdicts(done)["dp2"].reason


COMPRESSED = """
[[outer]]
algorithm = "diloco"
replicas = 2
placement = "folded"
compression = ["int4", "topk"]
"""


def test_compressed_messages_are_compared_with_blocks_that_end_where_the_layout_s_do(tmp_path):
    degrees = "tp = 2", "tp = 2\npp = 2", "cp = 2", "dp_shard = 2", "dp_replicate = 2", "pp = 2"
    layouts = "".join(f"[[layout]]\n{degree}\n" for degree in degrees)
    path = write(tmp_path, layouts + COMPRESSED.replace('"int4", "topk"', '"int4", "bf16"'))
    checks = checks_of(load_study(path))
    borders = {check.case.layout_name: check.reference.borders for check in checks}
    tp, sharded = Layout(tp=2), Layout(dp_shard=2)
    expected = {"tp2": tp, "tp2.pp2-1F1B": tp, "cp2": sharded, "fsdp2": sharded, "dp2": None, "pp2-1F1B": None}
    assert borders == {f"diloco.M2.H4.int4.folded.{name}": cut for name, cut in expected.items()} | {
        f"diloco.M2.H4.bf16.folded.{name}": None for name in expected
    }
    references = {check.reference.case_id: check.reference for check in checks}
    assert len(references) == 4  # int4: whole, by tp and by fsdp; bf16: whole
    for case_id, case in references.items():
        assert Case.from_json(case.to_json()).case_id == case_id
        assert case.columns()["outer_borders"] == (case.borders and case.borders.name())


def test_where_only_the_engine_knows_its_cuts_messages_are_verified_in_bf16(tmp_path):
    layouts = '[[layout]]\nengine = "deepspeed"\ndp_shard = 2\n[[layout]]\nengine = "deepspeed"\ndp_replicate = 2\n'
    study = load_study(write(tmp_path, layouts + '[[layout]]\nengine = "megatron"\ntp = 2\n' + COMPRESSED))
    checks = checks_of(study)
    assert [(check.case.layout.name(), check.case.outer.compression) for check in checks] == [
        ("deepspeed.zero3-2", "bf16"),
        ("deepspeed.zero3-2", "bf16"),
        ("deepspeed.dp2", "int4"),
        ("deepspeed.dp2", "topk"),
        ("megatron.tp2", "bf16"),
        ("megatron.tp2", "bf16"),
    ]
    assert all(check.reference.borders is None for check in checks)
    assert [note for note in notes(study) if "bf16 here" in note]


@pytest.mark.slow
def test_compressed_layouts_pass_and_a_wrong_message_is_found(tmp_path, monkeypatch):
    path = write(tmp_path, "[[layout]]\ndp_shard = 2\n[[layout]]\ntp = 2\n" + COMPRESSED, run='isolation = "pool"')
    done, code = verify_study(path, quiet=True)
    assert code == 0 and [verdict.verdict for verdict in done.verdicts] == ["pass"] * 4
    broken = [sys.executable, str(HERE / "broken_rank.py")]
    path = write(tmp_path, "[layout]\ndp_shard = 2\n" + COMPRESSED)
    monkeypatch.setenv("BROKEN_MESSAGE", "0.9")
    done, code = verify_study(path, tmp_path / "broken", quiet=True, command=broken)
    assert code == 1 and [verdict.verdict for verdict in done.verdicts] == ["fail", "fail"], done.verdicts
