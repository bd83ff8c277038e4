"""Loss, FLOP conventions and learning rates against float64, torch's counter, hand counts and published figures."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from scalade.bench.flops import flops_per_token
from scalade.bench.loss import cross_entropy
from scalade.bench.model import Decoder, Seams
from scalade.bench.recipe import Recipe
from scalade.bench.shape import SIZES, ModelShape


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_the_formula_s(z_loss, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(3, 7, 33, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(33, (3, 7), generator=generator)
    optimised, reported = cross_entropy(logits, targets, z_loss)
    optimised.backward()
    exact = logits.detach().double().requires_grad_()
    lse = exact.exp().sum(-1).log()
    nll = (lse - exact.gather(-1, targets[..., None])[..., 0]).mean()
    (nll + z_loss * lse.square().mean()).backward()
    assert reported.item() == pytest.approx(nll.item(), rel=1e-6) and not reported.requires_grad
    assert optimised.item() == pytest.approx((nll + z_loss * lse.square().mean()).item(), rel=1e-6)
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-5}
    torch.testing.assert_close(logits.grad.double(), exact.grad, **tolerance)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[[1e4, 0.0, -1e4]]])
    optimised, reported = cross_entropy(logits, torch.tensor([[1]]), 1e-4)
    assert reported.item() == 1e4 and optimised.item() == pytest.approx(1e4 + 1e-4 * 1e8)


def matmul_attention(q, k, v):
    """Attention by two visible matrix products, without a mask: what `palm` counts."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(
    "change", [{}, {"kv_heads": 2}, {"mlp": "gelu", "tied": True}, {"layers": 5, "seq_len": 40}], ids=str
)
def test_conventions_against_the_flops_torch_counts(change):
    shape = ModelShape(**dict(layers=2, heads=4, kv_heads=4, width=32, ffn=80, vocab=64, seq_len=24) | change)
    model = Decoder(shape, seams=Seams(attend=matmul_attention))
    torch.nn.init.uniform_(model.embedding.weight)
    model.set_positions(torch.arange(shape.seq_len))
    tokens = torch.zeros(3, shape.seq_len, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(tokens), tokens)[0].backward()
    counted = counter.get_total_flops() / tokens.numel()
    flops = flops_per_token(shape)
    attention = 12 * shape.layers * shape.width * shape.seq_len
    assert counted == 6 * shape.params_matmul + attention
    # causal: the lower triangle holds half of the scores (s (s + 1) / 2 of s^2, the diagonal let go).
    assert flops["causal"] == counted - attention / 2
    # palm counts 6 FLOPs for each weight of a norm, too, which no matrix product sees.
    norms = shape.params_total - shape.params_matmul - (0 if shape.tied else shape.vocab * shape.width)
    assert flops["palm"] == counted + 6 * norms


def test_causal_attention_by_hand():
    """Query p of s sees p keys: 2 d FLOPs for each score and 2 d for its value, forward once and backward twice."""
    shape = ModelShape(layers=3, heads=4, kv_heads=4, width=32, ffn=80, vocab=64, seq_len=4096)
    d = shape.head_dim
    total = sum(3 * 4 * d * p for p in range(1, shape.seq_len + 1)) * shape.heads * shape.layers
    counted = flops_per_token(shape)["causal"] - 6 * shape.params_matmul
    assert counted == pytest.approx(total / shape.seq_len, rel=1 / shape.seq_len)


def test_published_training_flops():
    gpt3 = ModelShape(**{"kv_heads": 96} | SIZES["gpt3-175b"])
    assert flops_per_token(gpt3)["6n"] * 300e9 == pytest.approx(3.14e23, rel=0.01)  # arXiv 2005.14165, table D.1
    llama = ModelShape(**SIZES["llama3-405b"])
    assert flops_per_token(llama)["6n"] * 15.6e12 == pytest.approx(3.8e25, rel=0.01)  # arXiv 2407.21783, section 3.2
    # Megatron-LM (arXiv 2104.04473) eq. 3 without recomputation: 72 B s l h^2 (1 + s/6h + V/12lh) per batch.
    h, s, layers, vocab = gpt3.width, gpt3.seq_len, gpt3.layers, gpt3.vocab
    megatron = 72 * layers * h**2 * (1 + s / (6 * h) + vocab / (12 * layers * h))
    attention = 6 * layers * h * s
    assert flops_per_token(gpt3)["causal"] + attention == pytest.approx(megatron, rel=1e-9)


@st.composite
def recipes(draw, schedules=("cosine", "wsd", "constant")):
    steps = draw(st.integers(1, 300))
    return Recipe(
        global_batch=1,
        steps=steps,
        lr=draw(st.floats(1e-6, 10)),
        lr_schedule=draw(st.sampled_from(schedules)),
        warmup_steps=draw(st.integers(0, steps)),
        decay_fraction=draw(st.floats(0, 1)),
        min_lr_ratio=draw(st.floats(0, 1)),
    )


@given(recipes())
def test_learning_rate_rises_linearly_to_the_peak_then_never_again(recipe):
    rates = [recipe.lr_at(step) for step in range(recipe.steps)]
    warm = recipe.warmup_steps
    assert rates[:warm] == pytest.approx([recipe.lr * (i + 1) / warm for i in range(warm)])
    tail = rates[max(0, warm - 1) :]
    slack = 1e-12 * recipe.lr
    assert all(a >= b - slack for a, b in zip(tail, tail[1:], strict=False))
    assert all(recipe.lr * recipe.min_lr_ratio - slack <= rate <= recipe.lr + slack for rate in rates[warm:])
    if recipe.lr_schedule == "constant":
        assert set(rates[warm:]) <= {recipe.lr}


@given(recipes(("cosine", "wsd")))
def test_decaying_rates_end_exactly_at_the_ratio(recipe):
    assume(recipe.warmup_steps < recipe.steps)
    assert recipe.lr_at(recipe.steps - 1) == pytest.approx(recipe.lr * recipe.min_lr_ratio, abs=1e-12)


@given(recipes(("wsd",)))
def test_wsd_decays_in_equal_steps_over_its_part_and_never_jumps(recipe):
    assume(recipe.warmup_steps < recipe.steps)
    rates = [recipe.lr, *(recipe.lr_at(step) for step in range(recipe.warmup_steps, recipe.steps))]
    falls = [a - b for a, b in zip(rates, rates[1:], strict=False)]
    span = max(1, min(round(recipe.decay_fraction * recipe.steps), recipe.steps - recipe.warmup_steps))
    each = recipe.lr * (1 - recipe.min_lr_ratio) / span
    assert falls[-span:] == pytest.approx([each] * span, abs=1e-9 * recipe.lr)
    assert falls[:-span] == pytest.approx([0] * (len(falls) - span), abs=1e-9 * recipe.lr)


def test_cosine_is_half_way_in_the_middle():
    recipe = Recipe(global_batch=1, steps=110, warmup_steps=10, lr=2.0, min_lr_ratio=0.5)
    assert recipe.lr_at(9) == 2.0 and recipe.lr_at(59) == pytest.approx(1.5)
    assert recipe.lr_at(34) == pytest.approx(1 + 0.5 * (1 + math.cos(math.pi / 4)))


def test_a_beta_of_one_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match=r"recipe.beta2 = 1: adamw needs less than 1"):
        Recipe(global_batch=1, steps=1, beta2=1)
    assert Recipe(global_batch=1, steps=1, optimizer="sgd", beta2=1)
