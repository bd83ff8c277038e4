"""Sorts runs into groups of those that repeat each other (workload.py), by whole columns: a row is only read where
its work depends on more than one column.

Two runs are of one group if everything that decides speed agrees and their steps do the same work (`work.levels`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain

import numpy as np

from ..table.column_codes import NULL, Coded, coded, first_of, joint, parts
from ..table.work import Work, is_timed, levels, work_of
from .workload import BATCH, MODEL, MUST_MATCH, Group, columns_of

ALIKE = (*MUST_MATCH, BATCH, *columns_of("Layout"), "outer_replicas", "outer_placement", "world_size")
_WORK = ("tokens_per_step", "tokens_seen", "step_rows", "steps")  # what `work_of` reads


def groups(rows: Sequence[Mapping]) -> tuple[list[Group], list[Mapping]]:
    """The groups by device count, and the runs that belong to none: not ok, not timed, or of unknown work."""
    columns = Coded(rows)
    works = enumerate(_works(columns))
    work_at = {at: work for at, work in works if work is not None and is_timed(rows[at])}
    alike = columns.joint(ALIKE)
    ungrouped = _without_work(rows, alike, work_at)
    members = _repeating(columns, alike, work_at)
    heads = [places[0] for places in members]
    work = [_mean(list(map(work_at.__getitem__, places))) for places in members]
    model = columns.joint(MODEL)[heads]
    whole = _levels(model, work)
    share = _levels(model, [one.over(rows[at]["world_size"]) for at, one in zip(heads, work, strict=True)])
    result = [
        Group(
            rows=tuple(rows[at] for at in places),
            not_ok=tuple(ungrouped.get(int(alike[places[0]]), ())),
            work=work[number],
            levels=(whole[number], share[number]),
        )
        for number, places in enumerate(members)
    ]
    result.sort(key=lambda g: (g.devices, g["engine"] or "", g.label, g["case_id"]))
    return result, list(chain.from_iterable(ungrouped.values()))


def _without_work(rows: Sequence[Mapping], alike: np.ndarray, work_at: Mapping[int, Work]) -> dict[int, list[Mapping]]:
    """By their code in `alike` the rows whose place is not in work_at."""
    ungrouped: dict[int, list[Mapping]] = {}
    for at, row in enumerate(rows):
        if at not in work_at:
            ungrouped.setdefault(int(alike[at]), []).append(row)
    return ungrouped


def _repeating(columns: Coded, alike: np.ndarray, work_at: Mapping[int, Work]) -> list[list[int]]:
    """Places of the rows that repeat each other, of those whose work is known; alike: (rows,) a code of ALIKE."""
    kept = np.fromiter(work_at, int, len(work_at))
    level = _levels(alike[kept], list(work_at.values()), repeats=True)
    waits = np.where(_is(columns, "device_type", "cpu"), columns.of("omp_wait_policy"), NULL)[kept]
    return [kept[part].tolist() for part in parts(joint([alike[kept], coded(level), waits], len(kept)))]


def _works(columns: Coded) -> list[Work | None]:
    """work_of each row; rows that agree in the columns that it reads share one."""
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
    return Work(sum((work.tokens for work in works), Fraction()) / len(works), any(work.varies for work in works))


def _levels(pool: np.ndarray, works: Sequence[Work], repeats: bool = False) -> list[Fraction]:
    """The level of each of these amounts of work; those of one pool, (works,), share levels."""
    result = [work.tokens for work in works]
    varied = {int(pool[at]) for at, work in enumerate(works) if work.varies}
    if not varied:  # of fixed amounts each is its own level
        return result
    for part in parts(joint([pool], len(pool))):
        if int(pool[part[0]]) in varied:
            level = levels((works[at] for at in part), repeats)
            for at in part:
                result[at] = level[works[at]]
    return result
