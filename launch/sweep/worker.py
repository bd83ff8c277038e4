"""`scalade worker`: one supervisor for each rank that torchrun, mpirun or srun started. Rank 0's decides, all run.

The ranks of each run are fresh children of these supervisors, so that what ends a run ends no supervisor.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results.store.store import RunStore
from ..host.link import link_columns
from ..host.sockets import listen, reachable_address
from ..process.cause import StopDemand
from ..process.diagnosis import diagnose
from ..process.error_report import one_line
from ..process.guard import end_marked
from ..process.outcome import Outcome
from ..process.preemption import REQUEUE_STATUS
from ..process.quorum import Quorum
from ..process.run_spec import RunSpec
from ..process.supervisor import RANK_COMMAND, Signals, WatchOptions
from ..schedulers import job_columns
from ..store.meeting import other_host
from ..store.secret import derive
from ..store.server import StoreServer
from ..study.unmet import refuse_here
from .display import Display
from .executor import Callback, HostRanks
from .peers import BEAT_S, Peers
from .plan import make_plan
from .summary import Summary
from .sweep import Sweep

if TYPE_CHECKING:
    from .plan import AnyCase, RunnableStudy


class WorldExecutor:
    """Rank 0's: publishes each run as an order, runs its own rank of it, and judges what all supervisors report."""

    broken: StopDemand | None = None

    def __init__(self, peers: Peers, signals: Signals, launcher: str, command: Sequence[str] = RANK_COMMAND) -> None:
        self.peers, self.launcher, self.ranks, self.number = peers, launcher, HostRanks(signals, command), 0
        hosts = [seat.host for seat in peers.seats]
        # A lab's nodes share one machine; another world of a scheduler's job may have more hosts than this one.
        self.one_host = bool(link_columns()) or (len(set(hosts)) == 1 and not job_columns())
        self.address = reachable_address(hosts, other_host(hosts))

    @property
    def mark(self) -> str:
        return self.ranks.mark

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        self.number += 1
        spec = replace(spec, address=self.address, nonce=os.urandom(8).hex())
        secret = _secret_of(self.peers, spec)
        with StoreServer([listen(self.address)], secret.encode()) as shared_store:
            return self._run(replace(spec, port=shared_store.port), secret, time_limit_s, started, tick)

    def _run(self, spec: RunSpec, secret: str, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        peers, number, quorum = self.peers, self.number, Quorum.of(spec.parsed_case())
        deadline = time.monotonic() + time_limit_s
        peers.order(number, {"run": spec.to_json()})
        children = self.ranks.start(spec, [peers.place], secret, started)
        options = replace(
            self.ranks.options(spec, deadline, quorum, tick),
            stop_demand=partial(peers.stop_demand, number, quorum),
            lost_elsewhere=_lost_elsewhere(peers, number, quorum),
        )
        ending = self.ranks.watch(spec, children, options)
        peers.publish(number, ending, quorum)
        outcome = diagnose(peers.gather(number, ending, quorum), Path(spec.scratch), time_limit_s, quorum)
        self.broken = peers.broken
        return outcome

    def dismiss(self, code: int, message: str | None) -> None:
        """The last order: all supervisors end with this exit status."""
        self.peers.order(self.number + 1, {"end": message, "code": code})
        self.peers.wait_until_left()
        self.close()

    def close(self) -> None:
        self.ranks.close()


def _secret_of(peers: Peers, spec: RunSpec) -> str:
    return derive(peers.secret, "run", spec.nonce).hex()


def _lost_elsewhere(peers: Peers, number: int, quorum: Quorum | None) -> Callable[[], set[int]]:
    return partial(peers.lost, number, quorum) if quorum else set


def follow(peers: Peers, signals: Signals, command: Sequence[str] = RANK_COMMAND) -> tuple[int, str | None]:
    """What every other supervisor does: run its rank of each order until the last one. Gives exit status and why."""
    ranks, number = HostRanks(signals, command), 0
    threading.Thread(target=_end_when_cut_off, args=(peers, ranks.mark), daemon=True).start()
    try:
        while True:
            number += 1
            order = _await_order(peers, signals, number)
            if order is None:
                return (REQUEUE_STATUS, peers.gone.line) if peers.gone else (1, f"ended by {signals.received}")
            if "run" not in order:
                return order["code"], order["end"]
            _follow_run(peers, ranks, number, RunSpec.from_json(order["run"]))
    finally:
        peers.leave()
        ranks.close()


def _follow_run(peers: Peers, ranks: HostRanks, number: int, spec: RunSpec) -> None:
    """Rank 0's supervisor decides when it ends."""
    RunStore(spec.results).scratch(spec.run_id)  # on a disk of its own, where the results folder is not shared
    quorum = Quorum.of(spec.parsed_case())
    children = ranks.start(spec, [peers.place], _secret_of(peers, spec))
    options = WatchOptions(
        deadline=None,
        signals=ranks.signals,
        stop_demand=partial(peers.stop_demand, number),
        quorum=quorum,
        lost_elsewhere=_lost_elsewhere(peers, number, quorum),
        keep=spec.isolation == "pool",
    )
    peers.publish(number, ranks.watch(spec, children, options), quorum)


def _end_when_cut_off(peers: Peers, mark: str) -> None:
    """A host that lost its link: TCP would keep a question to the store, and the ranks, for a quarter of an hour."""
    while peers.silence_s() < peers.patience_s:
        time.sleep(BEAT_S)
    end_marked(mark)
    label, store = peers.seats[peers.place.rank].label(), "the store that the supervisors share"
    print(f"scalade: {label}: {store} has not answered for {peers.patience_s:g} s", file=sys.stderr, flush=True)
    os._exit(REQUEUE_STATUS)


def _await_order(peers: Peers, signals: Signals, number: int) -> dict[str, Any] | None:
    while True:
        order = peers.next_order(number)
        if order is not None:
            return order
        if signals.received or not peers.all_alive():
            return None
        time.sleep(0.02)


def work(
    study: RunnableStudy[AnyCase],
    store_folder: Path,
    peers: Peers,
    signals: Signals,
    display: Display,
    *,
    retry_failed: bool = False,
    only: Collection[str] = (),
    command: Sequence[str] = RANK_COMMAND,
) -> Summary:
    """Rank 0's part of the sweep: every missing run with as many ranks as this world.

    only: case_ids and run_ids; empty: all
    """
    launcher = {"mpi": "mpirun", "slurm": "srun"}.get(peers.place.source, peers.place.source)
    executor = WorldExecutor(peers, signals, launcher, command)
    message: str | None = "rank 0's supervisor failed"
    code = 1
    try:
        store = RunStore(store_folder)
        plan = make_plan(study, store, retry_failed=retry_failed, size=peers.place.size, only=only)
        refuse_here(study.path, study.run.device, plan.unfinished)
        summary = Sweep(study, store, executor, display, signals, retry_failed=retry_failed).run(plan)
        message, code = summary.interrupted, summary.exit_code
        return summary
    except (ValueError, OSError) as error:
        message, code = str(error), 2
        raise
    except Exception as error:
        message = f"rank 0's supervisor failed: {one_line(error)}"
        raise
    finally:
        executor.dismiss(code, message)
