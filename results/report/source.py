"""What every figure and table of a report is drawn from, read once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..efficiency.breakdown import Breakdown, breakdown
from ..efficiency.command import unchecked, waits_of
from ..efficiency.fastest import Fastest, fastest, tokens_text
from ..efficiency.grouping import groups
from ..efficiency.report import Compared, compared
from ..efficiency.series import Options, Refusal, Series, read_series
from ..efficiency.workload import BATCH, CONDITIONS, DATA, MODEL, OUTER, RECIPE, TOKENS, Group, allowed
from ..schema.rows import rows_of
from ..table import held_out
from ..table.distinguishing import differing_in_parts
from ..table.read import no_runs, noted, printable, runs_table
from ..table.step_columns import StepColumns, read_step_columns
from ..table.work import no_work
from ..wording import count_of

MODES = ("strong", "weak")
SETTINGS = tuple(  # that tell groups apart, as named
    dict.fromkeys((BATCH, TOKENS, "steps", *OUTER, *RECIPE, *CONDITIONS, *DATA, *MODEL, "engine"))
)
LONGEST = 40  # characters of a name in a figure


@dataclass(frozen=True)
class Source:
    """A table as a report reads it.

    waits: what runs waited for outer steps, where only their steps tell (breakdown.py).
    series: scaling efficiency by mode; refused: runs that no series holds, with the reason.
    """

    path: Path
    where: str | None
    level: float
    convention: str  # the column of MFU
    rows: tuple[Mapping, ...]
    groups: tuple[Group, ...]
    waits: StepColumns
    series: dict[str, tuple[Series, ...]]
    refused: tuple[Refusal, ...]
    notes: tuple[str, ...]
    names: dict[int, tuple[str, str]]  # of the groups, by id: name, and the setting that tells it from others of it

    @cached_property
    def ok(self) -> list[Mapping]:
        return [row for row in self.rows if row["status"] == "ok"]

    def may_have_steps(self, row: Mapping) -> bool:
        """Whether rows of `steps` may be read of the run: those of a results folder that do not say there are none."""
        return self.path.is_dir() and row["step_rows"] != 0

    def steps(self, rows: Iterable[Mapping], names: Sequence[str]) -> StepColumns:
        """These columns of the steps of the runs, as far as they can be read."""
        with noted():  # said when the runs were read, or the run has no steps
            return read_step_columns(self.path, (row["run_id"] for row in rows if self.may_have_steps(row)), names)

    def breakdown(self, group: Group) -> Breakdown:
        """Where the time of the group's step went."""
        if id(group) not in self._breakdowns:
            self._breakdowns[id(group)] = breakdown(group.rows, self.waits)
        return self._breakdowns[id(group)]

    @cached_property
    def beside_published(self) -> tuple[Compared, ...]:
        """Each group beside the published rows, under the convention."""
        return compared(self.groups, self.convention)

    @cached_property
    def fastest(self) -> list[Fastest]:
        """Of each workload, small models first."""
        return sorted(fastest(self.groups, self.level), key=lambda one: (by_size(one.best), one.best.work.tokens))

    @cached_property
    def _breakdowns(self) -> dict[int, Breakdown]:
        return {}

    def name(self, group: Group) -> str:
        """One name for one group."""
        name, setting = self.names[id(group)]
        return f"{name}, {setting}" if setting else name

    def setting(self, group: Group) -> str:
        return self.names[id(group)][1]


def read_source(
    path: str | Path,
    where: str | None,
    modes: Sequence[str],
    base: str | None,
    allow: Sequence[str],
    convention: str,
    level: float,
) -> Source:
    """Read runs and steps, and the scaling series of each mode.

    Raises
    ------
    ValueError: nothing at the path, no run that `where` keeps, or a mistake in `where`, `base` or `allow`
    """
    with noted() as notes:
        rows = rows_of(runs_table(path, where=where))
        bases = set(runs_table(path, where=base, columns=["run_id"])["run_id"].to_pylist()) if base else None
    if not rows:
        raise no_runs(path, where, notes)
    found, lost = groups(rows)
    declared = None if bases is None else [group for group in found if group.rows[0]["run_id"] in bases]
    if declared == []:
        raise ValueError(f"base {base!r}: matches no run with status ok")
    waits = waits_of(path, [row for group in found for row in group.rows])
    series, refusals = {}, {}
    for mode in modes:
        options = Options(mode, allow=allowed(allow), level=level, draws=500)
        one, refusals[mode] = read_series(found, waits, options, declared)
        series[mode] = tuple(each for each in one if len(each.points) > 1)
    compared = {
        row["run_id"] for some in series.values() for one in some for point in one.points for row in point.group.rows
    }
    told: dict[tuple, Refusal] = {}  # of the modes the one in which less is in the way
    for one in (one for mode in modes for one in refusals[mode] if not compared & set(one.run_ids)):
        if one.run_ids not in told or len(one.columns) < len(told[one.run_ids].columns):
            told[one.run_ids] = one
    notes += _notes(rows, lost)
    if Path(path).is_file():
        notes.append("read from an exported file of runs, which holds no steps")
    return Source(
        Path(path),
        where,
        level,
        convention,
        tuple(rows),
        tuple(found),
        waits,
        series,
        tuple(told.values()),
        tuple(dict.fromkeys(notes)),
        dict(zip(map(id, found), _told_apart(found), strict=True)),
    )


def _notes(rows: Sequence[Mapping], lost: Sequence[Mapping]) -> list[str]:
    """What a reader must know of the runs. lost: those in no group."""
    silent = Counter(no_work(row) for row in lost if row["status"] == "ok")
    left = [(count_of(n, "run with status ok is", "runs with status ok are"), why) for why, n in silent.most_common(3)]
    notes = [f"{some} in no figure of speed: {why}" for some, why in left]
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


def spread(rows: Sequence[Mapping], column: str) -> list[float]:
    return [row[column] for row in rows if row.get(column) is not None]


def positive(rows: Sequence[Mapping], column: str) -> list[float]:
    """As `spread`, for logarithms and medians of what is above 0; other values are left out."""
    return [value for value in spread(rows, column) if 0 < value < math.inf]


def _told_apart(found: Sequence[Group]) -> list[tuple[str, str]]:
    """(name, setting) of each group; setting: what tells apart groups that would share a name."""
    names = [f"{model_name(g)}: {label(g.label)}, {count_of(g.devices, 'rank')}" for g in found]
    tells = differing_in_parts([group.rows[0] for group in found], names, SETTINGS, most=3)
    settings = (", ".join(f"{c} {label(group[c], 16)}" for c in some) for some, group in zip(tells, found, strict=True))
    return list(zip(names, settings, strict=True))
