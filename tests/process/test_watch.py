"""The order in which a watch names its causes: ranks, signals and a clock that are scripted, no process."""

from types import SimpleNamespace

import pytest

from scalade.launch.process import supervisor
from scalade.launch.process.cause import Cause, ErrorKind, StopDemand, StopReason
from scalade.launch.process.error_report import ErrorReport
from scalade.launch.process.quorum import Quorum
from scalade.launch.process.supervisor import GRACE_S, LINGER_S, PARTING_S, Child, WatchOptions, watch

ASKED, KILLED = 75, -9
NEVER = float("inf")


class Clock:
    """Time that passes by sleeping."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        assert self.now < 100, "nothing ends this watch"


class Scripted:
    """A process that exits with `code` at a time."""

    pid = 0

    def __init__(self, clock, code=0, at=NEVER):
        self.clock, self.code, self.at = clock, code, at

    def poll(self):
        return self.code if self.clock.now >= self.at else None

    returncode = property(poll)

    def wait(self, timeout=None):
        return self.code


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """A watch over ranks given as (code, at) or None (it runs on) -> its Ending."""
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    monkeypatch.setattr(supervisor, "oom_kills", lambda: 0)
    monkeypatch.setattr(supervisor, "end_marked", lambda mark: [])
    monkeypatch.setattr(supervisor, "_dump_stacks", lambda children: [])
    monkeypatch.setattr(supervisor.os, "killpg", lambda pid, number: None)

    def run(*ranks, blames=(), warned_at=NEVER, cancelled_at=NEVER, demand_at=NEVER, hung_at=NEVER, **options):
        def reports(children, scratch):
            return [
                ErrorReport(child.rank, kind, "", "", 0.0)
                for child, kind in zip(children, blames, strict=False)
                if kind and child.process.poll() is not None
            ]

        monkeypatch.setattr(supervisor, "_reports", reports)

        class Signals:
            warned = property(lambda self: "SIGUSR1" if clock.now >= warned_at else None)
            received = property(lambda self: "SIGTERM" if clock.now >= cancelled_at else None)

        options = {
            "deadline": None,
            "signals": Signals(),
            "stop_demand": lambda: StopDemand(StopReason.PEER, "there") if clock.now >= demand_at else None,
            "watchdog": SimpleNamespace(hung_s=lambda: 7.0 if clock.now >= hung_at else None),
        } | options
        children = [Child(rank, Scripted(clock, *(one or ()))) for rank, one in enumerate(ranks)]
        ending = watch(children, tmp_path, "mark", WatchOptions(**options))
        return ending.cause, ending.detail, round(clock.now, 1)

    return run


def test_all_exited_with_0(ended):
    assert ended((0, 1.0), (0, 2.0)) == (Cause.DONE, "", 2.0)


def test_a_signal_comes_before_the_failures_that_it_makes(ended):
    assert ended((KILLED, 1.0), None, cancelled_at=1.0) == (Cause.CANCELLED, "SIGTERM", 1.0)
    assert ended((0, 1.0), cancelled_at=1.0)[0] is Cause.DONE  # it came too late


def test_ranks_that_stopped_as_asked(ended):
    cause = ended((ASKED, 3.0), (ASKED, 3.0), warned_at=2.0, grace_s=20.0)
    assert cause == (Cause.PREEMPTED, "stopped by SIGUSR1, with a checkpoint", 3.0)


@pytest.mark.parametrize("ranks, at", [((None, None), 22.0), (((1, 4.0), None), 4.0)], ids=["time", "a failure"])
def test_a_warning_that_is_not_followed(ended, ranks, at):
    cause, detail, now = ended(*ranks, warned_at=2.0, grace_s=20.0)
    assert (cause, detail) == (Cause.PREEMPTED, "stopped by SIGUSR1: no new checkpoint within 20 s")
    assert now == pytest.approx(at, abs=0.1)


@pytest.mark.parametrize(
    "first, blame, after_s",
    [(1, ErrorKind.PEER, GRACE_S), (1, ErrorKind.EXCEPTION, 0.0), (KILLED, None, 0.0), (1, None, GRACE_S)],
)
def test_a_rank_that_blames_a_peer_is_waited_with(ended, first, blame, after_s):
    cause, _, now = ended((first, 1.0), None, blames=[blame])
    assert cause is Cause.FAILED and now == pytest.approx(1.0 + after_s, abs=0.1)


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"demand_at": 1.0, "deadline": 0.9, "hung_at": 0.9}, Cause.TIMEOUT),
        ({"demand_at": 1.0, "deadline": 1.0, "hung_at": 1.0}, Cause.STOPPED),
        ({"deadline": 0.9, "hung_at": 1.0}, Cause.TIMEOUT),
        ({"deadline": 3.0, "hung_at": 1.0}, Cause.HANG),
        ({"deadline": 0.9, "demand_at": 0.9, "cancelled_at": 0.9}, Cause.CANCELLED),
    ],
)
def test_what_happens_at_once_has_an_order(ended, options, cause):
    assert ended(None, None, **options)[0] is cause


def test_a_failure_comes_before_a_demand(ended):
    assert ended((KILLED, 1.0), None, demand_at=1.0)[0] is Cause.FAILED


@pytest.mark.parametrize("code", [0, ASKED])
def test_one_that_never_exits_after_another_did(ended, code):
    cause, _, now = ended((code, 1.0), None)
    assert cause is Cause.LINGERED and now == pytest.approx(1.0 + LINGER_S, abs=0.1)


def test_a_quorum_goes_on_without_a_replica_and_ends_with_its_first(ended):
    quorum = Quorum(needed=2, replicas=3, ranks=1)
    cause, _, now = ended((0, 9.0), (KILLED, 1.0), None, quorum=quorum)
    assert cause is Cause.DONE and now == pytest.approx(9.0 + PARTING_S, abs=0.1)
    assert ended((0, 9.0), (KILLED, 1.0), (0, 8.0), quorum=quorum)[0] is Cause.DONE


def test_with_a_quorum_a_replica_may_be_done_long_before_the_first(ended):
    cause, _, now = ended((0, 60.0), (0, 1.0), (0, 1.0), quorum=Quorum(needed=2, replicas=3, ranks=1))
    assert cause is Cause.DONE and now == pytest.approx(60.0, abs=0.1)


@pytest.mark.parametrize(
    "ranks, elsewhere, detail",
    [
        ((None, (KILLED, 1.0), (KILLED, 2.0)), set(), "1 of 3 replicas left, the quorum is 2"),
        (((KILLED, 1.0), None, None), set(), ""),
        ((None, (KILLED, 1.0), None), {2}, "1 of 3 replicas left, the quorum is 2"),
    ],
)
def test_a_quorum_that_is_lost(ended, ranks, elsewhere, detail):
    quorum = Quorum(needed=2, replicas=3, ranks=1)
    cause, why, _ = ended(*ranks, quorum=quorum, lost_elsewhere=lambda: elsewhere)
    assert (cause, why) == (Cause.FAILED, detail)


def test_ranks_of_replicas_that_went_on_without_them(ended):
    """All of this host's replicas are lost, and others go on elsewhere."""

    class Elsewhere(Quorum):
        def first_is_done(self, codes):
            return False

    quorum = Elsewhere(needed=2, replicas=4, ranks=1)
    ending = ended(quorum=quorum)
    assert ending[0] is Cause.LOST
