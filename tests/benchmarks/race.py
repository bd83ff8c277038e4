"""Two trainings in one process, step by step in turns: what the machine does to one it does to the other."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from scalade.bench.data import DataSpec, Source, open_source
from scalade.bench.device import Device
from scalade.bench.energy import EnergyMeter
from scalade.bench.loop import Hooks, Setup, Training, train
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import SIZES, ModelShape
from scalade.bench.step_record import StepRecord
from scalade.launch.process.progress import Reporter
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout

BATCH, SEQ_LEN, GROUP, WARMUP = 8, 128, 10, 4


def shape_of(size: str) -> ModelShape:
    keys = dict(SIZES[size])
    return ModelShape(**{"kv_heads": keys["heads"], "vocab": 256, "seq_len": SEQ_LEN} | keys)


def engine_of(size: str, recipe: Recipe, outer: Outer | None = None):
    return build_engine(shape_of(size), recipe, Layout(), outer or Outer(), torch.device("cpu"))


def text(recipe: Recipe) -> Source:
    return open_source(DataSpec(), SEQ_LEN, recipe.seed)


def measured_loop(size: str, recipe: Recipe, folder, other: Callable[[int], None]) -> tuple[list[float], list[float]]:
    """Seconds of groups of GROUP steps: of the whole measuring loop, and of `other(step)`, called between its steps.

    GROUP is log_every's default, so each group of ours holds one meeting of the ranks; the reporter's work is in it.
    """
    engine, device, reporter = engine_of(size, recipe), Device("cpu"), Reporter(folder, recipe.steps, active=True)
    ours, theirs, since = [], [], [0.0]

    def on_step(done: int, training: Training) -> None:
        last = training.steps.rows[-1] if training.steps.rows else {}
        speed = last["tokens_seen"] / (last["step"] + 1) / last["step_time_s"] if last else None
        reporter.step(done, last.get("loss"), speed)
        turn = time.perf_counter()
        ours.append(turn - since[0])
        other(done - 1)
        since[0] = time.perf_counter()
        theirs.append(since[0] - turn)

    measure = Measure(warmup_steps=WARMUP, eval_sequences=0, log_every=GROUP)
    source, training = text(recipe), Training(StepRecord(device))
    since[0] = time.perf_counter()
    setup = Setup(engine, source, recipe, measure, SEQ_LEN, device, EnergyMeter(None, 1))
    train(setup, training, hooks=Hooks(on_step=on_step))
    return grouped(ours), grouped(theirs)


def grouped(seconds: list[float]) -> list[float]:
    """Means over groups of steps; the first group holds the warm-up and is left out."""
    groups = [seconds[i : i + GROUP] for i in range(GROUP, len(seconds) - GROUP + 1, GROUP)]
    return [sum(group) / GROUP for group in groups]


def in_turns(ours: Callable[[int], None], theirs: Callable[[int], None], steps: int) -> tuple[list[float], list[float]]:
    """Seconds of groups of GROUP calls of each, call by call in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(steps):
        for side, call in enumerate((ours, theirs)):
            begin = time.perf_counter()
            call(step)
            seconds[side].append(time.perf_counter() - begin)
    return grouped(seconds[0]), grouped(seconds[1])
