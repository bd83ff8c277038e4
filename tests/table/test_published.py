"""The shipped rows: typed as the table's, sourced, and consistent with what they print; and how ours are set beside."""

import pytest
from efficiency_table import run

from scalade.bench.flops import flops_per_token
from scalade.bench.shape import ModelShape
from scalade.results.published import CONVENTIONS, accelerator, against, published_rows
from scalade.results.schema.schema import checked_row, columns

OURS = {
    "device_name": "NVIDIA A100-SXM4-80GB",
    "precision": "fp16",
    "peak_flops": 312e12,
    "peak_flops_source": "datasheet",
    "mfu_palm": 0.28,
    "mfu_causal": 0.27,
    "mfu_6n": 0.29,
}
ROWS = published_rows()
PRINTED = {"palm": 1.0, "6 N + 12 L w s": 1.0, "hardware": 4 / 3}


def test_every_row_is_the_tables_and_has_a_source():
    for row in ROWS:
        ours = {name: value for name, value in row.items() if not name.startswith("published_")}
        identity = {
            "run_id": "p",
            "case_id": "p",
            "repeat": 0,
            "attempt": 1,
            "status": "ok",
            "step_rows": 0,
            "eval_rows": 0,
            "schema_version": 1,
        }
        assert checked_row("runs", identity | ours) and set(ours) <= set(columns("runs"))
        assert row["published_source"] and row["model"]
        assert row["published_date"] or "undated" in row["published_note"]
        assert row["published_flops"] in (None, "palm", "6 N + 12 L w s", "hardware", "not stated")
        assert (row["published_flops"] is None) == (row["published_utilization"] is None)
    sources = " ".join(row["published_source"] for row in ROWS)
    for name in ("Frontier", "MegaScale", "2104.04473", "2407.21783", "2204.02311", "torchtitan"):
        assert name in sources


def test_derived_columns_follow_from_the_printed_ones():
    """What the source prints as utilisation is what its step time, batch and shape give, under its convention."""
    seen = 0
    for row in ROWS:
        step, tokens, rate = row["step_time_s"], row["tokens_per_step"], row["tokens_per_s"]
        if step and tokens:
            assert rate == pytest.approx(tokens / step, rel=1e-2)
        if rate:
            assert row["tokens_per_s_per_device"] == pytest.approx(rate / row["world_size"], rel=1e-3)
        if row["mfu_palm"] is None or not rate:
            continue
        for name in ("6n", "palm", "causal"):
            done = row[f"flops_per_token_{name}"] * row["tokens_per_s_per_device"]
            assert row[f"mfu_{name}"] == pytest.approx(done / row["peak_flops"], abs=1e-4)
        if row["published_utilization"]:
            seen += 1
            counted = row["mfu_palm"] * PRINTED[row["published_flops"]]
            if row["published_flops"] == "6 N + 12 L w s":
                look_up = 6 * row["model_vocab"] * row["model_width"]
                counted += look_up * row["tokens_per_s_per_device"] / row["peak_flops"]
            assert counted == pytest.approx(row["published_utilization"], abs=0.01)
    assert seen >= 30


@pytest.mark.parametrize("model", ["GPT 22B", "GPT 175B", "Llama3 8B"])
def test_flops_are_those_of_our_own_models(model):
    row = next(row for row in ROWS if row["model"] == model and row["flops_per_token_palm"])
    gelu, tied = (False, False) if "Llama" in model else (True, True)
    shape = ModelShape(
        layers=row["model_layers"],
        heads=row["model_heads"],
        kv_heads=row["model_kv_heads"],
        width=row["model_width"],
        ffn=row["model_ffn"],
        vocab=row["model_vocab"],
        seq_len=row["model_seq_len"],
        mlp="gelu" if gelu else "swiglu",
        tied=tied,
    )
    for name, flops in flops_per_token(shape).items():
        assert row[f"flops_per_token_{name}"] == pytest.approx(flops, rel=3e-3)  # biases, learned positions


def test_the_same_convention_gives_a_percentage():
    found = {each.published["step_time_s"]: each for each in against(OURS, "mfu_palm") if each.percent}
    assert len(found) > 20
    korthikanti = found[37.83]  # 530B on 280 devices, 56.0% printed
    assert korthikanti.percent == pytest.approx(100 * 0.28 / 0.5605) and korthikanti.refused is None
    assert korthikanti.to_dict()["published_source"].startswith("arXiv:2205.05198")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"precision": "bf16"}, ["precision"]),
        ({"device_name": "NVIDIA H100 80GB HBM3"}, ["device_name"]),
        ({"peak_flops_source": "measured matmul", "peak_flops": 2e14}, ["peak_flops ", "peak_flops_source"]),
        ({"precision": "fp32", "device_name": None, "peak_flops": 1e12}, ["precision", "device_name", "peak_flops "]),
    ],
)
def test_other_conditions_are_refused_by_name(change, named):
    megatron = [row for row in ROWS if "2104.04473 Table 1" in row["published_source"]]
    for each in against(OURS | change, "mfu_palm", megatron):
        assert each.percent is None
        for name in ("precision", "device_name", "peak_flops ", "peak_flops_source"):
            assert (name in each.refused) == (name in named)


def test_other_flops_are_refused():
    said = {each.refused for each in against(OURS, "mfu_palm", [row for row in ROWS if row["mfu_palm"] is None])}
    assert "the source gives no mfu_palm: it prints FLOPs that it does not state" in said
    hardware = dict(next(row for row in ROWS if row["published_flops"] == "hardware")) | {"mfu_palm": None}
    (each,) = against(OURS, "mfu_palm", [hardware])
    assert each.refused == "the source gives no mfu_palm: it prints hardware FLOPs, recomputation counted"
    assert {each.refused for each in against(OURS | {"mfu_palm": None, "peak_flops": None}, "mfu_palm")} == {
        "mfu_palm of ours is null: the device's peak is unknown"
    }


def test_throughput_wants_the_same_model():
    theirs = next(row for row in ROWS if row["model"] == "Llama3 8B" and row["world_size"] == 64)
    shape = {name: value for name, value in theirs.items() if name.startswith("model_")}
    ours = run(8, 1.0) | shape | {"precision": "bf16", "tokens_per_s_per_device": 1452.0}
    (each,) = against(ours, "tokens_per_s_per_device", [theirs])
    assert each.percent == pytest.approx(50) and not each.derived
    (each,) = against(ours | {"model_seq_len": 4096}, "tokens_per_s_per_device", [theirs])
    assert each.refused == "differs in model_seq_len (ours 4096, theirs 8192)"


def test_devices_by_any_name():
    assert accelerator("NVIDIA A100-SXM4-80GB") == accelerator("A100") == "A100"
    assert accelerator("NVIDIA H100 80GB HBM3") == "H100" != accelerator("NVIDIA H100 PCIe")
    assert accelerator("NVIDIA GH200 480GB") == "GH200" and accelerator("AMD Instinct MI250X") == "MI250X"
    assert accelerator("TPU v4") == "TPU v4" and accelerator(None) is None


def test_an_unknown_convention():
    with pytest.raises(ValueError, match=f"allowed are {', '.join(CONVENTIONS)}"):
        against(OURS, "mfu")
