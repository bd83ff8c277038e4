"""The engine's update against torch's own optimizers and clipping on the plain model."""

import copy

import pytest
import torch

from scalade.bench.loss import cross_entropy
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

SHAPE = ModelShape(layers=2, heads=2, kv_heads=1, width=32, ffn=48, vocab=64, seq_len=16, qk_norm=True)
CPU = torch.device("cpu")
RECIPES = {
    "adamw": dict(lr=3e-3, weight_decay=0.5, clip_norm=0.5),
    "adamw, other betas": dict(lr=3e-3, beta1=0.5, beta2=0.7, eps=1e-4, clip_norm=0),
    "adamw, clip above the norm": dict(lr=1e-3, clip_norm=1e6),
    "sgd with momentum": dict(optimizer="sgd", lr=0.1, weight_decay=0.3, clip_norm=0.5),
    "muon": dict(optimizer="muon", lr=3e-3, beta1=0.95, weight_decay=0.5, clip_norm=0.5),
    "sgd without": dict(optimizer="sgd", lr=0.1, beta1=0.0, weight_decay=0.0, clip_norm=0),
}


class Both:
    """torch's Muon for the matrices of the blocks, its AdamW for the rest."""

    def __init__(self, model: torch.nn.Module, recipe: Recipe) -> None:
        betas = {"betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps, "foreach": False}
        hidden, table, norms = [], [], []
        for name, parameter in model.named_parameters():
            (norms if parameter.ndim == 1 else hidden if name.startswith("blocks.") else table).append(parameter)
        groups = [{"params": table, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
        self.both = (
            torch.optim.AdamW(groups, **betas),
            torch.optim.Muon(
                hidden, momentum=recipe.beta1, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
        )
        self.param_groups = [group for each in self.both for group in each.param_groups]

    def step(self) -> None:
        for each in self.both:
            each.step()

    def zero_grad(self) -> None:
        for each in self.both:
            each.zero_grad()


def plain_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer | Both:
    if recipe.optimizer == "muon":
        return Both(model, recipe)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    if recipe.optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, foreach=False)
    return torch.optim.SGD(model.parameters(), momentum=recipe.beta1, foreach=False)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2], ids=["", "z_loss"])
@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_steps_are_torch_s_own(settings, z_loss):
    recipe = Recipe(global_batch=4, steps=20, warmup_steps=2, init_std=0.2, z_loss=z_loss, **settings)
    engine = build_engine(SHAPE, recipe, Layout(), Outer(), CPU)
    plain = copy.deepcopy(engine.parts[0])
    optimizer = plain_optimizer(plain, recipe)
    generator = torch.Generator().manual_seed(0)
    clipped = 0
    for step in range(6):
        tokens = torch.randint(64, (4, 17), generator=generator)
        lr = recipe.lr_at(step)
        output = engine.train_step(tokens, lr)
        optimised, reported = cross_entropy(plain(tokens[:, :-1]), tokens[:, 1:], z_loss)
        optimised.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), recipe.clip_norm or float("inf"), foreach=False)
        clipped += bool(recipe.clip_norm and norm > recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if recipe.optimizer == "sgd":  # decoupled decay, which torch's SGD has not
            with torch.no_grad():
                for parameter in plain.parameters():
                    parameter.mul_(1 - lr * recipe.weight_decay if parameter.ndim == 2 else 1)
        optimizer.step()
        optimizer.zero_grad()
        exact = 100 if recipe.optimizer == "muon" else 1  # orthogonalised in bf16: a last bit shows
        assert output.loss.item() == pytest.approx(reported.item(), rel=exact * 1e-6)
        assert output.grad_norm.item() == pytest.approx(norm.item(), rel=exact * 1e-5)
    assert clipped == (6 if recipe.clip_norm == 0.5 else 0)
    start = build_engine(SHAPE, recipe, Layout(), Outer(), CPU).parts[0]
    for (name, mine), theirs, first in zip(
        engine.parts[0].named_parameters(), plain.parameters(), start.parameters(), strict=True
    ):
        limit = 1e-2 if recipe.optimizer == "muon" else 1e-5
        assert (mine - theirs).norm() < limit * (theirs - first).norm(), name


def test_weight_decay_leaves_norms_alone():
    """A learning rate so small that the decay is all there is: eps is far above every gradient."""
    for optimizer in ("adamw", "sgd"):
        recipe = Recipe(
            global_batch=2, steps=1, lr=1.0, eps=1e30, weight_decay=0.25, clip_norm=1e-30, optimizer=optimizer
        )
        engine = build_engine(SHAPE, recipe, Layout(), Outer(), CPU)
        before = {name: p.clone() for name, p in engine.parts[0].named_parameters()}
        engine.train_step(torch.randint(64, (2, 17)), 1.0)
        for name, parameter in engine.parts[0].named_parameters():
            scale = 0.75 if parameter.ndim == 2 else 1.0
            torch.testing.assert_close(parameter, scale * before[name], rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize("layout", [{"microbatches": 4}, {"recompute": "full"}, {"recompute": "selective"}], ids=str)
def test_gradients_do_not_depend_on_how_the_step_is_cut(layout):
    """The same norm before clipping, and nothing left of a step in the next one."""
    recipe = Recipe(global_batch=4, steps=4, optimizer="sgd", lr=0.5, init_std=0.2, z_loss=1e-2)
    whole, cut = (build_engine(SHAPE, recipe, Layout(**each), Outer(), CPU) for each in ({}, layout))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        tokens = torch.randint(64, (4, 17), generator=generator)
        a, b = whole.train_step(tokens, 0.5), cut.train_step(tokens, 0.5)
        assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-6)
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-5)
        with torch.no_grad():
            counted = torch.tensor([True, False, True, True])
            a, b = whole.eval_loss(tokens, counted), cut.eval_loss(tokens, counted)
            assert a.item() == pytest.approx(b.item(), rel=1e-6)
