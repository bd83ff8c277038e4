"""What starts a world of ranks: one small class for each launcher, by the name it has in a study file.

`local` needs no command: `scalade run` starts a case's ranks itself. The others are handed `scalade worker` once for
each world size of a study, and the worker runs every case of that size. On this host the whole command is the
launcher's; inside a job (`step`) the scheduler says how one process for each task is started on which nodes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .sockets import loopback

TORCHRUN = f"{__package__.rpartition('.')[0]}.torchrun"  # of several hosts


class Raw(str):
    """A word of a command that the shell has to read as it stands (`"$head"`); every other word is quoted."""


@dataclass(frozen=True)
class Step:
    """One world of ranks inside a job: the same number of ranks on each of its nodes."""

    nodes: int
    per_node: int  # ranks on each
    hosts: tuple[str, ...] = ()  # these nodes of the job; empty: all of them
    head: str = ""  # the first of them; Raw in a script
    port: str = ""  # where torchrun's agents meet, on `head`
    name: str = ""  # of the rendezvous; Raw in a script
    cpus_per_rank: int = 0  # 0: not bound
    python: str = sys.executable
    container: tuple[str, ...] = ()  # words in front of python
    options: tuple[str, ...] = ()  # words for what starts the processes
    exports: tuple[str, ...] = ()  # names of variables that the ranks need; Open MPI hands on no others to other nodes
    mpirun: str = ""  # path or name; empty: the one that belongs to this environment
    mpi: str = ""  # mpich (Intel's and Cray's too), openmpi; empty: as this environment's mpirun says

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node


Starter = Callable[[Step, int], list[str]]
"""A scheduler's: the words in front of a program that start so many processes of it on each of a step's nodes."""


class WorldLauncher(Protocol):
    """Starts a world from this host: all that `scalade run` needs."""

    name: str

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        """The command that starts `python PROGRAM...` in `ranks` processes: on this host, with srun on the allocation.

        Raises
        ------
        ValueError: the launcher is not installed, or cannot work here
        """


class Launcher(WorldLauncher, Protocol):
    """Starts a world inside a job as well."""

    def step(self, step: Step, starter: Starter, program: Sequence[str]) -> list[str]:
        """The command that starts `python PROGRAM...` in all ranks of a step of a job."""


class Torchrun:
    name = "torchrun"

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        # standalone: a rendezvous on a free port of this host; a worker that fails is not started again
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "0"]
        return [*torchrun, *self._alone(loopback()), "--nproc-per-node", str(ranks), *program]

    def _alone(self, address: str) -> list[str]:
        """--standalone in full: by itself it means `localhost`, for which /etc/hosts may have a wrong address."""
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"[{address}]:0" if ":" in address else f"{address}:0"]
        return [*meet, "--rdzv-id", os.urandom(8).hex(), "--local-addr", address]

    def step(self, step: Step, starter: Starter, program: Sequence[str]) -> list[str]:
        """One agent a node; they meet on the step's first node, on no other and never on localhost."""
        agent = [*step.container, step.python, "-m", TORCHRUN if step.nodes > 1 else "torch.distributed.run"]
        agent += ["--max-restarts", "0"]
        agent += ["--nnodes", str(step.nodes), "--nproc-per-node", str(step.per_node)]
        endpoint = f"{step.head}:{step.port}"
        agent += ["--rdzv-backend", "c10d", "--rdzv-id", step.name]
        agent += ["--rdzv-endpoint", Raw(endpoint) if isinstance(step.head, Raw) else endpoint]
        return [*starter(step, 1), *agent, *program]


class Mpirun:
    name = "mpirun"

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        mpirun, open_mpi = find_mpirun()
        return [mpirun, *unbound(open_mpi), "-n", str(ranks), sys.executable, *program]

    def step(self, step: Step, starter: Starter, program: Sequence[str]) -> list[str]:
        return [*mpirun_starter(step, step.per_node), *step.container, step.python, *program]


class Srun:
    name = "srun"

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        srun = shutil.which("srun")
        if srun is None or "SLURM_JOB_ID" not in os.environ:
            why = "there is no srun here" if srun is None else "this is not inside an allocation"
            how = "start it inside salloc or sbatch, or let `scalade submit` write the batch script"
            raise ValueError(f"run.launcher = 'srun': {why}; {how}")
        return [srun, "--mpi=none", "--kill-on-bad-exit=0", "--no-kill", f"--ntasks={ranks}", sys.executable, *program]

    def step(self, step: Step, starter: Starter, program: Sequence[str]) -> list[str]:
        return [*starter(step, step.per_node), *step.container, step.python, *program]


def find_mpirun(env: Mapping[str, str] = os.environ) -> tuple[str, bool]:
    """(path, whether it is Open MPI's) of the mpirun that belongs to this environment.

    Raises
    ------
    ValueError: there is none
    """
    beside = Path(sys.executable).with_name("mpirun")  # not another MPI's, which may come first in PATH
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun", path=env.get("PATH"))
    if mpirun is None:
        how = "`pip install 'scalade[mpi]' mpich` brings one"
        raise ValueError(f"run.launcher = 'mpirun': there is no mpirun here; {how}")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    return mpirun, "Open MPI" in version or "OpenRTE" in version


def unbound(open_mpi: bool) -> list[str]:
    """mpirun's options by which ranks go where their threads are put, also where there are more of them than cores."""
    # ours to choose: threads are set by scalade, and a bound rank would have them all on one core
    if not open_mpi:
        return []
    return ["--bind-to", "none", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def mpirun_starter(step: Step, tasks: int) -> list[str]:
    """mpirun as a starter of `tasks` processes on each node of a step: also where a scheduler has none of its own."""
    mpirun, open_mpi = (step.mpirun, step.mpi == "openmpi") if step.mpirun and step.mpi else find_mpirun()
    count = ["-n", str(step.nodes * tasks)]
    if open_mpi:
        hosts = ["--host", ",".join(f"{host}:{tasks}" for host in step.hosts)] if step.hosts else []
        known = [word for name in step.exports for word in ("-x", name)]
        return [mpirun, *unbound(True), *count, "--map-by", f"ppr:{tasks}:node", *hosts, *known, *step.options]
    hosts = ["-hosts", ",".join(step.hosts)] if step.hosts else []
    return [mpirun, *count, "-ppn", str(tasks), *hosts, *step.options]


LAUNCHERS: dict[str, Launcher] = {launcher.name: launcher for launcher in (Torchrun(), Mpirun(), Srun())}
"""By the name in the study file; `local` is not among them."""
