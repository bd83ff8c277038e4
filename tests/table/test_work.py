"""Work is tokens: rates of steps that differ in tokens, and which runs do the same work."""

from dataclasses import replace

import numpy as np
import pytest

import scalade
from scalade.results import op_profile as ops
from scalade.results.check.command import findings
from scalade.results.efficiency import efficiency
from scalade.results.gate.compare import compare
from scalade.results.gate.history import history
from scalade.results.gate.rule import Rule
from scalade.results.op_profile import CaseOps
from scalade.results.report import page
from scalade.results.report.command import report
from scalade.results.report.source import read_source
from scalade.results.store.store import RunStore
from scalade.results.table.work import Work, levels, mean_step_s

KNOWN = {"name": "w", "model": "m", "model_seq_len": 128, "params_total": 10_000, "seed": 1}


def recorded(root, steps, world=1, warm=0, **known):
    """The row of a recorded run of these (tokens, seconds)."""
    with scalade.record(
        root, world_size=world, dp_replicate=world, measure_warmup_steps=warm, rank=0, **KNOWN | known
    ) as run:
        for tokens, seconds in steps:
            told = {"tokens": tokens, "step_time_s": seconds}
            run.step(loss=2.0, **{name: value for name, value in told.items() if value is not None})
    rows = scalade.read_runs(root)
    return rows[rows.run_id == run.run_id].iloc[0].replace({np.nan: None}).to_dict()


@pytest.mark.parametrize(
    "steps, rate",
    [
        ([(100, 1.0), (300, 3.0)] * 10, 100.0),
        ([(100, 1.0), (300, 1.0)] * 10, 200.0),
        (([(100, 1.0)] * 9 + [(1000, 2.0)]) * 2, 1900 / 11),
        ([(1024, 1.0)] * 19 + [(384, 0.4)], (1024 * 19 + 384) / 19.4),
        ([(100, 1.0), (None, 1.0), (300, None), (500, 2.0)], 200.0),  # of the steps that say both
    ],
)
def test_the_rate_of_steps_that_differ_is_all_tokens_over_all_time(tmp_path, steps, rate):
    row = recorded(tmp_path / "r", steps, params_total=10)
    assert row["tokens_per_s"] == pytest.approx(rate) and row["tokens_per_s_reason"] is None
    assert row["tokens_per_step"] is None and row["timed_tokens"] / row["timed_s"] == pytest.approx(rate)
    assert row["step_time_s"] == np.median([seconds for _, seconds in steps if seconds])
    if row["tokens_seen"]:  # the seconds that a sum over steps counts each as
        assert mean_step_s(row) == pytest.approx(sum(seconds for _, seconds in steps) / len(steps))
    verdicts = {one.rule: one.verdict for one in findings([row])}
    assert verdicts[3] == "pass"
    averaged = row | {"tokens_per_s": 1.1 * rate}
    assert {one.rule: one.verdict for one in findings([averaged])}[3] == "fail"


def test_equal_steps_keep_tokens_over_the_median_and_what_steps_say_goes_before_what_was_declared(tmp_path):
    row = recorded(tmp_path, [(100, 1.0), (100, 2.0), (100, 9.0)], tokens_per_step=7)
    assert (row["tokens_per_step"], row["tokens_per_s"], row["timed_tokens"]) == (100, 50.0, None)


@pytest.mark.parametrize(
    "steps, warm, reason",
    [
        ([], 0, "no step was recorded"),
        ([(100, None)] * 3, 0, "no step says its time"),
        ([(None, 1.0)] * 3, 0, "tokens per step unknown"),
        ([(100, 1.0)] * 3, 3, "all 3 steps are warm-up"),
        ([(100, 1.0), (100, None)], 1, "no step after the warm-up says its time"),
        ([(100, 0.0)] * 3, 0, "100 tokens in 0 s is no rate"),
        ([(100, 1.0), (None, 1.0), (None, 2.0)], 1, None),
        ([(100, 1.0), (200, 1.0), (None, 2.0)], 2, "tokens per step unknown"),
    ],
)
def test_a_run_without_a_rate_says_why(tmp_path, steps, warm, reason):
    row = recorded(tmp_path, steps, warm=warm)
    if reason is None:
        assert row["tokens_per_s"] == 100 / 1.5
        return
    assert row["tokens_per_s"] is None and row["tokens_per_s_reason"].startswith(reason)
    with pytest.raises(ValueError, match=reason if steps else "no timed run"):
        efficiency(tmp_path)


OUTER = {"outer_algorithm": "diloco", "outer_sync_every": 5, "outer_replicas": 2}


@pytest.mark.parametrize(
    ("of_outer", "reason"),
    [
        ((100, 31.0), None),
        ((100, None), "step 4 of an outer loop does not say its time: run.step(step_time_s=...) in every step"),
        ((None, 31.0), "steps of an outer loop differ in tokens, and some do not say them"),
    ],
)
def test_a_round_of_an_outer_loop_without_its_outer_step_is_no_rate(tmp_path, of_outer, reason):
    """Four steps of 1 s and the outer one's 31 s are 7 s a step; whoever leaves the outer step out gets 1 s."""
    of_inner = [(100, 1.0)] * 3 + [(200, 1.0)]
    row = recorded(tmp_path, [*of_inner, of_outer] * 4, **OUTER)
    assert row["step_time_s"] == (None if reason and "time" in reason else 7.0)
    if reason is None:
        assert row["tokens_per_s"] == pytest.approx(600 / 35) and row["tokens_per_s_reason"] is None
    else:
        assert row["tokens_per_s"] is None and row["tokens_per_s_reason"].startswith(reason)


def test_other_tokens_on_more_ranks_are_neither_strong_nor_weak_scaling(tmp_path):
    for world, tokens, seconds in ((1, 1000, 0.1), (4, 7000, 0.2)):
        recorded(tmp_path, [(tokens, seconds)] * 4, world)
    with pytest.raises(ValueError, match=r"\(1,000, 7,000\) nor per device \(1,000, 1,750\)"):
        efficiency(tmp_path)
    report = efficiency(tmp_path, mode="strong")
    (refused,) = report.refused
    assert report.exit_code == 1 and refused.columns == ("tokens_per_step",) and "7,000 against 1,000" in refused.why
    assert efficiency(tmp_path, mode="strong", allow=("global_batch",)).exit_code == 0


def test_weak_scaling_without_a_batch_is_found_by_the_tokens(tmp_path):
    for world, seconds in ((1, 0.10), (4, 0.11)):
        recorded(tmp_path, [(1000 * world, seconds)] * 4, world)
    report = efficiency(tmp_path)
    assert report.options.mode == "weak"
    assert report.series[0].points[1].efficiency.value == pytest.approx(10 / 11)


def test_steps_that_differ_are_compared_by_all_their_tokens(tmp_path):
    rng = np.random.default_rng(0)
    for world in (1, 2):
        for seed in range(3):
            tokens = rng.integers(200, 1800, 60)
            recorded(tmp_path, [(int(n), 1e-3 * n / world) for n in tokens], world, seed=seed)
    for form in ("throughput", "step_time"):
        report = efficiency(tmp_path, form=form)
        ((_, point),) = (one.points for one in report.series)
        assert report.options.mode == "strong" and len(point.group.rows) == 3
        assert point.efficiency.value == pytest.approx(1) and point.speedup.value == pytest.approx(2, rel=0.1)
        assert "dp2 on 2 ranks: steps differ in tokens: " in report.to_text()
    base = tmp_path / "base"
    for seed in range(8):  # repeats of one case in the gate and in the history
        for folder in (base, tmp_path / "head"):
            tokens = np.random.default_rng(seed + 100 * (folder == base)).integers(200, 1800, 25)
            recorded(folder, [(int(n), 1e-3 * n) for n in tokens])
    assert compare(base, tmp_path / "head", Rule(metrics=("tokens_per_s",))).findings[0].ratio == pytest.approx(1)
    assert len(history([base, tmp_path / "head"])) == 1


def test_longer_sequences_of_the_same_batch_are_other_work(tmp_path):
    for world, length in ((1, 128), (2, 256)):
        recorded(tmp_path, [(8 * length, 1.0)] * 4, world, global_batch=8, model_seq_len=length)
    (refused,) = efficiency(tmp_path, mode="strong", allow=("model_seq_len",)).refused
    assert refused.columns == ("tokens_per_step",)


def test_a_run_that_does_not_tell_its_tokens_is_refused_by_name(tmp_path):
    recorded(tmp_path, [(1000, 0.1)] * 4)
    run = recorded(tmp_path, [(None, 0.1)] * 4, 2)
    (refused,) = efficiency(tmp_path).refused
    assert refused.run_ids == (run["run_id"],) and "tokens per step unknown" in refused.why


def test_runs_that_are_refused_for_one_reason_are_one_line(tmp_path):
    recorded(tmp_path, [(1000, 0.1)] * 3)
    for _ in range(5):
        recorded(tmp_path, [(None, 0.1)] * 3, 4)
    report = efficiency(tmp_path, mode="strong")
    (refused,) = report.refused
    assert len(refused.run_ids) == 5
    text = report.to_text()
    assert text.count("tokens per step unknown") == 1 and "-r2 and 2 more): tokens per step unknown" in text
    assert "tokens/s [10,000 .. 10,000], 1 run\n" in text


def test_levels_of_fixed_work_are_exact_and_of_varying_work_as_far_as_it_varies():
    fixed, near, other = Work(1000), Work(1001), Work(2000)
    one, two, far = Work(990, True), Work(1030, True), Work(1300, True)
    level = levels([fixed, other, one, two, far])
    assert level[fixed] == level[one] == level[two] != level[far] != level[other]
    assert levels([fixed, near])[fixed] != levels([fixed, near])[near]


def test_the_gate_and_the_history_form_no_ratio_of_other_work(tmp_path):
    for folder, tokens, seconds in (("base", 1000, 0.1), ("head", 7000, 0.2)):
        for i in range(8):
            recorded(tmp_path / folder, [(tokens, seconds + 1e-4 * i)] * 3)
    done = compare(tmp_path / "base", tmp_path / "head")
    (finding,) = done.findings
    assert done.exit_code == 1 and (finding.verdict, finding.ratio) == ("missing", None)
    assert finding.reason == "other work: tokens per step 1,000 in BASE, 7,000 in HEAD"
    assert [(len(one.values), one.changes) for one in history([tmp_path / "base", tmp_path / "head"])] == [(8, ())] * 2
    recorded(tmp_path / "silent", [(None, 0.1)] * 3)
    assert any(
        "tokens per step unknown in 0 runs of BASE, 1 of HEAD" in note
        for note in compare(tmp_path / "base", tmp_path / "silent").notes
    )


def test_operations_of_other_work_are_set_side_by_side_with_a_word():
    one = CaseOps("a", "m", "x", 1, 1, 0.1, 0.1, dict.fromkeys(ops.COLUMNS, 0.01), {}, tokens=1000.0)
    said = "other work: 1,000 tokens a step against 7,000"
    assert any(said in line for line in ops.difference_to_text(one, replace(one, tokens=7000.0)))
    assert not any("other work" in line for line in ops.difference_to_text(one, one))


def test_the_report_names_a_fastest_layout_for_each_amount_of_work(tmp_path):
    for world, tokens, seconds in ((1, 1000, 0.1), (4, 7000, 0.2)):
        recorded(tmp_path, [(tokens, seconds)] * 4, world)
    recorded(tmp_path, [(100, 1.0), (300, 3.0), (380, 4.0)], 2)
    recorded(tmp_path, [(None, 1.0)] * 3, 8)
    source = read_source(tmp_path, None, ("strong", "weak"), None, (), "mfu_palm", 0.95)
    assert not source.series["strong"] and not source.series["weak"]
    lines = page.fastest_lines(source)
    assert len(lines) == 3 and lines[0].startswith("m, 260 tokens a step on average: dp2 on 2 ranks, 98 tokens/s")
    assert any("1 run with status ok is in no figure of speed: tokens per step unknown" in n for n in source.notes)


@pytest.mark.parametrize("name", ["step_time_s", "tokens_per_step", "tokens_per_s", "world_size"])
def test_a_number_that_no_measurement_gives_is_left_out_by_name_and_costs_no_other_run(tmp_path, name):
    for number in range(3):
        row = {
            "run_id": f"c{number}-r0",
            "case_id": f"c{number}",
            "repeat": 0,
            "status": "ok",
            "model": "m",
            "world_size": 2**number,
            "layout": f"dp{2**number}",
            "engine": "e",
            "tokens_per_step": 1024,
            "step_time_s": 0.5,
            "tokens_per_s": 2048.0,
            "global_batch": 8,
        }
        more = ({"peak_host_memory_bytes": 100}, {"peak_host_memory_bytes": -5}, {name: -1})
        RunStore(tmp_path / "r").write_run(row | more[number])
    done = efficiency(tmp_path / "r", mode="strong").to_text()
    assert "dp2" in done.partition("not compared")[0] and f"{name} is below 0" in done.partition("not compared")[2]
    report(tmp_path / "r", tmp_path / "r.html", formats=())
    assert f"{name} is below 0, which no measurement gives" in (tmp_path / "r.html").read_text()
