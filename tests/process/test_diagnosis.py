"""From how processes ended to a status and one line: who is blamed, and who is not."""

import errno

import pytest

from scalade.launch.host.placement import WorldError
from scalade.launch.process.cause import StopDemand, StopReason
from scalade.launch.process.diagnosis import diagnose
from scalade.launch.process.error_report import ErrorReport, error_kind, one_line
from scalade.launch.process.outcome import Ending, Outcome
from scalade.launch.process.progress import Reporter
from scalade.results.schema.columns import STATUSES

PEER = "RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2"


def report(rank, kind, line="E: x", at=0.0):
    return ErrorReport(rank, kind, line, "trace", at)


@pytest.mark.parametrize(
    "endings, status, reason",
    [
        ([Ending("done", {0: 0, 1: 0})], "ok", None),
        # the kernel's out-of-memory killer, and a plain kill
        ([Ending("failed", {0: None, 1: -9}, oom_kills=1)], "oom", "rank 1 was killed by the kernel's out-of-memory"),
        ([Ending("failed", {0: None, 1: -9})], "failed", "rank 1 was killed by SIGKILL at step 3 of 10"),
        # another process's out-of-memory kill is not ours
        ([Ending("failed", {0: 1, 1: None}, (report(0, "exception"),), 1)], "failed", "rank 0: E: x"),
        # the peer was first to notice, and first to report
        ([Ending("failed", {0: 1, 1: -9}, (report(0, "peer", PEER),))], "failed", "rank 1 was killed by SIGKILL"),
        (
            [Ending("failed", {0: 1, 1: 1}, (report(0, "peer", PEER, 1.0), report(1, "exception", at=2.0)))],
            "failed",
            "rank 1: E: x",
        ),
        # of two, the first
        (
            [Ending("failed", {0: 1, 1: 1}, (report(0, "oom", "late", 2.0), report(1, "exception", "early", 1.0)))],
            "failed",
            "rank 1: early",
        ),
        # an abort that follows a peer's exception
        ([Ending("failed", {0: -6, 1: 1}, (report(1, "exception"),))], "failed", "rank 1: E: x"),
        ([Ending("failed", {0: -6, 1: None})], "failed", "rank 0 was killed by SIGABRT"),
        ([Ending("failed", {0: 1, 1: None}, (report(0, "peer", PEER),))], "failed", "rank 0: RuntimeError"),
        ([Ending("failed", {0: 1, 1: 1}, (report(0, "world", "two came"),))], "failed", "two came"),
        ([Ending("failed", {0: 1}, (report(0, "nan", "loss is nan"),))], "diverged", "rank 0: loss is nan"),
        ([Ending("timeout", {0: None, 1: None})], "timeout", "time limit 60 s reached at step 3 of 10"),
        ([Ending("cancelled", {0: None}, detail="SIGTERM")], "cancelled", "cancelled by SIGTERM"),
        # several supervisors
        ([Ending("done", {0: 0}), Ending("done", {1: 0})], "ok", None),
        (
            [Ending("stopped", {0: None}, stop=StopDemand(StopReason.PEER)), Ending("failed", {1: -9})],
            "failed",
            "rank 1 was killed",
        ),
        (
            [Ending("timeout", {0: None}), Ending("stopped", {1: None}, stop=StopDemand(StopReason.TIMEOUT))],
            "timeout",
            "time limit",
        ),
        (
            [
                Ending("stopped", {0: None}, stop=StopDemand(StopReason.PEER)),
                Ending("cancelled", {1: None}, detail="SIGINT"),
            ],
            "cancelled",
            "cancelled by SIGINT",
        ),
        (
            [
                Ending("failed", {0: 1}, (report(0, "peer", PEER),)),
                Ending("stopped", {}, stop=StopDemand(StopReason.NO_SUPERVISOR, "rank 1's host is gone", 1)),
            ],
            "preempted",
            "rank 1's host is gone at step 3 of 10",
        ),
        # a host that is gone: whatever the others make of it, and where the scheduler cancels what is left
        *(
            (
                [ending, Ending("stopped", {}, stop=StopDemand(why, "n2 is gone", 1))],
                "preempted",
                "n2 is gone at step 3",
            )
            for why in (StopReason.NO_SUPERVISOR, StopReason.NO_STORE)
            for ending in (
                Ending("failed", {0: -6}),
                Ending("failed", {0: -9}),
                Ending("cancelled", {0: None}),
                Ending("failed", {0: 1}, (report(0, "exception"),)),
                Ending("stopped", {0: None}),
                Ending("failed", {0: 1}, (report(0, "world", "one came"),)),
            )
        ),
        # but not what no host's end makes, nor a supervisor that ended by itself
        (
            [
                Ending("failed", {0: 1}, (report(0, "nan", "loss is nan"),)),
                Ending("stopped", {}, stop=StopDemand(StopReason.NO_SUPERVISOR, "n2 is gone", 1)),
            ],
            "diverged",
            "rank 0: loss is nan",
        ),
        (
            [
                Ending("stopped", {0: None}),
                Ending("stopped", {}, stop=StopDemand(StopReason.LEFT, "n2's has ended", 1)),
            ],
            "failed",
            "n2's has ended",
        ),
        ([Ending("lingered", {0: 0, 1: None})], "failed", "rank 1 did not end within"),
    ],
)
def test_who_is_blamed(tmp_path, endings, status, reason):
    reporter = Reporter(tmp_path, 10, active=True)
    reporter.step(3)
    outcome = diagnose(endings, tmp_path, 60.0)
    assert outcome.status == status
    assert outcome.reason is None if reason is None else outcome.reason.startswith(reason)
    assert "\n" not in (outcome.reason or "")


def test_bad_outcomes_are_those_that_fail_a_sweep():
    assert {status for status in STATUSES if Outcome(status).bad} == {"failed", "oom", "timeout", "diverged"}


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError, which is known by its name so that a rank needs no torch to fail."""


@pytest.mark.parametrize(
    "error, kind",
    [
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        (ValueError("out of memory is what the user wrote"), "exception"),
        (FloatingPointError("loss is nan"), "nan"),
        (RuntimeError(PEER), "peer"),
        (ConnectionResetError(104, "Connection reset by peer"), "peer"),
        (WorldError("a world of 2 was asked for; connection refused"), "world"),
        (KeyError("x"), "exception"),
    ],
)
def test_kinds_of_errors(error, kind):
    assert error_kind(error) == kind


def test_the_line_of_an_error_is_one_short_line():
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert one_line(MemoryError()) == "MemoryError"
    assert one_line(ValueError("\n\n  first\nsecond")) == "ValueError: first"
    assert len(one_line(ValueError("y" * 5000))) == 300
