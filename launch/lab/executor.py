"""How a study's ranks come onto a lab's nodes, for each launcher. Ranks are dealt out in blocks, nodes in order."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...results.wording import count_of
from ..host.launchers import TORCHRUN, find_mpirun, unbound
from ..host.machine import cores
from ..host.placement import Placement
from ..process.guard import MARK, Guard, end_marked, new_mark
from ..process.supervisor import RANK_COMMAND, Signals
from ..sweep.local import LocalExecutor
from .switch import DEVICE

if TYPE_CHECKING:
    import socket

    from ..process.outcome import Outcome
    from ..process.run_spec import RunSpec
    from ..sweep.executor import Callback
    from .lab import Lab


def places(ranks: int, nodes: int) -> list[tuple[int, Placement]]:
    """(node, placement) of each rank: as even as can be, one to a node while there are nodes."""
    used = min(ranks, nodes)
    of = [rank * used // ranks for rank in range(ranks)]
    return [
        (node, Placement("local", rank, ranks, rank - of.index(node), of.count(node))) for rank, node in enumerate(of)
    ]


class LabExecutor(LocalExecutor):
    """Launcher `local` in a lab: the supervisor stays outside, each rank is started on its node."""

    def __init__(self, lab: Lab, signals: Signals, command: Sequence[str] = RANK_COMMAND) -> None:
        super().__init__(signals, command)
        self.lab, self.address = lab, lab.address(0)

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        # The nodes share this machine's cores, which no node knows.
        threads = spec.threads or max(1, cores() // spec.size)
        return super().execute(replace(spec, threads=threads), time_limit_s, started, tick)

    def listen(self) -> socket.socket:
        return self.lab.listen()

    def places(self, size: int) -> list[Placement]:
        return [place for _, place in places(size, self.lab.size)]

    def prefix(self, place: Placement) -> list[str]:
        return self.lab.enter(places(place.size, self.lab.size)[place.rank][0], ())


class InLab:
    """A launcher that starts its ranks on a lab's nodes."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name

    def command(self, ranks: int, program: Sequence[str]) -> list[str]:
        starts = {"torchrun": self._torchrun, "mpirun": self._mpirun}
        if self.name not in starts:
            raise ValueError(f"run.launcher = {self.name!r}: a lab has local, torchrun and mpirun")
        return starts[self.name](ranks, program)

    def _torchrun(self, ranks: int, program: Sequence[str]) -> list[str]:
        nodes = min(ranks, self.lab.size)
        if ranks % nodes:
            raise ValueError(f"torchrun in a lab: {ranks} ranks do not share {count_of(nodes, 'node')} evenly")
        port = 20_000 + secrets.randbelow(10_000)
        here = [sys.executable, "-m", "scalade", "lab", "run", "--name", self.lab.name, "--nodes", str(nodes), "--"]
        torchrun = [sys.executable, "-m", TORCHRUN, "--nnodes", str(nodes), "--max-restarts", "0"]
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{self.lab.address(0)}:{port}", "--rdzv-id", str(port)]
        # Who leaves last finds the rendezvous gone with node 0's agent, and torch's C++ says so at length.
        torchrun = ["env", "TORCH_CPP_LOG_LEVEL=ERROR", *torchrun]
        return [*here, *torchrun, *meet, "--nproc-per-node", str(ranks // nodes), *program]

    def _mpirun(self, ranks: int, program: Sequence[str]) -> list[str]:
        mpirun, open_mpi = find_mpirun()
        hosts = ",".join(
            f"{self.lab.state.nodes[node]['name']}:{place.local_size}"
            for node, place in places(ranks, self.lab.size)
            if place.local_rank == 0
        )
        rsh = str(self.lab.state.folder / "rsh")
        if open_mpi:
            start = ["env", *_open_mpi(rsh), mpirun, *unbound(True), "--host", hosts]
        else:
            start = [mpirun, "-hosts", hosts, "-launcher", "ssh", "-launcher-exec", rsh, "-iface", DEVICE]
        return self.lab.enter(0, [*start, "-n", str(ranks), sys.executable, *program])


def _open_mpi(rsh: str) -> list[str]:
    """Starts by the lab's rsh, talks over its links. By variables: the options have other names in other versions."""
    return [
        "PRTE_MCA_plm=ssh",
        f"PRTE_MCA_plm_ssh_agent={rsh}",
        f"PRTE_MCA_prte_if_include={DEVICE}",  # from 5 on
        "OMPI_MCA_plm=rsh",
        f"OMPI_MCA_plm_rsh_agent={rsh}",
        f"OMPI_MCA_oob_tcp_if_include={DEVICE}",  # before
        "OMPI_MCA_pml=ob1",
        f"OMPI_MCA_btl_tcp_if_include={DEVICE}",
    ]


def run_on_nodes(lab: Lab, command: Sequence[str], nodes: int | None = None, only: int | None = None) -> int:
    """The command on each node (or the first `nodes`, or one), all at once. The exit status is the first bad one.

    Raises
    ------
    ValueError: there are not so many nodes
    """
    for asked, least, option in ((nodes, 1, "--nodes"), (only, 0, "--node")):
        if asked is not None and not least <= asked < lab.size + least:
            raise ValueError(f"{option} {asked}: lab {lab.name!r} has {count_of(lab.size, 'node')}")
    chosen = [only] if only is not None else range(nodes or lab.size)
    with Signals() as signals:
        code = _run_to_the_end(lab, command, chosen, signals)
    if signals.received:
        return 130
    return code if code >= 0 else 128 - code


def _run_to_the_end(lab: Lab, command: Sequence[str], nodes: Sequence[int], signals: Signals) -> int:
    """The first bad exit status, 0 where there is none. Nothing of the command is left."""
    mark = new_mark()
    about = {MARK: mark, "SCALADE_LAB_HEAD": lab.address(0), "SCALADE_LAB_NODES": str(len(nodes))}
    env = os.environ | lab.environment() | about
    guard = None
    try:
        started = [
            subprocess.Popen(lab.enter(node, command), env=env | {"SCALADE_LAB_NODE": str(node)}) for node in nodes
        ]
        guard = Guard(mark)
        _wait(started, lambda: signals.received is not None)
        return next((process.returncode for process in started if process.returncode), 0)
    finally:
        end_marked(mark)
        if guard:
            guard.close()


def _wait(started: Sequence[subprocess.Popen], asked_to_stop: Callable[[], bool]) -> None:
    for process in started:
        while not asked_to_stop():
            try:
                process.wait(0.05)
                break
            except subprocess.TimeoutExpired:
                continue
    if asked_to_stop():
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
