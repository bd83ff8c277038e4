"""What the megatron engine refuses and why, and where it finds canonical weights in Megatron's. Needs no Megatron."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.engines import refuse
from scalade.parallelism.layout import Layout
from scalade.parallelism.megatron.weights import _pieces

SHAPE = ModelShape(layers=4, heads=8, kv_heads=4, width=64, ffn=96, vocab=256, seq_len=32)
LOOPED = {"pp": 2, "virtual_stages": 2, "pp_schedule": "Interleaved1F1B"}
REFUSED = [
    ({}, {"optimizer": "muon"}, "optimizer muon is not megatron's here, which has adamw, sgd"),
    (
        {},
        {"optimizer": "sgd"},
        "megatron's SGD adds weight decay to the gradient, this recipe takes it off the "
        "weights: set recipe.weight_decay = 0",
    ),
    (
        {"dp_shard": 2, "zero_stage": 1},
        {"optimizer": "sgd", "weight_decay": 0.0},
        "megatron's distributed optimizer knows Adam only: with sgd use dp_replicate",
    ),
    ({}, {"z_loss": 1e-4}, "megatron's loss has no z-loss: set recipe.z_loss = 0"),
    ({"dp_shard": 2}, {}, "zero_stage 3: megatron's distributed optimizer shards optimizer state: set zero_stage = 1"),
    ({"dp_shard": 2, "zero_stage": 1, "hpz": 2}, {}, "hpz is deepspeed's"),
    ({"offload_optimizer": "cpu"}, {}, "offload_optimizer and offload_parameters are deepspeed's"),
    (
        {"tp": 2, "loss_parallel": False},
        {},
        "megatron's loss is always split over the vocabulary: leave loss_parallel out",
    ),
    ({"compile": True}, {}, "compile is torch's: megatron brings fused kernels of its own"),
    (
        {"cp": 2},
        {},
        "megatron's context parallel needs Transformer Engine's attention, which this engine does not "
        "drive: use cp with torch",
    ),
    ({"pp": 2, "pp_schedule": "GPipe"}, {}, "GPipe is not megatron's, which has 1F1B, Interleaved1F1B"),
    (LOOPED, {}, "Interleaved1F1B requires microbatches a multiple of pp = 2, found 1"),
]


@pytest.mark.parametrize(("layout", "recipe", "reason"), REFUSED, ids=[reason[:40] for *_, reason in REFUSED])
def test_refusals_say_what_to_do(layout, recipe, reason):
    assert refuse(Layout(engine="megatron", **layout), SHAPE, Recipe(16, 10, **recipe)) == reason


def test_a_layout_it_can_do_is_let_pass():
    assert refuse(Layout(engine="megatron", **LOOPED, tp=2, microbatches=4), SHAPE, Recipe(16, 10)) is None


@settings(max_examples=25, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4]),
    groups=st.integers(1, 2),
    queries=st.integers(1, 3),
    half=st.integers(1, 3),
    rest=st.integers(1, 3),
    swiglu=st.booleans(),
)
def test_pieces_are_megatrons_interleaving_and_come_back(tp, groups, queries, half, rest, swiglu):
    """Against the layout as Megatron's documentation has it, put together by hand."""
    kv, d = groups * tp, 2 * half
    shape = ModelShape(
        layers=1,
        heads=kv * queries,
        kv_heads=kv,
        width=kv * queries * d,
        ffn=rest * tp,
        vocab=5 * tp,
        seq_len=4,
        mlp="swiglu" if swiglu else "gelu",
    )
    whole = {
        "attention.wq": (shape.width, shape.width),
        "attention.wk": (kv * d, shape.width),
        "attention.wv": (kv * d, shape.width),
        "attention.wo": (shape.width, shape.width),
        "mlp.gate": (shape.ffn, shape.width),
        "mlp.up": (shape.ffn, shape.width),
        "mlp.down": (shape.width, shape.ffn),
        "embedding": (shape.vocab, shape.width),
        "norm": (shape.width,),
    }
    whole = {f"{name}.weight": torch.randn(size) for name, size in whole.items()}
    q, k, v = (whole[f"attention.{name}.weight"].unflatten(0, (kv, -1)) for name in ("wq", "wk", "wv"))
    qkv = torch.cat([q, k, v], dim=1).flatten(0, 1).chunk(tp)
    gate, up = (whole[f"mlp.{name}.weight"].chunk(tp) for name in ("gate", "up"))
    locals_ = {
        "attention.wqkv": qkv,
        "attention.wo": whole["attention.wo.weight"].chunk(tp, dim=1),
        "mlp.down": whole["mlp.down.weight"].chunk(tp, dim=1),
        "embedding": whole["embedding.weight"].chunk(tp),
        "mlp.gate_up" if swiglu else "mlp.up": [torch.cat(g) for g in zip(gate, up, strict=True)] if swiglu else up,
        "norm": [whole["norm.weight"]] * tp,
    }
    covered = {name: torch.zeros(tensor.shape) for name, tensor in whole.items()}
    for name, parts in locals_.items():
        for rank, wanted in enumerate(parts):
            built = torch.full(wanted.shape, torch.nan)
            for piece in _pieces(f"{name}.weight", wanted, shape, tp, rank):
                assert piece.whole == tuple(whole[piece.name].shape)
                piece.put(piece.of(whole[piece.name]), built)
                assert torch.equal(piece.take(wanted), piece.of(whole[piece.name]))
                piece.of(covered[piece.name]).add_(1)
            assert torch.equal(built, wanted)
    for name, times in covered.items():
        wanted = tp if name == "norm.weight" else 0 if name == "mlp.gate.weight" and not swiglu else 1
        assert torch.equal(times, torch.full(times.shape, float(wanted)))
