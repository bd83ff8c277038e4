"""What the deepspeed engine says of itself before anything is launched, with neither it nor torch imported."""

import subprocess
import sys

import pytest

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.study.study import load_study
from scalade.parallelism.deepspeed import capabilities as can
from scalade.parallelism.engines import refuse
from scalade.parallelism.layout import Layout

PP2 = {"pp": 2, "microbatches": 4}
TP2 = {"tp": 2, "sp": False, "loss_parallel": False}
HOST = {"offload_optimizer": "cpu"}


def zero(stage: int, ways: int = 2) -> dict:
    return {"dp_shard": ways, "zero_stage": stage}


def deepspeed(layout: dict) -> dict:
    return {"engine": "deepspeed"} | layout


SHAPE = ModelShape(layers=4, heads=4, kv_heads=4, width=32, ffn=64, vocab=64, seq_len=16)
REFUSED = [
    ({"cp": 2}, {}, "no context parallelism"),
    ({"dp_replicate": 2, "dp_shard": 2}, {}, "use dp_shard alone"),
    (zero(2, 4) | {"hpz": 2}, {}, "it requires zero_stage = 3, found 2"),
    (zero(3, 4) | {"hpz": 3}, {}, "hpz 3 does not divide dp_shard 4"),
    (zero(2) | {"offload_parameters": "cpu"}, {}, "offload_parameters requires zero_stage = 3, found 2"),
    (zero(2) | {"offload_optimizer": "nvme"}, {}, "requires zero_stage = 3, found 2"),
    ({"dp_replicate": 2} | HOST, {}, "use dp_shard in place of dp_replicate"),
    (PP2 | zero(2), {}, "set zero_stage = 1, found 2"),
    (PP2 | {"pp_schedule": "GPipe"}, {}, "deepspeed's pipeline is 1F1B, found GPipe"),
    ({"tp": 2}, {}, "set sp = false"),
    ({"tp": 2, "sp": False}, {}, "set loss_parallel = false"),
    (TP2 | PP2, {}, "tp or pp, not both"),
    (TP2, {"precision": "bf16"}, "bf16 with tp requires dp_shard > 1"),
    (zero(3) | {"recompute": "selective"}, {}, "recompute = 'full' or 'none'"),
    ({"compile": True}, {}, "set compile = false"),
    ({}, {"optimizer": "muon"}, "muon is not deepspeed's"),
    (zero(2), {"optimizer": "deepspeed-cpu-adam"}, "it requires offload_optimizer = 'cpu' or 'nvme'"),
    (zero(2) | HOST, {"optimizer": "deepspeed-fused-adam"}, "it requires offload_optimizer = 'none'"),
]


@pytest.mark.parametrize(("layout", "recipe", "told"), REFUSED)
def test_what_it_cannot_do_is_refused_with_the_reason(layout, recipe, told):
    reason = refuse(Layout(**deepspeed(layout)), SHAPE, Recipe(global_batch=16, steps=1, **recipe))
    assert reason and told in reason and "\n" not in reason


def test_replicas_of_more_than_data_parallel_are_refused():
    recipe = Recipe(global_batch=16, steps=1)
    for layout in (TP2, PP2, zero(2) | HOST, zero(3, 4) | {"hpz": 2}):
        assert refuse(Layout(**deepspeed(layout)), SHAPE, recipe) is None
        assert "DiLoCo's replicas" in refuse(Layout(**deepspeed(layout)), SHAPE, recipe, replicas=2)


def test_a_missing_package_is_a_skipped_case_that_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "t.toml").write_text("""
        [model]
        size = "tiny-100k"
        [recipe]
        global_batch = 8
        [budget]
        steps = 3
        [layout]
        engine = ["torch", "deepspeed"]
        dp_replicate = 2
        [run]
        max_ranks = 2
    """)
    monkeypatch.setattr(can, "missing", lambda module, extra: f"{module} is gone: {extra}")
    study = load_study(tmp_path / "t.toml")
    assert [planned.skip_reason for planned in study.cases()] == [None, "deepspeed is gone: deepspeed"]
    monkeypatch.undo()
    code = "import sys; sys.modules['deepspeed'] = None; from scalade.parallelism.engines import unavailable, Layout\n"
    code += "print(unavailable(Layout(engine='deepspeed')), 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "deepspeed is not installed: pip install 'scalade[deepspeed]' False\n"


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ({"dp_shard": 2, "zero_stage": 2}, "reshard_after_forward = false communicates as ZeRO-2"),
        ({"dp_shard": 2, "hpz": 2}, "with torch use dp_replicate x dp_shard (HSDP)"),
        (HOST, "are deepspeed's"),
    ],
)
def test_torch_refuses_what_is_deepspeeds(layout, told):
    assert told in refuse(Layout(**layout), SHAPE, Recipe(global_batch=16, steps=1))


def test_zero_0_is_another_key():
    with pytest.raises(ValueError, match=r"layout.zero_stage = 0: allowed are 1, 2, 3 \(0 is dp_replicate\)"):
        Layout(zero_stage=0)
