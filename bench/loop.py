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

COMPARE_S = 5.0  # the ranks meet at least so often, in whole steps: a request to stop does not wait longer


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


@dataclass(frozen=True)
class Setup:
    """What this rank trains, on which data, and how it is measured."""

    engine: Engine
    source: Source
    recipe: Recipe
    measure: Measure
    seq_len: int
    device: Device
    energy: EnergyMeter


@dataclass(frozen=True)
class Hooks:
    """What the loop calls between two steps.

    on_step(done, training) follows every step; checkpoint(done, training) every measure.checkpoint_every steps, with
    all rows flushed. stop(): whether this rank was asked to end the run before its end; then all ranks write a
    checkpoint after the step in which they next meet, and the training is `stopped`.
    """

    on_step: Callable[[int, Training], None] = lambda done, training: None
    checkpoint: Callable[[int, Training], None] | None = None
    stop: Callable[[], bool] | None = None


NO_HOOKS = Hooks()


def train(setup: Setup, training: Training, *, first_step: int = 0, hooks: Hooks = NO_HOOKS) -> Training:
    """Train from `first_step` to the end of the recipe, or to the first loss that is not finite. Collective."""
    engine = setup.engine
    waits = Waits(pipeline="pp" in engine.talks()) if getattr(engine, "waits_on_host", False) else None
    with waits or nullcontext():
        return _Loop(setup, training, first_step, hooks, waits).run()


class _Loop:
    """One call of `train`."""

    def __init__(self, setup: Setup, training: Training, first_step: int, hooks: Hooks, waits: Waits | None) -> None:
        recipe, measure = setup.recipe, setup.measure
        self.setup, self.training, self.first_step, self.hooks, self.waits = setup, training, first_step, hooks, waits
        self.begin_row, self.end_row = setup.engine.rows()
        self.tokens_per_step = recipe.global_batch * setup.seq_len
        self.timed_from = first_step + measure.warmup_steps
        # The last warm-up step, but not the first two, in which pipelines agree on shapes and DDP on buckets.
        probes = measure.probe_comm and measure.warmup_steps > 2
        self.probed_step = self.timed_from - 1 if probes else None
        # What a killed attempt used is not known, so a resumed run has no energy.
        energy_from = None if first_step else self.timed_from
        self.energy = TimedEnergy(setup.energy, setup.device, training, energy_from)
        self.meet_at = first_step + 1

    def run(self) -> Training:
        measure = self.setup.measure
        if measure.eval_start and measure.eval_sequences and not self.first_step:
            self._evaluate(0)
        for step in range(self.first_step, self.setup.recipe.steps):
            self._step(step)
            if not self._continues(step + 1):
                break
        return self.training

    def _step(self, step: int) -> None:
        engine, source, recipe, device = self.setup.engine, self.setup.source, self.setup.recipe, self.setup.device
        waits, probed = self.waits, step == self.probed_step
        self.energy.before(step)
        watched = _probed(engine, self.training) if probed else nullcontext()
        lr = recipe.lr_at(step)
        if waits:
            waits.found.clear()  # those of evaluations and checkpoints
        begin = device.mark()
        position = step * recipe.global_batch
        tokens = to_device(source.train_rows(position + self.begin_row, position + self.end_row), device)
        loaded = device.mark()
        with watched:
            output = engine.train_step(tokens, lr)
        end = device.mark()
        row = {
            "step": step,
            "warmup": step < self.timed_from,
            "tokens_seen": (step + 1) * self.tokens_per_step,
            "lr": lr,
        }
        if waits and not probed:  # the probe itself waits for each collective
            row |= waits.take(output.update_began, output.update_ended)
        self.training.steps.add(row, (begin, loaded, end), output)

    def _continues(self, done: int) -> bool:
        """What lies between two steps; False: the next one does not follow."""
        measure, training, hooks = self.setup.measure, self.training, self.hooks
        last = done == self.setup.recipe.steps
        saves = hooks.checkpoint is not None and _is_due(done, measure.checkpoint_every)
        evaluates = last or _is_due(done, measure.eval_every)
        pauses = saves or evaluates
        if pauses or done == self.meet_at or _is_due(done, measure.log_every):
            self._meet(done)
        if not training.finite:
            training.energy_j = None
            return False
        if pauses:
            self.energy.pause()
        hooks.on_step(done, training)
        if evaluates and measure.eval_sequences:
            self._evaluate(done)
        if last:
            training.stopped = False
            return True
        training.stopped = training.steps.stop
        if hooks.checkpoint and (saves or training.stopped):
            hooks.checkpoint(done, training)
        return not training.stopped

    def _meet(self, done: int) -> None:
        """The ranks compare what they have measured, and whether one of them was asked to stop."""
        steps, stop = self.training.steps, self.hooks.stop
        self.training.finite = steps.flush(stop is not None and stop())
        if stop is not None:  # by the slowest rank's time, so at the same step on every rank
            self.meet_at = done + max(1, int(COMPARE_S / max(steps.rows[-1]["step_time_s"], 1e-6)))

    def _evaluate(self, done: int) -> None:
        setup = self.setup
        self.training.evals += evaluate(
            setup.engine, setup.source, setup.recipe, setup.measure, setup.device, done, done * self.tokens_per_step
        )


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _probed(engine: Engine, training: Training) -> CommProbe:
    """The context of the probed step. Counts a round of outer steps first, where the engine has them: between two
    steps, so that it is in no step's time."""
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
    on_host = [
        filled_up(source, start, min(batch, asked - start), batch, begin_row, end_row)
        for start in range(0, asked, batch)
    ]
    batches = [(to_device(rows, device), torch.from_numpy(counted).to(device.torch)) for rows, counted in on_host]
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


def to_device(rows: np.ndarray, device: Device) -> torch.Tensor:
    """Rows of a source, (rows, seq_len + 1) int64."""
    tokens = torch.from_numpy(rows)
    return tokens.pin_memory().to(device.torch, non_blocking=True) if device.cuda else tokens
