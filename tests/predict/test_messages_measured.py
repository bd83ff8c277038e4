"""The model's messages against the columns of real runs: two and four ranks over gloo, to the byte and to the call."""

from __future__ import annotations

import json

import pytest
from worlds import run_world

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout
from scalade.parallelism.predict.messages import all_messages
from scalade.results.schema.columns import MESH_DIMS

SHAPE = dict(layers=4, heads=4, kv_heads=2, width=40, ffn=96, vocab=256, seq_len=32)
LARGE = dict(layers=4, heads=4, kv_heads=4, width=256, ffn=1024, vocab=8192, seq_len=16)  # DDP needs more than a bucket


def case(layout=None, outer=None, shape=None, **recipe):
    made, around = Layout(**layout or {}), Outer(**outer or {})
    batch = made.dp * made.microbatches * around.replicas
    settings = {"global_batch": batch, "steps": 100} | recipe
    return {"shape": shape or SHAPE, "layout": layout or {}, "outer": outer or {}, "recipe": settings}


CASES = {
    2: {
        "dp": case({"dp_replicate": 2, "microbatches": 2}),
        "dp, several buckets": case({"dp_replicate": 2}, shape=LARGE),
        "fsdp": case({"dp_shard": 2, "microbatches": 2}, precision="bf16"),
        "tp": case({"tp": 2, "microbatches": 2}),
        "tp, recomputed": case({"tp": 2, "recompute": "selective"}),
        "cp ulysses": case({"cp": 2, "cp_method": "ulysses"}),
        "pp": case({"pp": 2, "microbatches": 4}),
        "zbv": case({"pp": 2, "microbatches": 4, "pp_schedule": "ZBVZeroBubble", "virtual_stages": 2}),
        "diloco": case(outer={"algorithm": "diloco", "replicas": 2, "sync_every": 10}),
        "folded": case({"dp_shard": 2}, {"algorithm": "diloco", "replicas": 2, "placement": "folded"}),
    },
    4: {
        "fsdp, uneven shards": case({"dp_shard": 4}, shape=SHAPE | {"width": 42, "heads": 3, "kv_heads": 3}),
        "hsdp": case({"dp_replicate": 2, "dp_shard": 2}),
        "tp fsdp": case({"tp": 2, "dp_shard": 2, "microbatches": 2}),
        "cp fsdp": case({"cp": 2, "dp_shard": 2}),
        "interleaved fsdp": case(
            {"pp": 2, "dp_shard": 2, "microbatches": 4, "pp_schedule": "Interleaved1F1B", "virtual_stages": 2}
        ),
        "streaming": case(
            {"tp": 2},
            {"algorithm": "streaming", "replicas": 2, "compression": "int4", "sync_every": 10, "fragment_layers": 2},
        ),
    },
}


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def measured(request, tmp_path_factory):
    """(cases by name, the columns that each run had)"""
    cases = CASES[request.param]
    return cases, run_world("messages_ranks.py", request.param, cases, tmp_path_factory.mktemp("messages"))


def test_bytes_and_calls_are_those_that_were_measured(measured):
    cases, rows = measured
    for name, of in cases.items():
        row = rows[name]
        made = ModelShape(**of["shape"]), Recipe(**of["recipe"]), Layout(**of["layout"]), Outer(**of["outer"])
        found = all_messages(*made)
        totals = found.totals()
        assert sum(found.bytes.values()) == pytest.approx(row["comm_bytes_per_step"], abs=1), name
        assert sum(found.calls.values()) == pytest.approx(row["comm_calls_per_step"]), name
        for axis, column in (("collective", "comm_by_collective_json"), ("dim", "comm_by_dim_json")):
            there = json.loads(row[column])
            assert there.keys() == totals[axis].keys(), name
            for key, counts in there.items():
                assert totals[axis][key]["bytes"] == pytest.approx(counts["bytes"], abs=1), (name, key)
                assert totals[axis][key]["calls"] == pytest.approx(counts["calls"]), (name, key)
        for dimension in MESH_DIMS:
            ours = totals["dim"].get(dimension, {"bytes": 0})["bytes"]
            assert ours == pytest.approx(row[f"comm_bytes_dim_{dimension}"], abs=1), (name, dimension)
