"""Faults from outside: the host's clock is set, and strangers talk to the port on which a run's ranks meet."""

import json
import socket
import time
from contextlib import suppress

from . import kind


@kind("clocks", repeats=2)
def clock_is_off(lab):
    """From the beginning, as on a host without a time server."""
    code, out, err = lab.ended(lab.sweep(FAKE_CLOCK=f"0:{lab.rng.uniform(-1e8, 1e8):.0f}"))
    assert code == 0, (code, out, err)


@kind("clocks", repeats=2)
def clock_is_set(lab):
    """In mid-run, for every process of the study."""
    after_s, by_s = lab.rng.uniform(0.2, 2.0), lab.rng.choice([-1, 1]) * lab.rng.uniform(60, 1e8)
    code, out, err = lab.ended(lab.sweep(FAKE_CLOCK=f"{time.monotonic() + after_s:.3f}:{by_s:.0f}"))
    assert code == 0, (code, out, err)


@kind("clocks", repeats=2)
def clock_of_one_rank_is_set(lab):
    by_s = lab.rng.uniform(-1e6, 1e6)
    step, rank = lab.rng.randrange(1, 18), lab.rng.randrange(2)
    code, out, err = lab.ended(lab.sweep(FAKE_RANK=f"{rank}:clock{by_s:.0f}@{step}"))
    assert code == 0, (code, out, err)


def _port(lab, process):
    """On which the ranks of the run that is on meet; None: the sweep has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline, "no run is started"
        for spec in lab.results.glob("runs/*/scratch/spec.json"):
            with suppress(OSError, ValueError, KeyError):
                content = json.loads(spec.read_text())
                return content["address"], content["port"]
        time.sleep(0.005)
    return None


def _stranger(lab, connections, say):
    """A neighbour while real ranks meet and all-reduce; the run may fail with a reason, and is right when it is ok."""
    process = lab.sweep()
    if place := _port(lab, process):
        held = []
        for _ in range(connections):
            with suppress(OSError):
                stranger = socket.create_connection(place, timeout=1)
                held.append(stranger)
                stranger.sendall(say())
        time.sleep(lab.rng.uniform(0.1, 1.0))
        for stranger in held:
            stranger.close()
    code, out, err = lab.ended(process)
    assert code in (0, 1), (code, out, err)


@kind("neighbours", repeats=1, FAKE_TORCH="1", FAKE_SYNC="0")
def a_stranger_on_the_port(lab):
    _stranger(lab, lab.rng.randrange(1, 4), lambda: lab.rng.randbytes(lab.rng.randrange(1, 2000)))


@kind("neighbours", repeats=1, FAKE_TORCH="1", FAKE_SYNC="0")
def a_flood_of_connections(lab):
    _stranger(lab, 200, lambda: b"")
