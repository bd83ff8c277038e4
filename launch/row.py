"""The columns of a finished run, from what its ranks measured."""

from __future__ import annotations

import json
import statistics
from math import log

import numpy as np
import torch.distributed as dist

from ..bench.data import Source
from ..bench.data.spec import BYTES
from ..bench.device import Device
from ..bench.energy import EnergyMeter
from ..bench.flops import CONVENTIONS, flops_per_token
from ..bench.host import HostMeter, host_columns
from ..bench.loop import Training
from ..parallelism.diloco.quorum import Meeting
from ..results.columns import COLLECTIVES, MESH_DIMS
from ..results.held_out import val_hash
from .case import Case

HASHED = 256  # sequences in memory at once
TIMES = {name: name for name in ("data_time_s", "compute_time_s", "optimizer_time_s", "bubble_time_s",
                                 "optimizer_wait_s")}  # fmt: skip
TIMES |= {"exposed_comm_time_s": "comm_time_s", "exposed_comm_time_min_s": "comm_time_min_s"}  # by column of `steps`


def over_ranks(
    training: Training, device: Device, energy: EnergyMeter, host: HostMeter, meeting: Meeting | None = None
) -> dict[str, object]:
    """Columns that need every rank: maxima of memory, sums of energy and of communication, the worst host; collective.

    With a quorum the maxima are those of the ranks that are there at the end, and the sums null where one is missing.
    """
    mine = {
        "peak_memory_bytes": device.peak_memory_bytes(), "peak_host_memory_bytes": device.peak_host_memory_bytes(),
        "energy_j": training.energy_j, "energy_source": energy.source if training.energy_j is not None else None,
        "comm_s": training.probe.seconds if training.probe else None,
        "comm": training.probe.totals() if training.probe else None, "host": host.told(),
    }  # fmt: skip
    every = [mine]
    if dist.is_initialized():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
    all_there = True
    if meeting and meeting.replica:
        meeting.tell(json.dumps(mine))
    elif meeting and not meeting.position:
        told = [json.loads(each) for each in meeting.told() if each is not None]
        all_there = len(every) + len(told) == meeting.positions * meeting.outer.replicas
        every += told

    def over(name: str, how) -> object:
        told = [rank[name] for rank in every if rank[name] is not None]
        return how(told) if told else None

    row = {name: over(name, max) for name in ("peak_memory_bytes", "peak_host_memory_bytes")}
    row |= {"comm_time_s": over("comm_s", max)} | host_columns([rank["host"] for rank in every], all_there)
    if not all_there:
        return row
    row |= {"energy_j": over("energy_j", sum), "energy_source": over("energy_source", min)}
    return row | (_communication([rank["comm"] for rank in every]) if all(rank["comm"] for rank in every) else {})


def _communication(ranks: list[dict]) -> dict[str, object]:
    """Columns of the probed step, summed over the ranks."""
    sums = {
        axis: {
            name: {unit: sum(rank[axis].get(name, {}).get(unit, 0) for rank in ranks) for unit in ("bytes", "calls")}
            for name in sorted({name for rank in ranks for name in rank[axis]})
        }
        for axis in ("collective", "dim")
    }
    row: dict[str, object] = {
        "comm_bytes_per_step": sum(part["bytes"] for part in sums["collective"].values()),
        "comm_calls_per_step": sum(part["calls"] for part in sums["collective"].values()),
        "comm_by_collective_json": json.dumps(sums["collective"]), "comm_by_dim_json": json.dumps(sums["dim"]),
    }  # fmt: skip
    row |= {f"comm_bytes_{name}": sums["collective"].get(name, {}).get("bytes", 0) for name in COLLECTIVES}
    row |= {f"comm_bytes_dim_{name}": sums["dim"].get(name, {}).get("bytes", 0) for name in MESH_DIMS}
    return row


def _present(steps: dict[str, list]) -> list[float]:
    """With a quorum, the replicas in each outer step."""
    return [count for count in steps.get("replicas_present", []) if count is not None]


def share_present(case: Case, steps: dict[str, list]) -> float:
    """Share of the batches that reached the outer parameters: below 1 where a quorum went on without a replica."""
    return statistics.fmean(_present(steps)) / case.outer.replicas if _present(steps) else 1.0


def quorum_columns(case: Case, steps: dict[str, list]) -> dict[str, object]:
    missed = sum(count < case.outer.replicas for count in _present(steps))
    return {"quorum_missed": missed} if case.outer.quorum else {}


def case_columns(case: Case, source: Source, steps: int, share: float = 1.0) -> dict[str, object]:
    """Tokens and FLOPs of the first `steps` steps, of which `share` counts."""
    sequences = round(case.recipe.global_batch * steps * share)
    tokens_seen = sequences * case.shape.seq_len
    flops = flops_per_token(case.shape)
    return {
        "tokens_per_step": case.recipe.global_batch * case.shape.seq_len, "tokens_seen": tokens_seen,
        "tokens_unique": source.unique_tokens(sequences), **source.columns(),
        **{f"flops_per_token_{name}": flops[name] for name in CONVENTIONS},
        **{f"train_flops_{name}": flops[name] * tokens_seen for name in CONVENTIONS},
    }  # fmt: skip


def held_out_hash(case: Case, source: Source, training: Training) -> str | None:
    """val_hash of what was evaluated; read once more, piece by piece. None: nothing was."""
    asked = case.measure.eval_sequences
    if not training.evals:
        return None
    return val_hash(source.val_rows(at, min(at + HASHED, asked)) for at in range(0, asked, HASHED))


def loss_columns(case: Case, steps: dict[str, list], training: Training) -> dict[str, object]:
    losses = steps["loss"]
    last = losses[-max(1, len(losses) // 10) :]
    held_out = [row for row in training.evals if row["step"] == case.recipe.steps]
    val_loss = held_out[0]["val_loss"] if held_out else None
    bytes_per_token = 1 if case.data.source in BYTES else None
    return {
        "train_loss_first": losses[0], "train_loss_last": losses[-1], "loss": statistics.fmean(last),
        "val_loss": val_loss, "val_sequences": held_out[0]["val_sequences"] if held_out else None,
        "val_bits_per_byte": val_loss / log(2) / bytes_per_token if val_loss and bytes_per_token else None,
    }  # fmt: skip


def outer_columns(steps: dict[str, list]) -> dict[str, object]:
    """What the outer steps cost over the run, warm-up included, and the replicas' spread at the last of them."""
    if "outer_step" not in steps:
        return {}

    def told(name: str) -> list[float]:
        return [value for value in steps.get(name, []) if value is not None]

    last = {name: told(name)[-1] for name in ("replica_drift", "pseudograd_cosine") if told(name)}
    return last | {
        "outer_steps": int(sum(told("outer_step"))), "outer_bytes_per_rank": int(sum(told("outer_bytes"))),
        "outer_time_s": sum(told("outer_time_s")), "outer_exposed_s": sum(told("outer_exposed_s")),
    }  # fmt: skip


def speed_columns(case: Case, steps: dict[str, list], ranks: int, peak: float | None) -> dict[str, object]:
    """Medians over the timed steps; null where every step was warm-up.

    An outer step comes once in H steps, where no median sees it: the time that it was waited for is taken out of its
    step and its mean over all timed steps added to the median.
    """
    timed = [t for t, warmup in zip(steps["step_time_s"], steps["warmup"], strict=True) if not warmup]
    row: dict[str, object] = {"timed_steps": len(timed), "first_step_s": steps["step_time_s"][0]}
    if not timed:
        count = len(steps["warmup"])
        why = f"all {count} steps are warm-up: lower measure.warmup_steps, or more steps"
        return row | {"tokens_per_s_reason": why}
    every = steps.get("outer_exposed_s", [0.0] * len(steps["warmup"]))
    waited = [t or 0.0 for t, warmup in zip(every, steps["warmup"], strict=True) if not warmup]
    median = statistics.median(t - w for t, w in zip(timed, waited, strict=True)) + statistics.fmean(waited)
    p05, p95 = np.quantile(timed, [0.05, 0.95]).tolist()
    tokens_per_s = case.recipe.global_batch * case.shape.seq_len / median * share_present(case, steps)
    row |= {
        "step_time_s": median, "step_time_p05_s": p05, "step_time_p95_s": p95, "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_device": tokens_per_s / ranks,
    }  # fmt: skip
    for name, of_step in TIMES.items():
        told = [t for t, warmup in zip(steps.get(of_step, []), steps["warmup"], strict=False) if not warmup]
        row[name] = statistics.median(told) if told and None not in told else None
    if peak:
        flops = flops_per_token(case.shape)
        row |= {f"mfu_{name}": flops[name] * tokens_per_s / ranks / peak for name in CONVENTIONS}
    return row
