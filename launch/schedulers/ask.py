"""Asking a scheduler by its own commands: what came back, and the one line to say where nothing did."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60.0  # for a command of the scheduler
SUBMIT_PATIENCE_S = 240.0  # sbatch alone tries for two minutes where the controller has no room


class SchedulerError(ValueError):
    """A command of the scheduler failed; one line that names it and quotes its output.

    status: its exit status. unsure: what was asked for may have been done all the same.
    """

    def __init__(self, line: str, status: int | None = None, *, unsure: bool = False) -> None:
        super().__init__(line)
        self.status, self.unsure = status, unsure


@dataclass(frozen=True)
class Answer:
    """What a command printed."""

    status: int  # its exit status
    out: str
    err: str

    def first_line(self) -> str:
        """One line of it, for a person."""
        return (self.err.strip() or self.out.strip() or f"status {self.status}").splitlines()[0]


def answer(
    scheduler: str,
    words: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
) -> Answer:
    """Run a command of a scheduler. scheduler: its name, for messages; env: None, this process's.

    Raises
    ------
    SchedulerError: it is not there, or takes too long
    """
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience_s,
            stdin=subprocess.DEVNULL,
            env=env,
        )
    except FileNotFoundError:
        raise SchedulerError(f"{scheduler}: there is no `{words[0]}` here; is this a login node?") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{scheduler}: `{words[0]}` gave no answer within {patience_s:g} s", unsure=True) from None
    return Answer(done.returncode, done.stdout, done.stderr)
