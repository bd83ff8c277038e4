"""The data of every figure and table of a report, read once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..efficiency.breakdown import Breakdown, breakdown
from ..efficiency.fastest import Fastest, fastest, tokens_text
from ..efficiency.reading import read_groups, steps_of, unchecked, waits_of
from ..efficiency.report import Compared, compared
from ..efficiency.series import Options, Refusal, Series, read_series
from ..efficiency.workload import BATCH, CONDITIONS, DATA, MODEL, OUTER, RECIPE, TOKENS, Group, allowed
from ..schema.rows import distinct, ok_rows
from ..table import held_out
from ..table.distinguishing import differing_in_parts
from ..table.read import no_runs, printable
from ..table.step_columns import StepColumns
from ..table.work import no_work
from ..wording import count_of

SETTINGS = tuple(  # that may tell groups of one name apart
    dict.fromkeys((BATCH, TOKENS, "steps", *OUTER, *RECIPE, *CONDITIONS, *DATA, *MODEL, "engine"))
)
LONGEST = 40  # characters of a name in a figure


class GroupName(NamedTuple):
    """setting: the settings that tell the group from others of its name."""

    name: str
    setting: str


@dataclass(frozen=True)
class Source:
    """A table as a report reads it.

    waits: the steps of runs whose waits for outer steps are only there (breakdown.py).
    series: scaling efficiency by mode; refused: runs in no series, with the reason.
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
    names: dict[int, GroupName]  # by id of the group

    @cached_property
    def ok(self) -> list[Mapping]:
        return ok_rows(self.rows)

    def may_have_steps(self, row: Mapping) -> bool:
        """Whether the run may have rows of `steps`: it is in a results folder, and its row does not count none."""
        return self.path.is_dir() and row["step_rows"] != 0

    def steps(self, rows: Iterable[Mapping], names: Sequence[str]) -> StepColumns:
        """These columns of the steps of the runs, as far as they can be read."""
        return steps_of(self.path, filter(self.may_have_steps, rows), names)

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
        """The fastest layout of each workload, small models first."""
        return sorted(fastest(self.groups, self.level), key=lambda one: (by_size(one.best), one.best.work.tokens))

    @cached_property
    def _breakdowns(self) -> dict[int, Breakdown]:
        return {}

    def name(self, group: Group) -> str:
        """A name that no other group has."""
        name, setting = self.names[id(group)]
        return f"{name}, {setting}" if setting else name

    def setting(self, group: Group) -> str:
        return self.names[id(group)].setting


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
    runs = read_groups(path, where, base)
    if not runs.rows:
        raise no_runs(path, where, runs.notes)
    declared = runs.declared()
    waits = waits_of(path, [row for group in runs.groups for row in group.rows])
    series: dict[str, tuple[Series, ...]] = {}
    refusals: list[Refusal] = []
    for mode in modes:
        options = Options(mode, allow=allowed(allow), level=level, draws=500)
        of_mode, refused = read_series(runs.groups, waits, options, declared)
        series[mode] = tuple(one for one in of_mode if len(one.points) > 1)
        refusals += refused
    notes = [*runs.notes, *_notes(runs.rows, runs.ungrouped)]
    if Path(path).is_file():
        notes.append("read from an exported file of runs, which holds no steps")
    return Source(
        path=Path(path),
        where=where,
        level=level,
        convention=convention,
        rows=tuple(runs.rows),
        groups=tuple(runs.groups),
        waits=waits,
        series=series,
        refused=_in_no_series(refusals, series),
        notes=tuple(dict.fromkeys(notes)),
        names=dict(zip(map(id, runs.groups), _names(runs.groups), strict=True)),
    )


def _in_no_series(refusals: Iterable[Refusal], series: Mapping[str, Sequence[Series]]) -> tuple[Refusal, ...]:
    """Refusals of runs that no mode compares; of several modes that in which the fewest columns differ."""
    compared: set[str] = set()
    for one in chain.from_iterable(series.values()):
        compared.update(*(distinct(point.group.rows, "run_id") for point in one.points))
    least: dict[tuple[str, ...], Refusal] = {}
    for refusal in refusals:
        if compared.isdisjoint(refusal.run_ids):
            known = least.get(refusal.run_ids, refusal)
            least[refusal.run_ids] = min(known, refusal, key=lambda one: len(one.columns))
    return tuple(least.values())


def _notes(rows: Sequence[Mapping], ungrouped: Sequence[Mapping]) -> list[str]:
    """What a reader must know of the runs. ungrouped: those in no group."""
    notes = []
    for why, count in Counter(map(no_work, ok_rows(ungrouped))).most_common(3):
        runs = count_of(count, "run with status ok is", "runs with status ok are")
        notes.append(f"{runs} in no figure of speed: {why}")
    ok = ok_rows(rows)
    of_losses = (held_out.refusal(ok), held_out.unknown(ok), *held_out.unbelieved(ok))
    return [*notes, *unchecked(rows), *filter(None, of_losses)]


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
    """A sort key: small models first."""
    return group["params_total"] or 0, group["model"] or ""


def spread(rows: Sequence[Mapping], column: str) -> list[float]:
    return [row[column] for row in rows if row.get(column) is not None]


def positive(rows: Sequence[Mapping], column: str) -> list[float]:
    """As `spread`, for logarithms and medians: only values above 0."""
    return [value for value in spread(rows, column) if 0 < value < math.inf]


def _names(groups: Sequence[Group]) -> list[GroupName]:
    names = [f"{model_name(g)}: {label(g.label)}, {count_of(g.devices, 'rank')}" for g in groups]
    columns = differing_in_parts([group.rows[0] for group in groups], names, SETTINGS, most=3)
    return [
        GroupName(name, ", ".join(f"{column} {label(group[column], 16)}" for column in differ))
        for name, differ, group in zip(names, columns, groups, strict=True)
    ]
