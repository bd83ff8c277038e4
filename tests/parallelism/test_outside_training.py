"""Training against transformers' models with torch's own optimizers, from the same weights, on the same batches.

What is compared: losses and gradient norms of 20 steps, the learning rates, DiLoCo's outer step, Muon. Tolerances:
fp32 sums in another order are 1e-7 apart at the first step, and AdamW's division by a small root carries that to
some 1e-7 in the losses and 1e-6 in the norms (run with `-rP` to see them). Muon orthogonalises in bf16, whose last
bit is 2^-8: 1e-2.
"""

import copy

import pytest
import torch
from outside_models import by_our_names, relative, their_loss, theirs

from scalade.bench.engine import LocalParameter
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout
from scalade.parallelism.mesh import build_mesh
from scalade.parallelism.optimizer import Optimizer

pytestmark = pytest.mark.outside
CPU = torch.device("cpu")
BASE = dict(layers=3, heads=4, kv_heads=2, width=48, ffn=96, vocab=64, seq_len=32)
SHAPES = {
    "Llama": {},
    "Qwen3, tied": {"qk_norm": True, "tied": True},
    "Apertus: the body of our diloco": {"mlp": "gelu", "qk_norm": True, "tied": True, "kv_heads": 4},
}
STEPS, BATCH = 20, 8
RECIPE = dict(
    global_batch=BATCH, steps=STEPS, lr=5e-3, warmup_steps=4, weight_decay=0.3, clip_norm=0.5, init_std=0.1, beta2=0.9
)
NEAR_LOSS, NEAR_NORM, NEAR_WEIGHTS = 5e-6, 5e-5, 5e-4


def batch(step: int) -> torch.Tensor:
    """(rows, s + 1): steps through the vocabulary, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    first = torch.randint(BASE["vocab"], (BATCH, 1), generator=generator)
    stride = torch.randint(1, 5, (BATCH, 1), generator=generator)
    return (first + stride * torch.arange(BASE["seq_len"] + 1)) % BASE["vocab"]


def same_weights(ours: torch.nn.Module, shape: ModelShape) -> torch.nn.Module:
    """Their model with our weights."""
    model = theirs(shape)
    named = by_our_names(model, shape)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            named[name].copy_(parameter)
    return model


def adamw(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Weight decay on matrices only, the embedding among them."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, foreach=False)


def their_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, recipe: Recipe):
    """(loss, gradient norm before clipping), 0-dim."""
    loss = their_loss(model, tokens)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm, foreach=False)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach(), norm


def worst(found: list[float], expected: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("layout", [{}, {"microbatches": 4}], ids=["", "accumulated"])
@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_twenty_steps_are_those_of_transformers_and_torch(change, layout):
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

    shape, recipe = ModelShape(**BASE | change), Recipe(**RECIPE)
    engine = build_engine(shape, recipe, Layout(**layout), Outer(), CPU)
    model = same_weights(engine.parts[0], shape)
    first = copy.deepcopy(model)
    optimizer = adamw(model, recipe)
    schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        optimizer, recipe.warmup_steps, STEPS, min_lr_rate=recipe.min_lr_ratio
    )
    ours, others = [], []
    for step in range(STEPS):
        output = engine.train_step(batch(step), recipe.lr_at(step))
        ours.append((output.loss.item(), output.grad_norm.item()))
        others.append([value.item() for value in their_step(model, optimizer, batch(step), recipe)])
        schedule.step()
    losses, norms = (worst(*pair) for pair in zip(zip(*ours, strict=True), zip(*others, strict=True), strict=True))
    named, before = by_our_names(model, shape), by_our_names(first, shape)
    moved = max(
        ((p - named[name]).norm() / (named[name] - before[name]).norm()).item()
        for name, p in engine.parts[0].named_parameters()
    )
    print(f"losses {losses:.1e}, gradient norms {norms:.1e}, weights {moved:.1e} of their way, in {STEPS} steps")
    assert others[-1][0] < 0.8 * others[0][0] and others[0][1] > recipe.clip_norm, "too tame to tell"
    assert losses < NEAR_LOSS and norms < NEAR_NORM and moved < NEAR_WEIGHTS


@pytest.mark.parametrize("warmup", [0, 7])
def test_learning_rates_are_those_of_transformers(warmup):
    from transformers import optimization as their

    def rates(make, *args, skip=0, **settings):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        schedule = make(optimizer, *args, **settings)
        found = []
        for _ in range(40 + skip):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found[skip:]

    def ours(**settings):
        recipe = Recipe(global_batch=1, steps=40, lr=0.3, min_lr_ratio=0.2, **settings)
        return [recipe.lr_at(step) for step in range(40)]

    cosine = rates(their.get_cosine_with_min_lr_schedule_with_warmup_lr_rate, warmup, 40, min_lr_rate=0.2)
    assert ours(warmup_steps=warmup) == pytest.approx(cosine, rel=1e-12)
    # Their first step of a linear warm-up has a rate of 0, ours 1/warmup: theirs a step later.
    constant = rates(their.get_constant_schedule_with_warmup, warmup, skip=1)
    assert ours(warmup_steps=warmup, lr_schedule="constant") == pytest.approx(constant, rel=1e-12)
    if not warmup:  # their warm-up of WSD begins at the floor, ours at 0
        wsd = rates(their.get_wsd_schedule, 0, 10, num_training_steps=40, decay_type="linear", min_lr_ratio=0.2, skip=1)
        assert ours(lr_schedule="wsd", decay_fraction=0.25) == pytest.approx(wsd, rel=1e-12)


OUTERS = {
    "diloco, the defaults": dict(algorithm="diloco"),
    "diloco, another rate and momentum": dict(algorithm="diloco", lr=0.9, momentum=0.6),
    "diloco, plain momentum": dict(algorithm="diloco", nesterov=False),
    "localsgd": dict(algorithm="localsgd"),
}


@pytest.mark.parametrize("settings", OUTERS.values(), ids=OUTERS)
def test_the_outer_step_is_torch_s_sgd_on_pseudo_gradients(settings):
    """Two replicas, H = 4: transformers' model and torch's AdamW inside, torch's SGD on the mean of theta - theta_m.

    LocalSGD is SGD with a rate of 1 and no momentum.
    """
    shape = ModelShape(**BASE)
    recipe = Recipe(**RECIPE)
    outer = Outer(replicas=2, sync_every=4, placement="folded", **settings)
    engine = build_engine(shape, recipe, Layout(), outer, CPU)
    theta = same_weights(engine.engines[0].parts[0], shape)
    replicas = [copy.deepcopy(theta) for _ in range(2)]
    inner = [adamw(model, recipe) for model in replicas]
    rate = 1.0 if outer.lr is None else outer.lr
    descent = torch.optim.SGD(
        theta.parameters(), lr=rate, momentum=outer.momentum or 0.0, nesterov=bool(outer.nesterov), foreach=False
    )
    ours, others = [], []
    for step in range(STEPS):
        lr = recipe.lr_at(step)
        output = engine.train_step(batch(step), lr)
        ours.append((output.loss.item(), output.grad_norm.item()))
        steps = []
        for m, (model, optimizer) in enumerate(zip(replicas, inner, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = lr
            steps.append(their_step(model, optimizer, batch(step)[m * 4 : m * 4 + 4], recipe))
        others.append([torch.stack(values).mean().item() for values in zip(*steps, strict=True)])
        if (step + 1) % 4 == 0:
            for whole, *parts in zip(theta.parameters(), *(model.parameters() for model in replicas), strict=True):
                whole.grad = sum(whole.detach() - part.detach() for part in parts) / 2
            descent.step()
            for model in replicas:
                model.load_state_dict(theta.state_dict())
    losses, norms = (worst(*pair) for pair in zip(zip(*ours, strict=True), zip(*others, strict=True), strict=True))
    named = by_our_names(theta, shape)
    apart = max(relative(value, named[name]) for name, value in engine.weights().items())
    print(f"losses {losses:.1e}, gradient norms {norms:.1e}, outer weights {apart:.1e}, in {STEPS} steps")
    assert losses < NEAR_LOSS and norms < NEAR_NORM and apart < NEAR_WEIGHTS


MATRICES = {"blocks.0.wide": (24, 72), "blocks.0.tall": (96, 32), "blocks.1.square": (48, 48)}


def published(gradients: list[torch.Tensor], momentum: float) -> torch.Tensor:
    """The direction after these gradients, in float64: Keller Jordan's muon.py at 00ba60d3, `muon_update`.

    B <- mu B + (1 - mu) G; of U = (1 - mu) G + mu B five times X <- a X + (b A + c A^2) X with A = X X^T, from
    X = U / |U|.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    kept = torch.zeros_like(gradients[0], dtype=torch.float64)
    for gradient in gradients:
        kept = momentum * kept + (1 - momentum) * gradient
    x = (1 - momentum) * gradients[-1] + momentum * kept
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def muon_steps(gradients: dict[str, list[torch.Tensor]], recipe: Recipe) -> dict[str, torch.Tensor]:
    """The last step of our Muon on weights of one, for each matrix."""
    weights = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in MATRICES.items()}
    parts = [(p, LocalParameter(name, p.detach(), 0, 1)) for name, p in weights.items()]
    optimizer = Optimizer(parts, recipe, build_mesh(Layout(), 1, "cpu"))
    for step in range(3):
        before = {name: p.detach().clone() for name, p in weights.items()}
        for name, parameter in weights.items():
            parameter.grad = gradients[name][step].clone()
        optimizer.step(recipe.lr)
    return {name: p.detach() - before[name] * (1 - recipe.lr * recipe.weight_decay) for name, p in weights.items()}


@pytest.mark.parametrize("momentum", [0.95, 0.6])
def test_muon_follows_the_published_iteration(momentum):
    """Its step is -lr 0.2 sqrt(max(rows, columns)) (arXiv 2502.16982, section 2.2) times the published direction."""
    generator = torch.Generator().manual_seed(0)
    gradients = {n: [torch.randn(s, generator=generator) for _ in range(3)] for n, s in MATRICES.items()}
    recipe = Recipe(global_batch=1, steps=3, optimizer="muon", beta1=momentum, lr=0.02, weight_decay=0.5, clip_norm=0)
    for name, step in muon_steps(gradients, recipe).items():
        found = step.double() / (-recipe.lr * 0.2 * max(step.shape) ** 0.5)
        apart = relative(found, published(gradients[name], momentum))
        print(f"Muon, {name}: {apart:.1e}")
        assert apart < 3e-2
        singular = torch.linalg.svdvals(found)
        assert 0.3 < singular.min() and singular.max() < 1.3  # made about one


@pytest.mark.parametrize("momentum", [0.95, 0.6])
def test_muon_is_torch_s(momentum):
    generator = torch.Generator().manual_seed(0)
    gradients = {n: [torch.randn(s, generator=generator) for _ in range(3)] for n, s in MATRICES.items()}
    recipe = Recipe(global_batch=1, steps=3, optimizer="muon", beta1=momentum, lr=0.02, weight_decay=0.5, clip_norm=0)
    steps = muon_steps(gradients, recipe)
    for name, each in gradients.items():
        weight = torch.nn.Parameter(torch.ones(MATRICES[name]))
        optimizer = torch.optim.Muon(
            [weight], lr=0.02, weight_decay=0.5, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        for gradient in each:
            before, weight.grad = weight.detach().clone(), gradient.clone()
            optimizer.step()
        torch.testing.assert_close(steps[name], weight.detach() - before * 0.99, rtol=1e-5, atol=1e-7)
