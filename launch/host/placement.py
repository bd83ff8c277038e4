"""Where this process stands: rank and size as its launcher tells them, and the environment a rank is started with.

The order of asking matters: inside a Slurm allocation under mpirun SLURM_PROCID is the daemon's, and torchrun inside
either sets its own. So: torchrun (RANK), then MPI (OMPI_*, PMI_*, PMIX_*), Slurm last. Needs no torch.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from .gpus import device_order
from .hostlist import expand_counts
from .machine import cores

LAUNCHER_PREFIXES = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "PRRTE_", "MPI_LOCAL", "HYDI_", "TORCHELASTIC_", "TORCHRUN_")
SECRET = "SCALADE_SECRET"  # by which the processes of a run know each other (secret.py)
LOOPBACKS = ("127.0.0.1", "::1")
WAIT_POLICY = "OMP_WAIT_POLICY"
"""How OpenMP's threads wait for work. Left to themselves they spin, which takes their core from whoever has work on it:
where threads are more than free cores, a parallel region lasts for slices of the scheduler. libgomp (torch's wheels)
and LLVM's libomp, Intel's libiomp5 (conda's) all read this one; GOMP_SPINCOUNT and KMP_BLOCKTIME say more and win."""
LINK = "SCALADE_LINK"  # in a lab: the columns of the group "Link", as JSON


class WorldError(RuntimeError):
    """The ranks that came together are not the world that was asked for. The message says what was found."""


@dataclass(frozen=True)
class Placement:
    """What the launcher says of this process."""

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
            said = f"{source} set {rank}={env[rank]} but {key}={env.get(key, 'nothing')}: not a number"
            raise WorldError(said) from None

    place = Placement(source, number(rank), number(size), number(local_rank, 0), number(local_size, 1))
    if not 0 <= place.rank < place.size:
        raise WorldError(f"{source} says {rank}={place.rank} and {size}={place.size}: a rank is from 0 to size - 1")
    return place


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
        "RANK": str(place.rank), "WORLD_SIZE": str(place.size), "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size), "MASTER_ADDR": address, "MASTER_PORT": str(port),
    }  # fmt: skip
    if address in LOOPBACKS:
        child.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would look up the host's name, which need not resolve
    return child


def wait_policy(threads: int, env: Mapping[str, str] = os.environ) -> str | None:
    """The column omp_wait_policy; None at one thread, which waits for no other."""
    if threads < 2:
        return None
    told = env.get(WAIT_POLICY, "undefined").strip().lower()
    return ", ".join([told, *(f"{key}={env[key]}" for key in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME") if key in env)])


def link_columns(env: Mapping[str, str] = os.environ) -> dict[str, object]:
    """What a lab says of the shaped links between its nodes; empty outside of one."""
    return json.loads(env[LINK]) if env.get(LINK) else {}


def listen(address: str, port: int = 0, backlog: int = 1024) -> socket.socket:
    """A listening socket at `address`. port: 0: a free one.

    Raises
    ------
    OSError: somebody listens there, or the address is not this host's
    """
    listener = socket.socket(_family(address))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port > 0))  # of one that has just ended
        listener.bind((address, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_anywhere(port: int = 0, backlog: int = 1024) -> socket.socket:
    """A listening socket on every address of this host, of IPv4 and IPv6. port: 0: a free one.

    Raises
    ------
    OSError: somebody listens on that port
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=both)


@lru_cache(maxsize=1)
def loopback() -> str:
    """The address at which this host reaches itself: IPv4's, else IPv6's.

    Raises
    ------
    WorldError: there is none
    """
    for address in LOOPBACKS:
        with suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing; fails also where the device is down
            return address
    raise WorldError(f"this host has neither {' nor '.join(LOOPBACKS)}, by which ranks meet: `ip link set lo up`")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def reachable_address(hosts: list[str], towards: str) -> str:
    """An address of this host that the other hosts can connect to: that of the route towards one of them.

    Raises
    ------
    WorldError: there is no route, over IPv4 or IPv6, or no such host
    """
    if len(set(hosts)) <= 1:
        return loopback()
    last: OSError | None = None
    try:
        found = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)
    except OSError as error:
        found, last = [], error
    for family, kind, _, _, address in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # sends nothing: only asks which interface would be used
                return probe.getsockname()[0]
        except OSError as error:
            last = error
    raise WorldError(f"no address of this host reaches host {towards}: {last.strerror if last else 'it has none'}")


def oom_kills() -> int:
    """Processes the kernel's out-of-memory killer has ended, in this cgroup or, where that is hidden, on this host."""
    counts = [_counter(Path("/proc/vmstat"))]
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            counts.append(_counter(Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events"))
        elif controllers == "memory":
            counts.append(_counter(Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control"))
    return sum(counts)


def _counter(file: Path) -> int:
    try:
        pairs = (line.split() for line in file.read_text().splitlines())
        return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill")
    except OSError:
        return 0
