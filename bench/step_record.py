"""What is kept of each step, and when the ranks combine their measurements.

Nothing crosses ranks inside a step. Every few steps the ranks meet: losses are summed, gradient norms and the parts of
a step averaged, step times reduced to those of the slowest rank. Rank 0's rows then stand; they travel with
checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from .device import Device, Mark
from .engine import StepOutput

# The rank that computes longest waits least: the maxima of these parts would exceed a step.
MEANS = ("compute_time_s", "optimizer_time_s", "comm_time_s", "bubble_time_s", "optimizer_wait_s")
MAXIMA = ("step_time_s", "data_time_s", "outer_time_s", "outer_exposed_s")
MINIMA = ("comm_time_min_s",)
SIGNS = {name: 1.0 for name in MAXIMA} | {name: -1.0 for name in MINIMA}  # a minimum is the maximum of the negatives
Marks = tuple[Mark, Mark, Mark]
"""Before the data, before and after the step."""


class StepRecord:
    """The rows of `steps` so far; `flush` is collective."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.rows: list[dict] = []
        self._pending: list[tuple[dict, Marks, StepOutput]] = []
        self.stop = False  # a rank asked for it when they last met; the same on every rank

    def add(self, row: dict, marks: Marks, output: StepOutput) -> None:
        """row: the columns known already."""
        self._pending.append((row, marks, output))

    def flush(self, stop: bool = False) -> bool:
        """Bring the pending steps to the host, the same on every rank. True while every loss and norm is finite.

        stop: this rank asks all to stop
        """
        if not self._pending:
            return True
        pending, self._pending = self._pending, []
        world = dist.get_world_size() if dist.is_initialized() else 1
        sums = torch.stack([torch.stack((o.loss.float(), o.grad_norm.float() / world)) for _, _, o in pending])
        rows = [row | self._own(marks, output) for row, marks, output in pending]
        means = torch.tensor([[row.get(name, 0.0) / world for name in MEANS] for row in rows])
        sums = torch.cat((sums, means.to(sums)), dim=1)
        measured = set().union(*rows)
        signs = {name: sign for name, sign in SIGNS.items() if name in measured}
        maxima = torch.tensor(
            [[s * row.get(name, 0.0) for name, s in signs.items()] + [float(stop)] for row in rows], dtype=torch.float64
        )
        if world > 1:
            dist.all_reduce(sums)
            maxima = maxima.to(sums.device)
            dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        self.stop = bool(maxima[0, -1])
        for row, (loss, norm, *mean), (*slowest, _) in zip(rows, sums.tolist(), maxima.tolist(), strict=True):
            extremes = [sign * value for sign, value in zip(signs.values(), slowest, strict=True)]
            _replace(row, (*MEANS, *signs), (*mean, *extremes))
            row |= {"loss": loss, "grad_norm": norm}
        self.rows += rows
        return all(map(_is_finite, rows))

    def _own(self, marks: Marks, output: StepOutput) -> dict[str, float]:
        """Columns of a step as this rank measured it; waits until the device has passed it."""
        begin, loaded, end = marks
        columns = {name: float(value) for name, value in output.extra.items()}
        columns["step_time_s"] = self.device.between_s(begin, end)
        columns["data_time_s"] = self.device.between_s(begin, loaded)
        if output.update_began is not None:
            columns["compute_time_s"] = self.device.between_s(loaded, output.update_began)
            ended = end if output.update_ended is None else output.update_ended
            columns["optimizer_time_s"] = self.device.between_s(output.update_began, ended)
        return columns

    def columns(self) -> dict[str, list]:
        """By column, None where a row lacks it."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}


def _is_finite(row: dict) -> bool:
    return math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])


def _replace(row: dict, names: Iterable[str], values: Iterable[float]) -> None:
    """This rank's values by those over all ranks, where the row has the column."""
    row |= {name: value for name, value in zip(names, values, strict=True) if name in row}
