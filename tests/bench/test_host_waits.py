"""What ranks wait for in a step: what is counted, as what, and that it is what a rank that sleeps makes the others
wait. Bounds hold on a machine that is busy with other work: sleeping needs no core."""

import statistics
import time
import timeit

import pytest
import torch
import torch.distributed as dist
from worlds import run_world

from scalade.bench import host_waits as module
from scalade.bench.host_waits import Waits, counted_as, time_end_of_backward

SHAPE = {"layers": 2, "heads": 2, "kv_heads": 2, "width": 16, "ffn": 32, "vocab": 64, "seq_len": 16}
RECIPE = {"global_batch": 8, "steps": 10}
LATE_S, STAGE_S = 0.3, 0.03


def case(layout, **more):
    return {"shape": SHAPE, "recipe": RECIPE, "layout": layout} | more


LATE = {
    "ddp": {"dp_replicate": 2},
    "ddp, accumulated": {"dp_replicate": 2, "microbatches": 2},
    "fsdp": {"dp_shard": 2},
    "tp, sp": {"tp": 2, "sp": True},
    "cp": {"cp": 2},
}
STAGES = {
    f"{schedule} m{m}": {"pp": 2, "pp_schedule": schedule, "microbatches": m}
    for schedule, m in (("GPipe", 4), ("1F1B", 2), ("1F1B", 8))
}
JOBS = {name: case(layout, late_s=LATE_S) for name, layout in LATE.items()}
JOBS |= {name: case(layout, stage_s=STAGE_S) for name, layout in STAGES.items()}
JOBS["diloco"] = case({}, late_s=LATE_S, outer={"algorithm": "diloco", "replicas": 2, "sync_every": 1})
JOBS["hidden"] = {"hidden_s": 0.3}
ENGINES = {
    "megatron ddp": {"engine": "megatron", "dp_replicate": 2},
    "megatron, distributed optimizer": {"engine": "megatron", "dp_shard": 2, "zero_stage": 1},
    "megatron tp": {"engine": "megatron", "tp": 2},
    "megatron pp": {"engine": "megatron", "pp": 2, "microbatches": 4},
    "deepspeed ddp": {"engine": "deepspeed", "dp_replicate": 2},
    "deepspeed zero1": {"engine": "deepspeed", "dp_shard": 2, "zero_stage": 1},
    "deepspeed zero3": {"engine": "deepspeed", "dp_shard": 2},
    "deepspeed tp": {"engine": "deepspeed", "tp": 2, "sp": False, "loss_parallel": False},
    "deepspeed pp": {"engine": "deepspeed", "pp": 2, "microbatches": 4},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return run_world("waits_ranks.py", 2, JOBS, tmp_path_factory.mktemp("waits"), timeout_s=200)


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE)
def test_the_others_wait_for_a_rank_that_is_late(world, name):
    early, late = world[name]
    assert max(early["comm_s"]) > 0.75 * LATE_S
    longer = [a - b for a, b in zip(early["comm_s"], late["comm_s"], strict=True)]
    assert max(longer) > 0.5 * LATE_S, "on a busy machine the late one waits for the other, too"
    assert max(row["comm_time_s"] for row in early["rows"]) > 0.75 * LATE_S / 2  # the mean over both
    for row, *both in zip(early["rows"], early["comm_s"], late["comm_s"], strict=True):
        assert row["comm_time_s"] == pytest.approx(statistics.fmean(both), rel=1e-4, abs=1e-6)
        assert row["comm_time_min_s"] == pytest.approx(min(both))
        assert "bubble_time_s" not in row


@pytest.mark.slow
def test_ddp_waits_once_a_step(world):
    for name in ("ddp", "ddp, accumulated"):
        assert world[name][0]["waits"] == [1] * 2, name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in JOBS if name != "hidden"])
def test_waits_lie_in_the_parts_of_the_step(world, name):
    for row in world[name][0]["rows"]:
        parts = row["compute_time_s"] + row["optimizer_time_s"]
        waited = row["comm_time_s"] + row.get("bubble_time_s", 0.0)
        assert 0.0 <= row["optimizer_wait_s"] <= row["optimizer_time_s"] + 1e-6
        assert waited <= parts + 1e-6 and parts <= row["step_time_s"] + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_the_bubble_of_equal_stages_is_that_of_the_formula(world, name):
    m, rows = STAGES[name]["microbatches"], world[name][0]["rows"]
    shares = [row["bubble_time_s"] / (row["compute_time_s"] + row["optimizer_wait_s"]) for row in rows]
    assert max(row["bubble_time_s"] for row in rows) > 0.75 * 3 * STAGE_S  # one microbatch, forward and backward
    assert max(shares) > 0.7 / (m + 1) and min(shares) < 1.8 / (m + 1)  # a busy machine takes turns with both


@pytest.mark.slow
def test_the_outer_step_is_no_communication_of_the_step(world):
    early, late = world["diloco"]
    assert max(row["outer_exposed_s"] for row in early["rows"]) > 0.75 * LATE_S
    assert early["comm_s"] == late["comm_s"] == [0.0] * 2
    assert min(row["optimizer_time_s"] for row in early["rows"]) < 0.1 * LATE_S  # the outer step is not in it


@pytest.mark.slow
def test_what_computation_hides_is_not_counted(world):
    first, second = world["hidden"]
    assert max(first["exposed"]) > 0.75 * 0.15 and min(second["exposed"]) < 0.5 * 0.15
    assert min(first["hidden"]) < 0.5 * 0.15


@pytest.mark.engines
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
def test_the_waits_of_other_engines_are_all_seen(engine, tmp_path):
    """On the rank that waits, a step without its waits is none the longer for the other's being late."""
    jobs = {name: case(layout, late_s=LATE_S) for name, layout in ENGINES.items() if layout["engine"] == engine}
    for name, (early, _) in run_world("waits_ranks.py", 2, jobs, tmp_path, timeout_s=200).items():
        assert max(early["waited_s"]) > 0.75 * LATE_S, name
        assert min(early["rest_s"]) < 0.5 * LATE_S, name


# one process


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_blocking_collectives_and_works_are_seen_while_it_is_open(alone):
    before, x = dist.Work.wait, torch.ones(3)
    with Waits(pipeline=False) as waits:
        dist.all_reduce(x)
        dist.all_reduce(x, async_op=True).wait()
        with counted_as("bubble"):
            dist.barrier()
    assert dist.Work.wait is before
    assert [wait.kind for wait in waits.found] == ["comm", "comm", "bubble"]
    assert all(wait.end >= wait.begin for wait in waits.found)
    dist.all_reduce(x)
    assert len(waits.found) == 3


def test_it_closes_when_a_step_fails(alone):
    before = dist.Work.wait
    with pytest.raises(KeyError), Waits(pipeline=False):
        raise KeyError
    assert dist.Work.wait is before and module._open is None
    with counted_as("bubble"):  # costs nothing and does nothing
        dist.barrier()


def test_waits_are_told_apart_by_kind_and_by_when():
    waits = Waits(pipeline=True)
    for kind, begin, end in (("comm", 1, 2), ("bubble", 3, 5), ("comm", 10, 14), ("bubble", 14, 22), ("comm", 30, 46)):
        waits.note(kind, begin, end)
    found = waits.take(update_began=10, update_ended=25)
    assert found == {"comm_time_s": 5, "comm_time_min_s": 5, "bubble_time_s": 10, "optimizer_wait_s": 12}
    assert waits.take(None, None) == {"comm_time_s": 0, "comm_time_min_s": 0, "bubble_time_s": 0}
    assert set(Waits(pipeline=False).take(None, None)) == {"comm_time_s", "comm_time_min_s"}


@pytest.mark.parametrize("there", [True, False])
def test_the_end_of_a_backward_pass_is_timed_where_something_waits_there(there):
    x = torch.ones(2, requires_grad=True)
    with Waits(pipeline=False) as waits:
        for _ in range(2):
            y = x * 2
            time_end_of_backward(y, lambda: there)
            y.sum().backward()
        time_end_of_backward((x * 2).detach(), lambda: there)  # an evaluation
    assert [wait.kind for wait in waits.found] == ["comm"] * 2 * there
    y = x * 2
    time_end_of_backward(y, lambda: there)
    y.sum().backward()
    assert x.grad.tolist() == [6.0, 6.0] and len(waits.found) == 2 * there


def test_watching_a_wait_takes_little(alone):
    """In processor time: other work on the machine is not in it."""
    work = dist.all_reduce(torch.ones(2), async_op=True)
    work.wait()

    def cost_s() -> float:
        return min(timeit.repeat(lambda: work.wait(), number=500, repeat=7, timer=time.process_time)) / 500

    plain = cost_s()
    with Waits(pipeline=False):
        watched = cost_s()
    assert watched - plain < 10e-6  # 0.6 us here
