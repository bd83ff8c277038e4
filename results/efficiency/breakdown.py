"""Where the time of a step went. What was not measured is null, never 0, and is in the residual.

    step = compute + exposed communication + pipeline bubble + optimizer + data + outer step + residual

Exposed communication and bubble are what the ranks waited for (bench/host_waits.py says what is in them); where they
were not measured, compute and optimizer hold them. The parts are means over the ranks, the step is that of its slowest
rank: ranks that differ in what they do, and not in when, leave the difference in the residual.

The bubble that theory gives a pipeline of p stages on m microbatches is (p - 1) / (v m + p - 1) of forward and
backward, v stages a rank (Narayanan et al., arXiv 2104.04473, section 2.2); zero-bubble schedules have no such term.
The measured one is set over the same time: forward, backward and all that was waited for until the last stage ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

import numpy as np

from ..table.step_columns import Steps

COLUMNS = ("warmup", "outer_exposed_s")  # of `steps`
RESIDUAL_FLAG = 0.05
WITH_BUBBLE = ("GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS")


@dataclass(frozen=True)
class Breakdown:
    """Medians over the runs of a group; seconds of a step unless said."""

    step_s: float
    compute_s: float | None  # forward and backward less what of it was measured as waiting
    exposed_comm_s: float | None
    exposed_comm_min_s: float | None  # of the rank that waited least: what the mean has more is waiting for others
    bubble_s: float | None
    data_s: float | None
    optimizer_s: float | None  # clipping and update, likewise
    outer_s: float | None  # the wait for outer steps: that of a round of H inner steps, over H
    residual_s: float | None  # null: forward and backward were not timed
    residual_flagged: bool | None  # above RESIDUAL_FLAG of the step, or below minus that
    comm_unhidden_s: float | None  # every collective waited for, on one probed step: the most that can be exposed
    bubble_share: float | None  # of forward and backward, as measured
    bubble_share_theory: float | None

    def to_dict(self) -> dict:
        return asdict(self)


def breakdown(rows: Sequence[Mapping], steps: Mapping[str, Steps]) -> Breakdown:
    """rows: the ok runs of a group; steps: the columns COLUMNS by run_id, of runs that `waits_in_steps` is true of."""
    parts = [_of_run(row, steps.get(row["run_id"]) if waits_in_steps(row) else None) for row in rows]

    def over(name: str) -> float | None:
        told = [part[name] for part in parts if part.get(name) is not None]
        return median(told) if len(told) == len(parts) else None

    step = over("step_s")
    whole, optimizer = over("forward_backward_s"), over("optimizer_s")
    exposed, bubble, late = over("exposed_comm_s"), over("bubble_s"), over("optimizer_wait_s") or 0.0
    residual = compute = share = None
    if whole is not None:
        residual = step - whole - sum(x or 0.0 for x in (optimizer, over("data_s"), over("outer_s")))
        compute = whole + late - (exposed or 0.0) - (bubble or 0.0)
    if whole is not None and bubble is not None:
        share = bubble / (whole + late)
    return Breakdown(
        step_s=step,
        compute_s=compute,
        exposed_comm_s=exposed,
        exposed_comm_min_s=over("exposed_comm_min_s"),
        bubble_s=bubble,
        data_s=over("data_s"),
        optimizer_s=None if optimizer is None else optimizer - late,
        outer_s=over("outer_s"),
        residual_s=residual,
        residual_flagged=None if residual is None else abs(residual) > RESIDUAL_FLAG * step,
        comm_unhidden_s=over("comm_time_s"),
        bubble_share=share,
        bubble_share_theory=bubble_share(rows[0]),
    )


def bubble_share(row: Mapping) -> float | None:
    """(p - 1) / (v m + p - 1); null without a pipeline or where the schedule has no such bubble."""
    stages, schedule = row.get("pp") or 1, row.get("pp_schedule")
    if stages == 1 or schedule not in WITH_BUBBLE:
        return None
    return (stages - 1) / ((row.get("virtual_stages") or 1) * (row.get("microbatches") or 1) + stages - 1)


def _of_run(row: Mapping, steps: Steps | None) -> dict[str, float | None]:
    return {
        "step_s": row["step_time_s"],
        "forward_backward_s": row.get("compute_time_s"),
        "exposed_comm_s": row.get("exposed_comm_time_s"),
        "exposed_comm_min_s": row.get("exposed_comm_time_min_s"),
        "bubble_s": row.get("bubble_time_s"),
        "optimizer_wait_s": row.get("optimizer_wait_s"),
        "data_s": row.get("data_time_s"),
        "optimizer_s": row.get("optimizer_time_s"),
        "outer_s": outer_of_step_s(row, steps),
        "comm_time_s": row.get("comm_time_s"),
    }


def waits_in_steps(row: Mapping) -> bool:
    """Whether what a run waited for its outer steps is told by its rows of `steps` only."""
    return (row.get("outer_algorithm") or "none") != "none" and not _round_told(row)


def _round_told(row: Mapping) -> bool:
    return row.get("outer_round_exposed_s") is not None and bool(row.get("outer_sync_every"))


def outer_of_step_s(row: Mapping, steps: Steps | None) -> float | None:
    """Wait for outer steps, of one step: a round's over its H steps; of rows that do not say the round's, the mean over
    the timed steps. Null without an outer loop."""
    if _round_told(row):
        return row["outer_round_exposed_s"] / row["outer_sync_every"]
    if not steps:
        return None
    exposed = steps["outer_exposed_s"]
    told = exposed[(steps["warmup"] != 1) & ~np.isnan(exposed)]
    return fmean(told.tolist()) if len(told) else None
