"""Ending before the end: on a scheduler's warning the ranks write a checkpoint and stop, and the sweep asks for more.

A batch job that runs out of time, or is preempted, is warned by a signal (run.requeue_signals) or, where a signal does
not get through (torchrun ends on one), by a file: the one that SCALADE_STOP_FILE names. The supervisor then asks the
ranks through a file in the scratch folder; they agree when they next compare losses, write a checkpoint and end with
status 75. The run gets no row yet: it gets one when it is finished. `scalade run` ends with status 75, too: the job
is to be queued again, and goes on from the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

REQUEUE_STATUS = 75  # EX_TEMPFAIL of sysexits.h
STOP_FILE = "SCALADE_STOP_FILE"
SIGNALS = ("USR1", "USR2", "TERM")  # that may warn
ASK = "stop"


class Preempted(Exception):
    """This rank has stopped, as all of its world have, with a checkpoint at the step in the message."""


def ask_to_stop(scratch: Path) -> None:
    (scratch / ASK).touch()


def asked_to_stop(scratch: Path) -> bool:
    return (scratch / ASK).exists()


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
