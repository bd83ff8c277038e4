"""`scalade efficiency`: from a results folder to scaling efficiency. The command line only parses and prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from ..table import held_out
from ..table.column_codes import Coded
from ..table.step_columns import StepColumns
from ..table.work import no_work
from ..wording import count_of
from . import breakdown, loss
from .fastest import fastest
from .reading import read_groups, steps_of, unchecked, waits_of
from .report import EfficiencyReport, compared
from .series import FORMS, MODES, Options, Refusal, read_series
from .workload import Group, allowed, guess_mode

ENVIRONMENT = ("git_commit", "torch_version", "cuda_version", "nccl_version", "driver_version", "backend")


class EfficiencyKeywords(TypedDict, total=False):
    """The keywords of `efficiency`: the fields of EfficiencyOptions."""

    mode: str | None
    form: str | None
    base: str | None
    where: str | None
    target_loss: float | None
    loss_window: int
    allow: Sequence[str]
    published: str | None
    level: float
    draws: int
    seed: int


@dataclass(frozen=True)
class EfficiencyOptions:
    """What to compare and how; the defaults of `efficiency`, which documents each.

    Raises
    ------
    ValueError: a value that is not allowed
    """

    mode: str | None = None
    form: str | None = None
    base: str | None = None
    where: str | None = None
    target_loss: float | None = None
    loss_window: int = loss.WINDOW
    allow: Sequence[str] = ()
    published: str | None = None
    level: float = 0.95
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed_values in (("mode", self.mode, (None, *MODES)), ("form", self.known_form, FORMS)):
            if value not in allowed_values:
                raise ValueError(f"{name} {value!r}: allowed are {', '.join(one for one in allowed_values if one)}")
        if (self.known_form == "loss") != (self.target_loss is not None):
            raise ValueError("form loss and target_loss go together: give both or neither")
        if not 0 < self.level < 1 or self.draws < 0 or self.loss_window < 1:
            raise ValueError(
                f"level {self.level:g}, draws {self.draws}, loss_window {self.loss_window}: level must lie between 0 "
                "and 1, draws be at least 0, loss_window at least 1"
            )

    @property
    def known_form(self) -> str:
        return self.form or ("loss" if self.target_loss is not None else "throughput")

    def of_series(self, groups: Sequence[Group]) -> Options:
        return Options(
            mode=self.mode or guess_mode(groups),
            form=self.known_form,
            target_loss=self.target_loss,
            loss_window=self.loss_window,
            allow=allowed(self.allow),
            level=self.level,
            draws=self.draws,
            seed=self.seed,
        )


def efficiency(path: str | Path, **keywords: Unpack[EfficiencyKeywords]) -> EfficiencyReport:
    """Scaling efficiency of the runs at `path` (see read_runs). All further arguments are keywords:

    mode: `strong` (total work fixed) or `weak` (work of each device fixed); None: as the tokens of a step indicate.
    form: `throughput`, `step_time` or `loss` (time to target_loss, mean of loss_window steps); the default is
        throughput, or loss if there is a target. The first two have one efficiency and two speedups.
    base: a filter that names the base, as `layout == single`; None: the smallest device count of each family.
    where: a filter on the runs, as `model == tiny-5m and status == ok`.
    allow: columns that may differ from those of the base; `outer` stands for all settings of the outer algorithm.
    published: a convention (`mfu_palm`, `mfu_6n`, `mfu_causal`, `tokens_per_s_per_device`) in which each layout is
        compared with the shipped published rows.
    level: of the intervals over runs; draws: resamples for the fit of a law, 0 for none; seed: of the resamples.

    Raises
    ------
    ValueError: a mistake of the user's, in one line
    """
    asked = EfficiencyOptions(**keywords)
    runs = read_groups(path, asked.where, asked.base)
    if not runs.groups:
        raise ValueError(_nothing_timed(runs.ungrouped, asked.where))
    in_time = asked.known_form == "loss"
    if in_time and "val_hash" not in asked.allow:
        _check_held_out_sets(runs.groups)
    declared = runs.declared()
    options = asked.of_series(runs.groups)
    series, refused = read_series(runs.groups, _steps(path, runs.groups, options.form), options, declared)
    notes = [f"warning: {line}" for line in runs.notes]
    return EfficiencyReport(
        path=str(path),
        options=options,
        series=tuple(series),
        refused=tuple(refused + _refused(runs.ungrouped)),
        notes=tuple(notes + _mixed(runs.groups)),
        published=compared(runs.groups, asked.published) if asked.published else (),
        fastest=() if in_time else tuple(one for one in fastest(runs.groups, asked.level) if one.others),
    )


def _nothing_timed(rows: Sequence[Mapping], where: str | None) -> str:
    """Why no run can be compared, with the commonest reason among the runs with status ok."""
    filtered = f" that match {where!r}" if where else ""
    reasons = Counter(no_work(row) for row in rows if row["status"] == "ok").most_common(1)
    commonest = f"; {reasons[0][1]} with status ok: {reasons[0][0]}" if reasons else ""
    return f"no timed run with status ok among the {count_of(len(rows), 'run')}{filtered}{commonest}"


def _refused(rows: Sequence[Mapping]) -> list[Refusal]:
    """Runs in no group: one refusal for each layout and cause."""
    by_cause: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        why = no_work(row) if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
        ranks = count_of(row["world_size"], "rank") if row["world_size"] else "? ranks"
        by_cause.setdefault((f"{row['layout'] or '?'} on {ranks}", str(why)), []).append(row["run_id"])
    return [Refusal(what, tuple(runs), why) for (what, why), runs in by_cause.items()]


def _check_held_out_sets(groups: Sequence[Group]) -> None:
    """Raises ValueError if groups that may be compared were evaluated on different held-out sequences."""
    pools: dict[tuple, list[Mapping]] = {}
    for group in groups:
        pools.setdefault(group.match_key, []).extend(group.rows)
    for rows in pools.values():
        if differ := held_out.refusal(rows):
            raise ValueError(f"{differ}; or --allow val_hash, since the target is of the training loss")


def _steps(path: str | Path, groups: Sequence[Group], form: str) -> StepColumns:
    """The columns of steps that the form reads."""
    rows = [row for group in groups for row in group.rows]
    if form != "loss":
        return waits_of(path, rows)
    more = breakdown.COLUMNS if any(map(breakdown.waits_in_steps, rows)) else ()
    return steps_of(path, rows, (*loss.COLUMNS, *more))


def _mixed(groups: Sequence[Group]) -> list[str]:
    """What varies between the runs without being part of the work: it may explain a difference."""
    rows = _rows(groups)
    parallel = _rows(group for group in groups if group.devices > 1)
    notes = []
    for name in ENVIRONMENT:
        values = len(np.unique(Coded(parallel if name == "backend" else rows).of(name)))
        if values > 1:
            notes.append(f"{name} differs between the runs: {values} values")
    return notes + unchecked(rows)


def _rows(groups: Iterable[Group]) -> list[Mapping]:
    return list(chain.from_iterable(group.rows for group in groups))
