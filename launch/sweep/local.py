"""What runs one run's ranks, and the launcher `local`: this process starts all of them on this host."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..host.placement import Placement
from ..host.sockets import listen, loopback
from ..process.cause import StopDemand
from ..process.diagnosis import diagnose
from ..process.guard import Guard, end_marked, new_mark
from ..process.outcome import Outcome
from ..process.quorum import Quorum
from ..process.run_spec import RunSpec
from ..process.supervisor import RANK_COMMAND, Signals, WatchOptions, start, watch
from ..process.warm_pool import WarmPool
from ..process.watchdog import Watchdog
from ..store.secret import new_secret
from ..store.server import StoreServer

if TYPE_CHECKING:
    pass

Callback = Callable[[], None]


class Executor(Protocol):
    """Runs one run's ranks to their end."""

    launcher: str  # as the table names it
    mark: str  # that every process it starts carries
    broken: StopDemand | None  # why no further run can be started
    one_host: bool  # it starts all ranks of every run here

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        """spec: address, port and nonce are filled in here. started: called once, when the ranks have been started."""


class LocalExecutor:
    """Launcher `local`: this process starts all ranks of a run on this host."""

    launcher, broken, one_host = "local", None, True

    def __init__(self, signals: Signals, command: Sequence[str] = RANK_COMMAND) -> None:
        self.signals, self.command = signals, command
        self.mark, self.guard, self.pool, self.address = new_mark(), None, WarmPool(), loopback()

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        secret = new_secret().hex()
        with StoreServer([self.listen()], secret.encode()) as shared:
            spec = replace(spec, address=self.address, port=shared.port, nonce=os.urandom(8).hex())
            return self._run(spec, secret, time_limit_s, started, tick)

    def _run(self, spec: RunSpec, secret: str, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        scratch, begun = Path(spec.scratch), time.monotonic()
        try:
            begin = self.pool.start if spec.isolation == "pool" else start
            children = begin(spec, self.places(spec.size), self.mark, secret, self.command, self.prefix)
        except BaseException:
            end_marked(self.mark)
            raise
        self.guard = self.guard or Guard(self.mark)
        try:
            started()
        except BaseException:
            end_marked(self.mark)
            raise
        quorum = Quorum.of(spec.parsed_case())  # whose replicas are at different steps: no checkpoint
        options = WatchOptions(
            deadline=begun + time_limit_s,
            signals=self.signals,
            tick=tick,
            quorum=quorum,
            watchdog=Watchdog(scratch, spec.hang_limit_s),
            grace_s=0.0 if quorum else spec.grace_s,
            keep=spec.isolation == "pool",
        )
        ending = watch(children, scratch, self.mark, options)
        return diagnose([ending], scratch, time_limit_s, quorum)

    def listen(self) -> socket.socket:
        """Where ranks meet, at `address`."""
        return listen(self.address)

    def places(self, size: int) -> list[Placement]:
        return [Placement("local", rank, size, rank, size) for rank in range(size)]

    def prefix(self, place: Placement) -> Sequence[str]:
        """Of the command of one rank."""
        return ()

    def close(self) -> None:
        self.pool.close()
        if self.guard:
            self.guard.close()
