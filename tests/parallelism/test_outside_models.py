"""Model, parameters and FLOPs against transformers' models, torch's counter, torchtitan's and Megatron's formulas.

Nothing is downloaded. Tolerances are those of fp32 sums in another order: differences are 1e-7 to 1e-6 of a tensor's
norm (run with `-rP` to see them), and the smallest fault looked for (an eps of 1e-6 for 1e-5) is 1e-4.
"""

import pytest
import torch
from outside_models import by_our_names, relative, start, their_loss, theirs
from torch.utils.flop_counter import FlopCounterMode

from scalade.bench.flops import flops_per_token
from scalade.bench.loss import cross_entropy
from scalade.bench.model import Decoder
from scalade.bench.shape import SIZES, ModelShape
from scalade.launch.study.key_reference import SOURCE_PARAMS

pytestmark = pytest.mark.outside
BASE = dict(layers=3, heads=4, kv_heads=4, width=48, ffn=80, vocab=61, seq_len=40)
SHAPES = {
    "Llama": {},
    "Llama, grouped queries": {"kv_heads": 2},
    "Llama, one key head, tied": {"kv_heads": 1, "tied": True},
    "Llama 3's wavelengths, large eps": {"rope_theta": 5e5, "norm_eps": 1e-2, "kv_heads": 2},
    "Qwen3": {"qk_norm": True, "kv_heads": 2},
    "Qwen3, tied": {"qk_norm": True, "kv_heads": 2, "tied": True, "norm_eps": 1e-6, "rope_theta": 1e6},
    "Arcee: the body of our gpt2": {"mlp": "gelu", "tied": True},
    "Apertus: the body of our diloco": {"mlp": "gelu", "qk_norm": True, "tied": True},
    "Apertus, untied": {"mlp": "gelu", "qk_norm": True, "kv_heads": 2},
}
NEAR = 1e-5


def both(change: dict) -> tuple[ModelShape, Decoder, torch.nn.Module, torch.Tensor]:
    """(shape, our model, theirs with the same weights, tokens (2, s + 1))"""
    shape = ModelShape(**BASE | change)
    ours, other = Decoder(shape), theirs(shape)
    for model in (ours, other):
        start(model, shape, 0.1)
    ours.set_positions(torch.arange(shape.seq_len))
    tokens = torch.randint(shape.vocab, (2, shape.seq_len + 1), generator=torch.Generator().manual_seed(0))
    return shape, ours, other, tokens


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_logits_loss_and_gradients_are_those_of_transformers(change):
    shape, ours, other, tokens = both(change)
    logits = ours(tokens[:, :-1])
    loss, _ = cross_entropy(logits, tokens[:, 1:])
    loss.backward()
    expected = other(input_ids=tokens[:, :-1]).logits
    assert expected.std() > 0.3, "too tame to tell"
    expected_loss = their_loss(other, tokens)
    expected_loss.backward()
    apart = relative(logits, expected), abs(loss.item() / expected_loss.item() - 1)
    named = by_our_names(other, shape)
    worst = max((relative(p.grad, named[name].grad), name) for name, p in ours.named_parameters())
    print(f"logits {apart[0]:.1e}, loss {apart[1]:.1e}, gradients at most {worst[0]:.1e} ({worst[1]})")
    assert max(*apart, worst[0]) < NEAR


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_parameters_are_as_many_as_in_transformers(change):
    shape = ModelShape(**BASE | change)
    assert shape.params_total == sum(p.numel() for p in theirs(shape).parameters())


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_flops_are_those_torch_counts_in_transformers(change):
    """Of their eager attention, which multiplies whole matrices and masks them afterwards.

    palm: what is counted, and 6 for each weight of a norm, which is no matrix product. causal: what is counted, less
    the upper half of the scores. 6n: no attention, but the norms, and an untied embedding's look-up as if multiplied.
    """
    shape = ModelShape(**BASE | change)
    model = theirs(shape, attention="eager")
    tokens = torch.zeros(2, shape.seq_len + 1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        their_loss(model, tokens).backward()
    counted = counter.get_total_flops() / (2 * shape.seq_len)
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    scores = 3 * 2 * 2 * shape.layers * shape.heads * shape.head_dim * shape.seq_len  # forward, backward twice
    looked_up = 0 if shape.tied else model.get_input_embeddings().weight.numel()
    assert flops_per_token(shape) == {
        "palm": counted + 6 * norms,
        "causal": counted - scores / 2,
        "6n": counted - scores + 6 * (norms + looked_up),
    }


def torchtitan(shape: ModelShape, model: torch.nn.Module) -> float:
    """torchtitan/models/utils.py at 01c01c88 (2026): 6 active parameters + 6 heads (d_qk + d_v) s in each layer.

    Active: all but an embedding that is not the head, too (`get_nparams_and_active_nparams`); the scores' two
    products forward and four backward are not halved for causality (`quadratic_attention_flops_per_token`).
    """
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    active = sum(p.numel() for p in model.parameters() if p is not embedding or embedding is head)
    return 6 * active + shape.layers * 6 * shape.heads * (shape.head_dim + shape.head_dim) * shape.seq_len


def megatron(shape: ModelShape) -> float:
    """megatron/training/training.py at 001b00c2 (2026), `transformer_flops`, of one token of a dense model.

    3 passes x 2 operations x (QKV and output projections, half of two products of scores, MLP, logits).
    """
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.width * (query + 2 * key) + query * shape.seq_len / 2 * 2 + query * shape.width
    mlp = (3 if shape.mlp == "swiglu" else 2) * shape.width * shape.ffn
    return 3 * 2 * (shape.layers * (attention + mlp) + shape.width * shape.vocab)


NAMED = {name: {"kv_heads": size["heads"], "vocab": 32_768, "seq_len": 2048} | size for name, size in SIZES.items()}


@pytest.mark.parametrize("size", ["tiny-300k", "diloco-35m", "gpt2-xl", "gpt3-175b", "llama3-8b", "llama3-405b"])
def test_flops_are_torchtitan_s_and_megatron_s(size):
    """palm is torchtitan's and causal is Megatron's, to the last FLOP."""
    shape = ModelShape(**NAMED[size])
    with torch.device("meta"):
        model = theirs(shape)
    flops = flops_per_token(shape)
    assert flops["palm"] == torchtitan(shape, model)
    assert flops["causal"] == megatron(shape)
    assert flops["6n"] == 6 * sum(p.numel() for p in model.parameters())


GPTS = {"gpt2": 1024, "gpt2-medium": 1024, "gpt2-large": 1024, "gpt2-xl": 1024, "gpt3-175b": 2048}  # positions
LLAMAS = ("llama3-8b", "llama3-70b", "llama3-405b")


@pytest.mark.parametrize("size", [*GPTS, *LLAMAS])
def test_counts_of_the_models_that_sizes_are_named_after(size):
    """Llama 3 is ours parameter by parameter; of the GPTs the size table gives both counts."""
    import transformers

    shape = ModelShape(**NAMED[size])
    with torch.device("meta"):
        if size in LLAMAS:
            assert sum(p.numel() for p in theirs(shape).parameters()) == shape.params_total
            return
        config = transformers.GPT2Config(
            n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, n_positions=GPTS[size]
        )
        counted = sum(p.numel() for p in transformers.GPT2LMHeadModel(config).parameters())
    assert counted == SOURCE_PARAMS[size] and shape.params_total == pytest.approx(counted, rel=0.01)


def test_llama_3_by_both_formulas():
    """8B at 8,192 tokens, worked out once by hand: N 8,030,261,248, of which 525,336,576 are looked up."""
    flops = flops_per_token(ModelShape(**SIZES["llama3-8b"]))
    assert flops == {"6n": 48_181_567_488, "palm": 57_914_449_920, "causal": 51_470_401_536}
