"""What supervisors tell each other is decided by fields, whatever hosts are called. No processes, no torch."""

import json
import subprocess
import sys
import time

import pytest

from scalade.launch.host.placement import Placement
from scalade.launch.process.cause import Cause, ErrorKind, StopDemand, StopReason
from scalade.launch.process.diagnosis import diagnose
from scalade.launch.process.error_report import ErrorReport, error_kind
from scalade.launch.process.outcome import Ending, Outcome
from scalade.launch.process.quorum import Quorum
from scalade.launch.process.rendezvous import Seat
from scalade.launch.process.supervisor import Signals, WatchOptions, watch
from scalade.launch.schedulers import SCHEDULERS
from scalade.launch.schedulers.ask import SchedulerError
from scalade.launch.schedulers.state import State
from scalade.launch.sweep import peers as module
from scalade.launch.sweep.display import failed_tail
from scalade.launch.sweep.peers import LEFT, Peers
from scalade.launch.sweep.summary import Summary

NAMES = ["datastore-2", "timeout-1", "hang", "peer", "store", "stopped:1", "socket closed"]
named = pytest.mark.parametrize("name", NAMES)


class Memory(dict):
    """A store in this process. dead: it does not answer."""

    dead = False

    def set(self, key, value):
        self.check([])
        self[key] = value.encode()

    def get(self, key):
        self.check([])
        return self[key]

    def check(self, keys):
        if self.dead:
            raise ConnectionError("Broken pipe")
        return all(key in self for key in keys)


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr(module, "CHECK_S", 0.0)

    def make(name):
        store = Memory()
        seats = tuple(Seat(rank, 0, 2, "n", host, 7, "cpu") for rank, host in enumerate(("first", name)))
        return store, *(Peers(store, Placement("torchrun", rank, 2, 0, 1), seats) for rank in (0, 1))

    return make


def progress(folder):
    (folder / "progress.json").write_text(json.dumps({"phase": "training", "step": 3, "steps": 9}))


@named
@pytest.mark.parametrize("by_itself", [False, True])
def test_rank_0_goes_on_speaking_when_another_supervisor_is_gone(pair, name, tmp_path, by_itself):
    store, first, second = pair(name)
    second.beat()
    assert first.stop_demand(1) is None
    if by_itself:
        second.leave()
    else:
        first.patience_s = 0.0
    stop = first.stop_demand(1)
    why = StopReason.LEFT if by_itself else StopReason.NO_SUPERVISOR
    assert (stop.reason, stop.rank) == (why, 1) and name in stop.line and first.broken == stop
    mine = Ending(Cause.STOPPED, {0: None}, detail=stop.line, stop=stop)
    first.publish(1, mine)
    progress(tmp_path)
    outcome = diagnose(first.gather(1, mine), tmp_path, 60.0)
    expected = ("failed", Cause.STOPPED) if by_itself else ("preempted", Cause.HOST_GONE)
    assert (outcome.status, outcome.cause, outcome.rank) == (*expected, 1) and name in outcome.reason
    first.order(2, {"end": None, "code": 1})
    assert "order/2" in store and "ended/1/0" in store and why in json.loads(store["stop/1"])["reason"]


def test_with_a_quorum_hosts_may_go_as_long_as_enough_replicas_are_left(monkeypatch, tmp_path):
    """Four replicas of two ranks on a host each, three needed."""
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    quorum, store = Quorum(3, 4, 2), Memory()
    seats = tuple(Seat(rank, 0, 8, "n", f"n{rank // 2}", rank, "cpu") for rank in range(8))
    all_ = [Peers(store, Placement("torchrun", rank, 8, 0, 1), seats) for rank in range(8)]
    first = all_[0]

    def fall_silent(*ranks):
        for peers in all_:
            peers._last_beat = 0.0
            if peers.place.rank not in silent | set(ranks):
                peers.beat()
        assert first.stop_demand(1, quorum) is None or silent
        silent.update(ranks)
        first._heard = {rank: (seen, 0.0 if rank in silent else since) for rank, (seen, since) in first._heard.items()}
        return first.stop_demand(1, quorum)

    silent = set()
    assert fall_silent() is None and first.broken is None and first.lost(1, quorum) == set()
    assert fall_silent(4, 5) is None and set(first.missed) == {4, 5} and "host n2" in first.broken.line
    assert all_[2].lost(1, quorum) == {2}
    rest = [Ending(Cause.DONE, {rank: 0}) for rank in (1, 2, 3, 6, 7)]
    for ending, peers in zip(rest, (all_[1], *all_[2:4], *all_[6:]), strict=True):
        peers.publish(1, ending, quorum)
    endings = first.gather(1, Ending(Cause.DONE, {0: 0}), quorum)
    assert len(endings) == 6 and diagnose(endings, tmp_path, 60.0, quorum) == Outcome("ok")
    stop = fall_silent(2, 3)
    assert stop.reason is StopReason.NO_SUPERVISOR and "host n1" in stop.line
    assert first.stop_demand(1, quorum) == stop


@named
def test_a_store_that_is_gone_is_asked_no_more(pair, name):
    store, _, second = pair(name)
    store.dead = True
    assert second.stop_demand(1).reason is StopReason.NO_STORE
    store.dead = False
    second.order(2, {})
    assert not store


@named
@pytest.mark.parametrize(
    "cause, why", [(Cause.TIMEOUT, StopReason.TIMEOUT), (Cause.HANG, StopReason.HANG), (Cause.FAILED, StopReason.PEER)]
)
def test_what_ended_one_ends_the_others_for_that(pair, name, cause, why, tmp_path):
    _, first, second = pair(name)
    second.beat()
    told = Ending(cause, {0: 1}, (ErrorReport(0, ErrorKind.EXCEPTION, f"E: {name}", "", 1.0),), 2, name, None, (0,))
    first.publish(1, told)
    assert second.stop_demand(1) == StopDemand(why)


@named
def test_an_ending_comes_through_the_store_as_it_was(pair, name):
    _, first, second = pair(name)
    reports = (ErrorReport(1, ErrorKind.PEER, f"E: {name}", "trace", 1.5),)
    told = Ending(Cause.STOPPED, {1: None, 2: -9}, reports, 2, name, StopDemand(StopReason.HANG, name, 0), (1,))
    second.publish(1, told)
    mine = Ending(Cause.HANG, {0: None}, detail="no step for 9 s")
    assert first.gather(1, mine) == [mine, told]
    second.leave()
    assert first.gather(1, mine) == [mine, told] and LEFT


@named
def test_a_host_s_name_asks_for_no_stacks(name, tmp_path):
    """Only a run that hung or ran out of time has them dumped: another's end does not."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    from scalade.launch.process.supervisor import Child

    with Signals() as signals:
        ending = watch(
            [Child(0, child)],
            tmp_path,
            "no-such-mark",
            WatchOptions(
                deadline=time.monotonic() + 60,
                signals=signals,
                stop_demand=lambda: StopDemand(StopReason.NO_SUPERVISOR, name, 1),
            ),
        )
    assert (ending.cause, ending.detail, ending.halted, ending.exits) == (Cause.STOPPED, name, (), {0: None})
    assert ending.stop.reason is StopReason.NO_SUPERVISOR


def test_a_hang_names_the_ranks_that_were_stopped_wherever_they_are(tmp_path):
    progress(tmp_path)
    endings = [
        Ending(Cause.HANG, {0: None}, detail="no step for 9 s; rank 0"),
        Ending(Cause.STOPPED, {3: None}, stop=StopDemand(StopReason.HANG), halted=(3,)),
    ]
    outcome = diagnose(endings, tmp_path, 60.0)
    assert (outcome.cause, outcome.rank) == (Cause.HANG, 3)
    assert outcome.reason == "hang: no step for 9 s; rank 0 at step 3 of 9; rank 3 was stopped by a signal"


def test_the_log_that_is_shown_is_that_of_the_rank_to_blame(tmp_path):
    for rank in (0, 2):
        (tmp_path / f"rank-{rank}.log").write_text(f"printed by {rank}\n")
    assert failed_tail(Outcome("failed", "rank 0: ValueError: rank 0", rank=2), tmp_path)[0] == "printed by 2"
    assert failed_tail(Outcome("failed", "rank 2: said by a model called so"), tmp_path)[0] == "printed by 0"


def test_a_sweep_that_broke_is_not_one_that_a_signal_ended():
    assert Summary(interrupted="SIGTERM").exit_code == 1
    assert Summary(interrupted="SIGTERM", signal="SIGTERM").exit_code == 143


class DistNetworkError(RuntimeError):
    """As torch's, known by its name."""


@pytest.mark.parametrize(
    "error, kind",
    [
        (
            FileNotFoundError(2, "No such file or directory", "/data/out of memory/connection refused"),
            ErrorKind.EXCEPTION,
        ),
        (KeyError("connection reset by peer"), ErrorKind.EXCEPTION),
        (NotImplementedError("out of memory"), ErrorKind.EXCEPTION),
        (RuntimeError("shard of host recvbytes.sendbytes is missing"), ErrorKind.EXCEPTION),
        (DistNetworkError("failed to connect to (datastore-2, 80)"), ErrorKind.PEER),
        (ConnectionRefusedError(111, "Verbindungsaufbau abgelehnt"), ErrorKind.PEER),
        (BrokenPipeError(32, "x"), ErrorKind.PEER),
    ],
)
def test_what_kind_of_failure_it_is_does_not_hang_on_names(error, kind):
    assert error_kind(error) is kind


QSTAT = """#!/bin/sh
case "$*" in
  *1.s*) echo "qstat: Unknown Job Id 1.s" >&2; exit 153;;
  *2.s*) echo "qstat: cannot connect to server history does not exist" >&2; exit 111;;
  *-x*3.s*) echo "qstat: job_history_enable is set to false" >&2; exit 36;;
  *3.s*) printf 'Job Id: 3.s\\n    job_state = F\\n    Exit_status = 0\\n';;
esac
"""


def test_a_job_that_pbs_does_not_know_is_told_by_qstat_s_status(tmp_path, monkeypatch):
    (tmp_path / "qstat").write_text(QSTAT)
    (tmp_path / "qstat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    pbs = SCHEDULERS["pbs"]
    assert pbs.tasks({"a": "1.s"}) == {}
    with pytest.raises(SchedulerError, match="does not exist"):
        pbs.tasks({"a": "2.s"})
    assert pbs.tasks({"a": "3.s"})["a"][0].state == State.DONE
