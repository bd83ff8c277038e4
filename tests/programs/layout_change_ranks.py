"""One rank of the layout-change tests: loads a checkpoint, trains some steps, saves. `python ... JOB.json OUT.json`."""

import json
import os
import sys
import warnings
from pathlib import Path

import checkpoints
import torch
import torch.distributed as dist

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine, refuse
from scalade.parallelism.layout import Layout


def part(job: dict) -> list[list[float]]:
    """(loss, gradient norm) of steps begin..end."""
    shape, recipe, layout = ModelShape(**job["shape"]), Recipe(**job["recipe"]), Layout(**job["layout"])
    assert refuse(layout, shape, recipe) is None, refuse(layout, shape, recipe)
    engine = build_engine(shape, recipe, layout, Outer(), torch.device("cpu"))
    if job.get("load"):
        checkpoints.load(engine, Path(job["load"]))
    first, last = engine.rows()
    found = []
    for step in range(*job["steps"]):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(shape.vocab, (recipe.global_batch, shape.seq_len + 1), generator=generator)
        output = engine.train_step(tokens[first:last], recipe.lr_at(step))
        if dist.is_initialized():
            dist.all_reduce(output.loss)
        found.append([output.loss.item(), output.grad_norm.item()])
    if job.get("save"):
        checkpoints.save(engine, Path(job["save"]))
    engine.close()
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    jobs, out = (Path(argument) for argument in sys.argv[1:])
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    results = {name: part(job) for name, job in json.loads(jobs.read_text()).items()}
    if int(os.environ["RANK"]) == 0:
        out.write_text(json.dumps(results))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
