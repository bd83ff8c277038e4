"""Training steps on one CPU core: what measuring costs, how fast the model is, what folded replicas cost.

`pytest tests/benchmarks/test_bench_step.py --benchmark-only`
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_loop import GPT, PlainLoop
from race import BATCH, SEQ_LEN, engine_of, in_turns, measured_loop, shape_of, text

from scalade.bench.recipe import Recipe
from scalade.parallelism.diloco.config import Outer


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bare(size: str, recipe: Recipe):
    """One step of the engine's own model in the loop that a person writes: no engine, no marks, no rows."""
    model, source = engine_of(size, recipe).parts[0], text(recipe)
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True)

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(number)
        tokens = torch.from_numpy(source.train_rows(number * BATCH, (number + 1) * BATCH))
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


@pytest.mark.parametrize("size", ["tiny-100k", "tiny-800k"])
def test_measuring_loop(figure, tmp_path, size):
    recipe = Recipe(global_batch=BATCH, steps=310 if size == "tiny-100k" else 160)
    figure(
        f"measuring loop over a bare one, {size}",
        lambda: measured_loop(size, recipe, tmp_path, bare(size, recipe)),
        unit="s/step",
        target=1.01,
    )


@pytest.mark.parametrize("size", ["tiny-800k", "tiny-5m"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tokens_per_second(figure, tmp_path, size, precision):
    recipe = Recipe(global_batch=BATCH, steps=110 if size == "tiny-800k" else 50, precision=precision)
    shape = shape_of(size)
    model = GPT(shape.layers, shape.heads, shape.width, shape.ffn, shape.vocab, SEQ_LEN)
    assert sum(p.numel() for p in model.parameters()) == shape.params_total
    data = np.concatenate([np.asarray(piece) for piece in text(recipe).text.train])
    plain = PlainLoop(model, data, BATCH, SEQ_LEN, precision)

    def measure():
        ours, theirs = measured_loop(size, recipe, tmp_path, lambda _: plain.steps(1))
        return [[BATCH * SEQ_LEN / seconds for seconds in side] for side in (ours, theirs)]

    figure(f"tokens/s against a plain loop, {size} {precision}", measure, unit="tok/s", target=1.0, at_least=True)


@pytest.mark.parametrize("replicas", [2, 4])
def test_folded_replicas(figure, replicas):
    """M folded replicas with an outer step every 10 steps, against M engines that know nothing of each other."""
    recipe, own = (Recipe(global_batch=batch, steps=1) for batch in (BATCH, BATCH // replicas))
    outer = Outer(algorithm="diloco", replicas=replicas, placement="folded", sync_every=10)
    folded, plain = engine_of("tiny-800k", recipe, outer), [engine_of("tiny-800k", own) for _ in range(replicas)]
    source = text(recipe)

    def tokens(step: int) -> torch.Tensor:
        return torch.from_numpy(source.train_rows(step * BATCH, (step + 1) * BATCH))

    def alone(step: int) -> None:
        for engine, part in zip(plain, tokens(step).split(BATCH // replicas), strict=True):
            engine.train_step(part, recipe.lr)

    figure(
        f"DiLoCo folded, M = {replicas}, over {replicas} plain steps",
        lambda: in_turns(lambda step: folded.train_step(tokens(step), recipe.lr), alone, 110),
        unit="s/step",
        target=1.05,
    )
