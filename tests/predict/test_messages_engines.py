"""Bytes of DeepSpeed's ZeRO and of Megatron-Core against the columns of real runs of two ranks."""

from __future__ import annotations

import json

import pytest
from worlds import run_world

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import unavailable
from scalade.parallelism.layout import Layout
from scalade.parallelism.predict.other_engines import all_other_messages, known

SHAPE = dict(layers=4, heads=4, kv_heads=4, width=64, ffn=96, vocab=256, seq_len=32)
SLACK = 0.002  # padding to equal shards, and DeepSpeed's all-reduces of one number


def case(engine, precision="fp32", **layout):
    made = Layout(engine=engine, **layout)
    recipe = {"global_batch": made.dp * made.microbatches, "steps": 100, "precision": precision}
    return {"shape": SHAPE, "layout": {"engine": engine} | layout, "outer": {}, "recipe": recipe}


CASES = {
    "deepspeed": {
        "zero 0": case("deepspeed", dp_replicate=2, microbatches=2),
        "zero 1": case("deepspeed", dp_shard=2, zero_stage=1, microbatches=2),
        "zero 2": case("deepspeed", dp_shard=2, zero_stage=2, microbatches=2),
        "zero 3": case("deepspeed", dp_shard=2, zero_stage=3, microbatches=2),
        "zero 3, bf16": case("deepspeed", "bf16", dp_shard=2, zero_stage=3),
        "zero 1, bf16": case("deepspeed", "bf16", dp_shard=2, zero_stage=1),
    },
    "megatron": {
        "dp": case("megatron", dp_replicate=2, microbatches=2),
        "distributed optimizer": case("megatron", dp_shard=2, zero_stage=1, microbatches=2),
        "distributed optimizer, bf16": case("megatron", "bf16", dp_shard=2, zero_stage=1),
        "tp": case("megatron", tp=2, microbatches=2),
        "tp without sp": case("megatron", tp=2, sp=False),
        "pp": case("megatron", pp=2, microbatches=4),
    },
}


@pytest.mark.engines
@pytest.mark.parametrize("engine", CASES)
def test_bytes_are_those_that_were_measured(engine, tmp_path):
    if reason := unavailable(Layout(engine=engine)):
        pytest.skip(reason)
    rows = run_world("messages_ranks.py", 2, CASES[engine], tmp_path)
    for name, of in CASES[engine].items():
        found = all_other_messages(ModelShape(**of["shape"]), Recipe(**of["recipe"]), Layout(**of["layout"])).totals()
        there = json.loads(rows[name]["comm_by_collective_json"])
        for kind in {*there, *found["collective"]}:
            measured = there.get(kind, {"bytes": 0})["bytes"]
            if measured > 1000:  # else a norm
                assert found["collective"][kind]["bytes"] == pytest.approx(measured, rel=SLACK), (name, kind)
        assert rows[name]["comm_bytes_per_step"] == pytest.approx(
            sum(each["bytes"] for each in found["dim"].values()), rel=SLACK
        ), name


def test_what_is_not_known_is_not_given():
    assert known(Layout(engine="deepspeed", dp_shard=8), Outer())
    assert not known(Layout(engine="deepspeed", dp_shard=8, hpz=4), Outer())
    assert not known(Layout(engine="deepspeed", tp=2), Outer())
    assert known(Layout(engine="megatron", tp=2, pp=2), Outer())
    assert not known(Layout(engine="megatron", tp=2), Outer("diloco", replicas=2))
