"""Preemption: on a scheduler's warning the ranks write a checkpoint and stop, and the sweep asks to be queued again.

A batch job that runs out of time, or is preempted, is warned by a signal (run.requeue_signals) or, where a signal does
not get through (torchrun ends on one), by a file: the one that SCALADE_STOP_FILE names. The supervisor then asks the
ranks through a file in the scratch folder; they agree when they next compare losses, write a checkpoint and end with
status 75. The run gets no row yet: it gets one when it is finished. `scalade run` ends with status 75, too: the job
is to be queued again, and goes on from the checkpoint.

A host that crashes gives no warning, and the launcher may then end all supervisors and exit with a status of its own
(mpirun, torchrun). So a sweep keeps the file that SCALADE_UNDONE_FILE names: it exists while there is more to do.
"""

from __future__ import annotations

from pathlib import Path

from ...results import files
from .scratch import STOP_REQUEST

REQUEUE_STATUS = 75  # EX_TEMPFAIL of sysexits.h
STOP_FILE = "SCALADE_STOP_FILE"
UNDONE_FILE = "SCALADE_UNDONE_FILE"


class Preempted(Exception):
    """This rank has stopped, as all of its world have, with a checkpoint at the step in the message."""


def ask_to_stop(scratch: Path) -> None:
    files.write(scratch / STOP_REQUEST, "", sync=False)


def asked_to_stop(scratch: Path) -> bool:
    return files.is_file(scratch / STOP_REQUEST)
