"""One rank of the parity tests: trains every case of a list in one world and leaves what it measured as JSON.

Started by test_parity.py as `python parity_ranks.py CASES.json OUT.json` with torchrun's variables set.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from scalade.bench.data import DataSpec, open_source
from scalade.bench.device import Device
from scalade.bench.init import fill
from scalade.bench.loop import evaluate
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.bench.weights import shapes_of
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine, refuse
from scalade.parallelism.layout import Layout

STEPS, BATCH, HELD_OUT = 10, 16, 21  # the second batch of an evaluation is filled up
SHAPE = {"layers": 4, "heads": 8, "kv_heads": 4, "width": 64, "ffn": 96, "vocab": 256, "seq_len": 32, "qk_norm": True}
RECIPE = {"global_batch": BATCH, "steps": STEPS, "lr": 3e-3, "warmup_steps": 3, "clip_norm": 0.5, "z_loss": 1e-3}


def canonical(shape: ModelShape, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The start values of the whole model."""
    whole = {}
    for name, size in shapes_of(shape).items():
        whole[name] = torch.empty(size)
        fill(whole[name], name, size, (0,) * len(size), recipe.seed, shape.layers, recipe.init_std)
    return whole


def round_trip(engine, shape: ModelShape, recipe: Recipe) -> bool:
    """Whether it gives the canonical start values, takes other weights, gives them, and takes the first ones back."""
    start, first = canonical(shape, recipe), not dist.is_initialized() or dist.get_rank() == 0
    other = {name: tensor * 1.5 + 0.125 for name, tensor in start.items()}
    exact = True
    for put, wanted in ((None, start), (other, other), (start, start)):
        if put:
            engine.set_weights(put if first else None)
        found = engine.weights()
        exact &= found.keys() == (wanted.keys() if first else set())
        exact &= all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    return exact


def train(case: dict, device: torch.device) -> dict:
    """Losses and gradient norms of ten steps, and the held-out loss after them."""
    shape = ModelShape(**SHAPE | case.get("shape", {}))
    recipe, layout = Recipe(**RECIPE | case.get("recipe", {})), Layout(**case["layout"])
    if not case.get("refused"):
        assert refuse(layout, shape, recipe) is None, refuse(layout, shape, recipe)
    engine = build_engine(shape, recipe, layout, Outer(), device)
    exact = round_trip(engine, shape, recipe)
    source = open_source(DataSpec(), shape.seq_len, recipe.seed)
    first, last = engine.rows()
    steps = []
    for step in range(STEPS):
        rows = source.train_rows(step * BATCH + first, step * BATCH + last)
        output = engine.train_step(torch.from_numpy(rows).to(device), recipe.lr_at(step))
        steps.append(torch.stack((output.loss, output.grad_norm)))
    clock = Device("cuda" if device.type == "cuda" else "cpu")
    (held_out,) = evaluate(engine, source, recipe, Measure(eval_sequences=HELD_OUT), clock, STEPS, 0)
    measured = torch.stack(steps)
    losses, norms = measured[:, 0].contiguous(), measured[:, 1]
    if dist.is_initialized():
        dist.all_reduce(losses)
    engine.close()
    return {
        "loss": losses.tolist(),
        "grad_norm": norms.tolist(),
        "held_out": held_out["val_loss"],
        "weights_exact": exact,
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cases, out = (Path(argument) for argument in sys.argv[1:])
    cuda = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    cases = json.loads(cases.read_text())
    engines = {case["layout"].get("engine", "torch") for case in cases.values()}
    if int(os.environ["WORLD_SIZE"]) > 1 or cuda or engines != {"torch"}:
        dist.init_process_group("nccl" if cuda else "gloo")
    results = {name: train(case, device) for name, case in cases.items()}
    if int(os.environ["RANK"]) == 0:
        out.write_text(json.dumps(results))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
