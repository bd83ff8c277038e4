"""What a study asks of this machine and does not find: the user's mistakes, reported before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ...bench.data.spec import DataSpec
from ..host import machine
from .case import Case
from .comm_case import CommCase
from .errors import StudyError, shown


def refuse_here(path: Path, device: str, cases: Iterable[Case | CommCase]) -> None:
    """Look before the first rank is started.

    path: of the study; device: run.device; cases: those that are to run, of which a CommCase reads no file

    Raises
    ------
    StudyError: there is no GPU, or a token file is missing; all of it at once
    """
    problems = []
    training = [case for case in cases if isinstance(case, Case)]
    if training and device == "cuda" and (why := machine.no_cuda()):
        problems.append(f'run.device = "cuda": {why}; "auto" takes the CPU where there is no GPU')
    for spec in dict.fromkeys(case.data for case in training):
        problems += missing_files(spec)
    if problems:
        raise StudyError(path, problems)


def missing_files(spec: DataSpec) -> list[str]:
    """A line for each token file of the source that is not there."""
    lines = []
    for key in ("path", "val_path"):
        name = getattr(spec, key)
        if name and not any(map(os.path.exists, _meant(os.path.expanduser(name)))):
            lines.append(f"data.{key} = {shown(name)}: no such file ({os.path.abspath(os.path.expanduser(name))})")
    return lines


def _meant(name: str) -> list[str]:
    """The file, or one of a Megatron pair by their common prefix."""
    return [name, f"{name}.bin", f"{name}.idx"]
