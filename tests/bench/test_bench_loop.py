"""The timed loop and the row it gives, with an engine that does as it is told."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scalade.bench import loop
from scalade.bench.data import DataSpec, open_source
from scalade.bench.device import Device
from scalade.bench.engine import StepOutput
from scalade.bench.loop import Hooks, Setup, Training, train
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.bench.step_record import StepRecord
from scalade.launch.process.progress import Reporter
from scalade.launch.rank.measured_columns import case_columns, outer_columns, speed_columns
from scalade.launch.rank.training import execute
from scalade.launch.rank.world import World
from scalade.launch.study.case import Case
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout
from scalade.results.schema.columns import EVALS, RUNS, STEPS
from scalade.results.table.held_out import val_hash

SHAPE = ModelShape(layers=2, heads=2, kv_heads=2, width=16, ffn=32, vocab=256, seq_len=8)
NAMES = {
    kind: {column.name for group in groups.values() for column in group}
    for kind, groups in (("runs", RUNS), ("steps", STEPS), ("evals", EVALS))
}


class Clock(Device):
    """Time passes only where a step or the data says so."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.now = 0.0

    def mark(self) -> float:
        return self.now


class Scripted:
    """An engine whose steps have the losses they are given, a second each."""

    def __init__(self, losses, clock: Clock) -> None:
        self.losses, self.clock = losses, clock
        self.batches, self.rates, self.evaluated = [], [], []

    def rows(self):
        return 0, 4

    def train_step(self, tokens, lr):
        self.clock.now += 1.0
        loss = self.losses[len(self.batches)]
        self.batches.append(tokens.clone())
        self.rates.append(lr)
        return StepOutput(torch.tensor(loss), torch.tensor(1.0))

    def evaluations(self):
        def model(tokens, counted):
            assert len(tokens) == len(counted) == 4
            self.evaluated.append(tokens[counted])
            return tokens[counted].float().mean(1).sum()

        return {"model": model}

    def talks(self):
        return {}


class SlowSource:
    """A quarter of a second for each batch; 10 held-out sequences."""

    vocab, val_windows = 256, 10

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def train_rows(self, start, stop):
        self.clock.now += 0.25
        return np.arange(start, stop)[:, None] + np.zeros((1, 9), np.int64)

    def val_rows(self, start, stop):
        assert stop <= self.val_windows
        return self.train_rows(start, stop)


class Meter:
    """A joule for each second of the clock."""

    source = "fake"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def start(self):
        self.begin = self.clock.now

    def read_j(self):
        return self.clock.now - self.begin


def run(losses, *, steps=None, first_step=0, source=None, on_step=None, **measure):
    clock = Clock()
    engine = Scripted(losses, clock)
    recipe = Recipe(global_batch=4, steps=steps or len(losses), lr=1.0, lr_schedule="constant")
    measure = Measure(**{"warmup_steps": 2, "eval_sequences": 0, "probe_comm": False} | measure)
    hooks = Hooks(on_step=on_step) if on_step else Hooks()
    setup = Setup(engine, source or SlowSource(clock), recipe, measure, 8, clock, Meter(clock))
    training = train(setup, Training(StepRecord(clock)), first_step=first_step, hooks=hooks)
    return training, engine


def test_rows_are_complete_and_the_warm_up_is_marked():
    seen = []
    training, engine = run(
        [5.0, 4.0, 3.0, 2.0, 1.0], log_every=2, warmup_steps=3, on_step=lambda done, training: seen.append(done)
    )
    rows = training.steps.rows
    assert set().union(*rows) <= NAMES["steps"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [5, 4, 3, 2, 1]
    assert [row["warmup"] for row in rows] == [True] * 3 + [False] * 2
    assert [row["tokens_seen"] for row in rows] == [32, 64, 96, 128, 160]
    assert all(row["step_time_s"] == 1.25 and row["data_time_s"] == 0.25 for row in rows)
    assert seen == [1, 2, 3, 4, 5]
    assert [int(batch[0, 0]) for batch in engine.batches] == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("every", [1, 7, 100])
def test_how_often_losses_are_read_changes_nothing(every):
    losses = [float(x) for x in np.random.default_rng(0).normal(size=20).astype(np.float32)]
    assert run(losses, log_every=every)[0].steps.rows == run(losses, log_every=3)[0].steps.rows


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("step", [0, 8, 12])
def test_a_loss_that_is_not_finite_ends_the_run_at_the_next_reading(bad, step):
    losses = [1.0] * 30
    losses[step] = bad
    training, engine = run(losses, log_every=5)
    assert not training.finite and training.energy_j is None
    assert len(engine.batches) == (1 if step == 0 else -(-(step + 1) // 5) * 5)
    assert len(training.steps.rows) == len(engine.batches)
    assert repr(training.steps.rows[step]["loss"]) == repr(bad)


@pytest.mark.parametrize(
    ("warmup", "first_step", "probed"), [(5, 0, 4), (3, 0, 2), (3, 4, 6), (2, 0, None), (0, 0, None)]
)
def test_the_probe_watches_the_last_warm_up_step(warmup, first_step, probed, monkeypatch):
    """From the third on: in the second DDP settles its buckets."""
    at = []

    class Probe:
        def __init__(self, talks):
            pass

        def __enter__(self):
            at.append("begin")
            return self

        def __exit__(self, *error):
            at.append("end")

    monkeypatch.setattr(loop, "CommProbe", Probe)
    training, engine = run(
        [1.0] * 10,
        steps=10 + first_step,
        first_step=first_step,
        warmup_steps=warmup,
        probe_comm=True,
        on_step=lambda done, _: at.append(done - 1),
    )
    begun = [at[i + 2] for i, each in enumerate(at) if each == "begin"]
    assert begun == ([] if probed is None else [probed])
    assert (training.probe is None) == (probed is None)


def test_the_last_step_is_always_read():
    training, _ = run([1.0] * 6 + [math.nan], log_every=100)
    assert not training.finite and len(training.steps.rows) == 7


@pytest.mark.parametrize("asked", [1, 3, 4, 5, 8, 10])
def test_an_evaluation_is_over_the_sequences_asked_for_whatever_the_batch(asked):
    training, engine = run([1.0] * 4, eval_sequences=asked, eval_every=2)
    assert [row["step"] for row in training.evals] == [2, 4]
    assert all(set(row) <= NAMES["evals"] for row in training.evals)
    assert training.evals[0] == {
        "kind": "model",
        "step": 2,
        "tokens_seen": 64,
        "val_sequences": asked,
        "val_loss": pytest.approx(statistics.fmean(range(asked)), rel=1e-6),
    }
    seen = torch.cat(engine.evaluated)[:, 0].tolist()
    assert seen == [*range(asked)] * 2  # each once, in both evaluations
    assert not run([1.0] * 4, eval_sequences=0, eval_every=2)[0].evals


def test_more_held_out_sequences_than_there_are_is_an_error_before_the_first_step(tmp_path):
    measure = Measure(warmup_steps=3, eval_sequences=10**6)
    with pytest.raises(ValueError, match=r"1000000 held-out sequences are asked for, there are \d+ of 8 tokens"):
        executed(tmp_path, replace(case(), measure=measure))


def test_energy_is_that_of_the_timed_steps_alone():
    training, _ = run([1.0] * 10, warmup_steps=4, eval_every=3, eval_sequences=4)
    assert training.energy_j == pytest.approx(6 * 1.25)  # no evaluation (0.25 s each) and no warm-up in it
    assert run([1.0] * 4, warmup_steps=4)[0].energy_j is None
    assert run([1.0] * 10, warmup_steps=0)[0].energy_j == pytest.approx(10 * 1.25)
    assert run([1.0] * 10, steps=20, first_step=10)[0].energy_j is None  # resumed: a part of it is unknown


def test_a_resumed_loop_goes_on_where_it_was():
    training, engine = run([1.0] * 4, steps=10, first_step=6, warmup_steps=2)
    assert [row["step"] for row in training.steps.rows] == [6, 7, 8, 9]
    assert [row["warmup"] for row in training.steps.rows] == [True, True, False, False]
    assert [int(batch[0, 0]) for batch in engine.batches] == [24, 28, 32, 36]
    assert training.steps.rows[-1]["tokens_seen"] == 10 * 32


def case(**recipe) -> Case:
    measure = Measure(warmup_steps=3, eval_sequences=8, eval_every=3, log_every=2)
    recipe = Recipe(**{"global_batch": 4, "steps": 8} | recipe)
    return Case(SHAPE, DataSpec(), recipe, Layout(), Outer(), measure)


def columns_of(times, warmup, **more) -> dict:
    return {"step_time_s": times, "data_time_s": [t / 10 for t in times], "warmup": warmup} | more


def test_medians_leave_the_warm_up_out_wherever_it_lies():
    """A resumed run has a second warm-up in the middle."""
    times = [90.0, 80.0, 1.0, 2.0, 70.0, 60.0, 3.0, 4.0, 5.0]
    warmup = [True, True, False, False, True, True, False, False, False]
    row = speed_columns(case(), columns_of(times, warmup), ranks=2, peak=1e9)
    assert row["step_time_s"] == 3.0 and row["timed_steps"] == 5 and row["first_step_s"] == 90.0
    assert row["step_time_p05_s"] == pytest.approx(1.2) and row["step_time_p95_s"] == pytest.approx(4.8)
    assert row["data_time_s"] == pytest.approx(0.3)
    assert row["tokens_per_s"] == pytest.approx(32 / 3) and row["tokens_per_s_per_device"] == pytest.approx(16 / 3)
    assert row["mfu_6n"] == pytest.approx(6 * SHAPE.params_total * 16 / 3 / 1e9)
    assert set(row) <= NAMES["runs"]


def test_what_outer_steps_cost_over_the_run_is_counted_with_the_warm_up():
    one = replace(case(), outer=Outer("diloco", 2, "folded", sync_every=3))
    steps = columns_of([1.0] * 7, [True] * 3 + [False] * 4, outer_exposed_s=[0.0, 0.0, 40.0, 0.0, 0.0, 3.0, 0.0]) | {
        "step": list(range(7)),
        "outer_step": [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0],
        "outer_bytes": [0.0, 0.0, 8.0, 0.0, 0.0, 8.0, 0.0],
        "outer_time_s": [None, None, 41.0, None, None, 4.0, None],
        "replica_drift": [None, None, 2.0, None, None, 1.0, None],
    }
    outer = outer_columns(one, steps)
    assert outer == {
        "outer_steps": 2,
        "outer_bytes_per_rank": 16,
        "outer_time_s": 45.0,
        "outer_exposed_s": 43.0,
        "replica_drift": 1.0,
        "outer_bytes_per_round": 8,
    }
    assert set(outer) <= NAMES["runs"] and outer_columns(case(), columns_of([1.0], [False])) == {}


def test_nothing_timed_is_null():
    row = speed_columns(case(), columns_of([1.0, 2.0], [True, True]), ranks=1, peak=1e9)
    why = "all 2 steps are warm-up: lower measure.warmup_steps, or more steps"
    assert row == {"timed_steps": 0, "first_step_s": 1.0, "step_time_s_reason": why, "tokens_per_s_reason": why}


def executed(folder: Path, case: Case):
    result = execute(case, World(0, 1, 0, 1, "cpu", "gloo", 1, ()), Reporter(folder, case.recipe.steps, active=True))
    assert set(result.row) <= NAMES["runs"]
    assert set(result.steps) <= NAMES["steps"] and set(result.evals) <= NAMES["evals"]
    return result


def test_a_run_fills_columns_that_exist(tmp_path):
    result = executed(tmp_path, case())
    row, steps = result.row, result.steps
    assert result.status == "ok" and result.reason is None
    assert row["tokens_seen"] == 8 * 4 * 8 == steps["tokens_seen"][-1]
    assert row["train_loss_first"] == steps["loss"][0] and row["train_loss_last"] == row["loss"] == steps["loss"][-1]
    assert row["val_loss"] == result.evals["val_loss"][-1] and result.evals["step"] == [3, 6, 8]
    assert row["val_sequences"] == 8 and result.evals["val_sequences"] == [8] * 3
    held_out = open_source(DataSpec(), SHAPE.seq_len, 0).val_rows(0, 8)
    assert row["val_hash"] == val_hash(held_out) and result.evals["val_hash"] == [row["val_hash"]] * 3
    assert row["val_bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2))
    assert row["step_time_s"] == pytest.approx(statistics.median(steps["step_time_s"][3:]))
    assert all(0 < data < step for data, step in zip(steps["data_time_s"], steps["step_time_s"], strict=True))
    assert row["peak_host_memory_bytes"] > 2**20 and row["peak_memory_bytes"] is None
    assert row["load_average"] >= 0 and row["gpu_mhz_min"] is None  # of this machine: see test_host.py
    assert row["comm_bytes_per_step"] == row["comm_calls_per_step"] == 0  # probed: one process says nothing
    assert row["resumed_from_step"] is None and row["startup_s"] > 0
    assert "mfu_6n" not in row and row["peak_flops"] is None


@pytest.mark.filterwarnings("ignore")
def test_a_diverged_run_counts_what_it_did(tmp_path):
    result = executed(tmp_path, case(lr=1e30, clip_norm=0.0, optimizer="sgd", steps=9))
    done = len(result.steps["step"])
    assert result.status == "diverged" and "at step" in result.reason and done < 9
    row = result.row
    assert row["tokens_seen"] == done * 32 == result.steps["tokens_seen"][-1]
    for name in ("6n", "palm", "causal"):
        assert row[f"train_flops_{name}"] == row[f"flops_per_token_{name}"] * done * 32
    assert row["tokens_unique"] == done * 32 and row["val_loss"] is None


def test_tokens_seen_and_unique_tokens_part_when_the_data_repeats():
    source = open_source(DataSpec(), SHAPE.seq_len, 0)
    windows = source.columns()["data_tokens"] // 8
    steps = windows // 4 + 10
    row = case_columns(case(steps=steps), source, steps)
    assert row["tokens_seen"] == steps * 32 > row["tokens_unique"] == windows * 8
