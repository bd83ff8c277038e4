"""`scalade efficiency`: from a results folder to scaling efficiency. The command line only parses and prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..schema.rows import rows_of
from ..table import held_out
from ..table.column_codes import Coded
from ..table.read import noted, runs_table
from ..table.step_columns import StepColumns, read_step_columns
from ..table.work import no_work
from ..wording import count_of
from . import breakdown, loss
from .fastest import fastest
from .grouping import groups
from .report import EfficiencyReport, compared
from .series import FORMS, Options, Refusal, read_series
from .workload import Group, allowed, guess_mode

MODES = ("strong", "weak")


def efficiency(
    path: str | Path,
    *,
    mode: str | None = None,
    form: str | None = None,
    base: str | None = None,
    where: str | None = None,
    target_loss: float | None = None,
    loss_window: int = loss.WINDOW,
    allow: Sequence[str] = (),
    published: str | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> EfficiencyReport:
    """Scaling efficiency of the runs at `path` (see read_runs).

    mode: `strong` (total work fixed) or `weak` (work of each device); None: as the tokens of a step say.
    form: `throughput`, `step_time` or `loss` (time to target_loss, mean of loss_window steps); the default is
        throughput, or loss where a target is given. The first two give one efficiency and two speedups.
    base: a filter that names the base, as `layout == single`; None: the smallest device count of each family.
    where: a filter on the runs, as `model == tiny-5m and status == ok`.
    allow: columns that may differ from the base's all the same; `outer` is all settings of the outer algorithm.
    published: a convention (`mfu_palm`, `mfu_6n`, `mfu_causal`, `tokens_per_s_per_device`) in which each layout is
        set against the shipped published rows.
    level: of the intervals over runs; draws: resamples of a law's fit, 0 for none.

    Raises
    ------
    ValueError: a mistake of the user's, in one line
    """
    form = form or ("loss" if target_loss is not None else "throughput")
    for name, value, known in (("mode", mode, (None, *MODES)), ("form", form, FORMS)):
        if value not in known:
            raise ValueError(f"{name} {value!r}: allowed are {', '.join(k for k in known if k)}")
    if (form == "loss") != (target_loss is not None):
        raise ValueError("form loss and target_loss go together: give both or neither")
    if not 0 < level < 1 or draws < 0 or loss_window < 1:
        raise ValueError(
            f"level {level:g}, draws {draws}, loss_window {loss_window}: level must lie between 0 and 1, "
            "draws be at least 0, loss_window at least 1"
        )
    with noted() as told:
        rows = rows_of(runs_table(path, where=where))
        bases = set(runs_table(path, where=base, columns=["run_id"])["run_id"].to_pylist()) if base else None
    found, lost = groups(rows)
    if not found:
        raise ValueError(_nothing_timed(lost, where))
    if form == "loss" and "val_hash" not in allow:
        _one_held_out_set(found)
    declared = None
    if bases is not None:
        declared = [group for group in found if group.rows[0]["run_id"] in bases]
        if not declared:
            raise ValueError(f"base {base!r}: matches no run with status ok")
    options = Options(mode or guess_mode(found), form, target_loss, loss_window, allowed(allow), level, draws, seed)
    series, refused = read_series(found, _steps(path, found, form), options, declared)
    refused += _lost(lost)
    notes = [f"warning: {line}" for line in told]
    return EfficiencyReport(
        str(path),
        options,
        tuple(series),
        tuple(refused),
        tuple(notes + _mixed(found)),
        compared(found, published) if published else (),
        tuple(one for one in fastest(found, level) if one.others) if form != "loss" else (),
    )


def _nothing_timed(lost: Sequence[dict], where: str | None) -> str:
    """Why there is nothing to compare: no run that `groups` keeps; with the commonest reason of those that are ok."""
    kept = f" that match {where!r}" if where else ""
    why = Counter(no_work(row) for row in lost if row["status"] == "ok").most_common(1)
    said = f"; {why[0][1]} with status ok: {why[0][0]}" if why else ""
    return f"no timed run with status ok among the {count_of(len(lost), 'run')}{kept}{said}"


def _lost(rows: Sequence[dict]) -> list[Refusal]:
    """Runs that no ratio is formed of: one refusal for each layout and cause."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        why = f"{row['status']}: {row['reason']}" if row["status"] != "ok" else no_work(row)
        ranks = count_of(row["world_size"], "rank") if row["world_size"] else "? ranks"
        found.setdefault((f"{row['layout'] or '?'} on {ranks}", why), []).append(row["run_id"])
    return [Refusal(what, tuple(runs), why) for (what, why), runs in found.items()]


def _one_held_out_set(found: Sequence[Group]) -> None:
    """Raises ValueError where groups that may be compared were evaluated on different held-out sequences."""
    pools: dict[tuple, list[dict]] = {}
    for group in found:
        pools.setdefault(group.match_key, []).extend(group.rows)
    for rows in pools.values():
        if differ := held_out.refusal(rows):
            raise ValueError(f"{differ}; or --allow val_hash, since the target is of the training loss")


def _steps(path: str | Path, found: Sequence[Group], form: str) -> StepColumns:
    """What the form reads of the steps; an exported file of runs does not hold them."""
    rows = [row for group in found for row in group.rows]
    if form != "loss":
        return waits_of(path, rows)
    more = breakdown.COLUMNS if any(map(breakdown.waits_in_steps, rows)) else ()
    return _read(path, rows, (*loss.COLUMNS, *more))


def waits_of(path: str | Path, rows: Iterable[Mapping]) -> StepColumns:
    """What `breakdown` reads of the steps: those of runs of which only the steps tell what they waited for."""
    return _read(path, filter(breakdown.waits_in_steps, rows), breakdown.COLUMNS)


def _read(path: str | Path, rows: Iterable[Mapping], names: Sequence[str]) -> StepColumns:
    with noted():  # said when the runs were read, or the run has no steps
        return read_step_columns(path, (row["run_id"] for row in rows), names)


def _mixed(found) -> list[str]:
    """What varies between the runs without deciding the work: it may explain a difference."""
    notes = []
    every, parallel = (
        [row for group in some for row in group.rows]
        for some in (found, [group for group in found if group.devices > 1])
    )
    names = ("git_commit", "torch_version", "cuda_version", "nccl_version", "driver_version", "backend")
    for name in names:
        values = len(np.unique(Coded(parallel if name == "backend" else every).of(name)))
        if values > 1:
            notes.append(f"{name} differs between the runs: {values} values")
    return notes + unchecked(every)


def unchecked(rows: Iterable[Mapping]) -> list[str]:
    """A note where runs were recorded from outside."""
    count = sum(row.get("parity") is not None for row in rows)
    runs = count_of(count, "run was", "runs were")
    return [f"{runs} recorded from outside: parity not checked"] if count else []
