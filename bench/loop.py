"""The timed loop: trains an engine on a source and measures it. Knows no layout, no launcher and no table.

A step's time runs from asking for its data to the end of its update. Reading losses, evaluations, checkpoints and
progress lie between steps and are not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist

from .comm_probe import CommProbe
from .data import Source
from .device import Device
from .energy import EnergyMeter
from .engine import Engine
from .host_waits import Waits
from .measure import Measure
from .recipe import Recipe
from .step_record import StepRecord

COMPARE_S = 5.0  # so often at least, whole steps, the ranks meet: who asks them to stop does not wait longer


@dataclass
class Training:
    """What a run has done so far, the same on every rank; lists of rows are what a checkpoint carries along."""

    steps: StepRecord
    evals: list[dict] = field(default_factory=list)
    probe: CommProbe | None = None  # of one inner step
    round_probe: CommProbe | None = None  # of a round of outer steps, where there is an outer loop
    energy_j: float | None = None  # of the timed steps, what this rank answers for
    finite: bool = True
    stopped: bool = False  # before the end, with a checkpoint, since it was asked to


def train(
    engine: Engine,
    source: Source,
    recipe: Recipe,
    measure: Measure,
    seq_len: int,
    device: Device,
    energy: EnergyMeter,
    training: Training,
    *,
    first_step: int = 0,
    on_step: Callable[[int, Training], None] = lambda done, training: None,
    checkpoint: Callable[[int, Training], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Training:
    """Train from `first_step` to the end of the recipe, or to the first loss that is not finite. Collective.

    on_step(done, training) follows every step; checkpoint(done, training) every measure.checkpoint_every steps, with
    all rows flushed. stop(): whether this rank has heard that the run is to end before its end; then all ranks write
    a checkpoint after the step in which they next meet, and the training is `stopped`.
    """
    waits = Waits(pipeline="pp" in engine.talks()) if getattr(engine, "waits_on_host", False) else None
    with waits or nullcontext():
        return _train(
            engine,
            source,
            recipe,
            measure,
            seq_len,
            device,
            energy,
            training,
            first_step,
            on_step,
            checkpoint,
            stop,
            waits,
        )


def _train(
    engine: Engine,
    source: Source,
    recipe: Recipe,
    measure: Measure,
    seq_len: int,
    device: Device,
    energy: EnergyMeter,
    training: Training,
    first_step: int,
    on_step: Callable[[int, Training], None],
    checkpoint: Callable[[int, Training], None] | None,
    stop: Callable[[], bool] | None,
    waits: Waits | None,
) -> Training:
    begin_row, end_row = engine.rows()
    tokens_per_step = recipe.global_batch * seq_len
    # The last warm-up step, but not the first two, in which pipelines agree on shapes and DDP on buckets.
    probed = first_step + measure.warmup_steps - 1 if measure.probe_comm and measure.warmup_steps > 2 else None
    timed_from = first_step + measure.warmup_steps
    # What a killed attempt used is not known, so a resumed run has no energy.
    joules = TimedEnergy(energy, device, training, None if first_step else timed_from)
    meet_at = first_step + 1
    if measure.eval_start and measure.eval_sequences and not first_step:
        training.evals += evaluate(engine, source, recipe, measure, device, 0, 0)
    for step in range(first_step, recipe.steps):
        joules.before(step)
        watched = _probed(engine, training) if step == probed else nullcontext()
        lr = recipe.lr_at(step)
        if waits:
            waits.found.clear()  # those of evaluations and checkpoints
        begin = device.mark()
        position = step * recipe.global_batch
        tokens = to_device(source.train_rows(position + begin_row, position + end_row), device)
        loaded = device.mark()
        with watched:
            output = engine.train_step(tokens, lr)
        end = device.mark()
        done = step + 1
        row = {"step": step, "warmup": step < timed_from, "tokens_seen": done * tokens_per_step, "lr": lr}
        if waits and step != probed:  # the probe itself waits for each collective
            row |= waits.take(output.update_began, output.update_ended)
        training.steps.add(row, (begin, loaded, end), output)
        saves = bool(checkpoint and measure.checkpoint_every and done % measure.checkpoint_every == 0)
        evaluates = bool(measure.eval_every and done % measure.eval_every == 0) or done == recipe.steps
        if done == meet_at or done % measure.log_every == 0 or saves or evaluates:
            training.finite = training.steps.flush(stop is not None and stop())
            if stop is not None:  # the slowest rank's time, so the same step on every rank
                meet_at = done + max(1, int(COMPARE_S / max(training.steps.rows[-1]["step_time_s"], 1e-6)))
            if not training.finite:
                training.energy_j = None
                break
        if saves or evaluates:
            joules.pause()
        on_step(done, training)
        if evaluates and measure.eval_sequences:
            training.evals += evaluate(engine, source, recipe, measure, device, done, done * tokens_per_step)
        training.stopped = training.steps.stop and done < recipe.steps
        if checkpoint and done < recipe.steps and (saves or training.stopped):
            checkpoint(done, training)
        if training.stopped:
            break
    return training


def _probed(engine: Engine, training: Training) -> CommProbe:
    """What is to be around the probed step. Counts a round of outer steps first, where the engine has them: between
    two steps, as no step's time has it."""
    training.round_probe = getattr(engine, "count_round", lambda: None)()
    training.probe = CommProbe(engine.talks())
    return training.probe


class TimedEnergy:
    """Adds up the energy of the timed steps in training.energy_j, without that of what lies between them."""

    def __init__(self, meter: EnergyMeter, device: Device, training: Training, timed_from: int | None) -> None:
        self.meter, self.device, self.training, self.timed_from = meter, device, training, timed_from
        self.on = False

    def before(self, step: int) -> None:
        """A step follows."""
        if not self.on and self.timed_from is not None and step >= self.timed_from:
            self.device.finish()
            self.meter.start()
            self.on = True

    def pause(self) -> None:
        """Something else follows."""
        if self.on:
            self.device.finish()
            used, self.on = self.meter.read_j(), False
            self.training.energy_j = None if used is None else used + (self.training.energy_j or 0.0)


def evaluate(
    engine: Engine, source: Source, recipe: Recipe, measure: Measure, device: Device, step: int, tokens_seen: int
) -> list[dict]:
    """Mean loss over the first measure.eval_sequences held-out sequences, whatever the batch: rows of `evals`.
    Collective."""
    asked, batch = measure.eval_sequences, recipe.global_batch
    begin_row, end_row = getattr(engine, "eval_rows", engine.rows)()
    batches = [
        filled_up(source, start, min(batch, asked - start), batch, begin_row, end_row)
        for start in range(0, asked, batch)
    ]
    batches = [(to_device(rows, device), torch.from_numpy(counted).to(device.torch)) for rows, counted in batches]
    kinds = engine.evaluations()
    total = torch.stack([torch.stack([loss(*each) for each in batches]).sum() for loss in kinds.values()]) / asked
    if dist.is_initialized():
        dist.all_reduce(total)
    common = {"step": step, "tokens_seen": tokens_seen, "val_sequences": asked}
    return [common | {"kind": kind, "val_loss": value} for kind, value in zip(kinds, total.tolist(), strict=True)]


def filled_up(
    source: Source, start: int, real: int, batch: int, begin_row: int, end_row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows begin_row..end_row-1 of a batch that holds `real` held-out sequences from `start` on and is filled up with
    rows that do not count: (tokens (rows, seq_len + 1) int64, counted (rows,) bool).

    Row r counts where floor((r + 1) real / batch) > floor(r real / batch): evenly over the batch, so that every rank
    and every replica evaluates its part.
    """
    before = np.arange(begin_row, end_row + 1) * real // batch  # sequences in front of each row
    counted = np.diff(before) > 0
    sequences = source.val_rows(start + int(before[0]), start + int(before[-1]))
    rows = np.zeros((end_row - begin_row, sequences.shape[1]), np.int64)  # token 0 is in every vocabulary
    rows[counted] = sequences
    return rows, counted


def to_device(rows, device: Device) -> torch.Tensor:
    """Rows of a source, (rows, seq_len + 1) int64."""
    tokens = torch.from_numpy(rows)
    return tokens.pin_memory().to(device.torch, non_blocking=True) if device.cuda else tokens
