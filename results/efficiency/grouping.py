"""Runs into groups of those that repeat each other (workload.py), by whole columns: a row is only looked at where its
work is told by more than one column.

Two runs are of one group where all that decides speed agrees and their steps do the same work (`work.levels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from ..table.column_codes import NULL, Coded, coded, first_of, joint, parts
from ..table.work import Work, is_timed, levels, work_of
from .workload import BATCH, MODEL, MUST_MATCH, Group, columns_of

ALIKE = (*MUST_MATCH, BATCH, *columns_of("Layout"), "outer_replicas", "outer_placement", "world_size")
_WORK = ("tokens_per_step", "tokens_seen", "step_rows", "steps")  # what `work_of` reads


def groups(rows: Sequence[Mapping]) -> tuple[list[Group], list[Mapping]]:
    """The groups by device count, and the runs that belong to none: not ok, not timed, or of unknown work."""
    columns = Coded(rows)
    works = _works(columns)
    timed = np.array([work is not None and is_timed(row) for row, work in zip(rows, works, strict=True)], bool)
    alike = columns.joint(ALIKE)
    kept = np.flatnonzero(timed)
    level = _levels(alike[kept], [works[at] for at in kept], repeats=True)
    waits = np.where(_is(columns, "device_type", "cpu"), columns.of("omp_wait_policy"), NULL)[kept]
    members = [kept[part] for part in parts(joint([alike[kept], coded(level), waits], len(kept)))]
    lost: dict[int, list[Mapping]] = {}
    for at in np.flatnonzero(~timed):
        lost.setdefault(int(alike[at]), []).append(rows[at])
    heads = [part[0] for part in members]
    work = [_mean([works[at] for at in part]) for part in members]
    model = columns.joint(MODEL)[heads]
    whole = _levels(model, work)
    share = _levels(model, [one.over(rows[at]["world_size"]) for at, one in zip(heads, work, strict=True)])
    found = [
        Group(tuple(rows[at] for at in part), tuple(lost.get(int(alike[part[0]]), ())), *of_work)
        for part, *of_work in zip(members, work, zip(whole, share, strict=True), strict=True)
    ]
    found.sort(key=lambda g: (g.devices, g["engine"] or "", g.label, g["case_id"]))
    return found, [row for some in lost.values() for row in some]


def _works(columns: Coded) -> list[Work | None]:
    """work_of each row; rows that agree in what it reads share one."""
    key = columns.joint(_WORK)
    known = [work_of(columns.rows[at]) for at in first_of(key)]
    return [known[at] for at in key]


def _is(columns: Coded, name: str, value: object) -> np.ndarray:
    """(rows,) bool: the column holds this value."""
    codes = columns.of(name)
    first = np.unique(codes, return_index=True)[1]
    like = [codes[at] for at in first if columns.rows[at].get(name) == value]
    return np.isin(codes, like)


def _mean(works: Sequence[Work]) -> Work:
    if all(work is works[0] for work in works):
        return works[0]
    return Work(sum(work.tokens for work in works) / len(works), any(work.varies for work in works))


def _levels(pool: np.ndarray, works: Sequence[Work], repeats: bool = False) -> list[Fraction]:
    """The level of each of these amounts of work; those of one pool, (works,), share levels."""
    result = [work.tokens for work in works]
    some = {int(pool[at]) for at, work in enumerate(works) if work.varies}
    if not some:  # of fixed amounts each is its own level
        return result
    for part in parts(joint([pool], len(pool))):
        if int(pool[part[0]]) in some:
            level = levels((works[at] for at in part), repeats)
            for at in part:
                result[at] = level[works[at]]
    return result
