"""One rank of a job that trains the torch engine under outer algorithms: `python diloco_torch.py SPEC.json`.

The ranks write losses (the mean over the global batch), evaluations and columns of each of the spec's jobs.
"""

import json
import os
import sys
from pathlib import Path

import checkpoints
import torch
import torch.distributed as dist

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

SHAPE = ModelShape(layers=4, heads=4, kv_heads=2, width=32, ffn=64, vocab=64, seq_len=16)
BATCH, STEPS = 8, 9


def tokens_of(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(SHAPE.vocab, (BATCH, 1), generator=generator)
    return (
        start + torch.randint(1, 5, (BATCH, 1), generator=generator) * torch.arange(SHAPE.seq_len + 1)
    ) % SHAPE.vocab


def everyone(value: torch.Tensor) -> float:
    total = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total)


def train(outer: dict, layout: dict, first=0, save_at=None, save=None, load=None, recipe=None) -> dict:
    recipe = Recipe(global_batch=BATCH, steps=STEPS, lr=0.01, warmup_steps=2, **recipe or {})
    engine = build_engine(SHAPE, recipe, Layout(**layout), Outer(**outer), torch.device("cpu"))
    if load:
        checkpoints.load(engine, Path(load))
    start, end = engine.rows()
    result = {"losses": [], "extras": [], "evals": []}
    for step in range(first, STEPS):
        output = engine.train_step(tokens_of(step)[start:end], recipe.lr_at(step))
        result["losses"].append(everyone(output.loss))
        result["extras"].append({name: float(value) for name, value in output.extra.items()})
        if step % 2:  # between steps, also in the middle of H: it must leave no trace
            rows, counted = tokens_of(1000)[start:end], torch.ones(end - start, dtype=torch.bool)
            kinds = engine.evaluations()
            result["evals"].append({kind: everyone(loss(rows, counted)) / BATCH for kind, loss in kinds.items()})
        if step + 1 == save_at:
            checkpoints.save(engine, Path(save))
    result["parameters"] = [(p.name, p.data.numel(), p.layer) for p in engine.local_parameters()]
    engine.close()
    return result


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{spec_file}.store", rank=rank, world_size=spec["world"])
    results = [train(**job) for job in spec["jobs"]]
    Path(f"{spec_file}.{rank}").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
