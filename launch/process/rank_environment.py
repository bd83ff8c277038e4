"""The environment that a rank is started with: torchrun's variables, thread counts, and nothing of another launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..host.gpus import device_order
from ..host.machine import cores
from ..host.placement import SECRET, Placement
from ..host.sockets import LOOPBACKS

LAUNCHER_PREFIXES = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "PRRTE_", "MPI_LOCAL", "HYDI_", "TORCHELASTIC_", "TORCHRUN_")
WAIT_POLICY = "OMP_WAIT_POLICY"
"""How OpenMP's threads wait for work. Left to themselves they spin, which takes their core from threads that have work:
where threads are more than free cores, a parallel region lasts for slices of the scheduler. libgomp (torch's wheels)
and LLVM's libomp, Intel's libiomp5 (conda's) all read this one; GOMP_SPINCOUNT and KMP_BLOCKTIME say more and win."""


def child_environment(
    env: Mapping[str, str], place: Placement, address: str, port: int, threads: int
) -> dict[str, str]:
    """The environment of one rank: torchrun's variables and nothing of another launcher.

    Thread counts, and how threads wait, are set here, before the process exists: OpenMP and MKL read them when they
    are loaded.
    threads: 0 shares this machine's cores between its ranks
    """
    child = {key: value for key, value in env.items() if not key.startswith((*LAUNCHER_PREFIXES, SECRET))}
    count = str(threads or max(1, cores() // place.local_size))
    child |= {key: count for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    child = {WAIT_POLICY: "PASSIVE"} | device_order(child) | child
    child |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    if address in LOOPBACKS:
        child.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would look up the host's name, which need not resolve
    return child


def wait_policy(threads: int, env: Mapping[str, str] = os.environ) -> str | None:
    """The column omp_wait_policy; None at one thread, which waits for no other."""
    if threads < 2:
        return None
    policy = env.get(WAIT_POLICY, "undefined").strip().lower()
    return ", ".join([policy, *(f"{key}={env[key]}" for key in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME") if key in env)])
