"""The model at work on the cases of a study: for each the columns `predicted_...` of its row, or why it has none.

All cases of an engine are one evaluation. Beside the model's step time stand two naive predictions, which it has to
beat to be worth anything: every case reaches the MFU that the profile's reference run reached; and a rank takes for a
unit of work what it takes at the fewest ranks of the study (as the model has that one: nothing is measured yet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import __version__
from ...bench.flops import flops_per_token
from ...parallelism.predict import STACKS, Configs, Machine, other_engines
from ...parallelism.predict.configs import from_cases
from ...parallelism.predict.fit import calibration_of
from ...parallelism.predict.memory import reported_memory
from ...parallelism.predict.messages import all_messages
from ..study.case import Case

MOST_PARTS = 256  # stages times shards whose messages are added up
PARTS = {
    "predicted_compute_time_s": "compute_time_s",
    "predicted_exposed_comm_time_s": "exposed_comm_time_s",
    "predicted_bubble_time_s": "bubble_time_s",
    "predicted_optimizer_time_s": "optimizer_time_s",
    "predicted_data_time_s": "data_time_s",
    "predicted_outer_exposed_s": "outer_exposed_s",
    "predicted_bound_time_s": "bound_time_s",
}
"""Column -> the part of Step that it is."""


@dataclass(frozen=True)
class Prediction:
    """Of one case. `columns`: those of its row; none of a time where the case is refused, but the reason."""

    case: Case
    columns: dict[str, Any]

    @property
    def step_time_s(self) -> float | None:
        return self.columns.get("predicted_step_time_s")


def predict_cases(cases: Sequence[Case], machine: Machine) -> list[Prediction]:
    """Predictions of the cases, in their order."""
    found: list[dict[str, Any]] = [{} for _ in cases]
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault((case.layout.engine, case.recipe.precision, case.layout.offloads), []).append(place)
    for (engine, precision, offloads), places in groups.items():
        refusal = _refusal(machine, engine, precision, offloads)
        if refusal:
            rows: list[dict[str, Any]] = [{"predicted_step_time_s_reason": refusal} for _ in places]
        else:
            rows = _group([cases[place] for place in places], machine, engine)
        for place, row in zip(places, rows, strict=True):
            found[place] = row
    _add_smallest_scale(cases, found)
    return [Prediction(case, row) for case, row in zip(cases, found, strict=True)]


def predicted_by(machine: Machine, how: str = "") -> str:
    """What stands in the row: model and version, machine, and how that was calibrated."""
    return f"scalade {__version__}, machine {machine.name}" + (f": {how}" if how else "")


def _refusal(machine: Machine, engine: str, precision: str, offloads: bool) -> str | None:
    if offloads:
        return "the time of offloading is not modelled (its memory is)"
    if engine not in STACKS:
        return f"the model does not know the engine {engine}"
    if precision not in machine.peaks:
        return f"machine {machine.name} has no peak for {precision}"
    return None


def _group(cases: Sequence[Case], machine: Machine, engine: str) -> list[dict[str, Any]]:
    """Columns of cases of one engine and precision."""
    configs = from_cases((case.shape, case.recipe, case.layout, case.outer) for case in cases)
    stack, calibration = STACKS[engine], calibration_of(machine, engine)
    predicted = calibration.predict(configs)
    step, known = predicted.parts, np.isfinite(predicted.step_time_s)
    columns = {column: np.where(known, getattr(step, part), np.nan) for column, part in PARTS.items()}
    columns["predicted_step_time_s"] = predicted.step_time_s
    columns["predicted_step_time_low_s"] = predicted.low_s
    columns["predicted_step_time_high_s"] = predicted.high_s
    columns["predicted_memory_bytes"] = reported_memory(configs, machine, stack)
    columns["predicted_comm_bytes_per_step"] = _bytes_per_step(cases)
    columns["predicted_energy_j"] = _energy(cases, configs, machine, step.compute_time_s, predicted.step_time_s)
    columns["predicted_constant_mfu_step_time_s"] = _constant_mfu(cases, machine)
    by = {"predicted_by": predicted_by(machine, calibration.how)}
    return [
        {name: _value(name, values[i]) for name, values in columns.items() if np.isfinite(values[i])}
        | by
        | ({"predicted_step_time_s_reason": reason} if reason else {})
        for i, reason in enumerate(predicted.refused)
    ]


def _bytes_per_step(cases: Sequence[Case]) -> np.ndarray:
    """Summed over the ranks; NaN: the layout's messages are not known, go through a store (a quorum's), or are of too
    many stages and shards to add up for a table."""
    return np.array([_bytes_of(case) for case in cases])


def _bytes_of(case: Case) -> float:
    layout = case.layout
    if layout.engine == "torch" and not case.outer.quorum and layout.pp * layout.dp_shard * layout.cp <= MOST_PARTS:
        return float(sum(all_messages(case.shape, case.recipe, case.layout, case.outer).bytes.values()))
    if other_engines.known(case.layout, case.outer):
        return float(sum(other_engines.all_other_messages(case.shape, case.recipe, case.layout).bytes.values()))
    return float("nan")


def _value(name: str, value: Any) -> int | float:
    return round(float(value)) if "_bytes" in name else float(value)


def _energy(
    cases: Sequence[Case], configs: Configs, machine: Machine, compute: np.ndarray, step: np.ndarray
) -> np.ndarray:
    """Joules of the timed steps, all ranks: busy while a rank computes, idle while it waits; NaN: no power known."""
    if not machine.busy_w:
        return np.full(len(cases), np.nan)
    timed = np.array([max(0, case.recipe.steps - case.measure.warmup_steps) for case in cases])
    return timed * configs.all_ranks * (machine.busy_w * compute + machine.idle_w * (step - compute))


def _constant_mfu(cases: Sequence[Case], machine: Machine) -> np.ndarray:
    """Seconds of a step at the reference's MFU (causal); NaN: the profile has no reference."""
    if not machine.reference_mfu:
        return np.full(len(cases), np.nan)
    rates = [machine.peaks[case.recipe.precision] * machine.reference_mfu * case.ranks for case in cases]
    return np.array([work(case) for case in cases]) / np.array(rates)


def work(case: Case) -> float:
    """FLOPs of a step, by the causal convention."""
    return flops_per_token(case.shape)["causal"] * case.recipe.global_batch * case.shape.seq_len


def _add_smallest_scale(cases: Sequence[Case], found: list[dict[str, Any]]) -> None:
    """Add the second naive prediction: groups are cases that differ in layout and batch alone."""
    first: dict[tuple, int] = {}
    for place, case in enumerate(cases):
        key = case.shape, case.recipe.precision, case.layout.engine
        if found[place].get("predicted_step_time_s") is None:
            continue
        base = first.setdefault(key, place)
        if case.ranks < cases[base].ranks:
            first[key] = place
    for place, case in enumerate(cases):
        base = first.get((case.shape, case.recipe.precision, case.layout.engine), -1)
        if base >= 0:
            share = (work(case) / case.ranks) / (work(cases[base]) / cases[base].ranks)
            found[place]["predicted_smallest_scale_step_time_s"] = found[base]["predicted_step_time_s"] * share
