"""The search against predicting every layout on its own; the front against its definition; what is written and said."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from scalade.bench.recipe import Recipe
from scalade.bench.shape import SIZES, ModelShape
from scalade.launch.study.study import load_study
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import canonical
from scalade.parallelism.plan import Question, report, search
from scalade.parallelism.plan.estimate import estimator
from scalade.parallelism.plan.pareto import front
from scalade.parallelism.plan.question import model_shape, usual_batch
from scalade.parallelism.plan.space import Refusals, blocks, configs_of, layout_of
from scalade.parallelism.plan.study import study_text
from scalade.parallelism.predict import STACKS, load_machine, predict_step
from scalade.parallelism.predict.configs import from_cases
from scalade.parallelism.predict.memory import predict_memory

H100 = load_machine("h100")
SMALL = ModelShape(layers=8, heads=16, kv_heads=8, width=2048, ffn=8192, vocab=32000, seq_len=2048)


def asked(devices=8, batch=16, **more):
    return Question(SMALL, devices, H100, batch, **more)


def one_by_one(question):
    """Every layout as a case of its own: layouts, seconds and bytes."""
    layouts = [
        layout_of(part, i, question.engine) for part in blocks(question, Refusals()) for i in range(len(part["tp"]))
    ]
    configs = from_cases([(question.shape, question.recipe, layout, Outer()) for layout in layouts])
    stack = STACKS[question.engine]
    seconds = predict_step(configs, question.machine, stack).step_time_s
    return layouts, seconds, predict_memory(configs, question.machine, stack).total


def test_the_best_is_the_fastest_of_all_that_fit():
    layouts, seconds, memory = one_by_one(asked())
    room = float(np.median(memory))
    question = replace(asked(), machine=replace(H100, memory_bytes=room))
    plan = search(question, top=10_000)
    fits = memory <= room
    assert 0 < fits.sum() < len(layouts) == plan.possible
    assert plan.fitting == fits.sum() and plan.too_big == (~fits).sum()
    assert plan.best[0].step_time_s == pytest.approx(seconds[fits].min())
    times = [each.step_time_s for each in plan.best]
    assert times == sorted(times)
    place = {canonical(layout): i for i, layout in enumerate(layouts)}
    for each in plan.best[:20]:
        i = place[canonical(each.layout)]
        assert each.step_time_s == pytest.approx(seconds[i]) and each.memory_bytes == pytest.approx(memory[i])
        assert sum(each.parts.values()) == pytest.approx(each.step_time_s)
        assert each.bound_time_s <= each.step_time_s


@pytest.mark.parametrize("engine", ["torch", "megatron", "deepspeed"])
def test_the_lower_bound_is_none_above_the_time(engine):
    question = asked(engine=engine)
    model = estimator(H100, STACKS[engine])
    tight = []
    for part in blocks(question, Refusals()):
        configs = configs_of(part, question)
        least, seconds = model.least(configs), model.seconds(configs)
        assert (least <= seconds).all(), layout_of(part, int(np.argmax(least / seconds)), engine)
        tight.append(np.median(least / seconds))
    assert max(tight) > 0.5


def test_what_is_not_timed_is_not_missed(monkeypatch):
    """The front and the best, against those of all layouts, with bounds that leave most of them untimed."""
    layouts, seconds, memory = one_by_one(asked())
    monkeypatch.setattr(importlib.import_module("scalade.parallelism.plan.search"), "HEAT", 50)
    plan = search(asked(), top=5, most_front=1000)
    assert plan.timed < 0.6 * plan.fitting
    rows = front(seconds, memory)
    assert [each.step_time_s for each in plan.front] == pytest.approx(seconds[rows])
    assert [each.memory_bytes for each in plan.front] == pytest.approx(memory[rows])
    kinds: dict = {}
    for x, t in zip(layouts, seconds, strict=True):
        kind = (x.dp, x.pp, x.tp, x.cp, x.microbatches, x.recompute)
        kinds[kind] = min(t, kinds.get(kind, np.inf))
    assert [each.step_time_s for each in plan.best] == pytest.approx(sorted(kinds.values())[:5])


def test_one_line_stands_for_layouts_that_differ_in_details():
    plan = search(asked(), top=200)
    kinds = [(x.dp, x.pp, x.tp, x.cp, x.microbatches, x.recompute) for x in (each.layout for each in plan.best)]
    assert len(set(kinds)) == len(kinds) > 5
    layouts, seconds, _ = one_by_one(asked())
    same = [
        t
        for x, t in zip(layouts, seconds, strict=True)
        if (x.dp, x.pp, x.tp, x.cp, x.microbatches, x.recompute) == kinds[3]
    ]
    assert plan.best[3].step_time_s == pytest.approx(min(same))


def test_the_front_is_what_nothing_beats_in_both():
    rng = np.random.default_rng(3)
    seconds = rng.integers(1, 40, 300).astype(float)
    memory = np.round(400 / seconds + rng.integers(0, 40, 300))
    rows = front(seconds, memory)

    def beaten(i):
        no_worse = (seconds <= seconds[i]) & (memory <= memory[i])
        return (no_worse & ((seconds < seconds[i]) | (memory < memory[i]))).any()

    alive = {(seconds[i], memory[i]) for i in range(300) if not beaten(i)}
    assert {(seconds[i], memory[i]) for i in rows} == alive and len(rows) == len(alive) > 3
    assert (np.diff(seconds[rows]) > 0).all() and (np.diff(memory[rows]) < 0).all()


def test_a_plan_has_a_front_that_begins_with_the_best():
    plan = search(asked())
    assert plan.front[0].step_time_s == plan.best[0].step_time_s
    assert [each.memory_bytes for each in plan.front] == sorted(
        (each.memory_bytes for each in plan.front), reverse=True
    )


def test_naive_predictions_stand_beside():
    machine = replace(H100, reference_mfu=0.4)
    plan = search(replace(asked(), machine=machine))
    from scalade.bench.flops import flops_per_token

    flops = flops_per_token(SMALL)["causal"] * 16 * 2048
    assert plan.best[0].constant_mfu_s == pytest.approx(flops / (0.4 * H100.peaks["bf16"] * 8))
    for each in plan.best:
        alone = replace(each.layout, dp_replicate=1, dp_shard=1)
        case = (SMALL, Recipe(global_batch=16 // each.layout.dp, steps=1, precision="bf16"), alone, Outer())
        assert each.smallest_scale_s == pytest.approx(
            predict_step(from_cases([case]), machine, STACKS["torch"]).step_time_s[0]
        )
    assert search(asked()).best[0].constant_mfu_s is None or H100.reference_mfu


def test_none_that_fits_is_one_line():
    with pytest.raises(
        ValueError, match=r"none of [\d,]+ layouts fits into 0.1 GB of machine h100: the smallest needs"
    ):
        search(replace(asked(), machine=replace(H100, memory_bytes=1e8)))


@pytest.mark.parametrize("engine", ["torch", "deepspeed", "megatron"])
def test_the_study_that_is_written_has_the_best_layouts(engine, tmp_path):
    shape = model_shape("llama3-8b")
    question = Question(shape, 64, H100, 128, engine=engine, name="llama3-8b")
    plan = search(question, top=6)
    file = tmp_path / "best.toml"
    file.write_text(study_text(question, plan.best, "best"))
    study = load_study(file)
    assert {canonical(case.layout) for case in study.all_cases} == {canonical(each.layout) for each in plan.best}
    assert all(case.refusal() is None for case in study.all_cases)
    first = study.all_cases[0]
    assert (first.shape, first.recipe.global_batch, first.recipe.precision) == (shape, 128, "bf16")


def test_a_shape_by_its_numbers_is_written_as_numbers(tmp_path):
    text = "layers=4,heads=4,width=128,vocab=512,mlp=gelu,qk_norm=true"
    question = Question(model_shape(text, 256), 4, H100, 8, name=text)
    file = tmp_path / "best.toml"
    file.write_text(study_text(question, search(question, top=3).best, "best"))
    assert load_study(file).all_cases[0].shape == question.shape
    assert question.shape.ffn == 512 and question.shape.kv_heads == 4


def test_a_precision_that_no_study_runs_is_refused_at_writing():
    question = replace(asked(), precision="fp8")
    with pytest.raises(ValueError, match="--write: a study runs in fp32, bf16, not in fp8"):
        study_text(question, search(question, top=2).best, "best")


def test_text_and_json_say_the_same():
    plan = search(asked(), top=5)
    content = json.loads(json.dumps(report.to_dict(plan)))
    text = "\n".join(report.to_text(plan))
    for each in content["best"]:
        assert each["layout"] in text and f"{each['step_time_s']:.4g}" in text
    counts = content["layouts"]
    assert counts["looked_at"] == sum(counts[k] for k in ("refused", "too_big", "ranked", "outside_of_calibration"))
    assert sum(each["layouts"] for each in content["refused"]) == counts["refused"]
    assert content["best"][0]["behind_best"] == "" and "compute" in content["best"][0]["why"]


def test_what_separates_a_layout_from_the_best_is_told():
    plan = search(asked(), top=50)
    best, last = plan.best[0], plan.best[-1]
    told = report.behind(last, best)
    name = max(last.parts, key=lambda part: abs(last.parts[part] - best.parts[part]))
    assert told.startswith(report.LABELS[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llama3-405", "did you mean 'llama3-405b'"),
        ("layers=2,width=64", "lacks heads, vocab"),
        ("layers=2,widht=64", "did you mean 'width'"),
        ("layers=x,width=64", "'x' is not a number"),
        ("tiny-2m", "give --seq-len"),
        ("layers=2,width=63,heads=4,vocab=9,seq_len=8", "must be a multiple of model.heads"),
        ("layers=2,width=64,heads=4,vocab=9,seq_len=8,tied=1", "must be true or false"),
    ],
)
def test_a_model_that_cannot_be_is_one_line(text, message):
    with pytest.raises(ValueError) as raised:
        model_shape(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "megatro"}, "did you mean 'megatron'"),
        ({"stack": "nemoo"}, "did you mean 'nemo'"),
        ({"precision": "fp4"}, "no peak for fp4"),
        ({"recompute": ("ful",)}, "did you mean 'full'"),
        ({"devices": 0}, "--devices 0: must be at least 1"),
        ({"machine": replace(H100, links=(replace(H100.links[0], bandwidth=0.0),))}, "link node has no bandwidth"),
        ({"machine": replace(H100, memory_bandwidth=0.0)}, "memory.bandwidth is 0"),
    ],
)
def test_a_question_that_cannot_be_is_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(asked(), **settings)


def test_a_batch_that_is_not_given_is_about_four_million_tokens():
    assert usual_batch(16384, 8192) == 512 and usual_batch(2, 128) == 32 and usual_batch(1, 2**23) == 1
    assert model_shape("llama3-405b").seq_len == SIZES["llama3-405b"]["seq_len"]


def test_layouts_outside_of_the_calibration_are_not_ranked_and_said(monkeypatch):
    module = importlib.import_module("scalade.parallelism.plan.search")
    from scalade.parallelism.plan.estimate import Estimator
    from scalade.parallelism.predict.calibration import Calibration
    from scalade.parallelism.predict.coverage import Coverage

    covered = Calibration(H100, STACKS["torch"], coverage=Coverage({"tp": (1 / 16, 1 / 16)}))
    monkeypatch.setattr(module, "estimator", lambda machine, stack: Estimator(covered))
    plan = search(asked(), top=500)
    assert plan.outside > 0 and {each.layout.tp for each in plan.best} == {1}
    assert any("outside of what the calibration covers: tp" in line for line in report.to_text(plan))
    nothing = Calibration(H100, STACKS["torch"], coverage=Coverage({"ranks": (1e6, 1e6)}))
    monkeypatch.setattr(module, "estimator", lambda machine, stack: Estimator(nothing))
    with pytest.raises(ValueError, match="no layout that fits is covered by the calibration of machine h100: ranks"):
        search(asked())


def test_the_interval_holds_the_step_time():
    for each in search(asked()).best:
        assert each.bound_time_s <= each.low_s < each.step_time_s < each.high_s
