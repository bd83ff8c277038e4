"""`scalade predict STUDY`: the predictions of a study's cases, as a table for a person and as JSON for a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...bench.flops import flops_per_token
from ...parallelism.predict.machine import Machine
from ...results.terminal import print_grid, say
from ...results.wording import count_of
from ..study.case import Case
from ..study.study import load_study
from .cases import Prediction, predict_cases, predicted_by
from .profile import find_machine

if TYPE_CHECKING:
    from rich.console import Console

MIB = 2.0**20
MILLI = 1e3
WHY = "predicted_step_time_s_reason"


def predict_study(path: Path, machine: str | None) -> tuple[Machine, list[Prediction], list[tuple[Case, str]]]:
    """(machine, predictions of what can run somewhere, cases that no machine can run with the reason).

    machine: as find_machine reads it

    Raises
    ------
    ValueError: the study or the profile is wrong, or there is no profile
    """
    found = find_machine(machine)
    planned = load_study(path).cases_elsewhere()
    possible = [each.case for each in planned if each.case.refusal() is None]
    refused = [(each.case, str(each.case.refusal())) for each in planned if each.case.refusal() is not None]
    return found, predict_cases(possible, found), refused


def to_dict(machine: Machine, predictions: Sequence[Prediction], refused: Sequence[tuple[Case, str]]) -> dict[str, Any]:
    return {
        "machine": machine.name,
        "predicted_by": predicted_by(machine),
        "cases": [_identity(each.case) | each.columns | derived(each, machine) for each in predictions],
        "refused": [_identity(case) | {"reason": reason} for case, reason in refused],
    }


def _identity(case: Case) -> dict[str, Any]:
    return {"case_id": case.case_id, "model": case.model_name, "layout": case.layout_name, "ranks": case.ranks}


def derived(prediction: Prediction, machine: Machine) -> dict[str, Any]:
    """What follows from a predicted step time: tokens/s, MFU by convention, device-hours of the run."""
    case, step = prediction.case, prediction.step_time_s
    if step is None:
        return {}
    tokens = case.recipe.global_batch * case.shape.seq_len / step
    peak = machine.peaks[case.recipe.precision] * case.ranks
    mfu = {f"mfu_{name}": flops * tokens / peak for name, flops in flops_per_token(case.shape).items()}
    return {"tokens_per_s": tokens, **mfu, "device_hours": step * case.recipe.steps * case.ranks / 3600}


def print_predictions(
    machine: Machine, predictions: Sequence[Prediction], refused: Sequence[tuple[Case, str]], console: Console
) -> None:
    """The cases, fastest first within a model; then the reasons of those that are not predicted."""
    headers = ("model", "layout", ">ranks", ">MiB", ">step ms", ">90 %", ">compute", ">comm", ">bubble", ">optim")
    more = (">bound", ">tokens/s", ">MFU %", ">MB sent", ">J", ">dev-h", ">const. MFU", ">smallest")
    there = [each for each in predictions if each.step_time_s is not None]
    there.sort(key=lambda each: (each.case.shape.params_total, each.step_time_s))
    if there:
        print_grid(console, headers + more, [_line(each, derived(each, machine)) for each in there])
    unpredicted = [(each.case, str(each.columns[WHY])) for each in predictions if each.step_time_s is None]
    for case, reason in [*unpredicted, *refused]:
        say(console, f"not predicted: {case.model_name} {case.layout_name}: {reason}")
    say(console, f"{count_of(len(there), 'case')} predicted by {predicted_by(machine)}; times in ms, MFU causal")
    say(console, "naive, to be compared with step: constant MFU, and what it is at the smallest scale")


def _line(each: Prediction, more: dict[str, Any]) -> tuple[str, ...]:
    case, row = each.case, each.columns

    def ms(name: str) -> str:
        return _number(row.get(f"predicted_{name}"), MILLI, 1)

    low, high = ms("step_time_low_s"), ms("step_time_high_s")
    return (
        case.model_name,
        case.layout_name,
        str(case.ranks),
        _number(row.get("predicted_memory_bytes"), 1 / MIB, 0),
        ms("step_time_s"),
        f"{low} to {high}" if low != "-" else "-",
        ms("compute_time_s"),
        ms("exposed_comm_time_s"),
        ms("bubble_time_s"),
        ms("optimizer_time_s"),
        ms("bound_time_s"),
        _number(more["tokens_per_s"], 1, 0),
        _number(more["mfu_causal"], 100, 1),
        _number(row.get("predicted_comm_bytes_per_step"), 1e-6, 1),
        _number(row.get("predicted_energy_j"), 1, 0),
        _number(more["device_hours"], 1, 3),
        ms("constant_mfu_step_time_s"),
        ms("smallest_scale_step_time_s"),
    )


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:,.{digits}f}"
