"""The launcher `local`: this process starts all ranks of a run on this host."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..host.placement import Placement
from ..host.sockets import listen, loopback
from ..process.cause import StopDemand
from ..process.diagnosis import diagnose
from ..process.outcome import Outcome
from ..process.quorum import Quorum
from ..process.run_spec import RunSpec
from ..process.supervisor import RANK_COMMAND, Signals
from ..store.secret import new_secret
from ..store.server import StoreServer
from .executor import Callback, HostRanks


class LocalExecutor:
    """Launcher `local`: this process starts all ranks of a run on this host."""

    launcher, one_host = "local", True
    broken: StopDemand | None = None

    def __init__(self, signals: Signals, command: Sequence[str] = RANK_COMMAND) -> None:
        self.ranks, self.address = HostRanks(signals, command, self.prefix), loopback()

    @property
    def mark(self) -> str:
        return self.ranks.mark

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        secret, quorum = new_secret().hex(), Quorum.of(spec.parsed_case())
        with StoreServer([self.listen()], secret.encode()) as shared:
            spec = replace(spec, address=self.address, port=shared.port, nonce=os.urandom(8).hex())
            deadline = time.monotonic() + time_limit_s
            children = self.ranks.start(spec, self.places(spec.size), secret, started)
            ending = self.ranks.watch(spec, children, self.ranks.options(spec, deadline, quorum, tick))
            return diagnose([ending], Path(spec.scratch), time_limit_s, quorum)

    def listen(self) -> socket.socket:
        """Where ranks meet, at `address`."""
        return listen(self.address)

    def places(self, size: int) -> list[Placement]:
        return [Placement("local", rank, size, rank, size) for rank in range(size)]

    def prefix(self, place: Placement) -> Sequence[str]:
        """Of the command of one rank."""
        return ()

    def close(self) -> None:
        self.ranks.close()
