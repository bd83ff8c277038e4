"""Moving a baseline: the runs of HEAD take the place of BASE's only where an improvement has been confirmed.

A baseline that followed every lucky comparison would rise until honest revisions fail; one that followed every `same`
would sink by a little each time and let a slow loss through. So it moves by confirmed improvements, by cases that are
new, and by nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..store.packing import unpack
from ..store.part import part_names
from .compare import Comparison
from .rule import Verdict

LEFT_BEHIND = ("lock", "scratch")  # of the process that ran the run, no part of its rows


def movable(comparison: Comparison) -> list[str]:
    """case_ids whose baseline moves: new, or a confirmed improvement in one metric and none that fails."""
    failing = _failing(comparison)
    moving = (one.case_id for one in comparison.findings if one.verdict == Verdict.NEW or one.confirmed)
    return [case_id for case_id in dict.fromkeys(moving) if case_id not in failing]


def _failing(comparison: Comparison) -> set[str]:
    """case_ids that fail in a metric or in their loss."""
    failing = {one.case_id for one in comparison.findings if one.fails}
    return failing.union(*(one.case_ids for one in comparison.losses if one.fails))


def move_baseline(comparison: Comparison) -> list[str]:
    """Put HEAD's runs into the results folder BASE, for the cases that may. Returns their case_ids.

    Old runs of these cases are removed once the new ones are in place; others stay as they are.

    Raises
    ------
    ValueError: BASE or HEAD is not a results folder
    OSError: the disk is full or refuses; the case at hand keeps its old runs
    """
    folders = [Path(side) / "runs" for side in (comparison.base, comparison.head)]
    for folder in folders:
        if not files.is_folder(folder):
            raise ValueError(f"{str(folder.parent)!r} is not a results folder: only folders can move a baseline")
        if part_names(folder.parent):
            unpack(folder.parent)  # runs move as folders
    moved = movable(comparison)
    for case_id in moved:
        _move(case_id, *folders)
    return moved


def _move(case_id: str, base: Path, head: Path) -> None:
    old, new = (sorted(folder.glob(f"{case_id}-r*")) for folder in (base, head))
    aside = _copied_aside(new, base, head)
    for run in old:
        hidden = base / f".replaced-{os.getpid()}-{run.name}"
        os.rename(run, hidden)
        if run.name in aside:
            os.rename(aside.pop(run.name), run)
        files.remove(hidden, base)
    for name, copy in aside.items():
        os.rename(copy, base / name)


def _copied_aside(runs: Sequence[Path], base: Path, head: Path) -> dict[str, Path]:
    """Copies of HEAD's runs in BASE, by their names, still hidden from readers. All of them, or on an error none."""
    aside = {run.name: base / f".moving-{os.getpid()}-{run.name}" for run in runs}
    try:
        for run in runs:
            files.copy_folder(run, aside[run.name], below=head, target_below=base, leave=LEFT_BEHIND)
    except BaseException:
        for copy in aside.values():
            files.remove(copy, base)
        raise
    return aside
