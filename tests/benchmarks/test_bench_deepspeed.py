"""What the deepspeed engine costs over DeepSpeed's own loop, and DeepSpeed over torch, on one CPU core.

`pytest tests/benchmarks/test_bench_deepspeed.py --benchmark-only`
"""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from race import BATCH, in_turns, shape_of, text

from scalade.bench.loss import cross_entropy
from scalade.bench.recipe import Recipe
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

# Not imported here: every session that collects the tests would wait for it.
pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="no deepspeed here")
STEPS = {"tiny-100k": 210, "tiny-800k": 110}
LAYOUTS = {
    "ZeRO 0": {},
    "ZeRO 2, state on the host": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "ZeRO 3, state on the host": {"zero_stage": 3, "offload_optimizer": "cpu"},
}


@pytest.fixture(autouse=True, scope="module")  # DeepSpeed keeps its copy of the world
def one_thread_in_a_world_of_one():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(before)


def build(size: str, recipe: Recipe, **layout):
    return build_engine(shape_of(size), recipe, Layout(**layout), Outer(), torch.device("cpu"))


def training(engine, recipe: Recipe):
    source = text(recipe)

    def step(number: int) -> None:
        tokens = torch.from_numpy(source.train_rows(number * BATCH, (number + 1) * BATCH))
        engine.train_step(tokens, recipe.lr_at(number))

    return step


def own_loop(engine, recipe: Recipe):
    """One step in the way of DeepSpeed's tutorials, of the same model and optimizer: no shares, names or marks. At
    ZeRO 0 the clipping stays in the optimizer, so that both clip."""
    own, source = engine.engine, text(recipe)

    def step(number: int) -> None:
        tokens = torch.from_numpy(source.train_rows(number * BATCH, (number + 1) * BATCH))
        loss, _ = cross_entropy(own(tokens[:, :-1]), tokens[:, 1:])
        own.backward(loss)
        for group in own.optimizer.param_groups:
            group["lr"] = recipe.lr_at(number)
        own.step()

    return step


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", STEPS)
def test_deepspeed_engine(figure, size, layout):
    recipe = Recipe(global_batch=BATCH, steps=STEPS[size])
    make = partial(build, size, recipe, engine="deepspeed", **LAYOUTS[layout])
    ours, theirs = make(), make()
    figure(
        f"deepspeed engine over DeepSpeed's own loop, {layout}, {size}",
        lambda: in_turns(training(ours, recipe), own_loop(theirs, recipe), STEPS[size]),
        unit="s/step",
        target=1.02,
    )
    theirs.close()
    ours.close()


@pytest.mark.parametrize("size", STEPS)
def test_deepspeed_and_torch(figure, size):
    """No target: what the two need for the same step."""
    recipe = Recipe(global_batch=BATCH, steps=STEPS[size])
    ours, theirs = build(size, recipe, engine="deepspeed"), build(size, recipe)
    figure(
        f"deepspeed, ZeRO 0, over torch, {size}",
        lambda: in_turns(training(ours, recipe), training(theirs, recipe), STEPS[size]),
        unit="s/step",
        target=float("inf"),
    )
    theirs.close()
    ours.close()
