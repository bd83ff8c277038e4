"""Where the time of a step went. A part that was not measured is null, never 0, and is in the residual.

    step = compute + exposed communication + pipeline bubble + optimizer + data + outer step + residual

Exposed communication and bubble are host waits of the ranks (bench/host_waits.py defines them); where they were not
measured, they are part of compute and optimizer. The parts are means over the ranks, the step time is that of the
slowest rank: if ranks differ in their work, and not in its timing, the difference is in the residual.

In theory the bubble of a pipeline of p stages on m microbatches is (p - 1) / (v m + p - 1) of forward and backward,
with v stages a rank (Narayanan et al., arXiv 2104.04473, section 2.2); zero-bubble schedules have no such term. The
measured bubble is divided by the same time: forward, backward and all waits until the last stage ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

import numpy as np

from ..schema.rows import values_in
from ..table.step_columns import Steps
from .workload import has_outer_loop

COLUMNS = ("warmup", "outer_exposed_s")  # of `steps`
RESIDUAL_FLAG = 0.05
WITH_BUBBLE = ("GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS")


@dataclass(frozen=True)
class Breakdown:
    """Medians over the runs of a group; seconds of a step, but for the shares."""

    step_s: float
    compute_s: float | None  # forward and backward, without the waits measured in them
    exposed_comm_s: float | None
    exposed_comm_min_s: float | None  # of the rank that waited least: the mean is higher by the waits for other ranks
    bubble_s: float | None
    data_s: float | None
    optimizer_s: float | None  # clipping and update, without the waits measured in them
    outer_s: float | None  # the wait for the outer step of a round of H inner steps, over H
    residual_s: float | None  # null: forward and backward were not timed
    residual_flagged: bool | None  # above RESIDUAL_FLAG of the step, or below minus that
    comm_unhidden_s: float | None  # one probed step that waits for every collective: the most that can be exposed
    bubble_share: float | None  # of forward and backward, as measured
    bubble_share_theory: float | None

    def to_dict(self) -> dict:
        return asdict(self)


def breakdown(rows: Sequence[Mapping], steps: Mapping[str, Steps]) -> Breakdown:
    """rows: the ok runs of a group; steps: by run_id the columns COLUMNS of the runs for which `waits_in_steps`."""
    step = median(values_in(rows, "step_time_s"))
    exposed, bubble = _median(rows, "exposed_comm_time_s"), _median(rows, "bubble_time_s")
    data, optimizer = _median(rows, "data_time_s"), _median(rows, "optimizer_time_s")
    late = _median(rows, "optimizer_wait_s") or 0.0
    outer = _known_median([outer_of_step_s(row, _steps_with_waits(row, steps)) for row in rows])
    residual = compute = share = None
    whole = _median(rows, "compute_time_s")  # forward and backward
    if whole is not None:
        residual = step - whole - sum(part or 0.0 for part in (optimizer, data, outer))
        compute = whole + late - (exposed or 0.0) - (bubble or 0.0)
        share = _over(bubble, whole + late)
    return Breakdown(
        step_s=step,
        compute_s=compute,
        exposed_comm_s=exposed,
        exposed_comm_min_s=_median(rows, "exposed_comm_time_min_s"),
        bubble_s=bubble,
        data_s=data,
        optimizer_s=None if optimizer is None else optimizer - late,
        outer_s=outer,
        residual_s=residual,
        residual_flagged=None if residual is None else abs(residual) > RESIDUAL_FLAG * step,
        comm_unhidden_s=_median(rows, "comm_time_s"),
        bubble_share=share,
        bubble_share_theory=bubble_share(rows[0]),
    )


def _over(part: float | None, whole: float) -> float | None:
    return None if part is None else part / whole


def _median(rows: Sequence[Mapping], column: str) -> float | None:
    return _known_median([row.get(column) for row in rows])


def _known_median(values: Sequence[float | None]) -> float | None:
    """The median; None unless every value is known."""
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None


def bubble_share(row: Mapping) -> float | None:
    """(p - 1) / (v m + p - 1); null without a pipeline, and for schedules without this bubble."""
    stages, schedule = row.get("pp") or 1, row.get("pp_schedule")
    if stages == 1 or schedule not in WITH_BUBBLE:
        return None
    return (stages - 1) / ((row.get("virtual_stages") or 1) * (row.get("microbatches") or 1) + stages - 1)


def waits_in_steps(row: Mapping) -> bool:
    """Whether the time that a run waited for its outer steps is only in its rows of `steps`."""
    return has_outer_loop(row) and not _has_round_wait(row)


def _has_round_wait(row: Mapping) -> bool:
    return row.get("outer_round_exposed_s") is not None and bool(row.get("outer_sync_every"))


def _steps_with_waits(row: Mapping, steps: Mapping[str, Steps]) -> Steps | None:
    return steps.get(row["run_id"]) if waits_in_steps(row) else None


def outer_of_step_s(row: Mapping, steps: Steps | None) -> float | None:
    """Wait for outer steps, for one step: that of a round over its H steps; for a row without it, the mean over the
    timed steps. Null without an outer loop."""
    if _has_round_wait(row):
        return row["outer_round_exposed_s"] / row["outer_sync_every"]
    if not steps:
        return None
    exposed = steps["outer_exposed_s"]
    timed = exposed[(steps["warmup"] != 1) & ~np.isnan(exposed)]
    return fmean(timed.tolist()) if len(timed) else None
