"""Layouts a second and core in the search of `scalade plan`; one core.

    pytest tests/benchmarks/test_bench_plan.py --benchmark-only -s

1T parameters on 3,072 devices (Megatron, arXiv 2104.04473), Llama 3 405B on 16,384 (arXiv 2407.21783)
"""

from __future__ import annotations

import time

import pytest

from scalade.parallelism.plan import Question, search
from scalade.parallelism.plan.question import model_shape
from scalade.parallelism.predict import load_machine

TRILLION = "layers=128,width=25600,heads=160,ffn=102400,mlp=gelu,vocab=51200,seq_len=2048"


@pytest.mark.parametrize(
    ("model", "devices", "batch", "engine"),
    [(TRILLION, 3072, 3072, "megatron"), (TRILLION, 3072, 3072, "torch"), ("llama3-405b", 16384, 2048, "torch")],
)
def test_layouts_a_second(figure, model, devices, batch, engine):
    question = Question(model_shape(model), devices, load_machine("h100"), batch, engine=engine)

    def measure():
        begin = time.process_time()
        plan = search(question)
        seconds = time.process_time() - begin
        print(f"{plan.looked_at:,} layouts, {plan.timed:,} timed, in {seconds:.1f} s: {plan.best[0].layout.name()}")
        return [plan.looked_at / seconds], None

    name = f"{engine}, {model.partition(',')[0]} on {devices:,} devices"
    figure(name, measure, unit="layouts/s and core", target=100_000, at_least=True)
