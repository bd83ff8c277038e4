"""The scratch folder of a run: the name of every file that its processes leave for each other there.

    spec.json              what every rank is to run                    the supervisor writes it, the ranks read it
    world.json             the ranks that came together, their hosts    rank 0, the sweep
    progress.json, step    how far the run is                           rank 0, whoever watches
    stop                   a request: write a checkpoint and end        the supervisor, the ranks
    lost-replica-<M>       with a quorum: replica M has ended           the supervisor, rank 0
    rank-<N>.log           what the rank printed
    rank-<N>.error.json    why the rank failed                          the rank, the supervisor
    rank-<N>.stack         the stack of each of its threads             the rank (on SIGUSR1), the supervisor
    taken.jsonl            the steps taken so far                       rank 0, the sweep
    checkpoint/step-<N>/   what a later start resumes from              the ranks (rank/checkpoint_folders.py)
    weights.npz            the trained weights                          rank 0, which moves them to the run's folder

Results do not stay here: the folder is emptied, all but the checkpoints, before each start of the run.
"""

from __future__ import annotations

from pathlib import Path

SPEC = "spec.json"
WORLD = "world.json"
PROGRESS = "progress.json"
STEP = "step"
STOP_REQUEST = "stop"
LOST_REPLICA = "lost-replica-"
STEP_JOURNAL = "taken.jsonl"
CHECKPOINT = "checkpoint"
CHECKPOINT_STEP = "step-"  # begins the name of a whole checkpoint's folder
WEIGHTS = "weights.npz"  # has the same name in the run's folder


def log_file(scratch: Path, rank: int) -> Path:
    return scratch / f"rank-{rank}.log"


def report_file(scratch: Path, rank: int) -> Path:
    return scratch / f"rank-{rank}.error.json"


def stack_file(scratch: Path, rank: int) -> Path:
    return scratch / f"rank-{rank}.stack"


def stack_files(scratch: Path) -> list[Path]:
    """Those that are there, by name."""
    return sorted(scratch.glob("rank-*.stack"))


def lost_replica_file(scratch: Path, replica: int) -> Path:
    return scratch / f"{LOST_REPLICA}{replica}"


def checkpoint_folder(scratch: Path, step: int) -> Path:
    return scratch / CHECKPOINT / f"{CHECKPOINT_STEP}{step}"
