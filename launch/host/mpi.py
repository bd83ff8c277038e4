"""mpi4py, imported only where ranks come together or talk through MPI."""

from __future__ import annotations

from typing import Any

from .placement import WorldError


def load() -> Any:
    """The module `mpi4py.MPI`; the first import of a process initialises MPI.

    Raises
    ------
    WorldError: mpi4py or the MPI library behind it is not there
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, and no MPI library
        reason = str(error).partition("\n")[0]
        how = "pip install 'scalade[mpi]' mpich, or load the MPI of this machine before"
        raise WorldError(f"started by mpirun, but mpi4py cannot be imported ({reason}): {how}") from None
    return MPI


def library() -> str:
    """Name and version of the MPI library that mpi4py uses."""
    return load().Get_library_version().splitlines()[0].strip(" \t\0")


def another(asked: str, found: str) -> WorldError:
    """Where mpirun and mpi4py count differently: "mpirun says rank 0 of 2", "rank 0 of 1"."""
    return WorldError(
        f"{asked}, mpi4py's library ({library()}) says {found}: this mpirun belongs to another MPI; use the one "
        "installed with mpi4py's library"
    )
