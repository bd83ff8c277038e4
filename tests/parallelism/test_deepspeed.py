"""The deepspeed engine: every layout computes the single-process fp32 run of torch. One launch for all of it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from worlds import run_world

import scalade
from scalade.parallelism.layout import Layout

# Not imported here: every session that collects the tests would wait for it.
pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="no deepspeed here"),
    pytest.mark.engines,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PP2 = {"pp": 2, "microbatches": 4}
TP2 = {"tp": 2, "sp": False, "loss_parallel": False}
HOST = {"offload_optimizer": "cpu"}
GELU = {"tied": True, "mlp": "gelu", "qk_norm": False}


def zero(stage: int, ways: int = 2) -> dict:
    return {"dp_shard": ways, "zero_stage": stage}


# (recipe, shape, layout): names of VARIANTS and SHAPES
PARITY: list[tuple[str, str, dict]] = [
    ("", "", {"microbatches": 2}),
    ("", "", zero(2, 1) | HOST),  # ZeRO-Offload on one rank
    # two ranks
    ("", "", {"dp_replicate": 2, "microbatches": 2}),
    ("", "", zero(1)),
    ("", "", zero(2) | {"microbatches": 2}),
    ("", "", zero(3)),
    ("", "gelu", zero(1)),
    ("", "gelu", zero(3) | {"microbatches": 2}),  # the tied matrix is fetched twice
    ("", "", zero(1) | HOST),
    ("", "", zero(2) | HOST | {"microbatches": 2}),
    ("", "", zero(3) | HOST | {"offload_parameters": "cpu"}),
    ("", "", {"dp_replicate": 2, "recompute": "full"}),
    ("", "", zero(3) | {"recompute": "full", "microbatches": 2}),
    ("", "", PP2),
    ("", "", PP2 | {"recompute": "full"}),
    ("", "", TP2),
    ("", "gelu", TP2),
    ("sgd", "", {"dp_replicate": 2}),  # AdamW would hide a wrong clipping
    ("sgd", "", zero(1)),
    ("sgd", "", zero(2)),
    ("sgd", "", zero(3)),
    ("sgd", "", PP2),  # DeepSpeed's own clipping would take the first stage's norm
    ("sgd", "", TP2),
    ("bf16", "", {"dp_replicate": 2}),
    ("bf16", "", zero(1)),
    ("bf16", "", zero(2) | {"microbatches": 2}),
    ("bf16", "", zero(3) | {"microbatches": 2}),
    ("bf16", "", PP2),
    # four
    ("", "", zero(3, 4) | {"hpz": 2}),
    ("", "", TP2 | {"dp_replicate": 2}),
    ("", "", TP2 | zero(1)),
    ("", "", TP2 | zero(3)),
    ("", "", PP2 | {"dp_replicate": 2}),
    ("", "", PP2 | zero(1)),
    ("", "", {"pp": 4, "microbatches": 4}),
    ("sgd", "", PP2 | zero(1)),
    ("bf16", "", TP2 | zero(2)),
]
VARIANTS = {"": {}, "sgd": {"optimizer": "sgd", "lr": 0.1, "z_loss": 0.0}, "bf16": {"precision": "bf16"}}
SHAPES = {"": {}, "gelu": GELU}
# Loss, gradient norm; seen in fp32 2e-7 and 2e-6, in bf16 1.1e-4 and 0.08.
TOLERANCE = {"": (1e-5, 1e-5), "sgd": (1e-5, 1e-5), "bf16": (2e-3, 0.2)}
COMPILED: list[tuple[str, dict]] = [  # some minutes of compiling the first time: SCALADE_TEST_COMPILED=1
    ("deepspeed-cpu-adam", zero(2) | HOST),
    ("adamw", zero(3) | {"offload_optimizer": "nvme", "offload_parameters": "nvme"}),
]

OUTER = {"algorithm": "diloco", "replicas": 2, "sync_every": 3}
STREAMING = OUTER | {"algorithm": "streaming", "fragment_layers": 1}
REPLICAS: dict[str, tuple[dict, dict]] = {  # layout, outer
    "ddp": ({}, OUTER),
    "zero1 streaming": (zero(1), STREAMING),
    "zero2": (zero(2), OUTER),
    "zero3": (zero(3), OUTER),
    "folded": (zero(2), OUTER | {"placement": "folded"}),
}
RESUME: dict[str, dict] = {
    "zero1 bf16": {"layout": zero(1), "recipe": {"precision": "bf16"}, "other": {"engine": "deepspeed"} | zero(2)},
    "zero2": {"layout": zero(2)},
    "zero3": {"layout": zero(3)},
    "ddp sgd": {"layout": {"dp_replicate": 2}, "recipe": VARIANTS["sgd"]},
    "pp": {"layout": PP2},
    "tp": {"layout": TP2},
}
HANDED = {
    "torch fsdp to zero3": ({"dp_shard": 2}, zero(3)),
    "zero2 to torch tp": (zero(2), {"tp": 2}),
    "pipeline to tp": (PP2, TP2),
}


def deepspeed(layout: dict) -> dict:
    return {"engine": "deepspeed"} | layout


def label(variant: str, shape: str, layout: dict) -> str:
    return "-".join(filter(None, [variant, shape, Layout(**deepspeed(layout)).name()]))


def jobs() -> dict[str, dict]:
    worlds: dict[str, dict] = {"1": {}, "2": {}, "4": {}}
    for variant, shape in {(variant, shape) for variant, shape, _ in PARITY}:
        case = {"layout": {}, "recipe": VARIANTS[variant], "shape": SHAPES[shape]}
        worlds["1"][f"reference-{variant}-{shape}"] = {"kind": "parity", "case": case}
    for variant, shape, layout in PARITY:
        case = {"layout": deepspeed(layout), "recipe": VARIANTS[variant], "shape": SHAPES[shape]}
        worlds[str(Layout(**layout).ranks)][label(variant, shape, layout)] = {"kind": "parity", "case": case}
    if "SCALADE_TEST_COMPILED" in os.environ:
        for optimizer, layout in COMPILED:
            case = {"layout": deepspeed(layout), "recipe": {"optimizer": optimizer}}
            worlds["2"][f"{optimizer} {label('', '', layout)}"] = {"kind": "parity", "case": case}
    for name, (layout, outer) in REPLICAS.items():
        folded = outer.get("placement") == "folded"
        ranks = str(Layout(**layout).ranks * (1 if folded else 2))
        worlds[ranks][f"replicas {name}"] = {"kind": "replicas", "case": {"layout": deepspeed(layout), "outer": outer}}
        alone = {"layout": {}, "outer": outer | {"placement": "folded"}}
        worlds["1"][f"reference replicas {outer['algorithm']}"] = {"kind": "replicas", "case": alone}
    for name, case in RESUME.items():
        worlds["2"][f"resume {name}"] = {
            "kind": "resume",
            "case": case | {"layout": deepspeed(case["layout"]), "name": name},
        }
    for name, (one, other) in HANDED.items():
        first, second = (
            deepspeed(each) if "torch" not in told else each
            for each, told in zip((one, other), name.split(" to "), strict=True)
        )
        worlds["2"][f"handed {name}"] = {"kind": "handed_over", "case": {"layout": first, "to": second}}
    for name, layout in (("zero3", zero(3)), ("tp", TP2)):
        worlds["2"][f"leaves {name}"] = {"kind": "leaves_nothing", "case": {"layout": deepspeed(layout)}}
    return worlds


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    return run_world("deepspeed_ranks.py", 1, jobs(), tmp_path_factory.mktemp("deepspeed"), timeout_s=900)


def worst(found: list[float], reference: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))


@pytest.mark.parametrize(("variant", "shape", "layout"), [pytest.param(*c, id=label(*c)) for c in PARITY])
def test_layout_computes_the_single_process_run(variant, shape, layout, found):
    run = found[str(Layout(**layout).ranks)][label(variant, shape, layout)]
    follows(run, found["1"][f"reference-{variant}-{shape}"], variant)


def follows(run: dict, reference: dict, variant: str = "") -> None:
    losses, norms = TOLERANCE[variant]
    assert reference["loss"][-1] < reference["loss"][0] - 0.2, "the reference does not learn"
    assert worst(run["loss"], reference["loss"]) < losses
    assert worst(run["grad_norm"], reference["grad_norm"]) < norms
    assert worst([run["held_out"]], [reference["held_out"]]) < losses
    assert run["weights_exact"], "the round trip of the weights is not exact"


@pytest.mark.skipif("SCALADE_TEST_COMPILED" not in os.environ, reason="compiles for minutes: SCALADE_TEST_COMPILED=1")
@pytest.mark.parametrize(("optimizer", "layout"), COMPILED)
def test_what_deepspeed_compiles(optimizer, layout, found):
    follows(found["2"][f"{optimizer} {label('', '', layout)}"], found["1"]["reference--"])


@pytest.mark.parametrize("name", REPLICAS)
def test_replicas_follow_those_of_torch(name, found):
    layout, outer = REPLICAS[name]
    folded = outer.get("placement") == "folded"
    run = found[str(Layout(**layout).ranks * (1 if folded else 2))][f"replicas {name}"]
    reference = found["1"][f"reference replicas {outer['algorithm']}"]
    assert worst(run["loss"], reference["loss"]) < 1e-5
    assert run["weights"].keys() == reference["weights"].keys()
    assert worst(list(run["weights"].values()), [reference["weights"][n] for n in run["weights"]]) < 1e-5
    for kinds, wanted in zip(run["held_out"], reference["held_out"], strict=True):
        assert kinds.keys() == wanted.keys() == {"outer", "inner"}
        assert worst(list(kinds.values()), [wanted[kind] for kind in kinds]) < 1e-5
    assert reference["held_out"][0]["outer"] != reference["held_out"][0]["inner"]


@pytest.mark.parametrize("name", RESUME)
def test_a_checkpoint_goes_on_bitwise(name, found):
    run = found["2"][f"resume {name}"]
    assert run["resumed"] == run["went_on"] and len(run["went_on"]) == 4
    if "other" in RESUME[name]:
        assert run["told"].endswith("was written under layout deepspeed.zero1-2, this is deepspeed.zero2-2")


@pytest.mark.parametrize("name", HANDED)
def test_weights_of_one_engine_are_the_others(name, found):
    run = found["2"][f"handed {name}"]
    assert run["exact"] and run["after"] == pytest.approx(run["before"], rel=1e-6)


def test_an_engine_leaves_the_process_as_it_was(found):
    for name in ("zero3", "tp"):
        assert found["2"][f"leaves {name}"] == {"linear": True, "groups": []}


def test_nothing_reaches_standard_output(found):
    assert [world["printed"] for world in found.values()] == [[""], [""] * 2, [""] * 4]


STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 8
{start}
[budget]
steps = 4
[measure]
warmup_steps = 3
eval_sequences = 8
eval_start = {evaluates}
keep_weights = true
[layout]
{layout}
[run]
max_ranks = 2
launcher = "{launcher}"
"""


def run(folder, launcher: str, layout: str, start: str = ""):
    """Rows of `runs`, `steps` and `evals` of a study of one run in its own processes, and its folder."""
    folder.mkdir()
    text = STUDY.format(launcher=launcher, layout=layout, start=start, evaluates="true" if start else "false")
    (folder / "s.toml").write_text(text)
    command = [sys.executable, "-m", "scalade", "run", "s.toml", "--results", "r", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=folder)
    assert done.returncode == 0, done
    assert [run["status"] for run in json.loads(done.stdout)["runs"]] == ["ok"]  # and nothing else on stdout
    (row,) = scalade.read_runs(folder / "r").to_dict("records")
    return row, scalade.read_steps(folder / "r"), folder / "r" / "runs" / row["run_id"]


@pytest.mark.mpi
def test_every_launcher_gives_the_same_losses_and_torch_reads_the_weights(tmp_path):
    layout = "engine = 'deepspeed'\ndp_shard = 2\nzero_stage = 2"
    runs = {name: run(tmp_path / name, name, layout) for name in ("local", "torchrun", "mpirun")}
    losses = [steps["loss"].tolist() for _, steps, _ in runs.values()]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 4
    first, _, folder = runs["mpirun"]
    start = f"lr = 0.0\nstart_weights = {str(folder / 'weights.npz')!r}"
    second, _, _ = run(tmp_path / "torch", "local", "tp = 2", start)
    assert second["engine"] == "torch" and second["val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)
