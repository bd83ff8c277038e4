"""Ending before the end: on a scheduler's warning the ranks write a checkpoint and stop, and the sweep asks for more.

A batch job that runs out of time, or is preempted, is warned by a signal (run.requeue_signals) or, where a signal does
not get through (torchrun ends on one), by a file: the one that SCALADE_STOP_FILE names. The supervisor then asks the
ranks through a file in the scratch folder; they agree when they next compare losses, write a checkpoint and end with
status 75. The run gets no row yet: it gets one when it is finished. `scalade run` ends with status 75, too: the job
is to be queued again, and goes on from the checkpoint.

A host that crashes warns nobody, and what started the ranks may end all supervisors and have a status of its own
(mpirun, torchrun). So a sweep keeps the file that SCALADE_UNDONE_FILE names: it is there while there is more to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sweep.summary import Summary

from ...results import files

REQUEUE_STATUS = 75  # EX_TEMPFAIL of sysexits.h
STOP_FILE = "SCALADE_STOP_FILE"
UNDONE_FILE = "SCALADE_UNDONE_FILE"
SIGNALS = ("USR1", "USR2", "TERM")  # that may warn
ASK = "stop"


class Preempted(Exception):
    """This rank has stopped, as all of its world have, with a checkpoint at the step in the message."""


def ask_to_stop(scratch: Path) -> None:
    files.write(scratch / ASK, "", sync=False)


def asked_to_stop(scratch: Path) -> bool:
    return files.is_file(scratch / ASK)


@contextmanager
def undone(summary: Summary) -> Iterator[None]:
    """A sweep that has something to do: the file is there until it has ended, and after it where the job is to be
    queued again; it then says why."""
    file = Path(os.environ[UNDONE_FILE]) if os.environ.get(UNDONE_FILE) else None
    if file:
        with suppress(OSError):
            files.write(file, "", sync=False)
    try:
        yield
    finally:
        with suppress(OSError):
            if file and summary.requeue:
                files.write(file, summary.interrupted or "", sync=False)
            elif file:
                files.remove_file(file)


def signal_names(text: str) -> tuple[str, ...]:
    """`USR1, TERM` as names of signals.

    Raises
    ------
    ValueError: a word that is not one of SIGNALS
    """
    words = [word.strip().upper().removeprefix("SIG") for word in text.split(",")] if text.strip() else []
    if wrong := [word for word in words if word not in SIGNALS]:
        raise ValueError(f"{wrong[0] or 'nothing'!r} is not one of {', '.join(SIGNALS)}, separated by commas")
    return tuple(f"SIG{word}" for word in words)
