"""Faults of processes: ranks, sweeps, guards, and the whole host that they run on."""

import os
import signal
import time
from contextlib import suppress

from . import kind


def send(pid, number):
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def guards(lab):
    """Processes that end a sweep's ranks once it is gone."""
    found = []
    for pid in lab.processes():
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"launch/process/guard.py" in file.read():
                found.append(pid)
    return found


@kind("ranks", repeats=2)
def kill_rank(lab):
    _hurt(lab, signal.SIGKILL)


@kind("ranks", repeats=2, hang_limit_s=1.0)
def stop_rank(lab):
    _hurt(lab, signal.SIGSTOP)


@kind("ranks", repeats=2)
def segfault_rank(lab):
    _hurt(lab, signal.SIGSEGV)


@kind("ranks", repeats=2)
def pause_rank(lab):
    """Shorter than any limit: nothing has happened."""

    def pause(run_id):
        pid = lab.rank(lab.rng.randrange(2))
        send(pid, signal.SIGSTOP)
        time.sleep(0.3)
        send(pid, signal.SIGCONT)

    _, process = lab.hurt_each_run(pause)
    code, out, err = lab.ended(process)
    assert code == 0, (code, out, err)


@kind("ranks", repeats=2, steps=3)
def die_writing(lab):
    """Rank 0 before, or in the middle of, each of the calls that write its row."""
    code, _, _ = lab.ended(lab.sweep(FAKE_RANK=f"0/r0:die-writing-{lab.rng.randrange(9)}@2"))
    assert code in (0, 1)


def hurt_ranks(lab, number):
    """A signal to one of two ranks, at a random step of each run: (run_ids, the sweep, which has ended)."""
    return lab.hurt_each_run(lambda run_id: send(lab.rank(lab.rng.randrange(2)), number))


def _hurt(lab, number):
    hurt_runs, process = hurt_ranks(lab, number)
    code, out, err = lab.ended(process)
    assert code == bool(hurt_runs), (hurt_runs, code, out, err)


@kind("sweeps", repeats=2)
def kill_sweep(lab):
    """Anywhere: before the ranks, in a run, between two."""
    process = lab.sweep()
    time.sleep(lab.rng.uniform(0.1, 2.5))
    process.kill()
    lab.ended(process)


@kind("sweeps", repeats=2)
def kill_sweep_in_a_run(lab):
    process = lab.sweep()
    lab.reach(process)
    process.kill()
    lab.ended(process)


def _signalled(lab, number):
    process = lab.sweep()
    reached = lab.reach(process)
    process.send_signal(number)
    code, out, err = lab.ended(process)
    assert code in ((128 + number, 0) if reached else (0,)), (code, out, err)


@kind("sweeps", repeats=2)
def term_sweep(lab):
    _signalled(lab, signal.SIGTERM)


@kind("sweeps", repeats=2)
def interrupt_sweep(lab):
    _signalled(lab, signal.SIGINT)


@kind("sweeps", repeats=2)
def warn_sweep(lab):
    """The job's time is up."""
    process = lab.sweep()
    reached = lab.reach(process)
    process.send_signal(signal.SIGUSR1)
    code, out, err = lab.ended(process)
    assert code in ((75, 0) if reached else (0,)), (code, out, err)


@kind("sweeps", repeats=2)
def pause_sweep(lab):
    process = lab.sweep()
    lab.reach(process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(lab.rng.uniform(0.1, 1.0))
    process.send_signal(signal.SIGCONT)
    code, out, err = lab.ended(process)
    assert code == 0, (code, out, err)


@kind("guards", repeats=2)
def kill_guard_and_sweep(lab):
    """The guard first, so that it cannot end the ranks of the sweep that goes next."""
    process = lab.sweep()
    lab.reach(process)
    for pid in guards(lab):
        send(pid, signal.SIGKILL)
    process.kill()
    lab.ended(process)


@kind("guards", repeats=2)
def kill_guard(lab):
    process = lab.sweep()
    lab.reach(process)
    for pid in guards(lab):
        send(pid, signal.SIGKILL)
    code, out, err = lab.ended(process)
    assert code == 0, (code, out, err)


@kind("hosts", repeats=2)
def kill_host(lab):
    """Every process at once: all are stopped first, so that none has time to see another go."""
    process = lab.sweep()
    lab.reach(process)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in lab.processes():
            send(pid, number)
    lab.ended(process)


@kind("hosts", repeats=3, isolation="pool")
def kill_host_with_warm_ranks(lab):
    kill_host(lab)


@kind("neighbours", repeats=4, ranks="[1, 2]")
def five_sweeps_two_of_which_are_killed(lab):
    sweeps = [lab.sweep() for _ in range(5)]
    victims = lab.rng.sample(sweeps, 2)
    for victim in victims:
        time.sleep(lab.rng.uniform(0.2, 1.0))
        victim.kill()
    for process in sweeps:
        code, out, err = lab.ended(process)
        assert process in victims or code == 0, (code, out, err)


@kind("neighbours", repeats=4, ranks="[1, 2]")
def lock_files_deleted_under_two_sweeps(lab):
    """A run may then be computed twice; it has its row once all the same."""
    sweeps = [lab.sweep(), lab.sweep()]
    while any(process.poll() is None for process in sweeps):
        for lock in lab.results.glob("runs/*/lock"):
            if lab.rng.random() < 0.05:
                with suppress(OSError):
                    lock.unlink()
        time.sleep(0.02)
    for process in sweeps:
        code, out, err = lab.ended(process)
        assert code in (0, 1, 2), (code, out, err)
