"""The columns of a finished run, from what its ranks measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from math import log
from typing import Any, TypedDict

import numpy as np
import torch.distributed as dist

from ...bench.data import Source
from ...bench.data.spec import BYTES
from ...bench.data.unigrams import believed
from ...bench.device import Device
from ...bench.energy import EnergyMeter
from ...bench.flops import CONVENTIONS, flops_per_token
from ...bench.host import HostMeter, host_columns
from ...bench.loop import Training
from ...parallelism.diloco.config import Outer
from ...parallelism.diloco.plan import first_outer_step, round_of, steps_after_outer
from ...parallelism.diloco.quorum import Meeting
from ...results.schema.columns import MESH_DIMS
from ...results.schema.row_columns import COLLECTIVES
from ...results.table.held_out import val_hash
from ...results.table.outer_cost import outer_cost
from ...results.wording import count_of
from ..study.case import Case

HASHED = 256  # sequences in memory at once
TIMES = {
    name: name for name in ("data_time_s", "compute_time_s", "optimizer_time_s", "bubble_time_s", "optimizer_wait_s")
}
TIMES |= {"exposed_comm_time_s": "comm_time_s", "exposed_comm_time_min_s": "comm_time_min_s"}  # by column of `steps`


Sums = dict[str, dict[str, dict[str, int]]]
"""{"collective" | "dim": {name: {"bytes", "calls"}}}, as CommProbe.totals."""
Steps = dict[str, list[Any]]
"""Columns of `steps`."""


class RankTotals(TypedDict):
    """What one rank measured over the run; it goes to rank 0 as JSON."""

    peak_memory_bytes: int | None
    peak_host_memory_bytes: int | None
    energy_j: float | None
    energy_source: str | None
    comm_s: float | None
    comm: Sums | None
    round: Sums | None
    host: dict[str, object]


def over_ranks(
    training: Training,
    device: Device,
    energy: EnergyMeter,
    host: HostMeter,
    outer: Outer,
    meeting: Meeting | None = None,
) -> dict[str, object]:
    """Columns that need every rank: maxima of memory, sums of energy and of communication, the worst host; collective.

    With a quorum the maxima are those of the ranks that are there at the end, and the sums null where one is missing.
    """
    mine = _totals(training, device, energy, host)
    ranks = _gathered(mine)
    all_there = _add_other_replicas(ranks, mine, meeting) if meeting else True
    row: dict[str, object] = {
        "peak_memory_bytes": _over(max, (rank["peak_memory_bytes"] for rank in ranks)),
        "peak_host_memory_bytes": _over(max, (rank["peak_host_memory_bytes"] for rank in ranks)),
        "comm_time_s": _over(max, (rank["comm_s"] for rank in ranks)),
    }
    row |= host_columns([rank["host"] for rank in ranks], all_there)
    if not all_there:
        return row
    row["energy_j"] = _over(sum, (rank["energy_j"] for rank in ranks))
    row["energy_source"] = _over(min, (rank["energy_source"] for rank in ranks))
    return row | _communication_columns(ranks, outer)


def _totals(training: Training, device: Device, energy: EnergyMeter, host: HostMeter) -> RankTotals:
    """Of this rank."""
    probe, round_probe = training.probe, training.round_probe
    return {
        "peak_memory_bytes": device.peak_memory_bytes(),
        "peak_host_memory_bytes": device.peak_host_memory_bytes(),
        "energy_j": training.energy_j,
        "energy_source": energy.source if training.energy_j is not None else None,
        "comm_s": probe.seconds if probe else None,
        "comm": probe.totals() if probe else None,
        "round": round_probe.totals() if round_probe else None,
        "host": host.summary(),
    }


def _gathered(mine: RankTotals) -> list[RankTotals]:
    """Of all ranks of the process group; collective."""
    if not dist.is_initialized():
        return [mine]
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return ranks


def _add_other_replicas(ranks: list[RankTotals], mine: RankTotals, meeting: Meeting) -> bool:
    """With a quorum, where each replica has a process group of its own: rank 0 adds those of the others to its own.
    False: one is missing."""
    if meeting.replica:
        meeting.send_measurements(json.dumps(mine))
    elif not meeting.position:
        ranks += [json.loads(content) for content in meeting.collect_measurements() if content is not None]
        return len(ranks) == meeting.positions * meeting.outer.replicas
    return True


def _over(combine: Callable[[list[Any]], Any], values: Iterable[Any]) -> Any:
    """The combined values of those ranks that measured one; None: none did."""
    measured = [value for value in values if value is not None]
    return combine(measured) if measured else None


def _sums(ranks: Sequence[Sums]) -> Sums:
    """Over the ranks."""
    return {
        axis: {
            name: {unit: sum(rank[axis].get(name, {}).get(unit, 0) for rank in ranks) for unit in ("bytes", "calls")}
            for name in sorted({name for rank in ranks for name in rank[axis]})
        }
        for axis in ("collective", "dim")
    }


def _communication_columns(ranks: Sequence[RankTotals], outer: Outer) -> dict[str, object]:
    """Of what every rank's probes counted; none where one has probed no step."""
    probed = [rank["comm"] for rank in ranks if rank["comm"]]
    if len(probed) < len(ranks):
        return {}
    inner = _sums(probed)
    if outer.algorithm == "none":
        return _communication(inner)
    assert outer.sync_every is not None, "an outer loop has a period"
    of_round = _sums([rank["round"] for rank in ranks if rank["round"] is not None])
    return _communication(inner, of_round, outer.sync_every) | {
        "comm_bytes_inner_step": _bytes(inner),
        "comm_bytes_outer_round": _bytes(of_round),
    }


def _bytes(sums: Sums) -> int:
    return sum(part["bytes"] for part in sums["collective"].values())


def _communication(inner: Sums, of_round: Sums | None = None, period: int = 1) -> dict[str, object]:
    """Columns of one step: an inner step's, and of a round's outer steps the part of one of its `period` steps."""
    of_round = of_round or {"collective": {}, "dim": {}}

    def share(axis: str, name: str) -> dict[str, float]:
        """Whole bytes; calls are whole without an outer loop."""
        nothing: dict[str, int] = {"bytes": 0, "calls": 0}
        one, outer = inner[axis].get(name, nothing), of_round[axis].get(name, nothing)
        calls = one["calls"] + outer["calls"] / period if outer["calls"] else one["calls"]
        return {"bytes": round(one["bytes"] + outer["bytes"] / period), "calls": calls}

    step = {axis: {name: share(axis, name) for name in sorted({*inner[axis], *of_round[axis]})} for axis in inner}
    row: dict[str, object] = {
        "comm_bytes_per_step": round(_bytes(inner) + _bytes(of_round) / period),
        "comm_calls_per_step": sum(part["calls"] for part in step["collective"].values()),
        "comm_by_collective_json": json.dumps(step["collective"]),
        "comm_by_dim_json": json.dumps(step["dim"]),
    }
    row |= {f"comm_bytes_{name}": step["collective"].get(name, {}).get("bytes", 0) for name in COLLECTIVES}
    row |= {f"comm_bytes_dim_{name}": step["dim"].get(name, {}).get("bytes", 0) for name in MESH_DIMS}
    return row


def _present(steps: Steps) -> list[float]:
    """With a quorum, the replicas in each outer step."""
    return [count for count in steps.get("replicas_present", []) if count is not None]


def share_present(case: Case, steps: Steps) -> float:
    """Share of the batches that reached the outer parameters: below 1 where a quorum went on without a replica."""
    return statistics.fmean(_present(steps)) / case.outer.replicas if _present(steps) else 1.0


def quorum_columns(case: Case, steps: Steps) -> dict[str, object]:
    missed = sum(count < case.outer.replicas for count in _present(steps))
    return {"quorum_missed": missed} if case.outer.quorum else {}


def case_columns(case: Case, source: Source, steps: int, share: float = 1.0) -> dict[str, object]:
    """Tokens and FLOPs of the first `steps` steps, of which `share` counts."""
    sequences = round(case.recipe.global_batch * steps * share)
    tokens_seen = sequences * case.shape.seq_len
    flops = flops_per_token(case.shape)
    return {
        "tokens_per_step": case.recipe.global_batch * case.shape.seq_len,
        "tokens_seen": tokens_seen,
        "tokens_unique": source.unique_tokens(sequences),
        **source.columns(),
        **{f"flops_per_token_{name}": flops[name] for name in CONVENTIONS},
        **{f"train_flops_{name}": flops[name] * tokens_seen for name in CONVENTIONS},
    }


def held_out_hash(case: Case, source: Source, training: Training) -> str | None:
    """val_hash of what was evaluated; read once more, piece by piece. None: nothing was."""
    count = case.measure.eval_sequences
    if not training.evals:
        return None
    return val_hash(source.val_rows(at, min(at + HASHED, count)) for at in range(0, count, HASHED))


def loss_columns(case: Case, steps: Steps, training: Training) -> dict[str, object]:
    losses = steps["loss"]
    last = losses[-max(1, len(losses) // 10) :]
    held_out = [row for row in training.evals if row["step"] == case.recipe.steps]
    val_loss = held_out[0]["val_loss"] if held_out else None
    row: dict[str, object] = {}
    if case.outer.algorithm != "none":
        row["steps_after_outer"] = steps_after_outer(case.outer, len(losses))
        first = first_outer_step(case.outer)
        if held_out and len(losses) < first:  # the outer parameters, or some, are those of the start
            val_loss = None
            row["val_loss_reason"] = f"no outer step in {len(losses)} inner steps: the first needs {first}"
    bytes_per_token = 1 if case.data.source in BYTES else None
    return row | {
        "train_loss_first": losses[0],
        "train_loss_last": losses[-1],
        "loss": statistics.fmean(last),
        "val_loss": val_loss,
        "val_sequences": held_out[0]["val_sequences"] if held_out else None,
        "val_bits_per_byte": val_loss / log(2) / bytes_per_token if val_loss and bytes_per_token else None,
    }


def belief_columns(case: Case, source: Source, row: dict[str, Any]) -> dict[str, object]:
    """Whether the held-out loss of the row can be."""
    if row["val_loss"] is None:
        return {}
    seen = row["val_sequences"] * case.shape.seq_len
    unigram, warning = believed(source, case.shape.seq_len, row["val_loss"], seen, row["data_entropy_nats"])
    return {"unigram_nats": unigram, "val_warning": warning}


def outer_columns(case: Case, steps: Steps) -> dict[str, object]:
    """What the outer steps cost over the run, warm-up included, and the replicas' spread at the last of them."""
    if case.outer.algorithm == "none":
        return {}

    def measured(name: str) -> list[float]:
        return [value for value in steps.get(name, []) if value is not None]

    last = {name: measured(name)[-1] for name in ("replica_drift", "pseudograd_cosine") if measured(name)}
    return last | {
        "outer_steps": int(sum(measured("outer_step"))),
        "outer_bytes_per_rank": int(sum(measured("outer_bytes"))),
        "outer_time_s": sum(measured("outer_time_s")),
        "outer_exposed_s": sum(measured("outer_exposed_s")),
        "outer_bytes_per_round": _bytes_of_round(case, steps),
    }


def _bytes_of_round(case: Case, steps: Steps) -> int | None:
    """Of one rank; null where not every exchange of a round was reached. An exchange always sends as much."""
    sent_at, of_round = dict[int, int](), round_of(case.outer, case.shape.layers)
    for step, sent in zip(steps["step"], steps["outer_bytes"], strict=True):
        if of_round.exchanges_at(step + 1):
            sent_at[(step + 1) % of_round.steps] = sent
    return int(sum(sent_at.values())) if len(sent_at) == len(of_round.phases) else None


def speed_columns(case: Case, steps: Steps, ranks: int, peak: float | None) -> dict[str, object]:
    """Medians over the timed steps, what an outer loop adds to them, and the rates that follow; null where every step
    was warm-up, or no outer step was timed."""
    timed = _timed(steps, "step_time_s")
    row: dict[str, Any] = {"timed_steps": len(timed), "first_step_s": steps["step_time_s"][0]}
    if not timed:
        count = len(steps["warmup"])
        why = f"all {count_of(count, 'step is', 'steps are')} warm-up: lower measure.warmup_steps, or more steps"
        return row | {"step_time_s_reason": why, "tokens_per_s_reason": why}
    p05, p95 = np.quantile(timed, [0.05, 0.95]).tolist()
    row |= {"step_time_p05_s": p05, "step_time_p95_s": p95} | _step_time(case, steps, timed)
    for name, of_step in TIMES.items():
        times = _timed(steps, of_step)
        row[name] = statistics.median(times) if times and None not in times else None
    if row["step_time_s"] is None:
        return row | {"tokens_per_s_reason": row["step_time_s_reason"]}
    tokens_per_s = case.recipe.global_batch * case.shape.seq_len / row["step_time_s"] * share_present(case, steps)
    row |= {"tokens_per_s": tokens_per_s, "tokens_per_s_per_device": tokens_per_s / ranks}
    if peak:
        flops = flops_per_token(case.shape)
        row |= {f"mfu_{name}": flops[name] * tokens_per_s / ranks / peak for name in CONVENTIONS}
    return row


def _timed(steps: Steps, name: str) -> list[Any]:
    """The values of the timed steps in this column; empty where there is no such column."""
    return [value for value, warmup in zip(steps.get(name, []), steps["warmup"], strict=False) if not warmup]


def _step_time(case: Case, steps: Steps, timed: list[float]) -> dict[str, object]:
    """step_time_s and, with an outer loop, its parts or why there is none."""
    if case.outer.algorithm == "none":
        return {"step_time_s": statistics.median(timed)}
    every = zip(steps["step"], steps["step_time_s"], steps["outer_exposed_s"], steps["warmup"], strict=True)
    rows = [(step + 1, seconds, exposed or 0.0) for step, seconds, exposed, warmup in every if not warmup]
    cost = outer_cost(rows, round_of(case.outer, case.shape.layers))
    return {
        "step_time_s": cost.step_s,
        "step_time_s_reason": cost.reason,
        "inner_step_time_s": cost.inner_step_s,
        "outer_round_exposed_s": cost.round_exposed_s,
        "timed_outer_steps": cost.exchanges,
    }
