"""The model's messages and memory against the engine's own code, traced for one rank at 64 to 4,096 ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scalade.bench.data import DataSpec
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.study.case import Case
from scalade.launch.trace.report import trace_case
from scalade.launch.trace.trace import ranks_to_trace, trace_rank
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout
from scalade.parallelism.predict.messages import TorchRank

SHAPE = ModelShape(layers=2, heads=16, kv_heads=8, width=512, ffn=1408, vocab=4096, seq_len=512, qk_norm=True)
WORST = 0.35  # of peak memory: small shards beside what lives for an instant


def case(layout: dict, outer: dict | None = None, **recipe) -> Case:
    made, around = Layout(**layout), Outer(**outer or {})
    batch = 2 * made.dp * made.microbatches * around.replicas
    settings = {"global_batch": batch, "steps": 200} | recipe
    shape = replace(SHAPE, layers=max(SHAPE.layers, made.stages))
    return Case(shape, DataSpec(), Recipe(**settings), made, around, Measure(), "small")


INTERLEAVED = {"pp_schedule": "Interleaved1F1B", "virtual_stages": 2}
CASES = {
    "dp 64": case({"dp_replicate": 64, "microbatches": 2}),
    "fsdp 1024": case({"dp_shard": 1024, "microbatches": 2}, precision="bf16"),
    "fsdp 96, kept gathered": case({"dp_shard": 96, "reshard_after_forward": False}),
    "hsdp 16 x 64": case({"dp_replicate": 16, "dp_shard": 64}),
    "tp 8 without sp, dp 8": case({"tp": 8, "sp": False, "dp_replicate": 8, "recompute": "full"}),
    "tp 8 with sp, fsdp 512": case({"tp": 8, "dp_shard": 512, "recompute": "selective"}, precision="bf16"),
    "tp 8, whole logits": case({"tp": 8, "dp_shard": 8, "loss_parallel": False}),
    "cp 4, fsdp 32": case({"cp": 4, "dp_shard": 32, "recompute": "full"}),
    "cp 4 ulysses, tp 2, fsdp 32": case({"cp": 4, "cp_method": "ulysses", "tp": 2, "dp_shard": 32}),
    "pp 4, fsdp 64": case({"pp": 4, "dp_shard": 64, "microbatches": 4}),
    "pp 2 interleaved, tp 4, fsdp 32": case({"pp": 2, "tp": 4, "dp_shard": 32, "microbatches": 4} | INTERLEAVED),
    "diloco, 4 x fsdp 64": case({"dp_shard": 64}, {"algorithm": "diloco", "replicas": 4}),
    "streaming int8, 8 x tp 2 x fsdp 4": case(
        {"tp": 2, "dp_shard": 4},
        {"algorithm": "streaming", "replicas": 8, "compression": "int8", "exchange": "twoshot", "fragment_layers": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_and_calls_are_those_of_the_engine(name):
    of = CASES[name]
    assert 64 <= of.ranks <= 4096
    assert of.refusal() is None
    found = trace_case(of)
    assert found.reason is None
    messages = [each for each in found.comparisons if each.what != "peak memory"]
    assert [each for each in messages if not each.agrees] == []
    assert sum(each.traced for each in messages) > 0
    (memory,) = (each for each in found.comparisons if each.what == "peak memory")
    assert memory.predicted == pytest.approx(memory.traced, rel=WORST)


@pytest.mark.parametrize("schedule", ["GPipe", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"])
def test_every_schedule_sends_and_gathers_what_the_model_says(schedule):
    v = 1 if schedule == "GPipe" else 2
    layout = {"pp": 2, "pp_schedule": schedule, "virtual_stages": v, "microbatches": 4, "dp_shard": 32}
    of = case(layout | {"reshard_after_forward": schedule in ("GPipe", "LoopedBFS")})
    found = trace_case(of)
    assert [each for each in found.comparisons if each.what != "peak memory" and not each.agrees] == []


def test_a_wrong_model_is_caught(monkeypatch):
    monkeypatch.setattr(TorchRank, "_norm", lambda rank, found: None)
    found = trace_case(CASES["fsdp 96, kept gathered"])
    assert {each.what for each in found.comparisons if not each.agrees} >= {"dp_shard bytes", "dp_shard calls"}
    assert not found.agrees


def test_peak_memory_is_that_of_what_the_tensors_need():
    """Weights, gradients and Adam's state of one rank alone, 16 bytes a parameter, and more in a step."""
    of = case({"dp_replicate": 64})
    found = trace_rank(of, 0)
    state = 12 * SHAPE.params_total  # gradients are dropped between steps; DDP keeps its bucket
    assert found.state_bytes == pytest.approx(state + 4 * SHAPE.params_total, rel=0.02)
    assert found.peak_bytes > found.state_bytes + 4 * SHAPE.params_total


def test_a_pipelines_first_middle_and_last_rank_are_traced():
    assert ranks_to_trace(case({"pp": 4, "dp_shard": 2, "tp": 2, "microbatches": 4})) == [0, 8, 12]
    assert ranks_to_trace(case({"dp_shard": 8})) == [0]


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"engine": "deepspeed", "dp_shard": 2}, "engine deepspeed asks its tensors for values"),
        ({"engine": "megatron", "tp": 2}, "engine megatron asks its tensors for values"),
        ({"compile": True, "dp_shard": 2}, "compiled blocks are not traced"),
    ],
)
def test_what_cannot_be_traced_says_so(layout, reason):
    found = trace_case(case(layout))
    assert found.reason and found.reason.startswith(reason)
    assert found.comparisons == ()
