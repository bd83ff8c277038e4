"""What cannot run is kept with its reason: refusals of layouts, the world's size, the machine's memory."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.host import machine
from scalade.launch.study.study import GIB, PROCESS_BYTES, load_study
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import refuse
from scalade.parallelism.layout import (
    CP_METHODS,
    LOOPED,
    RECOMPUTE,
    SCHEDULES,
    V_SHAPED,
    ZERO_BUBBLE,
    Layout,
    canonical,
)
from scalade.parallelism.predict.memory import memory_of_case as predict

degrees = st.sampled_from([1, 1, 1, 2, 3, 4, 8])
layouts = st.builds(
    Layout,
    dp_replicate=degrees,
    dp_shard=degrees,
    tp=degrees,
    pp=degrees,
    cp=degrees,
    ep=st.sampled_from([1, 1, 1, 2]),
    reshard_after_forward=st.booleans(),
    sp=st.booleans(),
    loss_parallel=st.booleans(),
    pp_schedule=st.sampled_from(SCHEDULES),
    virtual_stages=st.sampled_from([1, 1, 2, 3]),
    microbatches=st.sampled_from([1, 2, 4, 8, 16]),
    cp_method=st.sampled_from(CP_METHODS),
    recompute=st.sampled_from(RECOMPUTE),
    compile=st.booleans(),
)
SHAPE = ModelShape(layers=8, heads=8, kv_heads=4, width=64, ffn=144, vocab=256, seq_len=96)
shapes = st.builds(
    replace,
    st.just(SHAPE),
    layers=st.integers(1, 24),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    seq_len=st.sampled_from([32, 48, 96, 100]),
    vocab=st.sampled_from([250, 256, 257]),
    tied=st.booleans(),
    mlp=st.sampled_from(["gelu", "swiglu"]),
    qk_norm=st.booleans(),
)
recipes = st.builds(
    Recipe,
    global_batch=st.sampled_from([1, 6, 16, 64, 192, 384]),
    steps=st.just(1),
    precision=st.sampled_from(["fp32", "bf16"]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
)
friendly = st.builds(
    replace,
    st.just(replace(SHAPE, kv_heads=8, layers=24)),
    mlp=st.sampled_from(["gelu", "swiglu"]),
    qk_norm=st.booleans(),
)
large = st.builds(
    Recipe,
    global_batch=st.just(9216),
    steps=st.just(1),
    precision=st.sampled_from(["fp32", "bf16"]),
    optimizer=st.sampled_from(["adamw", "sgd"]),
)
possible = st.builds(  # with `friendly` and `large`: all of these can run
    Layout,
    dp_replicate=degrees,
    dp_shard=degrees,
    tp=st.sampled_from([1, 2, 4, 8]),
    sp=st.booleans(),
    cp=st.sampled_from([1, 2, 4]),
    loss_parallel=st.booleans(),
    reshard_after_forward=st.booleans(),
    microbatches=st.sampled_from([1, 2, 4]),
    recompute=st.sampled_from(RECOMPUTE),
) | st.builds(
    Layout,
    dp_replicate=degrees,
    dp_shard=degrees,
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([2, 4]),
    pp_schedule=st.sampled_from(LOOPED),
    virtual_stages=st.just(2),
    microbatches=st.just(8),
    reshard_after_forward=st.just(False),
)


@settings(max_examples=400, deadline=None)
@given(layouts | possible, shapes | friendly, recipes | large, st.sampled_from([1, 1, 2, 3]))
def test_what_is_not_refused_divides(layout, shape, recipe, replicas):
    reason = refuse(layout, shape, recipe, replicas)
    assert reason is None or (reason and "\n" not in reason)
    if reason:
        return
    assert recipe.global_batch % (layout.dp * replicas * layout.microbatches) == 0
    assert shape.heads % layout.tp == shape.kv_heads % layout.tp == shape.ffn % layout.tp == 0
    assert layout.tp == 1 or shape.vocab % layout.tp == 0
    assert not layout.sp or layout.tp == 1 or (shape.seq_len // layout.cp) % layout.tp == 0
    assert shape.seq_len % layout.cp == 0
    if layout.pp == 1:
        assert layout.virtual_stages == 1
        return
    assert shape.layers >= layout.pp * layout.virtual_stages and not shape.tied
    assert (layout.virtual_stages > 1) == (layout.pp_schedule in LOOPED)
    if layout.pp_schedule in V_SHAPED:
        assert layout.virtual_stages == 2
    if layout.pp_schedule in ZERO_BUBBLE:
        assert not (layout.sharded and layout.reshard_after_forward) and layout.recompute == "none"


@settings(max_examples=100, deadline=None)
@given(layout=possible, shape=friendly, recipe=large)
def test_what_can_run_is_not_refused(layout, shape, recipe):
    assert refuse(layout, shape, recipe) is None


@settings(max_examples=200, deadline=None)
@given(layout=layouts, shape=shapes, recipe=recipes)
def test_a_refusal_goes_when_its_layout_goes(layout, shape, recipe):
    """No refusal comes from the model or recipe alone: one process can always compute the step."""
    assert refuse(Layout(), shape, recipe) is None
    alone = replace(Layout(), tp=layout.tp, sp=False)
    shape = replace(shape, heads=8, kv_heads=8, ffn=144, vocab=256)
    assert (refuse(alone, shape, recipe) is None) == (layout.tp in (1, 2, 4, 8))


@settings(max_examples=200, deadline=None)
@given(layout=layouts | possible, shape=shapes | friendly, recipe=recipes | large)
def test_canonical_changes_nothing_that_counts(layout, shape, recipe):
    plain = canonical(layout)
    assert canonical(plain) == plain and plain.ranks == layout.ranks and plain.name().split(".")[0]
    assert (refuse(plain, shape, recipe) is None) == (refuse(layout, shape, recipe) is None)
    degrees = ("engine", "dp_replicate", "dp_shard", "tp", "pp", "cp", "ep", "virtual_stages", "microbatches")
    assert all(getattr(plain, name) == getattr(layout, name) for name in (*degrees, "recompute", "compile"))
    if refuse(layout, shape, recipe) is None:
        assert predict(shape, recipe, plain) == predict(shape, recipe, layout)


@settings(max_examples=300, deadline=None)
@given(layout=possible, shape=friendly, recipe=large, fused=st.booleans())
def test_memory_is_predicted_for_all_that_can_run(layout, shape, recipe, fused):
    memory = predict(shape, recipe, layout, fused_norm=fused)
    assert all(getattr(memory, field.name) >= 0 for field in fields(memory)) and memory.total >= memory.state > 0
    folded = predict(shape, recipe, layout, Outer(algorithm="diloco", replicas=2, placement="folded"), fused)
    assert folded.weights == pytest.approx(2 * memory.weights, abs=1) and folded.outer > 0


STUDY = """
[model]
size = "tiny-100k"
tied = false
[recipe]
global_batch = 8
[budget]
steps = 3
[layout]
dp_replicate = [1, 2, 3, 4, 16]
[run]
device = "cpu"
"""


def plan(tmp_path: Path, text: str, world_size: int | None = None) -> list[str | None]:
    (tmp_path / "t.toml").write_text(text)
    return [planned.skip_reason for planned in load_study(tmp_path / "t.toml").cases(world_size)]


def batch(dp: int) -> str:
    return f"global_batch 8 is not a multiple of replicas x dp_replicate x dp_shard x microbatches = {dp}"


def test_the_world_and_divisibility(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: 64 * GIB)
    few = "needs 4 ranks, this machine has 2 cores (with run.max_ranks it would run all the same)"
    assert plan(tmp_path, STUDY) == [None, None, batch(3), few, batch(16)]
    assert plan(tmp_path, STUDY + "max_ranks = 8\n") == [None, None, batch(3), None, batch(16)]
    assert plan(tmp_path, STUDY + "max_ranks = 1\n")[1] == "needs 2 ranks, run.max_ranks is 1"
    assert plan(tmp_path, STUDY, world_size=2)[3] == "needs 4 ranks, the world has 2"
    assert plan(tmp_path, STUDY + 'launcher = "torchrun"\n') == [None, None, batch(3), None, batch(16)]


def test_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda ranks: None)
    text = STUDY.replace('device = "cpu"', 'device = "auto"')
    assert plan(tmp_path, text)[1:4] == [None, batch(3), "needs 4 ranks, this machine has 2 GPUs"]
    reasons = plan(tmp_path, text + "device_memory_gib = 0.001\n")
    assert reasons[0] == "predicted to need 22.0 MiB a rank; there are 1.0 MiB of the GPU"
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda ranks: 2**20)
    assert plan(tmp_path, text)[0] == reasons[0]


def test_host_memory_is_shared_by_the_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: 2 * PROCESS_BYTES)
    first, second, *_ = plan(tmp_path, STUDY)
    assert first is None
    assert second == (
        "predicted to need 12.5 MiB a rank and 300.0 MiB for its process; "
        "there are 300.0 MiB of host memory for each of 2 ranks"
    )
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: None)  # unknown: nothing is skipped for it
    assert plan(tmp_path, STUDY)[1] is None


def test_a_model_of_400_billion_does_not_start_here(tmp_path):
    text = STUDY.replace("tiny-100k", "llama3-405b")
    assert plan(tmp_path, text)[0].startswith("predicted to need 16800.6 GiB a rank")  # 6,000 of state


def test_a_vocabulary_smaller_than_the_data(tmp_path):
    text = STUDY.replace("tied = false", "vocab = 128")
    assert plan(tmp_path, text)[0] == (
        "vocab 128 is smaller than the 256 of data.source stdlib; set model.vocab to 256 or more"
    )


def test_a_case_that_no_layout_can_compute_has_no_prediction(tmp_path):
    (tmp_path / "t.toml").write_text(STUDY.replace("dp_replicate = [1, 2, 3, 4, 16]", "pp = 999999999"))
    (planned,) = load_study(tmp_path / "t.toml").cases()
    assert planned.predicted_memory_bytes is None
    assert planned.skip_reason == "layers 2 are fewer than the 999999999 pipeline stages (pp x virtual_stages)"


@pytest.mark.parametrize(
    "cores, more, threads",
    [
        (2, "", 1),
        (3, "", 1),
        (8, "", 2),
        (13, "", 3),
        (64, "", 4),  # the largest that can run: 2, 2, 4, 4, 16 ranks
        (8, "max_ranks = 2\n", 4),
        (8, "max_ranks = 1\n", 8),
        (2, "max_ranks = 16\n", 1),
        (8, "threads_per_rank = 5\n", 5),
        (8, 'launcher = "torchrun"\n', 1),
    ],
)
def test_every_case_gets_the_same_threads(tmp_path, monkeypatch, cores, more, threads):
    """Cores over the ranks of the largest case that can run here; else no two layouts could be compared."""
    monkeypatch.setattr(machine, "cores", lambda: cores)
    text = STUDY.replace("global_batch = 8", "global_batch = 16")  # 3 ranks never divide it, 16 do
    (tmp_path / "t.toml").write_text(text + more)
    study = load_study(tmp_path / "t.toml")
    assert study.threads_per_rank() == threads
    asked = 5 if "threads_per_rank" in more else 0  # 0: each of several hosts shares its own cores
    assert study.threads_per_rank(one_host=False) == asked
    assert study.name == "t" and study.results == Path("scalade-results/t")


def test_threads_follow_neither_memory_nor_the_number_of_gpus_used(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "host_memory_bytes", lambda: 0)
    (tmp_path / "t.toml").write_text(STUDY)
    study = load_study(tmp_path / "t.toml")
    assert all(planned.skip_reason for planned in study.cases()) and study.threads_per_rank() == 2
    ids = [case.case_id for case in study.all_cases]
    (tmp_path / "t.toml").write_text(STUDY + "threads_per_rank = 2\n")
    assert [case.case_id for case in load_study(tmp_path / "t.toml").all_cases] == ids
    monkeypatch.setattr(machine, "gpus", lambda: 8)
    (tmp_path / "t.toml").write_text(STUDY.replace('"cpu"', '"cuda"').replace("[1, 2, 3, 4, 16]", "[1, 2]"))
    assert load_study(tmp_path / "t.toml").threads_per_rank() == 1  # as in a study that uses all eight


def test_machine_tells_the_truth(monkeypatch):
    import os

    assert 1 <= machine.cores() <= os.cpu_count()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.host_memory_bytes() <= total
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == 0
    monkeypatch.setattr(machine, "visible_devices", lambda: None)
    monkeypatch.setattr(machine, "driver_cards", lambda: 3)
    for visible, count in (("", 0), ("0,2", 2), ("1,-1,2", 1), ("0,1,2,3", 3), ("MIG-a", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.gpus() == count
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.gpus() == 3
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8000 kB\n",
        "/sys/fs/cgroup/memory.max": "5000000\n",
        "/sys/fs/cgroup/memory.current": "1000000\n",
        "/sys/fs/cgroup/cpu.max": "100000 100000\n",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.host_memory_bytes() == 4_000_000 and machine.cores() == 1
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.host_memory_bytes() == 8000 * 1024
    files.clear()
    assert machine.host_memory_bytes() is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_bubble_with_a_shard_of_one_is_refused(precision):
    """dp_replicate beside pp is HSDP with a shard dimension of one: as wrong there as FSDP2 (docs/experiments.md)."""
    layout = Layout(pp=2, virtual_stages=2, microbatches=4, pp_schedule="ZBVZeroBubble", dp_replicate=2)
    recipe = Recipe(global_batch=16, steps=1, precision=precision)
    assert "set it to false" in refuse(layout, SHAPE, recipe)
    assert refuse(replace(layout, reshard_after_forward=False), SHAPE, recipe) is None
