"""What the ranks of a run do once their world stands: build the engine, train, and make the run's row of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...bench import weights
from ...bench.data import Source, open_source
from ...bench.device import Device
from ...bench.energy import EnergyMeter
from ...bench.engine import Engine
from ...bench.environment import environment_columns
from ...bench.host import HostMeter
from ...bench.loop import Hooks, Setup, Training, to_device, train
from ...bench.profiler import profile
from ...bench.step_record import StepRecord
from ...parallelism.engines import build_engine
from ..process.preemption import Preempted, asked_to_stop
from ..process.progress import Reporter
from ..process.run_spec import RunResult
from ..process.scratch import WEIGHTS
from ..process.step_journal import StepJournal
from ..study.case import Case
from .checkpoints import Checkpoints
from .measured_columns import (
    belief_columns,
    case_columns,
    held_out_hash,
    loss_columns,
    outer_columns,
    over_ranks,
    quorum_columns,
    share_present,
    speed_columns,
)
from .world import World


def execute(case: Case, world: World, reporter: Reporter) -> RunResult | None:
    """Train the case on this world; collective. Rank 0 gets the result, the others None."""
    torch.set_num_threads(world.threads)
    if case.layout.compile:  # a run killed while it compiles leaves half a library: it must not serve another run
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(reporter.folder / "inductor")
    return RankTraining(case, world, reporter).run()


class RankTraining:
    """One rank's part in the training of a case; all methods are collective."""

    def __init__(self, case: Case, world: World, reporter: Reporter) -> None:
        self.case, self.world, self.reporter = case, world, reporter
        self.device, self.source = Device(world.device), _source(case)
        cuda_index = self.device.torch.index if self.device.cuda else None
        self.energy = EnergyMeter(cuda_index, world.local_rank)
        self.host = HostMeter(world.local_rank == 0, cuda_index, _meet)
        self.checkpoints = Checkpoints(reporter.folder, reporter.run_id)

    def run(self) -> RunResult | None:
        engine, training, first_step = self.checkpoints.resume(self._build_engine, StepRecord(self.device))
        if self.world.meeting:
            self.world.meeting.begin()
        startup_s = self.reporter.launched.elapsed_s()
        self.reporter.begin(first_step)
        self._train(engine, training, first_step)
        if training.stopped:
            engine.close()
            done, steps = len(training.steps.rows), self.case.recipe.steps
            raise Preempted(f"stopped at step {done} of {steps}, as asked")
        self._leave_where_not_finite(training)
        shared = over_ranks(training, self.device, self.energy, self.host, self.case.outer, self.world.meeting)
        ops = self._after_training(engine) if training.finite else {}
        peak = self.device.peak_flops(self.case.recipe.precision, self.case.measure.peak_matmul)
        engine.close()
        if self.world.rank:
            return None
        times = {"startup_s": startup_s, "resumed_from_step": first_step or None}
        return self._result(training, shared | times, ops, peak)

    def _build_engine(self) -> Engine:
        """With the weights that the training starts from."""
        case, world = self.case, self.world
        engine = build_engine(
            case.shape, case.recipe, case.layout, case.outer, self.device.torch, world.meeting, case.borders
        )
        if case.recipe.start_weights:
            first = world.rank % case.layout.ranks == 0  # of its replica
            engine.set_weights(weights.read(Path(case.recipe.start_weights)) if first else None)
        return engine

    def _train(self, engine: Engine, training: Training, first_step: int) -> None:
        case, host, reporter = self.case, self.host, self.reporter
        journal = StepJournal(reporter.folder, active=self.world.rank == 0)
        timed_from = first_step + case.measure.warmup_steps

        def on_step(done: int, training: Training) -> None:
            host.reached(done, timed_from, case.recipe.steps)
            journal.append(training)
            last = training.steps.rows[-1] if training.steps.rows else {}
            speed = last["tokens_seen"] / (last["step"] + 1) / last["step_time_s"] if last else None
            reporter.step(done, last.get("loss"), speed)

        host.reached(first_step, timed_from, case.recipe.steps)
        hooks = Hooks(
            on_step=on_step,
            checkpoint=lambda done, now: self.checkpoints.save(engine, done, now),
            stop=None if self.world.meeting else lambda: asked_to_stop(reporter.folder),
        )
        setup = Setup(engine, self.source, case.recipe, case.measure, case.shape.seq_len, self.device, self.energy)
        train(setup, training, first_step=first_step, hooks=hooks)
        self.device.finish()
        host.stop()  # of a run that ended before its last step
        journal.close()

    def _leave_where_not_finite(self, training: Training) -> None:
        """With a quorum: a replica other than the first, whose loss is not finite, leaves the run to the others."""
        meeting = self.world.meeting
        if meeting and meeting.replica and not training.finite:
            raise FloatingPointError(f"{_first_bad(training)}: replica {meeting.replica} leaves the run")

    def _after_training(self, engine: Engine) -> dict[str, Any]:
        """Keep the weights, and profile a few more steps, where the case asks for it. Columns of `ops`."""
        measure = self.case.measure
        if measure.keep_weights:
            whole = engine.weights()
            if self.world.rank == 0:
                weights.write(self.reporter.folder / WEIGHTS, whole)
        return _profiled(engine, self.source, self.case, self.device) if measure.profile_steps else {}

    def _result(
        self, training: Training, known: dict[str, object], ops: dict[str, Any], peak: tuple[float | None, str | None]
    ) -> RunResult:
        """known: columns that need every rank, and those of the start"""
        case, steps = self.case, training.steps.columns()
        peak_flops, peak_source = peak
        row: dict[str, Any] = case_columns(case, self.source, len(training.steps.rows), share_present(case, steps))
        row |= known | loss_columns(case, steps, training) | outer_columns(case, steps) | quorum_columns(case, steps)
        row |= self.checkpoints.columns()
        row |= speed_columns(case, steps, self.world.size, peak_flops)
        row |= {"peak_flops": peak_flops, "peak_flops_source": peak_source}
        row |= environment_columns(self.device)
        row |= belief_columns(case, self.source, row)
        row["val_hash"] = held_out_hash(case, self.source, training)
        evals = _eval_columns(training, row["val_hash"])
        if training.finite:
            return RunResult("ok", row, steps, evals, ops=ops)
        return RunResult("diverged", row, steps, evals, reason=_first_bad(training))


def _source(case: Case) -> Source:
    """Raises ValueError: the data does not fit the case."""
    source = open_source(case.data, case.shape.seq_len, case.recipe.seed)
    if source.vocab > case.shape.vocab:
        raise ValueError(f"model.vocab = {case.shape.vocab}: the data has tokens up to {source.vocab - 1}")
    wanted = case.measure.eval_sequences
    source.val_rows(wanted, wanted)  # where there are fewer, this raises before the training and not after it
    return source


def _eval_columns(training: Training, val_hash: object) -> dict[str, list[Any]]:
    """Columns of `evals`; empty where nothing was evaluated."""
    if not training.evals:
        return {}
    columns = {name: [each[name] for each in training.evals] for name in training.evals[0]}
    return columns | {"val_hash": [val_hash] * len(training.evals)}


def _meet() -> None:
    """Return when every rank is here; over gloo, also beside GPUs."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def _profiled(engine: Engine, source: Source, case: Case, device: Device) -> dict[str, Any]:
    """Columns of `ops`: what the last step would do, done again under the profiler. Collective."""
    recipe, (begin, end) = case.recipe, engine.rows()
    last = (recipe.steps - 1) * recipe.global_batch
    tokens, lr = to_device(source.train_rows(last + begin, last + end), device), recipe.lr_at(recipe.steps - 1)
    return profile(
        lambda: engine.train_step(tokens, lr),
        case.measure.profile_steps,
        "pp" in engine.talks(),
        getattr(engine, "waits_on_host", False),
        device,
    )


def _first_bad(training: Training) -> str:
    """Where the loss stopped being finite, in words."""
    first = next(r for r in training.steps.rows if not abs(r["loss"]) + abs(r["grad_norm"]) < float("inf"))
    return f"loss {first['loss']:g}, gradient norm {first['grad_norm']:g} at step {first['step']}"
