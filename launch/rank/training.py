"""What the ranks of a run do once their world stands: build the engine, train, and make the run's row of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from ...bench import weights
from ...bench.data import Source, open_source
from ...bench.device import Device
from ...bench.energy import EnergyMeter
from ...bench.engine import Engine
from ...bench.environment import environment_columns
from ...bench.host import HostMeter
from ...bench.loop import Training, to_device, train
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
    if case.layout.compile:  # a run killed while it compiles leaves half a library: nobody else's
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(reporter.folder / "inductor")
    device = Device(world.device)
    source = open_source(case.data, case.shape.seq_len, case.recipe.seed)
    if source.vocab > case.shape.vocab:
        raise ValueError(f"model.vocab = {case.shape.vocab}: the data has tokens up to {source.vocab - 1}")
    asked = case.measure.eval_sequences
    source.val_rows(asked, asked)  # where there are fewer, that is said before the training and not after it
    cuda_index = device.torch.index if device.cuda else None
    energy, host = EnergyMeter(cuda_index, world.local_rank), HostMeter(world.local_rank == 0, cuda_index, _meet)

    def build() -> Engine:
        engine = build_engine(
            case.shape, case.recipe, case.layout, case.outer, device.torch, world.meeting, case.borders
        )
        if case.recipe.start_weights:
            first = world.rank % case.layout.ranks == 0  # of its replica
            engine.set_weights(weights.read(Path(case.recipe.start_weights)) if first else None)
        return engine

    checkpoints = Checkpoints(reporter.folder, reporter.run_id)
    engine, training, first_step = checkpoints.resume(build, StepRecord(device))
    if world.meeting:
        world.meeting.begin()
    startup_s = reporter.launched.elapsed_s()
    reporter.begin(first_step)
    journal = StepJournal(reporter.folder, active=world.rank == 0)
    timed_from = first_step + case.measure.warmup_steps

    def on_step(done: int, training: Training) -> None:
        host.reached(done, timed_from, case.recipe.steps)
        journal.append(training)
        last = training.steps.rows[-1] if training.steps.rows else {}
        speed = last["tokens_seen"] / (last["step"] + 1) / last["step_time_s"] if last else None
        reporter.step(done, last.get("loss"), speed)

    host.reached(first_step, timed_from, case.recipe.steps)
    train(
        engine,
        source,
        case.recipe,
        case.measure,
        case.shape.seq_len,
        device,
        energy,
        training,
        first_step=first_step,
        on_step=on_step,
        checkpoint=lambda done, now: checkpoints.save(engine, done, now),
        stop=None if world.meeting else lambda: asked_to_stop(reporter.folder),
    )
    device.finish()
    host.stop()  # of a run that ended before its last step
    journal.close()
    if training.stopped:
        engine.close()
        raise Preempted(f"stopped at step {len(training.steps.rows)} of {case.recipe.steps}, as asked")
    if not training.finite and world.meeting and world.meeting.replica:
        raise FloatingPointError(f"{_first_bad(training)}: replica {world.meeting.replica} leaves the run")
    shared = over_ranks(training, device, energy, host, case.outer, world.meeting)
    if case.measure.keep_weights and training.finite:
        whole = engine.weights()
        if world.rank == 0:
            weights.write(reporter.folder / WEIGHTS, whole)
    ops = {}
    if case.measure.profile_steps and training.finite:
        ops = _profiled(engine, source, case, device)
    peak, peak_source = device.peak_flops(case.recipe.precision, case.measure.peak_matmul)
    engine.close()
    if world.rank:
        return None
    steps = training.steps.columns()
    row = case_columns(case, source, len(training.steps.rows), share_present(case, steps)) | shared
    row |= loss_columns(case, steps, training) | outer_columns(case, steps) | quorum_columns(case, steps)
    row |= {"startup_s": startup_s, "resumed_from_step": first_step or None} | checkpoints.columns()
    row |= speed_columns(case, steps, world.size, peak) | {"peak_flops": peak, "peak_flops_source": peak_source}
    row |= environment_columns(device)
    row |= belief_columns(case, source, row)
    row["val_hash"] = held_out_hash(case, source, training)
    evals = {name: [each[name] for each in training.evals] for name in (training.evals or [{}])[0]}
    evals |= {"val_hash": [row["val_hash"]] * len(training.evals)} if evals else {}
    if training.finite:
        return RunResult("ok", row, steps, evals, ops=ops)
    return RunResult("diverged", row, steps, evals, reason=_first_bad(training))


def _meet() -> None:
    """Return when every rank is here; over gloo, also beside GPUs."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def _profiled(engine: Engine, source: Source, case: Case, device: Device) -> dict:
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
