"""`scalade worker`: one supervisor for each rank that torchrun, mpirun or srun started. Rank 0's decides, all run.

The ranks of each run are fresh children of these supervisors, so that what ends a run ends no supervisor.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...results.store.store import RunStore
from ..host.link import link_columns
from ..host.sockets import listen, reachable_address
from ..process.diagnosis import diagnose
from ..process.error_report import one_line
from ..process.guard import Guard, end_marked, new_mark
from ..process.outcome import Outcome
from ..process.preemption import REQUEUE_STATUS
from ..process.quorum import Quorum
from ..process.run_spec import RunSpec
from ..process.supervisor import RANK_COMMAND, Signals, WatchOptions, start, watch
from ..process.warm_pool import WarmPool
from ..process.watchdog import Watchdog
from ..schedulers import job_columns
from ..store.meeting import other_host
from ..store.secret import derive
from ..store.server import StoreServer
from ..study.unmet import refuse_here
from .display import Display
from .local import Callback
from .peers import BEAT_S, Peers
from .plan import make_plan
from .summary import Summary
from .sweep import Sweep

if TYPE_CHECKING:
    from .plan import AnyCase, RunnableStudy


class WorldExecutor:
    """Rank 0's: publishes each run as an order, runs its own rank of it, and judges what all supervisors report."""

    def __init__(self, peers: Peers, signals: Signals, launcher: str, command: Sequence[str] = RANK_COMMAND) -> None:
        self.peers, self.signals, self.launcher, self.command = peers, signals, launcher, command
        self.mark, self.guard, self.number, self.broken = new_mark(), None, 0, None
        self.pool = WarmPool()
        hosts = [seat.host for seat in peers.seats]
        # A lab's nodes share one machine; another world of a scheduler's job may have more hosts than this one.
        self.one_host = bool(link_columns()) or (len(set(hosts)) == 1 and not job_columns())
        self.address = reachable_address(hosts, other_host(hosts))

    def execute(self, spec: RunSpec, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        self.number += 1
        spec = replace(spec, address=self.address, nonce=os.urandom(8).hex())
        secret = derive(self.peers.secret, "run", spec.nonce).hex()
        with StoreServer([listen(self.address)], secret.encode()) as shared_store:
            return self._run(replace(spec, port=shared_store.port), secret, time_limit_s, started, tick)

    def _run(self, spec: RunSpec, secret: str, time_limit_s: float, started: Callback, tick: Callback) -> Outcome:
        scratch, begun = Path(spec.scratch), time.monotonic()
        self.peers.order(self.number, {"run": spec.to_json()})
        try:
            begin = self.pool.start if spec.isolation == "pool" else start
            children = begin(spec, [self.peers.place], self.mark, secret, self.command)
            self.guard = self.guard or Guard(self.mark)
            started()
        except BaseException:
            end_marked(self.mark)
            raise
        quorum = Quorum.of(spec.parsed_case())  # whose replicas are at different steps: no checkpoint
        options = WatchOptions(
            deadline=begun + time_limit_s,
            signals=self.signals,
            tick=tick,
            stop_demand=lambda: self.peers.stop_demand(self.number, quorum),
            watchdog=Watchdog(scratch, spec.hang_limit_s),
            quorum=quorum,
            lost_elsewhere=lambda: self.peers.lost(self.number, quorum),
            grace_s=0.0 if quorum else spec.grace_s,
            keep=spec.isolation == "pool",
        )
        ending = watch(children, scratch, self.mark, options)
        self.peers.publish(self.number, ending, quorum)
        outcome = diagnose(self.peers.gather(self.number, ending, quorum), scratch, time_limit_s, quorum)
        self.broken = self.peers.broken
        return outcome

    def dismiss(self, code: int, message: str | None) -> None:
        """The last order: all supervisors end with this exit status."""
        self.peers.order(self.number + 1, {"end": message, "code": code})
        self.peers.wait_until_left()
        self.close()

    def close(self) -> None:
        self.pool.close()
        if self.guard:
            self.guard.close()


def follow(peers: Peers, signals: Signals, command: Sequence[str] = RANK_COMMAND) -> tuple[int, str | None]:
    """What every other supervisor does: run its rank of each order until the last one. Gives exit status and why."""
    mark, guard, number, pool = new_mark(), None, 0, WarmPool()
    threading.Thread(target=_end_when_cut_off, args=(peers, mark), daemon=True).start()
    try:
        while True:
            number += 1
            order = _await_order(peers, signals, number)
            if order is None:
                return (REQUEUE_STATUS, peers.gone.line) if peers.gone else (1, f"ended by {signals.received}")
            if "run" not in order:
                return order["code"], order["end"]
            spec = RunSpec.from_json(order["run"])
            scratch = Path(spec.scratch)
            # On a disk of its own, where the results folder is not shared.
            RunStore(spec.results).scratch(spec.run_id)
            try:
                begin = pool.start if spec.isolation == "pool" else start
                secret = derive(peers.secret, "run", spec.nonce).hex()
                children = begin(spec, [peers.place], mark, secret, command)
                guard = guard or Guard(mark)
            except BaseException:
                end_marked(mark)
                raise
            quorum = Quorum.of(spec.parsed_case())
            options = WatchOptions(
                deadline=None,
                signals=signals,
                stop_demand=lambda number=number: peers.stop_demand(number),
                quorum=quorum,
                lost_elsewhere=lambda number=number, quorum=quorum: peers.lost(number, quorum),
                keep=spec.isolation == "pool",
            )
            ending = watch(children, scratch, mark, options)
            peers.publish(number, ending, quorum)
    finally:
        peers.leave()
        pool.close()
        if guard:
            guard.close()


def _end_when_cut_off(peers: Peers, mark: str) -> None:
    """A host that lost its link: TCP would keep a question to the store, and the ranks, for a quarter of an hour."""
    while peers.silence_s() < peers.patience_s:
        time.sleep(BEAT_S)
    end_marked(mark)
    who, what = peers.seats[peers.place.rank].label(), "the store that the supervisors share"
    print(f"scalade: {who}: {what} has not answered for {peers.patience_s:g} s", file=sys.stderr, flush=True)
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
    """Rank 0's part of the sweep: every missing run whose ranks are as many as this world's.

    only: case_ids and run_ids; empty: all
    """
    launcher = {"mpi": "mpirun", "slurm": "srun"}.get(peers.place.source, peers.place.source)
    executor = WorldExecutor(peers, signals, launcher, command)
    message, code = "rank 0's supervisor failed", 1
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
