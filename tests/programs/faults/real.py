"""Faults of ranks that train: what a checkpoint holds and what a resumed run computes is not the fake rank's word."""

import signal
import time
from contextlib import suppress

from . import kind
from .files import damage
from .processes import send

REAL = dict(slow=True, repeats=1, steps=16, hang_limit_s=60, time_limit_s=150, real=True)


def _checkpointed(lab, process):
    """Wait for a checkpoint; its files, none where the run was over first."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint comes"
        if found := [file for file in lab.results.glob("runs/*/scratch/checkpoint/step-*/**/*") if file.is_file()]:
            return sorted(found)
        time.sleep(0.002)
    return []


@kind("ranks", **REAL)
def kill_real_rank(lab):
    process = lab.sweep()
    _checkpointed(lab, process)
    send(lab.rank(lab.rng.randrange(2)), signal.SIGKILL)
    lab.ended(process)


@kind("sweeps", **REAL)
def warn_real_sweep(lab):
    process = lab.sweep()
    _checkpointed(lab, process)
    process.send_signal(signal.SIGUSR1)
    code, out, err = lab.ended(process)
    assert code in (0, 75), (code, out, err)


@kind("checkpoints", **REAL)
def damage_real_checkpoint(lab):
    process = lab.sweep()
    found = _checkpointed(lab, process)
    process.kill()
    lab.ended(process)
    lab.settled()
    for file in lab.rng.sample(found, min(len(found), lab.rng.randrange(1, 4))):
        with suppress(FileNotFoundError):  # a newer one has taken its place
            print(damage(file, lab.rng))
