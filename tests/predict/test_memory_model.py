"""Properties of predicted memory that hold for every configuration, every rank and every stack."""

import subprocess
import sys
import time
from dataclasses import fields, replace

import memory_process
import numpy as np
import pytest
from places import PROGRAMS

from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import LOOPED, SCHEDULES, V_SHAPED, Layout
from scalade.parallelism.predict import STACKS, Configs, load_machine
from scalade.parallelism.predict.configs import from_cases
from scalade.parallelism.predict.memory import (
    MemoryTuning,
    default_tuning,
    fits,
    memory_by_rank,
    memory_of_case,
    predict_memory,
    reported_memory,
)
from scalade.parallelism.predict.process import process_bytes
from scalade.parallelism.predict.stages import equal_cost, held, lost_loss

H100 = load_machine("h100")
CPU = replace(H100, device="cpu", reserved_bytes=0.0, fragmentation=0.0)
SHAPE = ModelShape(layers=27, heads=8, kv_heads=4, width=64, ffn=256, vocab=256, seq_len=64, mlp="swiglu")
RECIPE = Recipe(global_batch=64, steps=1, precision="bf16")


def random_configs(n: int = 4000, seed: int = 0) -> Configs:
    """Layouts that an engine could run, their schedules with the stages they require."""
    rng = np.random.default_rng(seed)
    looped = np.array([name in LOOPED for name in SCHEDULES])
    pp, schedule = 2 ** rng.integers(0, 4, n), rng.integers(0, len(SCHEDULES), n)
    virtual = np.where(looped[schedule] & (pp > 1), 2, 1)
    return Configs(
        layers=rng.integers(16, 64, n),
        heads=16,
        kv_heads=8,
        width=2048,
        ffn=8192,
        vocab=32000,
        seq_len=4096,
        global_batch=1024,
        matrices=rng.integers(2, 4, n),
        tied=rng.integers(0, 2, n) * (pp == 1),
        qk_norm=rng.integers(0, 2, n),
        precision=rng.integers(0, 3, n),
        optimizer=rng.integers(0, 2, n),
        dp_shard=2 ** rng.integers(0, 5, n),
        dp_replicate=2 ** rng.integers(0, 2, n),
        zero_stage=rng.integers(1, 4, n),
        tp=2 ** rng.integers(0, 4, n),
        sp=rng.integers(0, 2, n),
        pp=pp,
        pp_schedule=schedule,
        virtual_stages=virtual,
        microbatches=2 ** rng.integers(3, 5, n),
        cp=2 ** rng.integers(0, 2, n),
        recompute=rng.integers(0, 3, n),
    )


@pytest.mark.parametrize("name", STACKS)
def test_parts_are_the_whole_and_none_is_negative(name):
    configs = random_configs()
    memory = predict_memory(configs, H100, STACKS[name])
    assert all((getattr(memory, each.name) >= 0).all() for each in fields(memory) if each.name != "fragmentation")
    own = memory.weights + memory.gradients + memory.optimizer + memory.outer + memory.copies
    peak = np.maximum(memory.activations + memory.logits, memory.temporaries)
    assert np.allclose(memory.allocated, own + peak)
    assert np.allclose(memory.total, memory.allocated + memory.fragmentation + memory.library)
    assert len(memory.total) == len(configs)


@pytest.mark.parametrize("name", STACKS)
def test_no_rank_needs_more_than_the_one_that_is_given(name):
    """The four candidates stand for all ranks, whatever the schedule."""
    stack, configs = STACKS[name], random_configs(600, seed=1)
    given = predict_memory(configs, H100, stack).total
    for place in range(len(configs)):
        one = configs.take([place])
        pp = int(np.asarray(one.pp)[0])
        every = memory_of_ranks(one, stack, np.arange(pp)[:, None])
        assert every.max() <= given[place] * (1 + 1e-9)
        assert stack.keeps.stages_by_cost or every.max() == pytest.approx(given[place])


def memory_of_ranks(configs, stack, ranks):
    from scalade.parallelism.predict import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "candidates", lambda _: ranks)
        return memory_by_rank(configs, H100, stack).total


def test_layers_of_all_ranks_are_those_of_the_model():
    for schedule in SCHEDULES:
        v = 2 if schedule in LOOPED else 1
        for pp in (2, 3, 4):
            layout = Layout(pp=pp, pp_schedule=schedule, virtual_stages=v, microbatches=8)
            configs = from_cases([(SHAPE, RECIPE, layout, Outer())])
            every = held(configs, np.arange(pp)[:, None])
            assert every.layers.sum() == SHAPE.layers and every.head.sum() == every.embedding.sum() == 1
            assert (every.deepest <= every.layers).all() and every.head[0 if schedule in V_SHAPED else -1] == 1


@pytest.mark.parametrize("name", STACKS)
def test_more_shards_never_need_more_state(name):
    base = random_configs()
    before = None
    for shards in (1, 2, 4, 8, 64):
        state = memory_by_rank(replace(base, dp_shard=shards, cp=1), H100, STACKS[name]).state  # of each candidate
        assert before is None or (state <= before * (1 + 1e-9)).all()
        before = state


@pytest.mark.parametrize("name", STACKS)
def test_recomputation_never_keeps_more(name):
    base = replace(random_configs(), pp=4, microbatches=8, pp_schedule=1, virtual_stages=1)
    kept = [predict_memory(replace(base, recompute=mode), H100, STACKS[name]).activations for mode in (0, 1, 2)]
    # Beside what is kept, one layer is alive while it is recomputed; here 4 microbatches of 4 layers and more are.
    assert (kept[1] <= kept[0]).all() and (kept[2] < kept[1]).all()


def test_offloading_moves_state_to_the_host():
    def parts(**settings):
        layout = Layout(engine="deepspeed", dp_shard=4, **settings)
        return memory_of_case(SHAPE, RECIPE, layout), memory_of_case(SHAPE, RECIPE, layout, fused_norm=False)

    owned = SHAPE.params_total / 4
    (here, _), (cpu, process) = parts(), parts(offload_optimizer="cpu")
    (nvme, _), (both, _) = parts(offload_optimizer="nvme"), parts(offload_optimizer="cpu", offload_parameters="cpu")
    assert here.host == 0 and here.weights + here.optimizer == pytest.approx(12 * owned, abs=2)
    assert cpu.weights == cpu.optimizer == 0 and cpu.host == pytest.approx(16 * owned, abs=2)
    assert both.host == pytest.approx(18 * owned, abs=2) and both.copies == pytest.approx(cpu.copies - 2 * owned, abs=2)
    assert nvme.total == cpu.total and nvme.host <= cpu.host
    assert process.host == 0 and process.state == here.state  # on a CPU it is the same memory


def test_hpz_keeps_a_second_copy_near():
    one, two = (memory_of_case(SHAPE, RECIPE, Layout(engine="deepspeed", dp_shard=4, hpz=hpz)) for hpz in (1, 2))
    assert two.copies - one.copies == pytest.approx(SHAPE.params_total / 2 * 2, abs=2)


def test_gradients_are_whole_until_the_last_microbatch_reduces_them():
    """FSDP2 under set_requires_gradient_sync(False), as parallelism/sharded.py calls it."""
    at_once, late = (memory_of_case(SHAPE, RECIPE, Layout(dp_shard=4, microbatches=m)) for m in (1, 4))
    assert late.gradients == pytest.approx(4 * at_once.gradients) == pytest.approx(4 * SHAPE.params_total)


def test_folded_replicas_wait_on_the_host():
    outer = Outer(algorithm="diloco", replicas=4, placement="folded")
    here = memory_of_case(SHAPE, RECIPE, Layout(), outer)
    waiting = memory_of_case(SHAPE, RECIPE, Layout(), replace(outer, offload=True))
    assert here.optimizer == 4 * waiting.optimizer and waiting.host == here.optimizer and here.host == 0


def test_context_parallel_by_gathering_keeps_all_keys_and_values():
    gathered, ulysses = (
        memory_of_case(SHAPE, RECIPE, Layout(cp=4, cp_method=method)).activations for method in ("allgather", "ulysses")
    )
    tokens, kv = 64 * 64 / 4, 4 * SHAPE.head_dim
    assert gathered - ulysses == SHAPE.layers * tokens * 2 * 2 * kv * 3 + 64 * 64 / 4  # and the mask


def test_distributed_optimizer_is_6_and_12_over_d():
    """Megatron-Core, README of core/distributed: bytes a parameter of the distributed optimizer, bf16."""
    for d in (2, 8):
        layout = Layout(engine="megatron", dp_shard=d, zero_stage=1)
        memory = memory_of_case(replace(SHAPE, tied=False), RECIPE, layout)
        assert (memory.state + memory.copies) / SHAPE.params_total == pytest.approx(6 + 12 / d, rel=1e-3)


def test_nanotron_shards_masters_and_adam_alone():
    def state(**settings):
        c = Configs(16, 32, 32, 2048, 8192, 131072, 4096, 256, tied=1, microbatches=4, **settings)
        memory = predict_memory(c, H100, STACKS["nanotron"], MemoryTuning())
        return float(((memory.state + memory.copies) / c.params_total)[0])

    assert state(dp_replicate=8) == pytest.approx(20)  # weights, their gradients 2 + 2; fp32: 4 + 4 + 8
    assert state(dp_shard=8, zero_stage=1) == pytest.approx(8 + 12 / 8)


def test_stages_of_equal_cost():
    """nanotron's 1B: the head costs as much as four of 16 layers."""
    layer, head = 4 * 2048**2 + 3 * 2048 * 8192, 131072 * 2048
    assert [stage[0] for stage in equal_cost(16, layer, head, 4)] == [5, 5, 5, 1]
    eight = equal_cost(16, layer, head, 8)
    assert sum(stage[0] for stage in eight) == 16 and eight[-1] == (0, 0, 0, 1) and eight[-2][2] == 1
    c = Configs(16, 32, 32, 2048, 8192, 131072, 4096, 256, tied=1, pp=np.array([1, 8, 16]), microbatches=32)
    assert lost_loss(c).tolist() == [False, False, True]


def test_scores_and_norms_where_no_kernel_fuses_them():
    case = (SHAPE, replace(RECIPE, precision="fp32"), Layout(engine="megatron"))
    gpu, cpu = memory_of_case(*case), memory_of_case(*case, fused_norm=False)
    tokens = 64 * 64
    scores = SHAPE.layers * tokens * SHAPE.heads * SHAPE.seq_len * 5
    norms = (2 * SHAPE.layers + 1) * tokens * 4 * SHAPE.width  # 2 a layer, and the final one's steps
    assert cpu.activations - gpu.activations == scores + norms
    selective = memory_of_case(case[0], case[1], replace(case[2], recompute="selective"), fused_norm=False)
    assert cpu.activations > selective.activations > gpu.activations


def test_what_a_cpu_process_needs_is_counted():
    c = from_cases([(SHAPE, RECIPE, Layout(tp=tp), Outer()) for tp in (1, 2)])
    plain, split = process_bytes(c, "torch")
    assert 200 * 2**20 < plain < split < process_bytes(c, "megatron")[0]
    memory = predict_memory(c, CPU, STACKS["torch"])
    copies = memory.activations / 2 * [0, 1]
    assert np.allclose(memory.library, process_bytes(c, "torch") + copies)
    assert np.allclose(memory.fragmentation, 0.16 * memory.allocated)
    assert (reported_memory(c, CPU, STACKS["torch"]) == memory.total).all()
    measured = replace(CPU, reserved_bytes=float(2**30))
    assert predict_memory(c, measured, STACKS["torch"]).library[0] == 2**30


def test_the_machine_adds_its_library_and_says_what_fits():
    c = replace(random_configs(50), dp_replicate=1)
    bare, whole = predict_memory(c, None, STACKS["torch"]), predict_memory(c, H100, STACKS["torch"])
    assert (bare.library == 0).all() and (whole.library >= H100.reserved_bytes).all()
    assert np.allclose(whole.reserved, whole.allocated * (1 + H100.fragmentation))
    assert default_tuning(None, STACKS["torch"]) == MemoryTuning()
    assert (fits(c, H100, STACKS["torch"]) == (whole.total <= H100.memory_bytes)).all()


def test_300_000_configurations_a_second():
    configs = random_configs(100_000)
    seconds = []
    for _ in range(3):
        began = time.process_time()
        predict_memory(configs, H100, STACKS["megatron"])
        seconds.append(time.process_time() - began)
    assert 100_000 / min(seconds) >= 300_000, seconds


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(64, 2, 1), (256, 6, 1), (256, 6, 4)])
def test_the_resident_memory_of_a_real_process(arguments):
    """VmHWM of three steps of a process of its own, from 0.3 to 2 GB."""
    program = [sys.executable, str(PROGRAMS / "memory_process.py"), *map(str, arguments)]
    measured = int(subprocess.run(program, capture_output=True, text=True, check=True, timeout=300).stdout)
    predicted = reported_memory(from_cases([memory_process.case(*arguments)]), CPU, STACKS["torch"])[0]
    assert predicted == pytest.approx(measured, rel=0.15), measured / 2**20
