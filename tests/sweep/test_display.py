"""What a person reads of a sweep while it runs: each line says which case it is of."""

import io
from contextlib import redirect_stderr
from dataclasses import replace

from scalade.bench.data import DataSpec
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.process.outcome import Outcome
from scalade.launch.study.case import Case
from scalade.launch.sweep.display import Failures, Lines
from scalade.launch.sweep.plan import PlannedRun
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout

CASE = Case(
    ModelShape(layers=1, heads=1, kv_heads=1, width=8, ffn=8, vocab=256, seq_len=32),
    DataSpec(),
    Recipe(global_batch=4, steps=8),
    Layout(),
    Outer(),
    Measure(),
    "tiny",
)


def said(display, cases, outcome):
    runs = [PlannedRun(case, repeat) for case in cases for repeat in (0, 1)]
    with redirect_stderr(io.StringIO()) as told:
        display.plan(runs)
        for run in runs[::2]:
            display.ended(run, outcome, {}, None)
    return told.getvalue().splitlines()


def test_a_line_says_in_what_the_cases_of_one_name_differ():
    cases = [replace(CASE, recipe=replace(CASE.recipe, lr=lr)) for lr in (1e-3, 2e-3)]
    assert said(Lines(), cases, Outcome("ok", None)) == [
        "[1/4] ok         tiny single lr=0.001 r0",
        "[2/4] ok         tiny single lr=0.002 r0",
    ]
    assert said(Failures(), cases, Outcome("skipped", "too large")) == []


def test_a_line_says_no_more_than_tells_them_apart():
    cases = [CASE, replace(CASE, model_name="small", recipe=replace(CASE.recipe, lr=1.0))]
    assert said(Lines(), cases, Outcome("ok", None)) == [
        "[1/4] ok         tiny single r0",
        "[2/4] ok         small single r0",
    ]
