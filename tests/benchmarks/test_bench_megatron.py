"""What the megatron engine costs over Megatron-Core's own loop, on one CPU core.

`pytest tests/benchmarks/test_bench_megatron.py --benchmark-only`
"""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from race import BATCH, in_turns, shape_of, text

from scalade.bench.recipe import Recipe
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

# Not imported here: every session that collects the tests would wait for it.
pytestmark = pytest.mark.skipif(find_spec("megatron") is None, reason="no megatron-core here")
STEPS = {"tiny-100k": 210, "tiny-800k": 110}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def own_loop(engine, recipe: Recipe):
    """One step of the same model and optimizer in the way of Megatron-LM's training.py: no engine, shares or marks."""
    chunks, optimizer, source = engine.chunks, engine.optimizer, text(recipe)

    def loss_func(losses: torch.Tensor):
        loss = losses.float().mean()
        return loss, {"lm loss": loss.detach()}

    def forward_step(batches, model):
        tokens = next(batches)
        return model(tokens[:, :-1].contiguous(), None, None, labels=tokens[:, 1:].contiguous()), loss_func

    def step(number: int) -> None:
        tokens = torch.from_numpy(source.train_rows(number * BATCH, (number + 1) * BATCH))
        for chunk in chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        engine.forward_backward(
            forward_step_func=forward_step,
            data_iterator=iter([tokens]),
            model=chunks,
            num_microbatches=1,
            seq_length=engine.shape.seq_len,
            micro_batch_size=BATCH,
            forward_only=False,
            p2p_communicator=engine.between,
            pg_collection=engine.groups,
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(number)
        optimizer.step()

    return step


@pytest.mark.parametrize("size", STEPS)
def test_megatron_engine(figure, size):
    recipe = Recipe(global_batch=BATCH, steps=STEPS[size])
    build = partial(build_engine, shape_of(size), recipe, Layout(engine="megatron"), Outer(), torch.device("cpu"))
    ours, theirs = build(), build()
    source = text(recipe)

    def step(number: int) -> None:
        tokens = torch.from_numpy(source.train_rows(number * BATCH, (number + 1) * BATCH))
        ours.train_step(tokens, recipe.lr_at(number))

    figure(
        f"megatron engine over Megatron-Core's own loop, {size}",
        lambda: in_turns(step, own_loop(theirs, recipe), STEPS[size]),
        unit="s/step",
        target=1.02,
    )
    theirs.close()
    ours.close()
