"""The step-time model: limits that physics sets, order under change of one setting, and published layer times."""

import numpy as np
import pytest

from scalade.parallelism.predict.collective import ALL_REDUCE, OTHER, Group, Network
from scalade.parallelism.predict.configs import Configs
from scalade.parallelism.predict.layer import Compute, longest
from scalade.parallelism.predict.machine import load_machine
from scalade.parallelism.predict.pace import split
from scalade.parallelism.predict.stack import STACKS
from scalade.parallelism.predict.step import predict_step
from scalade.parallelism.predict.tuning import Tuning
from scalade.parallelism.predict.waits import Waits

H100, NANOTRON = load_machine("h100"), STACKS["nanotron"]
LLAMA = {"layers": 32, "heads": 32, "kv_heads": 8, "width": 4096, "ffn": 14336, "vocab": 128256, "seq_len": 8192}


def llama(**settings):
    """Llama 3 8B, a sequence a rank."""
    return Configs(**(LLAMA | {"global_batch": 64, "dp_shard": 64} | settings))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("layout", [{}, {"dp_shard": 8, "tp": 8}, {"dp_shard": 8, "pp": 8, "microbatches": 8}])
def test_no_step_is_faster_than_its_bound(stack, layout):
    step = predict_step(llama(**layout), H100, STACKS[stack])
    assert (step.bound_time_s < step.step_time_s).all()
    assert (step.bound_time_s > 0.1 * step.step_time_s).all()


@pytest.mark.parametrize(
    "factor", ["matmul", "attention", "elementwise", "host", "inside", "between", "latency", "optimizer", "calls"]
)
def test_a_slower_part_makes_no_step_faster(factor):
    configs = llama(dp_shard=np.array([64, 8, 8, 2]), tp=np.array([1, 8, 4, 32]), pp=np.array([1, 1, 2, 1]))
    slower = predict_step(configs, H100, NANOTRON, Tuning(**{factor: 2.0})).step_time_s
    assert (slower >= predict_step(configs, H100, NANOTRON).step_time_s).all()
    assert (slower > predict_step(configs, H100, NANOTRON).step_time_s).any()


def test_twice_the_batch_takes_at_most_twice_as_long():
    once = predict_step(llama(), H100, STACKS["torch"]).step_time_s
    twice = predict_step(llama(global_batch=128), H100, STACKS["torch"]).step_time_s
    assert (once < twice).all()
    assert (twice <= 2.05 * once).all()


def test_tensor_parallel_over_two_nodes_costs_more_than_within_one():
    within = predict_step(llama(dp_shard=8, tp=8), H100, NANOTRON)
    over = predict_step(llama(dp_shard=4, tp=16), H100, NANOTRON)
    assert (over.comm_tp_s > 2 * within.comm_tp_s).all()


def test_a_collective_of_one_rank_is_free_and_one_of_many_nears_its_bandwidth():
    network = Network(H100, Tuning())
    assert network.collective(Group(1, 1), 1e9, ALL_REDUCE) == 0
    large = network.collective(Group(8, 1), 1e12, OTHER)
    assert large == pytest.approx(7 / 8 * 1e12 / H100.links[0].bandwidth, rel=0.01)


def test_what_hides_costs_a_tenth():
    assert longest(10.0, 2.0) == pytest.approx(10.2)
    assert longest(2.0, 10.0) == pytest.approx(10.2)


def blocks_by_cost(layers: int, head: float, pp: int) -> list[int]:
    """nanotron's way: block after block to a stage until its share of the cost is passed. The last has the head."""
    stages, stage, total = [0] * pp, 0, layers + head
    for block in range(1, layers + 1):
        while block > total * (stage + 1) / pp + 1e-9:
            stage += 1
        stages[stage] += 1
    return stages


@pytest.mark.parametrize("pp", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("layers, width, ffn", [(16, 2048, 8192), (28, 3072, 8192), (32, 4096, 14336)])
def test_layers_of_stages_of_equal_cost(pp, layers, width, ffn):
    configs = Configs(layers, 32, 32, width, ffn, 131072, 4096, 256, pp=pp)
    stages = split(configs, by_cost=True)
    counted = blocks_by_cost(layers, 131072 * width / (4 * width**2 + 3 * width * ffn), pp)
    assert stages.fullest == (max(counted[:-1]) if pp > 1 else layers)
    assert stages.last == counted[-1]


@pytest.mark.parametrize("layers, pp, fullest, last", [(32, 4, 8, 8), (30, 4, 8, 6), (16, 1, 16, 16)])
def test_layers_of_even_stages(layers, pp, fullest, last):
    stages = split(Configs(layers, 32, 32, 4096, 14336, 32000, 4096, 256, pp=pp), by_cost=False)
    assert (stages.fullest, stages.last) == (fullest, last)


KORTHIKANTI = {  # arXiv 2205.05198 table 4: one layer of the 22B model, tp 8, milliseconds of both passes
    "baseline": ({"sp": 0}, 19.6),
    "sequence parallel": ({"sp": 1}, 19.0),
    "full recompute": ({"sp": 0, "recompute": 2}, 27.2),
    "selective": ({"sp": 0, "recompute": 1}, 20.9),
}


def layer_ms(settings) -> float:
    machine, stack = load_machine("a100-80"), STACKS["megatron-2022"]
    shape = {"layers": 48, "heads": 64, "kv_heads": 64, "width": 6144, "ffn": 24576, "vocab": 51200, "seq_len": 2048}
    configs = Configs(**shape, matrices=2, global_batch=4, tp=8, **settings)
    block = Compute(configs, machine, stack, Tuning()).block()
    return float(1e3 * (block.forward + block.backward + Waits(configs, Network(machine, Tuning()), stack).tensor()))


@pytest.mark.parametrize("name", KORTHIKANTI)
def test_published_layer_times(name):
    settings, measured = KORTHIKANTI[name]
    assert layer_ms(settings) == pytest.approx(measured, rel=0.12)


def test_recomputing_all_costs_a_third_more():
    once, again = (layer_ms(KORTHIKANTI[name][0]) for name in ("baseline", "full recompute"))
    assert 1.25 < again / once < 1.45  # 39% measured
