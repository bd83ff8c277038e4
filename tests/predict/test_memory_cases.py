"""Predicted memory against the published figures of Megatron-LM and against what torch really keeps."""

import csv
from itertools import product

import pytest
from places import ROOT

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import payload_bytes
from scalade.parallelism.layout import RECOMPUTE, SCHEDULES, V_SHAPED, Layout, stage_layers, stages_of_rank
from scalade.parallelism.predict.activations import layer_elements as _elements
from scalade.parallelism.predict.configs import from_cases
from scalade.parallelism.predict.memory import GIB
from scalade.parallelism.predict.memory import memory_of_case as predict

PUBLISHED = ROOT.parent / "shared" / "published" / "korthikanti_2205_memory.csv"
S = 2048
# arXiv 2205.05198, Table 3: layers, heads, width, pp, interleaving m, global batch, microbatch; tp 8 throughout.
TABLE_3 = {
    "22B": (48, 64, 6144, 1, 1, 4, 4),
    "175B": (96, 96, 12288, 8, 3, 64, 1),
    "530B": (105, 128, 20480, 35, 3, 280, 1),
    "1T": (128, 160, 25600, 64, 1, 512, 1),
}


def published(metric: str, mode: str) -> dict[str, float]:
    if not PUBLISHED.exists():
        pytest.skip(f"the published figures are not here: {PUBLISHED}")
    with PUBLISHED.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == metric and row["mode"] == mode]
    found = {row["model"]: float(row["value"]) for row in rows}
    assert found.keys() == TABLE_3.keys()
    return found


def megatron(model: str, vocab: int, **layout):
    layers, heads, width, pp, m, batch, micro = TABLE_3[model]
    shape = ModelShape(layers, heads, heads, width, 4 * width, vocab, S, mlp="gelu")
    schedule = {"pp_schedule": "Interleaved1F1B", "virtual_stages": m} if m > 1 else {}
    split = Layout(tp=8, pp=pp, microbatches=batch // micro, **schedule, **layout)
    return shape, predict(shape, Recipe(global_batch=batch, steps=1, precision="bf16"), split)


@pytest.mark.parametrize("model", TABLE_3)
def test_weights_gradients_and_optimizer_as_published(model):
    """18 bytes a parameter; they count the layers' matrices only, so the vocabulary is made as small as it can be."""
    _, memory = megatron(model, vocab=8)
    found = (memory.state + memory.copies) / GIB
    assert found == pytest.approx(published("params+optimizer", "any")[model], rel=1e-3)


@pytest.mark.parametrize("model", TABLE_3)
def test_activations_as_published(model):
    """They keep two dropout masks, 2 of 34 bytes; ours has none. Their figure leaves out the final norm."""
    _, memory = megatron(model, vocab=8)
    expected = published("activations", "SP+selective")[model]
    assert memory.activations * 34 / 32 / GIB == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("model", TABLE_3)
@pytest.mark.parametrize(
    ("mode", "recompute", "sp", "masks"),
    [("TP+selective", "none", False, 2), ("TP+SP+selective", "none", True, 2 / 8), ("full", "full", False, 0)],
)
def test_shares_of_the_baseline_as_published(model, mode, recompute, sp, masks):
    """Figure 7: bytes of one layer over those of the tensor-parallel baseline, 10 + 24/t + 5 a s/(h t)."""
    _, heads, width, *_ = TABLE_3[model]
    shape, _ = megatron(model, vocab=8)
    common, split = layer_elements(shape, recompute)
    ours = 2 * (common / (8 if sp else 1) + split / 8) / width + masks
    share = 100 * ours / (10 + 24 / 8 + 5 * heads * S / (width * 8))
    assert share == pytest.approx(published("activation memory % of TP baseline", mode)[model], abs=0.15)


def test_one_layer_is_what_the_docstring_says():
    shape = ModelShape(layers=2, heads=8, kv_heads=8, width=64, ffn=256, vocab=32, seq_len=16, mlp="gelu")
    assert sum(layer_elements(shape)) * 2 == 32 * 64
    kept = {recompute: sum(layer_elements(shape, recompute)) for recompute in ("none", "selective", "full")}
    assert kept["none"] > kept["selective"] > kept["full"] == 64


SHAPES = [
    ModelShape(layers, heads=4, kv_heads=kv, width=128, ffn=320, vocab=256, seq_len=64, mlp=mlp, qk_norm=qk, tied=tied)
    for layers, kv, mlp, qk, tied in product((2, 6), (4, 2), ("swiglu", "gelu"), (False, True), (True, False))
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_torch_keeps_for_the_backward_pass(precision, monkeypatch):
    """Every tensor saved by autograd, by storage, without the parameters. CPU: RMSNorm is not one kernel."""
    torch = pytest.importorskip("torch")
    from scalade.bench.loss import cross_entropy
    from scalade.bench.model import Decoder

    monkeypatch.setattr("scalade.bench.model.SHORT", 0)  # attention in the compute dtype, as on a GPU
    for shape in SHAPES:
        model = Decoder(shape, precision)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        model.set_positions(torch.arange(shape.seq_len))
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor, kept=kept, own=own):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        tokens = torch.randint(shape.vocab, (8, shape.seq_len + 1))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        measured = sum(count for count, _ in kept.values())
        recipe = Recipe(global_batch=8, steps=1, precision=precision)
        memory = predict(shape, recipe, Layout(), fused_norm=False)
        # bf16 copies of the weights are saved too; what the backward pass of the loss adds is not yet there.
        vocab = 8 * shape.seq_len * shape.vocab
        backward = vocab * (4 if precision == "fp32" else 8)
        predicted = memory.activations + memory.logits - backward + memory.copies
        assert predicted == pytest.approx(measured, rel=0.06), shape


def test_state_is_what_adamw_keeps():
    torch = pytest.importorskip("torch")
    from scalade.bench.model import Decoder

    for shape in SHAPES[:4]:
        model = Decoder(shape)
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter).grad = torch.ones_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        optimizer.step()
        kept = sum(p.nbytes + p.grad.nbytes for p in model.parameters())
        kept += sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
        assert predict(shape, Recipe(global_batch=4, steps=1), Layout()).state == kept == 16 * shape.params_total


SHAPE = ModelShape(layers=24, heads=8, kv_heads=8, width=64, ffn=256, vocab=256, seq_len=64)
RECIPE = Recipe(global_batch=64, steps=1)


@pytest.mark.parametrize("split", ["dp_shard", "tp", "pp"])
def test_splitting_the_parameters_splits_the_state(split):
    whole = predict(SHAPE, RECIPE, Layout()).state
    layout = {"microbatches": 8} if split == "pp" else {}
    for ways in (2, 4, 8):
        part = predict(SHAPE, RECIPE, Layout(**{split: ways}, **layout)).state
        assert whole / ways * 0.999 <= part < whole / ways * 1.2


def test_data_parallelism_splits_activations_and_not_the_state():
    one, four = predict(SHAPE, RECIPE, Layout()), predict(SHAPE, RECIPE, Layout(dp_replicate=4))
    assert four.state == one.state and four.activations == one.activations // 4


def test_microbatches_alive():
    def layers(**layout):
        one = predict(SHAPE, RECIPE, Layout(microbatches=16)).activations - final_norm
        return predict(SHAPE, RECIPE, Layout(pp=4, microbatches=16, **layout)).activations / one * SHAPE.layers

    final_norm = 64 / 16 * 64 * 2 * 64 * 4  # tokens x 2 width x bytes
    assert layers() == pytest.approx(24)  # 1F1B: pp microbatches of layers/pp
    assert layers(pp_schedule="GPipe") == pytest.approx(16 * 6, rel=2e-3)  # last rank: final norm
    interleaved = layers(pp_schedule="Interleaved1F1B", virtual_stages=2)
    assert interleaved == pytest.approx(24 * (1 + 3 / (4 * 2)))  # arXiv 2205.05198, section 4.2.3
    assert layers(pp_schedule="ZBVZeroBubble", virtual_stages=2) == pytest.approx(24, rel=0.02)  # final norm on rank 0


def test_stages_hold_every_layer_once():
    for layers, pp, v in product((7, 8, 24), (2, 3), (1, 2)):
        parts = stage_layers(layers, pp * v)
        assert [layer for part in parts for layer in part] == list(range(layers))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for schedule in SCHEDULES:
            layout = Layout(pp=pp, virtual_stages=v, pp_schedule=schedule)
            if schedule not in V_SHAPED or v == 2:
                held = [stage for rank in range(pp) for stage in stages_of_rank(rank, layout)]
                assert sorted(held) == list(range(pp * v))


def test_diloco_adds_its_own_copies():
    plain = predict(SHAPE, RECIPE, Layout())
    outer = predict(SHAPE, RECIPE, Layout(), Outer(algorithm="diloco", replicas=2))
    assert outer.state == plain.state + 12 * SHAPE.params_total  # outer parameters, momentum, message
    folded = predict(SHAPE, RECIPE, Layout(), Outer(algorithm="diloco", replicas=2, placement="folded"))
    # A second replica's weights and AdamW state, and the vector that is added to the message.
    assert folded.state == outer.state + (12 + 4) * SHAPE.params_total
    sparse = Outer(algorithm="diloco", replicas=2, compression="topk")
    # No momentum; the vector at work, the sum and the residual, and both replicas' messages.
    messages = 2 * payload_bytes(sparse, SHAPE.params_total)
    expected = plain.state + 16 * SHAPE.params_total + messages  # but for a last block that is not full
    assert predict(SHAPE, RECIPE, Layout(), sparse).state == pytest.approx(expected, rel=1e-4)
    assert outer.activations == plain.activations // 2  # replicas share the global batch


@pytest.mark.parametrize(("beta1", "count"), [(0.9, 12), (0.0, 8)])
def test_sgd_keeps_a_momentum_where_it_has_one(beta1, count):
    recipe = Recipe(global_batch=64, steps=1, optimizer="sgd", beta1=beta1)
    memory = predict(SHAPE, recipe, Layout())
    assert memory.state == count * SHAPE.params_total and memory.temporaries == 0


def test_sequence_and_loss_parallel():
    one, both = predict(SHAPE, RECIPE, Layout()), predict(SHAPE, RECIPE, Layout(tp=4))
    no_sp, no_lp = (predict(SHAPE, RECIPE, Layout(tp=4, **{off: False})) for off in ("sp", "loss_parallel"))
    assert both.activations == one.activations // 4 and both.logits == one.logits // 4
    common, split = layer_elements(SHAPE)
    final_norm = 2 * SHAPE.width
    each = 64 * 64 * 4 * (SHAPE.layers * (common + split / 4) + final_norm)
    assert no_sp.activations == each and no_lp.logits == one.logits and no_lp.activations == both.activations


def test_fsdp_gathers_two_layers_and_the_ends_or_everything():
    layouts = (Layout(dp_shard=4, reshard_after_forward=reshard) for reshard in (False, True))
    whole, two = (predict(SHAPE, RECIPE, layout).copies for layout in layouts)
    assert whole == 4 * SHAPE.params_total
    assert two == 4 * (2 * SHAPE.params_layer + SHAPE.params_embedding + SHAPE.width)
    assert predict(SHAPE, RECIPE, Layout(dp_replicate=4)).copies == 0


def test_gpipe_keeps_the_logits_of_all_microbatches():
    shape = ModelShape(layers=2, heads=2, kv_heads=2, width=16, ffn=32, vocab=50_000, seq_len=64)  # logits dominate
    one_by_one, all_at_once = (
        predict(shape, RECIPE, Layout(pp=2, microbatches=8, pp_schedule=name)).logits for name in ("1F1B", "GPipe")
    )
    each = 64 // 8 * 64 * 50_000
    assert one_by_one == each * (4 + 4 + 4) and all_at_once == each * (8 * (4 + 4) + 4)


def test_muon_keeps_one_momentum_of_the_blocks_matrices():
    memory = predict(SHAPE, Recipe(global_batch=64, steps=1, optimizer="muon"), Layout())
    vectors = SHAPE.layers * (2 * SHAPE.width + (2 * SHAPE.head_dim if SHAPE.qk_norm else 0))
    hidden = SHAPE.layers * SHAPE.params_layer - vectors
    assert memory.optimizer == pytest.approx(8 * SHAPE.params_total - 4 * hidden, abs=1)


def layer_elements(shape: ModelShape, recompute: str = "none") -> tuple[float, float]:
    configs = from_cases([(shape, RECIPE, Layout(), Outer())])
    return tuple(float(each[0]) for each in _elements(configs, RECOMPUTE.index(recompute)))
