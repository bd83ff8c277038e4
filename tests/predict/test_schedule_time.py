"""Time of a pipeline: known values of the schedules, and the fast answer against direct simulation."""

from __future__ import annotations

import time

import numpy as np
import pytest

from scalade.parallelism.layout import LOOPED, SCHEDULES, V_SHAPED
from scalade.parallelism.predict.configs import Configs
from scalade.parallelism.predict.pipeline_graph import graph_of
from scalade.parallelism.predict.schedule import Passes, pipeline_time

NONE = Passes(0.0, 0.0, 0.0)


def configs(schedule, pp, m, v=1, layers=None):
    code = SCHEDULES.index(schedule) if isinstance(schedule, str) else schedule
    shape = dict(heads=8, kv_heads=8, width=64, ffn=256, vocab=256, seq_len=64, global_batch=64)
    layers = pp * v if layers is None else layers
    return Configs(layers=layers, **shape, pp=pp, pp_schedule=code, virtual_stages=v, microbatches=m)


def bubble(schedule, pp, m, v=1, block=NONE, layers=None, send=0.0):
    """Share of the time in which the busiest rank has nothing to compute."""
    found = pipeline_time(configs(schedule, pp, m, v, layers), block, NONE, NONE, send)
    return float(found.bubble[0] / found.makespan[0])


EQUAL = Passes(1.0, 1.0, 1.0)  # the backward pass takes twice the forward pass


@pytest.mark.parametrize(("pp", "m"), [(2, 2), (4, 8), (8, 8), (8, 64), (16, 100)])
@pytest.mark.parametrize("schedule", ["1F1B", "GPipe"])
def test_even_stages_take_m_plus_p_less_1_passes(schedule, pp, m):
    found = pipeline_time(configs(schedule, pp, m), EQUAL, NONE, NONE, 0.0)
    assert found.makespan == pytest.approx((m + pp - 1) * 3)
    assert found.busy == pytest.approx(m * 3)


@pytest.mark.parametrize(("pp", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 16, 4), (8, 64, 3)])
def test_interleaving_divides_the_bubble_by_the_virtual_stages(pp, m, v):
    """arXiv 2104.04473, section 2.2: (p - 1)(f + b) / v."""
    whole = Passes(1 / v, 1 / v, 1 / v)  # pp v layers: as much work as in 1F1B
    found = pipeline_time(configs("Interleaved1F1B", pp, m, v), whole, NONE, NONE, 0.0)
    assert found.bubble == pytest.approx((pp - 1) * 3 / v)


@pytest.mark.parametrize(("pp", "m"), [(4, 16), (8, 32)])
def test_zero_bubble_schedules_have_less_of_it(pp, m):
    plain = bubble("1F1B", pp, m, block=EQUAL, layers=2 * pp)
    interleaved = bubble("Interleaved1F1B", pp, m, 2, EQUAL)
    zero = bubble("InterleavedZeroBubble", pp, m, 2, EQUAL)
    assert zero < interleaved < plain
    assert bubble("DualPipeV", pp, m, 2, EQUAL) < plain


@pytest.mark.parametrize(("pp", "m"), [(4, 16), (8, 32)])
def test_zbv_has_no_bubble_but_the_way_to_the_last_rank(pp, m):
    """arXiv 2401.10241, section 6: a rank that has begun never waits. The last begins p - 1 forward passes late."""
    found = pipeline_time(configs("ZBVZeroBubble", pp, m, 2), EQUAL, NONE, NONE, 0.0)
    assert found.busy == pytest.approx(m * 6)
    assert found.bubble == pytest.approx(pp - 1)


def test_zbv_has_a_bubble_where_passes_are_not_alike():
    found = pipeline_time(configs("ZBVZeroBubble", 8, 32, 2), Passes(1.0, 1.5, 0.5), NONE, NONE, 0.0)
    assert found.bubble > 1.5 * 7


def test_the_slowest_stage_sets_the_pace():
    """A head as long as 2 blocks on the last of 4 stages: each further microbatch costs what that stage takes."""
    last = Passes(2.0, 2.0, 2.0)
    two = [pipeline_time(configs("1F1B", 4, m), EQUAL, NONE, last, 0.0) for m in (40, 41)]
    assert two[1].makespan - two[0].makespan == pytest.approx(9.0)
    assert two[0].busy == pytest.approx(40 * 9.0)
    assert two[0].bubble == pytest.approx(3 * 3.0)  # on the way down to the last stage and back


def test_layers_that_do_not_divide_are_on_the_first_stages():
    even, odd = (pipeline_time(configs("1F1B", 4, 16, layers=n), EQUAL, NONE, NONE, 0.0) for n in (8, 9))
    assert even.busy == pytest.approx(16 * 6.0)
    assert odd.busy == pytest.approx(16 * 9.0)


def test_messages_of_1f1b_are_waited_for_and_those_of_looped_schedules_travel_behind():
    """1F1B, first rank: it waits at each turn; a way down and up has 2 (p - 1) messages."""
    send, block = 0.1, EQUAL
    waits = pipeline_time(configs("1F1B", 4, 32), block, NONE, NONE, send)
    overlaps = pipeline_time(configs("1F1B", 4, 32), block, NONE, NONE, send, overlaps=True)
    looped = pipeline_time(configs("Interleaved1F1B", 4, 32, 2), block, NONE, NONE, send)
    assert waits.exposed_send > 2 * 31 * send
    assert overlaps.exposed_send < waits.exposed_send
    assert looped.exposed_send < 16 * send
    assert waits.bubble == pytest.approx(overlaps.bubble)


def drawn(random, n):
    """Times that no sample of the model was found at, (n, 10)."""

    def some(low, high):
        return np.exp(random.uniform(np.log(low), np.log(high), n))

    f, first, last = np.ones(n), some(0.005, 0.5), some(0.02, 4)
    block = [f, f * some(0.8, 2.2), f * some(0.7, 1.2)]
    return np.stack([*block, first, 0 * f, first, last, last * some(0.8, 1.2), last, some(1e-3, 0.5)], axis=1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
def test_the_answer_is_that_of_direct_simulation(schedule, pp):
    """Also far beyond the microbatches that were simulated; never above it, as each candidate is a real path."""
    v = 2 if schedule in LOOPED else 1
    random, errors = np.random.default_rng(pp), []
    for m in (pp, 2 * pp, 3 * pp, 8 * pp, 20 * pp):
        if schedule == "DualPipeV" and m < 2 * pp:
            continue
        times = drawn(random, 100)
        layers = 2 * pp * v + 1
        times[:, 3:] *= 2
        graph = graph_of(schedule, pp, v, m, layers, "never" if schedule in LOOPED else "turns")
        parts = [Passes(*times[:, i : i + 3].T) for i in (0, 3, 6)]
        fast = pipeline_time(configs(schedule, np.full(100, pp), m, v, layers), *parts, times[:, 9])
        errors.append(fast.makespan / graph.makespan(times) - 1)
        assert fast.busy == pytest.approx((times @ graph.busy().T).max(axis=1))
    assert np.max(errors) < 1e-9
    assert np.mean(np.abs(errors)) < 2e-4
    assert np.min(errors) > -0.02


def test_a_schedule_that_does_not_take_the_microbatches_has_no_time():
    found = pipeline_time(configs("DualPipeV", np.array([4, 4]), np.array([7, 8]), 2), EQUAL, NONE, NONE, 0.0)
    assert np.isnan(found.makespan).tolist() == [True, False]


def test_a_search_is_fast():
    """A million configurations of some hundred orders; the orders themselves are simulated once."""
    random, n = np.random.default_rng(0), 1_000_000
    schedule = random.integers(0, len(SCHEDULES), n)
    v = np.where(np.isin(schedule, [SCHEDULES.index(s) for s in LOOPED]), 2, 1)
    c = configs(schedule, 2 ** random.integers(0, 4, n), 16 * 2 ** random.integers(0, 4, n), v, 48)
    block = Passes(random.uniform(1, 2, n), random.uniform(1, 2, n), random.uniform(1, 2, n))
    once = pipeline_time(c.take(slice(0, 20000)), Passes(1.0, 1.0, 1.0), NONE, NONE, 0.1)
    began = time.process_time()
    found = pipeline_time(c, block, NONE, block, 0.1)
    assert time.process_time() - began < 10  # a tenth of the time that a configuration may cost
    assert not np.isnan(found.makespan).any() and not np.isnan(once.makespan).any()


def test_v_shaped_schedules_have_two_stages_a_rank():
    for schedule in V_SHAPED:
        found = pipeline_time(configs(schedule, 4, 16, 3), EQUAL, NONE, NONE, 0.0)
        assert np.isnan(found.makespan).all()
