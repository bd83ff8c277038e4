"""Two ranks, forked, that train known numbers: `python two_ranks.py OUT.json`. See test_two_ranks.py.

Time passes where a step says so, and on rank 1 not as on rank 0; losses, norms, messages, joules, memory and held-out
tokens are given. All else is the program's own: the loop, the record, the outer engine, the row.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from scalade.bench.data import DataSpec
from scalade.bench.device import Device
from scalade.bench.engine import LocalParameter, StepOutput
from scalade.bench.loop import Setup, Training, train
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.bench.step_record import StepRecord
from scalade.launch.rank.measured_columns import loss_columns, outer_columns, over_ranks, speed_columns
from scalade.launch.study.case import Case
from scalade.parallelism.diloco import engine as diloco_engine
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.layout import Layout

SHAPE = ModelShape(layers=1, heads=1, kv_heads=1, width=8, ffn=8, vocab=256, seq_len=8)
STEPS, WARMUP, BATCH, HELD_OUT = 9, 4, 4, 6
SECONDS = (  # of each step, by rank; the slower one is now the one, now the other
    (9.0, 9.0, 9.0, 9.0, 1.0, 3.0, 1.0, 5.0, 1.0),
    (9.0, 9.0, 9.0, 9.0, 2.0, 1.0, 4.0, 1.0, 2.0),
)
LOSSES, NORM, NORMS = (1.0, 2.5), 5.0, (3.0, 5.0)  # by rank; NORM: the same on both; NORMS: of two replicas
WATTS, MEMORY = (10.0, 7.0), (100, 300)
REDUCED, SENT = 8, 4  # fp32 elements: all-reduced in a step, and sent by rank 1 to rank 0
WAITS = (1.5, 6.0)  # of an outer step, s


class Clock(Device):
    def __init__(self, rank):
        super().__init__("cpu")
        self.now, self.rank = 0.0, rank

    def mark(self):
        return self.now

    def peak_memory_bytes(self):
        return MEMORY[self.rank]

    peak_host_memory_bytes = peak_memory_bytes


class Meter:
    """What each rank's hardware takes for each second of its clock."""

    source = "fake"

    def __init__(self, clock):
        self.clock = clock

    def start(self):
        self.begin = self.clock.now

    def read_j(self):
        return (self.clock.now - self.begin) * WATTS[self.clock.rank]


class Source:
    """Row i holds the token i."""

    vocab = 256

    def train_rows(self, start, stop):
        return np.arange(start, stop)[:, None] + np.zeros((1, SHAPE.seq_len + 1), np.int64)

    val_rows = train_rows


class Engine:
    """Data parallel over `ranks`, as this rank knows it."""

    def __init__(self, clock, norm, ranks=2, batch=BATCH):
        self.clock, self.norm, self.ranks, self.batch = clock, norm, ranks, batch
        self.weight, self.done = torch.zeros(16), 0

    def rows(self):
        each, place = self.batch // self.ranks, self.clock.rank if self.ranks > 1 else 0
        return each * place, each * (place + 1)

    def train_step(self, tokens, lr):
        assert len(tokens) == self.batch // self.ranks
        self.clock.now += SECONDS[self.clock.rank][self.done]
        self.done += 1
        if self.ranks > 1:
            dist.all_reduce(torch.zeros(REDUCED))
            (dist.recv if self.clock.rank == 0 else dist.send)(torch.zeros(SENT), 1 - self.clock.rank)
        share = LOSSES[self.clock.rank] if self.ranks > 1 else 2 * LOSSES[self.clock.rank]
        return StepOutput(torch.tensor(share), torch.tensor(self.norm))

    def evaluations(self):
        return {"model": lambda tokens, counted: tokens[counted][:, 0].float().sum()}

    def local_parameters(self):
        yield LocalParameter("blocks.0.w", self.weight, 0)

    def parameters_written(self):
        self.clock.now += WAITS[self.clock.rank]

    def talks(self):
        return {"dp_replicate": (0, 1)} if self.ranks > 1 else {"replicas": (0, 1)}


def run(rank, outer):
    """The row of rank 0, and its rows of steps and evals."""
    clock = Clock(rank)
    recipe = Recipe(global_batch=BATCH, steps=STEPS, lr_schedule="constant")
    measure = Measure(warmup_steps=WARMUP, eval_sequences=HELD_OUT, log_every=2)
    case = Case(SHAPE, DataSpec(), recipe, Layout(), outer, measure)
    if outer.algorithm == "none":
        engine = Engine(clock, NORM)
    else:
        diloco_engine.time = SimpleNamespace(perf_counter=lambda: clock.now)
        engine = diloco_engine.build_outer(
            outer,
            recipe,
            SHAPE.layers,
            lambda own: Engine(clock, NORMS[rank], 1, own.global_batch),
            replica_group=dist.group.WORLD,
            replica_index=rank,
            inner_group=None,
        )
    meter, host = Meter(clock), SimpleNamespace(summary=dict)
    setup = Setup(engine, Source(), recipe, measure, SHAPE.seq_len, clock, meter)
    training = train(setup, Training(StepRecord(clock)))
    row = over_ranks(training, clock, meter, host, outer)
    steps = training.steps.columns()
    row |= speed_columns(case, steps, 2, peak=None) | loss_columns(case, steps, training) | outer_columns(case, steps)
    return {"row": row, "steps": steps, "evals": training.evals}


def main(out):
    torch.set_num_threads(1)
    rank = 0 if os.fork() else 1
    dist.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    outer = Outer("diloco", 2, sync_every=3, bucket_mb=0.0)
    results = {"plain": run(rank, Outer()), "replicas": run(rank, outer)}
    if rank == 0:
        Path(out).write_text(json.dumps(results))
        os.wait()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
