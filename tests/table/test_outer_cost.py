"""What an outer loop adds to a step: divided by H, whatever the length of the run; null where it was not timed."""

import numpy as np
import pytest

import scalade
from scalade.bench.data import DataSpec
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.rank.measured_columns import speed_columns
from scalade.launch.study.case import Case
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import fragment_count, send_offset
from scalade.parallelism.layout import Layout
from scalade.results.schema.columns import RUNS

NAMES = {column.name for group in RUNS.values() for column in group}
TOKENS = 4 * 8


def row_of(steps, outer, exposed, warmup=3, layers=4, first=0, resumed=()):
    """Columns of a run of 1 s steps; exposed(t): what inner step t (from 1) waits for its exchange, None without one.

    resumed: steps from which a later start counted its own warm-up.
    """
    shape = ModelShape(layers=layers, heads=2, kv_heads=2, width=16, ffn=32, vocab=16, seq_len=8)
    recipe = Recipe(global_batch=4, steps=steps)
    case = Case(shape, DataSpec(), recipe, Layout(), Outer(**outer), Measure(warmup_steps=warmup))
    waits = [exposed(t) for t in range(1, steps + 1)]
    starts = (first, *resumed)
    rows = {
        "step": list(range(steps)),
        "step_time_s": [1.0 + (wait or 0.0) for wait in waits],
        "outer_exposed_s": [wait or 0.0 for wait in waits],
        "outer_time_s": waits,
        "warmup": [any(start <= step < start + warmup for start in starts) for step in range(steps)],
    }
    row = speed_columns(case, rows, ranks=2, peak=1e9)
    assert set(row) <= NAMES
    return row


def every(h, seconds):
    return lambda t: seconds if t % h == 0 else None


@pytest.mark.parametrize("algorithm", ["diloco", "localsgd"])
@pytest.mark.parametrize("steps", [30, 31, 59, 60, 89, 3000])
def test_thirty_seconds_every_thirty_steps_are_one_second_a_step(steps, algorithm):
    row = row_of(steps, dict(algorithm=algorithm, replicas=2, sync_every=30), every(30, 30.0))
    assert row["step_time_s"] == pytest.approx(2.0) and row["step_time_s_reason"] is None
    assert row["inner_step_time_s"] == 1.0 and row["outer_round_exposed_s"] == 30.0
    assert row["timed_outer_steps"] == steps // 30 and row["timed_steps"] == steps - 3
    assert row["tokens_per_s"] == pytest.approx(TOKENS / 2) and row["tokens_per_s_per_device"] == TOKENS / 4
    assert row["mfu_6n"] > 0


@pytest.mark.parametrize(("steps", "warmup"), [(25, 3), (29, 0), (59, 30), (45, 44)])
def test_no_outer_step_timed_is_null_with_the_reason(steps, warmup):
    """An outer step in the warm-up is not timed."""
    row = row_of(steps, dict(algorithm="diloco", replicas=2, sync_every=30), every(30, 30.0), warmup)
    assert row["step_time_s"] is None and row["outer_round_exposed_s"] is None and row["timed_outer_steps"] == 0
    assert row.get("tokens_per_s") is None and row.get("mfu_6n") is None
    assert row["inner_step_time_s"] == 1.0 and row["step_time_p95_s"] == 1.0
    why = f"no outer step is among the {steps - warmup} timed steps, {warmup + 1} to {steps}: outer.sync_every = 30"
    assert row["step_time_s_reason"].startswith(why) and row["tokens_per_s_reason"] == row["step_time_s_reason"]


@pytest.mark.parametrize("algorithm", ["delayed", "eager"])
def test_a_first_round_that_only_sends_is_no_outer_step(algorithm):
    outer = dict(algorithm=algorithm, replicas=2, sync_every=10)

    def exposed(t):
        return None if t % 10 else 2.0 if t == 10 else 5.0

    assert row_of(19, outer, exposed)["step_time_s"] is None
    for steps in (20, 29, 45):
        row = row_of(steps, outer, exposed)
        assert row["step_time_s"] == pytest.approx(1.5) and row["outer_round_exposed_s"] == 5.0


STREAMING = dict(algorithm="streaming", replicas=2, sync_every=12, fragment_layers=1, overlap_steps=2)


def of_fragments(t, tau=2):
    """Four fragments: sending takes 0.1 s, applying fragment p takes p + 1 s."""
    outer = Outer(**STREAMING)
    offsets = [send_offset(outer, p, fragment_count(outer, 4)) for p in range(4)]
    sent = [0.1 for offset in offsets if t > 0 and (t - offset) % 12 == 0]
    applied = [p + 1.0 for p, offset in enumerate(offsets) if t > tau and (t - tau - offset) % 12 == 0]
    return sum(sent + applied) if sent or applied else None


@pytest.mark.parametrize("steps", [17, 24, 30, 41, 300])
def test_streaming_counts_every_fragment_once_in_a_round(steps):
    row = row_of(steps, STREAMING, of_fragments)
    assert row["outer_round_exposed_s"] == pytest.approx(4 * 0.1 + 1 + 2 + 3 + 4)
    assert row["step_time_s"] == pytest.approx(1 + 10.4 / 12)


def test_a_part_of_the_fragments_says_nothing_of_the_others():
    row = row_of(13, STREAMING, of_fragments, warmup=5)
    assert row["step_time_s"] is None and row["timed_outer_steps"] == 5
    assert "only" not in row["step_time_s_reason"]
    assert "5 of the 8 exchanges of a round are among the 8 timed steps, 6 to 13" in row["step_time_s_reason"]


def test_overlapping_phases_are_one_exchange():
    """H = 12, four fragments, tau = 3: while one is applied the next is sent; in the first round it is not."""
    row = row_of(30, STREAMING | {"overlap_steps": 3}, lambda t: of_fragments(t, 3), warmup=0)
    assert row["outer_round_exposed_s"] == pytest.approx(10.4)


def test_a_resumed_run_has_a_second_warm_up():
    outer = dict(algorithm="diloco", replicas=2, sync_every=10)
    row = row_of(40, outer, every(10, 10.0), resumed=(28,))  # steps 28, 29, 30: the outer step after 30 is not timed
    assert row["timed_outer_steps"] == 3 and row["step_time_s"] == pytest.approx(2.0)
    row = row_of(32, outer, lambda t: 1000.0 if t == 30 else every(10, 10.0)(t), resumed=(28,))
    assert row["timed_outer_steps"] == 2 and row["step_time_s"] == pytest.approx(2.0)


def test_every_step_an_outer_step():
    row = row_of(9, dict(algorithm="localsgd", replicas=2, sync_every=1), lambda t: 0.5)
    assert row["step_time_s"] == pytest.approx(1.5) and row["timed_outer_steps"] == 6


def test_without_an_outer_loop_there_are_no_parts():
    row = row_of(9, dict(algorithm="none"), lambda t: None)
    assert row["step_time_s"] == 1.0 and "inner_step_time_s" not in row and "outer_round_exposed_s" not in row


def recorded(root, steps, **known):
    """A recorded run of 1 s steps; steps: what each waits for its outer step and more of its columns."""
    known = {"name": "r", "outer_algorithm": "diloco", "outer_sync_every": 10, "tokens_per_step": 100} | known
    with scalade.record(root, measure_warmup_steps=2, rank=0, **known) as run:
        for wait, told in steps:
            run.step(loss=2.0, step_time_s=1.0 + wait, **told)
    return scalade.read_runs(root).iloc[0].replace({np.nan: None}).to_dict()


def of(count, **told):
    """10 s every 10 steps, and what is told of them; `wait` and `flag`: columns that say it."""
    for t in range(1, count + 1):
        wait = 10.0 if t % 10 == 0 else 0.0
        yield wait, {name: wait if name == "outer_exposed_s" else wait > 0 for name in told}


@pytest.mark.parametrize("count", [10, 12, 19, 25, 40])
def test_a_recorded_outer_loop_that_says_its_waits_is_amortised_by_its_period(tmp_path, count):
    row = recorded(tmp_path, of(count, outer_exposed_s=True, outer_step=True))
    assert row["step_time_s"] == pytest.approx(2.0) and row["tokens_per_s"] == pytest.approx(50.0)
    assert row["inner_step_time_s"] == 1.0 and row["outer_round_exposed_s"] == 10.0


@pytest.mark.parametrize(("count", "known"), [(12, {}), (25, {}), (40, {}), (25, {"outer_algorithm": "streaming"})])
def test_one_that_does_not_is_the_mean_of_whole_rounds(tmp_path, count, known):
    row = recorded(tmp_path, of(count), **known)
    assert row["step_time_s"] == pytest.approx(2.0) and row["tokens_per_s"] == pytest.approx(50.0)
    assert row["inner_step_time_s"] is None


@pytest.mark.parametrize(
    ("steps", "known", "why"),
    [
        (of(9, outer_exposed_s=True), {}, "no outer step is among the 7 timed steps"),
        (of(9), {}, "7 timed steps are no whole round of 10"),
        (of(30), {"outer_sync_every": None}, "record(outer_sync_every=...)"),
    ],
)
def test_or_says_why_it_has_no_step_time(tmp_path, steps, known, why):
    row = recorded(tmp_path, steps, **known)
    assert row["step_time_s"] is None and row["tokens_per_s"] is None
    assert why in row["step_time_s_reason"] and row["tokens_per_s_reason"] == row["step_time_s_reason"]


def test_a_recorded_outer_loop_of_varying_steps_has_all_tokens_over_whole_rounds(tmp_path):
    steps = [(wait, told | {"tokens": 100 if t % 2 else 300}) for t, (wait, told) in enumerate(of(25))]
    row = recorded(tmp_path, steps, tokens_per_step=None)
    assert row["tokens_per_s"] == pytest.approx(200 / 2) and row["timed_s"] == pytest.approx(40.0)
