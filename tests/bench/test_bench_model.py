"""The model against a plain float64 one written here: logits, gradients, parameter counts, bf16, RMSNorm."""

import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scalade.bench.init import fill
from scalade.bench.loss import cross_entropy
from scalade.bench.model import Decoder, RMSNorm, rotate
from scalade.bench.shape import SIZES, ModelShape, name_of

BASE = dict(layers=3, heads=4, kv_heads=4, width=32, ffn=48, vocab=19, seq_len=11)
SHAPES = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "one kv head, qk norm": {"kv_heads": 1, "qk_norm": True},
    "gelu, tied": {"mlp": "gelu", "tied": True},
    "long wavelengths, large eps": {"rope_theta": 5e5, "norm_eps": 0.1, "qk_norm": True},
    "one layer, one head": {"layers": 1, "heads": 1, "kv_heads": 1},
}


def built(shape: ModelShape, precision: str = "fp32") -> Decoder:
    """Start values large enough that every nonlinearity bends; norms away from one."""
    model = Decoder(shape, precision)
    for name, parameter in model.named_parameters():
        fill(parameter.detach(), name, parameter.shape, (0,) * parameter.ndim, 0, shape.layers, 0.3)
        if parameter.ndim == 1:
            with torch.no_grad():
                parameter += torch.linspace(-0.5, 0.5, len(parameter))
    model.set_positions(torch.arange(shape.seq_len))
    return model


def tokens_of(shape: ModelShape, batch: int = 2) -> torch.Tensor:
    return torch.randint(shape.vocab, (batch, shape.seq_len), generator=torch.Generator().manual_seed(0))


def reference(weights: dict[str, torch.Tensor], shape: ModelShape, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (b, s, vocab), one position and one head at a time, in the dtype of the weights."""
    d, group = shape.width // shape.heads, shape.heads // shape.kv_heads

    def norm(x, weight):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + shape.norm_eps) * weight

    def rope(x, position):  # x: (b, d); pair (j, j + d/2) turns by position * theta^(-2j/d)
        out = []
        for j in range(d // 2):
            angle = position * shape.rope_theta ** (-2 * j / d)
            a, b = x[:, j], x[:, j + d // 2]
            out.append((a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)))
        return torch.stack([first for first, _ in out] + [second for _, second in out], dim=-1)

    x = weights["embedding.weight"][tokens]
    for layer in range(shape.layers):
        w = {k.removeprefix(f"blocks.{layer}."): v for k, v in weights.items() if k.startswith(f"blocks.{layer}.")}
        h = norm(x, w["attention_norm.weight"])
        q, k, v = (h @ w[f"attention.w{name}.weight"].T for name in "qkv")
        heads = []
        for head in range(shape.heads):

            def of(t, i, kind, w=w):
                t = t[..., i * d : (i + 1) * d]
                return norm(t, w[f"attention.{kind}_norm.weight"]) if shape.qk_norm else t

            qh, kh = of(q, head, "q"), of(k, head // group, "k")
            vh = v[..., head // group * d : (head // group + 1) * d]
            qh, kh = (torch.stack([rope(t[:, p], p) for p in range(shape.seq_len)], dim=1) for t in (qh, kh))
            out = []
            for p in range(shape.seq_len):
                scores = (kh[:, : p + 1] @ qh[:, p, :, None])[..., 0] / math.sqrt(d)
                weight = torch.exp(scores - scores.max(-1, keepdim=True).values)
                out.append((weight[..., None] * vh[:, : p + 1]).sum(1) / weight.sum(-1, keepdim=True))
            heads.append(torch.stack(out, dim=1))
        x = x + torch.cat(heads, dim=-1) @ w["attention.wo.weight"].T
        h = norm(x, w["mlp_norm.weight"])
        up = h @ w["mlp.up.weight"].T
        if shape.mlp == "gelu":
            hidden = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        else:
            gate = h @ w["mlp.gate.weight"].T
            hidden = gate / (1 + torch.exp(-gate)) * up
        x = x + hidden @ w["mlp.down.weight"].T
    x = norm(x, weights["norm.weight"])
    return x @ weights["embedding.weight" if shape.tied else "head.weight"].T


def weights_of(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_are_those_of_the_plain_model(change):
    shape = ModelShape(**BASE | change)
    model, tokens = built(shape), tokens_of(shape)
    weights, targets = weights_of(model), tokens.roll(-1, 1)
    expected = reference(weights, shape, tokens)
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    loss = loss + 1e-2 * torch.logsumexp(expected, -1).square().mean()
    loss.backward()
    found = model(tokens)
    assert expected.std() > 0.5, "too tame to tell"
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    optimised, _ = cross_entropy(found, targets, z_loss=1e-2)
    optimised.backward()
    assert optimised.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        size = weights[name].grad.norm()
        assert size > 0, f"{name} has no effect"
        assert (parameter.grad.double() - weights[name].grad).norm() < 1e-4 * size, name


def test_no_token_sees_a_later_one():
    shape = ModelShape(**BASE)
    model, tokens = built(shape), tokens_of(shape)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % shape.vocab
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(dim=(0, 2)).min() > 1e-4  # and every later one does see it


def test_rope_knows_distances_only():
    x, y = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    model = Decoder(ModelShape(**BASE | {"width": 64, "seq_len": 8}))

    def score(first: int, second: int) -> float:
        turned = []
        for vector, position in ((x, first), (y, second)):
            model.set_positions(torch.tensor([position]))
            turned.append(rotate(vector, model.cos, model.sin))
        return (turned[0] * turned[1]).sum().item()

    assert score(5, 2) == pytest.approx(score(103, 100), abs=1e-4)
    assert abs(score(5, 2) - score(5, 4)) > 1e-2
    assert score(100_003, 100_000) == pytest.approx(score(3, 0), abs=1e-4)  # far positions keep their angle


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_counts_of_parameters_are_those_built(change):
    shape = ModelShape(**BASE | change)
    with torch.device("meta"):
        model = Decoder(shape)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert shape.params_total == sum(sizes.values())
    embedding = sum(size for name, size in sizes.items() if name in ("embedding.weight", "head.weight"))
    assert shape.params_embedding == embedding
    assert shape.params_non_embedding == sum(sizes.values()) - embedding
    assert shape.params_layer == sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name != "embedding.weight")
    assert shape.params_matmul == matrices + (sizes["embedding.weight"] if shape.tied else 0)


# N of the whole model, from the papers' tables and model cards.
PUBLISHED = {
    "llama3-8b": 8.03e9,
    "llama3-70b": 70.6e9,
    "llama3-405b": 405.9e9,
    "gpt3-175b": 174.6e9,
    "gpt2-xl": 1.556e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_sizes_have_the_published_parameters(name):
    size = {"kv_heads": SIZES[name]["heads"]} | SIZES[name]
    # Learned positions and biases of the GPTs are not ours: well below 1% of them.
    assert ModelShape(**size).params_total == pytest.approx(PUBLISHED[name], rel=0.01)


COUNTS = {"k": 1e3, "m": 1e6, "b": 1e9}


@pytest.mark.parametrize("name", [name for name in SIZES if re.search(r"[\d.]+[mb]$", name) and name[:4] != "tiny"])
def test_a_size_s_name_is_its_count(name):
    """At the vocabulary that the size itself pins, within 5%."""
    promised, unit = re.search(r"([\d.]+)([mb])$", name).groups()
    shape = ModelShape(**{"kv_heads": SIZES[name]["heads"]} | SIZES[name])
    assert shape.params_total == pytest.approx(float(promised) * COUNTS[unit], rel=0.05)


def test_one_name_is_one_shape():
    shapes = {
        name: ModelShape(**{"kv_heads": size["heads"], "vocab": 256, "seq_len": 64} | size)
        for name, size in SIZES.items()
    }
    assert len({replace(shape, seq_len=64) for shape in shapes.values()}) == len(SIZES)
    for name, shape in shapes.items():
        assert name_of(shape, name) == name
        changes = dict(layers=shape.layers + 1, ffn=8, vocab=999, qk_norm=not shape.qk_norm, kv_heads=1)
        changes |= {} if name.startswith("tiny") else {"tied": not shape.tied}
        for field, value in changes.items():
            assert name_of(replace(shape, **{field: value}), name) == f"{name},{field}={value}"


def test_a_shape_without_a_size_is_named_by_all_that_counts():
    shape = ModelShape(layers=8, heads=8, kv_heads=4, width=64, ffn=128, vocab=256, seq_len=32)
    assert name_of(shape) == "8x64.h8kv4.f128" and name_of(replace(shape, kv_heads=8)) == "8x64.h8.f128"
    assert name_of(replace(shape, mlp="gelu", vocab=99)) == "8x64.h8kv4.f128,mlp=gelu,vocab=99"


def test_named_sizes_are_built_as_counted():
    for name, size in SIZES.items():
        shape = ModelShape(**{"kv_heads": size["heads"], "vocab": 256, "seq_len": 64} | size)
        with torch.device("meta"):
            built = sum(p.numel() for p in Decoder(shape).parameters())
        assert built == shape.params_total, name


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_bf16_stays_close_to_fp32(change):
    shape = ModelShape(**BASE | change)
    exact, rough, tokens = built(shape), built(shape, "bf16"), tokens_of(shape, 8)
    losses = []
    for model in (exact, rough):
        logits = model(tokens)
        loss, reported = cross_entropy(logits, tokens.roll(-1, 1))
        assert loss.dtype == reported.dtype == torch.float32
        loss.backward()
        losses.append(loss.item())
    assert logits.dtype == torch.bfloat16
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
    for (name, a), b in zip(exact.named_parameters(), rough.parameters(), strict=True):
        assert b.dtype == b.grad.dtype == torch.float32  # master weights
        assert F.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.98, name


def test_rms_norm_in_bf16_sums_in_fp32():
    norm = RMSNorm(4096, 1e-5)
    torch.nn.init.ones_(norm.weight)
    x = torch.full((1, 4096), 1.0).bfloat16()
    x[0, 0] = 30.0  # 4095 + 900: a sum in bf16 would stick at 256
    expected = x.double() / (x.double().square().mean() + 1e-5).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, rtol=2**-8, atol=0)


def test_a_part_of_the_model_is_that_part():
    """Pipeline stages, one after the other, are the model, by the same parameter names."""
    shape = ModelShape(**BASE | {"qk_norm": True})
    model, tokens = built(shape), tokens_of(shape)
    stages = [
        Decoder(shape, layers=[0], last=False),
        Decoder(shape, layers=[1], first=False, last=False),
        Decoder(shape, layers=[2], first=False),
    ]
    whole, names, x = dict(model.named_parameters()), [], tokens
    for stage in stages:
        names += [name for name, _ in stage.named_parameters()]
        stage.load_state_dict({name: whole[name] for name, _ in stage.named_parameters()})
        stage.set_positions(torch.arange(shape.seq_len))
        x = stage(x)
    assert sorted(names) == sorted(whole)
    assert torch.equal(x, model(tokens))
