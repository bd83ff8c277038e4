"""What every figure and table of a report is drawn from, read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import held_out
from ..efficiency.command import unchecked
from ..efficiency.fastest import tokens_text
from ..efficiency.series import Options, Refusal, Series, read_series
from ..efficiency.workload import (
    BATCH,
    CONDITIONS,
    DATA,
    MODEL,
    OUTER,
    RECIPE,
    TOKENS,
    Group,
    allowed,
    groups,
)  # fmt: skip
from ..read import noted, printable, rows_table, runs_table
from ..work import no_work

MODES = ("strong", "weak")
STEP_COLUMNS = ("step", "warmup", "tokens_seen", "loss", "step_time_s", "outer_exposed_s")
SETTINGS = tuple(  # that tell groups apart, as named
    dict.fromkeys((BATCH, TOKENS, "steps", *OUTER, *RECIPE, *CONDITIONS, *DATA, *MODEL, "engine"))
)
LONGEST = 40  # characters of a name in a figure


@dataclass(frozen=True)
class Source:
    """A table as a report reads it.

    steps: by run_id, each column (steps,) as float, NaN where null; read from a results folder only.
    series: scaling efficiency by mode; refused: runs that no series holds, with the reason.
    """

    path: Path
    where: str | None
    level: float
    convention: str  # the column of MFU
    rows: tuple[dict, ...]
    groups: tuple[Group, ...]
    steps: dict[str, dict[str, np.ndarray]]
    series: dict[str, tuple[Series, ...]]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    names: dict[int, tuple[str, str]]  # of the groups, by id: name, and the setting that tells it from others of it

    @property
    def ok(self) -> list[dict]:
        return [row for row in self.rows if row["status"] == "ok"]

    def waits(self, run_id: str) -> list[dict]:
        """What the steps of a run waited for outer steps, as `breakdown` reads it; none where nothing was told."""
        return _waits(self.steps[run_id]) if run_id in self.steps else []

    def name(self, group: Group) -> str:
        """One name for one group."""
        name, setting = self.names[id(group)]
        return f"{name}, {setting}" if setting else name

    def setting(self, group: Group) -> str:
        return self.names[id(group)][1]


def read_source(
    path: str | Path, where: str | None, modes: Sequence[str], base: str | None, allow: Sequence[str],
    convention: str, level: float,
) -> Source:  # fmt: skip
    """Read runs and steps, and the scaling series of each mode.

    Raises
    ------
    ValueError: nothing at the path, no run that `where` keeps, or a mistake in `where`, `base` or `allow`
    """
    with noted() as notes:
        rows = runs_table(path, where=where).to_pylist()
        bases = {row["run_id"] for row in runs_table(path, where=base).to_pylist()} if base else None
        steps = {} if Path(path).is_file() else _steps(path, rows)
    if not rows:
        raise ValueError(f"no runs at {str(path)!r}" + (f" match {where!r}" if where else ""))
    found, lost = groups(rows)
    declared = None if bases is None else [group for group in found if group.rows[0]["run_id"] in bases]
    if declared == []:
        raise ValueError(f"base {base!r}: matches no run with status ok")
    waited = {run: _waits(columns) for run, columns in steps.items()}
    series, refusals = {}, {}
    for mode in modes:
        options = Options(mode, allow=allowed(allow), level=level, draws=500)
        one, refusals[mode] = read_series(found, waited, options, declared)
        series[mode] = tuple(each for each in one if len(each.points) > 1)
    compared = {
        row["run_id"] for some in series.values() for one in some for point in one.points for row in point.group.rows
    }  # fmt: skip
    told: dict[tuple, Refusal] = {}  # of the modes the one in which less is in the way
    for one in (one for mode in modes for one in refusals[mode] if not compared & set(one.run_ids)):
        if one.run_ids not in told or len(one.columns) < len(told[one.run_ids].columns):
            told[one.run_ids] = one
    notes += _notes(rows, lost)
    if Path(path).is_file():
        notes.append("read from an exported file of runs, which holds no steps")
    return Source(
        Path(path), where, level, convention, tuple(rows), tuple(found), steps, series, tuple(told.values()),
        tuple(dict.fromkeys(notes)), dict(zip(map(id, found), _told_apart(found), strict=True)),
    )  # fmt: skip


def _notes(rows: Sequence[dict], lost: Sequence[dict]) -> list[str]:
    """What a reader must know of the runs. lost: those in no group."""
    silent = Counter(no_work(row) for row in lost if row["status"] == "ok")
    notes = [f"{n} runs with status ok are in no figure of speed: {why}" for why, n in silent.most_common(3)]
    ok = [row for row in rows if row["status"] == "ok"]
    about_losses = (held_out.refusal(ok), held_out.unknown(ok), *held_out.unbelieved(ok))
    return [*notes, *unchecked(rows), *filter(None, about_losses)]


def label(text: object, longest: int = LONGEST) -> str:
    """A name from a study or a machine as a figure shows it: one line, no control characters, not too long."""
    shown = printable(text)
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib hides what begins with an underscore


def model_name(group: Group) -> str:
    return label(group["model"] or "model unnamed", 24)


def work_name(group: Group) -> str:
    """The workload of a group, for a title."""
    return f"{model_name(group)}, {tokens_text(group)}"


def by_size(group: Group) -> tuple:
    """Sort key: small models first."""
    return group["params_total"] or 0, group["model"] or ""


def spread(rows: Sequence[dict], column: str) -> list[float]:
    return [row[column] for row in rows if row.get(column) is not None]


def _told_apart(found: Sequence[Group]) -> list[tuple[str, str]]:
    """(name, setting) of each group; setting: what tells apart groups that would share a name."""
    names = [f"{model_name(g)}: {label(g.label)}, {g.devices} rank{'s' * (g.devices != 1)}" for g in found]
    twins: dict[str, list[Group]] = {}
    for name, group in zip(names, found, strict=True):
        twins.setdefault(name, []).append(group)
    tells = {
        name: [c for c in SETTINGS if len({group[c] for group in members}) > 1][:3] if len(members) > 1 else []
        for name, members in twins.items()
    }
    settings = [", ".join(f"{c} {label(group[c], 16)}" for c in tells[name])
                for name, group in zip(names, found, strict=True)]  # fmt: skip
    return list(zip(names, settings, strict=True))


def _steps(path: str | Path, rows: Sequence[dict]) -> dict[str, dict[str, np.ndarray]]:
    wanted = [row["run_id"] for row in rows if row["status"] == "ok" or row["step_rows"]]
    table = rows_table(path, "steps", wanted)
    if not len(table):
        return {}
    runs = table["run_id"].to_numpy(zero_copy_only=False)
    data = {}
    for name in STEP_COLUMNS:
        column = table[name].cast("float64" if name != "warmup" else "bool").to_numpy(zero_copy_only=False)
        data[name] = column.astype(float)  # null is NaN
    cuts = np.flatnonzero(np.r_[True, runs[1:] != runs[:-1]])
    return {
        str(runs[start]): {name: values[start:end] for name, values in data.items()}
        for start, end in zip(cuts, [*cuts[1:], len(runs)], strict=True)
    }


def _waits(columns: dict[str, np.ndarray]) -> list[dict]:
    if np.isnan(columns["outer_exposed_s"]).all():
        return []
    return [
        {"warmup": warm == 1, "outer_exposed_s": _null(outer)}
        for warm, outer in zip(columns["warmup"], columns["outer_exposed_s"], strict=True)
    ]


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
