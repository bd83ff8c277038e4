"""DiLoCo around the torch engine: whatever splits a replica inside, and wherever the replicas are, the run is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diloco_torch import SHAPE, STEPS, train
from places import PROGRAMS

from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import bytes_per_sync, fragment_count, fragment_of

DILOCO = dict(algorithm="diloco", replicas=2, sync_every=3)
STREAMING = dict(algorithm="streaming", replicas=2, sync_every=4, fragment_layers=2, overlap_steps=2)
EAGER = dict(algorithm="eager", replicas=2, sync_every=3)
FOLDED = dict(placement="folded")
MULOCO = dict(recipe=dict(optimizer="muon", beta1=0.95))  # arXiv 2505.23725
WORLDS = {
    2: {
        "two replicas": dict(outer=DILOCO, layout={}),
        "muon inside": dict(outer=DILOCO, layout={}) | MULOCO,
        "folded on dp, muon": dict(outer=DILOCO | FOLDED, layout=dict(dp_replicate=2)) | MULOCO,
        "streaming": dict(outer=STREAMING, layout={}),
        "folded on fsdp": dict(outer=DILOCO | FOLDED, layout=dict(dp_shard=2)),
        "folded on tp, streaming": dict(outer=STREAMING | FOLDED, layout=dict(tp=2)),
    },
    4: {
        "fsdp inside": dict(outer=DILOCO, layout=dict(dp_shard=2)),
        "zero-2 inside, eager": dict(outer=EAGER, layout=dict(dp_shard=2, reshard_after_forward=False)),
        "dp inside": dict(outer=DILOCO, layout=dict(dp_replicate=2)),
        "tp inside, streaming": dict(outer=STREAMING, layout=dict(tp=2)),
        "pp inside, streaming": dict(outer=STREAMING, layout=dict(pp=2, microbatches=2)),
        "cp inside": dict(outer=DILOCO, layout=dict(cp=2)),
    },
}
RESUMED = {"streaming": 7, "muon inside": 4, "fsdp inside": 4}


def run_world(world, jobs, folder):
    spec = folder / f"{world}.json"
    spec.write_text(json.dumps({"world": world, "jobs": jobs}))
    program = str(PROGRAMS / "diloco_torch.py")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, program, str(spec)], env=env | {"RANK": str(r)}) for r in range(world)]
    try:
        assert [rank.wait(timeout=250) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
    return list(zip(*(json.loads(Path(f"{spec}.{r}").read_text()) for r in range(world)), strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """World -> name -> results by rank, started when first asked for; resumed jobs as `name@resumed`."""
    folder, done = tmp_path_factory.mktemp("torch"), {}

    def of(world):
        if world not in done:
            jobs = {}
            for name, job in WORLDS[world].items():
                saves = dict(save_at=RESUMED[name], save=str(folder / name)) if name in RESUMED else {}
                jobs[name] = job | saves
            for name in (name for name in RESUMED if name in WORLDS[world]):
                jobs[f"{name}@resumed"] = WORLDS[world][name] | dict(first=RESUMED[name], load=str(folder / name))
            done[world] = dict(zip(jobs, run_world(world, list(jobs.values()), folder), strict=True))
        return done[world]

    return of


CASES = [
    pytest.param(world, name, id=name, marks=[pytest.mark.slow] * (world > 1))
    for world, jobs in WORLDS.items()
    for name in jobs
]


@pytest.mark.parametrize("world, name", CASES)
def test_follows_the_run_folded_in_one_process(results, world, name):
    torch.set_num_threads(1)
    job = WORLDS[world][name]
    one = train(job["outer"] | FOLDED, {}, recipe=job.get("recipe"))
    got = results(world)[name][0]
    near = 1e-3 if "recipe" in job else 1e-5  # Muon orthogonalises in bf16
    assert got["losses"] == pytest.approx(one["losses"], rel=near)
    assert one["losses"][-1] < 0.95 * one["losses"][0]
    for there, here in zip(got["evals"], one["evals"], strict=True):
        assert there == pytest.approx(here, rel=near)
    for there, here in zip(got["extras"], one["extras"], strict=True):
        for column in ("replica_drift", "pseudograd_cosine", "outer_step"):
            assert there.get(column) == (pytest.approx(here[column], rel=100 * near) if column in here else None)


@pytest.mark.parametrize("world, name", CASES)
def test_bytes_are_those_predicted(results, world, name):
    outer = Outer(**WORLDS[world][name]["outer"])
    for result in results(world)[name]:
        names, sizes, layers = zip(*result["parameters"], strict=True)
        fragments = [fragment_of(outer, layer, name, SHAPE.layers) for name, layer in zip(names, layers, strict=True)]
        whole = bytes_per_sync(outer, sizes, fragments, fragment_count(outer, SHAPE.layers))
        sent = sum(row["outer_bytes"] for row in result["extras"])
        if outer.placement == "folded":
            assert sent == 0
        elif outer.algorithm == "streaming":  # steps 2, 6 and 4, 8
            assert sent == 2 * whole
        else:
            assert sent == STEPS // outer.sync_every * whole


@pytest.mark.parametrize(
    "world, name", [(2, "streaming"), (2, "muon inside"), pytest.param(4, "fsdp inside", marks=pytest.mark.slow)]
)
def test_resumed_in_the_middle_is_bitwise(results, world, name):
    for whole, rest in zip(results(world)[name], results(world)[f"{name}@resumed"], strict=True):
        assert rest["losses"] == whole["losses"][RESUMED[name] :]
        assert rest["evals"] == whole["evals"][-len(rest["evals"]) :]
