"""Rank and size of this process, from the variables that its launcher has set.

The order of asking matters: inside a Slurm allocation under mpirun SLURM_PROCID is the daemon's, and torchrun inside
either sets its own. So: torchrun (RANK), then MPI (OMPI_*, PMI_*, PMIX_*), Slurm last. Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .hostlist import expand_counts

SECRET = "SCALADE_SECRET"  # by which the processes of a run recognise each other (store/secret.py)


class WorldError(RuntimeError):
    """The ranks that came together are not the world that was asked for. The message says what was found."""


@dataclass(frozen=True)
class Placement:
    """As the launcher has it."""

    source: str  # torchrun, mpi, slurm
    rank: int
    size: int
    local_rank: int
    local_size: int


def find_placement(env: Mapping[str, str] = os.environ) -> Placement | None:
    """The placement that the environment names, or None where no launcher left one.

    Raises
    ------
    WorldError: a launcher's variables are there but are not numbers, or rank and size contradict each other
    """
    if "RANK" in env:
        return _placement("torchrun", env, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "OMPI_COMM_WORLD_RANK" in env:
        keys = (f"OMPI_COMM_WORLD_{key}" for key in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
        return _placement("mpi", env, *keys)
    if "PMI_RANK" in env:
        return _placement("mpi", env, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if "PMIX_RANK" in env and "PMIX_SIZE" in env:
        return _placement("mpi", env, "PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE")
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:  # inside srun, not merely inside a batch script
        place = _placement("slurm", env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")
        return replace(place, local_size=_tasks_on_this_node(env))
    return None


def _tasks_on_this_node(env: Mapping[str, str]) -> int:
    try:
        return expand_counts(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]
    except (KeyError, ValueError, IndexError):
        return 1


def _placement(
    source: str, env: Mapping[str, str], rank: str, size: str, local_rank: str, local_size: str
) -> Placement:
    def number(key: str, default: int | None = None) -> int:
        if key not in env and default is not None:
            return default
        try:
            return int(env[key])
        except (KeyError, ValueError):
            found = f"{source} set {rank}={env[rank]} but {key}={env.get(key, 'nothing')}"
            raise WorldError(f"{found}: not a number") from None

    place = Placement(source, number(rank), number(size), number(local_rank, 0), number(local_size, 1))
    if not 0 <= place.rank < place.size:
        raise WorldError(f"{source} says {rank}={place.rank} and {size}={place.size}: a rank is from 0 to size - 1")
    return place
