"""The outer algorithms over real ranks: as folded in one process, also sharded inside; bytes as predicted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diloco_tiny import LAYERS, build, initial_parameters, recipe_of, run
from places import PROGRAMS

from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import bytes_per_sync, fragment_count, fragment_of, payload_bytes, plan

WORLD = 4
STREAMING = dict(algorithm="streaming", sync_every=4, fragment_layers=2, overlap_steps=2)
TOPK = dict(compression="topk", block_size=8, density=0.25)
TWOSHOT = dict(exchange="twoshot", block_size=16, error_decay=0.5)
JOBS = {
    "diloco": dict(outer=dict(algorithm="diloco", replicas=4)),
    "localsgd-bf16": dict(outer=dict(algorithm="localsgd", replicas=4, compression="bf16")),
    "diloco-int4": dict(outer=dict(algorithm="diloco", replicas=4, compression="int4", block_size=16)),
    "diloco-int8-feedback": dict(
        outer=dict(algorithm="diloco", replicas=4, compression="int8", block_size=16, error_decay=1.0)
    ),
    "diloco-topk": dict(outer=dict(algorithm="diloco", replicas=4, **TOPK)),
    "streaming": dict(outer=dict(replicas=4, **STREAMING)),
    "delayed": dict(outer=dict(algorithm="delayed", replicas=4)),
    "eager": dict(outer=dict(algorithm="eager", replicas=4)),
    "eager-fp4": dict(outer=dict(algorithm="eager", replicas=4, compression="fp4", block_size=16)),
    "int4-twoshot": dict(outer=dict(algorithm="diloco", replicas=4, compression="int4", **TWOSHOT)),
    "eager-twoshot": dict(outer=dict(algorithm="eager", replicas=4, compression="bf16", exchange="twoshot")),
    "streaming-twoshot": dict(outer=dict(replicas=4, compression="int8", **TWOSHOT, **STREAMING)),
    "twoshot-sharded": dict(outer=dict(algorithm="diloco", replicas=2, compression="int4", **TWOSHOT), inner=2),
    "diloco-sharded": dict(outer=dict(algorithm="diloco", replicas=2), inner=2),
    "streaming-sharded": dict(outer=dict(replicas=2, **STREAMING), inner=2),
    "eager-sharded": dict(outer=dict(algorithm="eager", replicas=2), inner=2),
    "int4-sharded": dict(outer=dict(algorithm="diloco", replicas=2, compression="int4", block_size=8), inner=2),
}
# Saved after this many steps: a fragment on its way, mid-H.
RESUMED = {"streaming-sharded": 7, "diloco-topk": 4, "streaming-twoshot": 7}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """All jobs in one set of ranks: name -> results by rank; resumed ones as `name@resumed`."""
    folder = tmp_path_factory.mktemp("jobs")
    listed = {}
    for name, job in JOBS.items():
        job = job | {"outer": dict(sync_every=3) | job["outer"]}
        if name in RESUMED:
            job |= dict(save_at=RESUMED[name], save=str(folder / name))
        listed[name] = job
    for name, at in RESUMED.items():
        listed[f"{name}@resumed"] = {k: v for k, v in listed[name].items() if not k.startswith("save")} | dict(
            load=str(folder / name), first=at
        )
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"world": WORLD, "jobs": list(listed.values())}))
    program = PROGRAMS / "diloco_tiny.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(spec)], env=os.environ | {"RANK": str(r), "OMP_NUM_THREADS": "1"}
        )
        for r in range(WORLD)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * WORLD
    finally:
        for rank in ranks:
            rank.kill()
    by_rank = [json.loads(Path(f"{spec}.{r}").read_text()) for r in range(WORLD)]
    return {name: [results[i] for results in by_rank] for i, name in enumerate(listed)}


def summed(results, what="losses"):
    return [sum(shares) for shares in zip(*(r[what] for r in results), strict=True)]


def folded(name):
    torch.set_num_threads(1)
    outer = Outer(**(dict(sync_every=3) | JOBS[name]["outer"] | dict(placement="folded")))
    engine = build(outer, recipe_of())
    return run(engine, recipe_of()) | {"engine": engine}


@pytest.mark.parametrize("name", [name for name in JOBS if name not in ("int4-sharded", "twoshot-sharded")])
def test_folded_is_distributed_and_sharded_is_unsharded(jobs, name):
    """int4 on shards is left out: its blocks are cut out of shards, so its rounding is another one."""
    one = folded(name)
    assert summed(jobs[name]) == pytest.approx(one["losses"], rel=2e-6)
    for kind in ("outer", "inner"):
        assert sum(r["evals"][kind] for r in jobs[name]) == pytest.approx(one["evals"][kind], rel=2e-6)
    for here, there in zip(one["extras"], jobs[name][0]["extras"], strict=True):
        for column in ("outer_step", "replica_drift", "pseudograd_cosine"):
            assert there.get(column) == (
                None if column not in here else pytest.approx(here[column], rel=1e-3, abs=1e-4)
            )


@pytest.mark.parametrize("name", JOBS)
def test_bytes_are_those_predicted(jobs, name):
    outer = Outer(**(dict(sync_every=3) | JOBS[name]["outer"]))
    inner = JOBS[name].get("inner", 1)
    sizes = {k: v.numel() // (1 if k == "gain" else inner) for k, v in initial_parameters().items()}
    layers = {k: int(k.split(".")[1]) if k.startswith("blocks") else None for k in sizes}
    count = fragment_count(outer, LAYERS)
    fragments = [fragment_of(outer, layers[k], k, LAYERS) for k in sizes]
    rounds = 12 // outer.sync_every
    want = bytes_per_sync(outer, list(sizes.values()), fragments, count) * rounds
    if "twoshot" in name:  # what has not arrived at the end has no second message
        planned = plan(outer, list(sizes.values()), fragments, count)
        under_way = {"eager-twoshot": planned[0], "streaming-twoshot": planned[0]}.get(name, ())
        want -= sum(payload_bytes(outer, bucket.numel) // outer.replicas + 8 for bucket in under_way)
    for result in jobs[name]:
        assert sum(row["outer_bytes"] for row in result["extras"]) == want


@pytest.mark.parametrize("name", JOBS)
def test_the_bytes_said_of_a_round_are_those_that_a_probe_sees(jobs, name):
    for result in jobs[name]:
        assert result["round"]["said"] == result["round"]["seen"] != {}


def test_four_bits_are_an_eighth_of_fp32():
    sizes = [1 << 20] * 10
    fp32, int4 = (bytes_per_sync(Outer("diloco", 2, compression=c), sizes) for c in ("none", "int4"))
    assert fp32 == pytest.approx(4 * sum(sizes), rel=1e-5)
    assert fp32 / int4 == pytest.approx(8, rel=0.04)  # the scales


def test_a_part_that_several_ranks_hold_stays_the_same_on_them(jobs):
    """Compressed with different neighbours on each rank, it would drift apart."""
    for name in ("int4-sharded", "twoshot-sharded", "diloco-sharded"):
        first, second = (jobs[name][rank]["parameters"] for rank in (0, 1))
        assert first["gain"] == second["gain"]
        assert first["head"] != second["head"]


@pytest.mark.parametrize("name", ["int4-twoshot", "diloco-int4"])
def test_packed_messages_are_summed_in_the_replicas_order_wherever_they_are(jobs, name):
    """So the same to the last bit."""
    assert jobs[name][0]["parameters"] == {
        p.name: p.data.flatten().tolist() for p in folded(name)["engine"].local_parameters()
    }


def test_replicas_end_alike_after_an_outer_step(jobs):
    first, *others = (result["parameters"] for result in jobs["diloco"])
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_in_the_middle_is_bitwise(jobs, name):
    for whole, rest in zip(jobs[name], jobs[f"{name}@resumed"], strict=True):
        assert rest["losses"] == whole["losses"][RESUMED[name] :]
        assert rest["parameters"] == whole["parameters"]
