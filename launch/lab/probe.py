"""What a link really gives: the round trip of one byte, and the goodput of one TCP stream.

As a program (standard library only): `probe.py serve ADDRESS` prints its port and answers one client;
`probe.py measure ADDRESS PORT SECONDS` prints {"rtt_s", "rate_bits_per_s"} as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time

PINGS = 21
CHUNK = bytes(64 * 1024)
TCP_NOTSENT_LOWAT = 25  # so that a slow link does not drain megabytes after the time is up
SETTLE = 0.4  # share of the time in which the stream comes up to speed and is not counted
END = b"."


def serve(address: str) -> None:
    with socket.create_server((address, 0)) as listener:
        listener.settimeout(30)
        print(listener.getsockname()[1], flush=True)
        with listener.accept()[0] as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(PINGS):
                peer.sendall(peer.recv(1))
            seconds = float(peer.recv(64).decode().strip())
            peer.sendall(END)
            peer.sendall(json.dumps(_goodput(peer, seconds)).encode())


def _goodput(peer: socket.socket, seconds: float) -> float:
    """bits/s of what arrives after the stream has settled. The sender sends for `seconds`."""
    begin = settled = last = time.monotonic()
    counted, buffer = 0, bytearray(1 << 20)
    while n := peer.recv_into(buffer):
        last = time.monotonic()
        if last - begin < SETTLE * seconds:
            settled = last
        else:
            counted += n
    return 8 * counted / (last - settled) if last > settled else 0.0


def measure(address: str, port: int, seconds: float) -> dict[str, float]:
    with socket.create_connection((address, port), timeout=30) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(PINGS):
            begin = time.perf_counter()
            peer.sendall(END)
            peer.recv(1)
            trips.append(time.perf_counter() - begin)
        peer.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 2 * len(CHUNK))
        peer.sendall(f"{seconds}\n".encode())
        peer.recv(1)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            peer.sendall(CHUNK)
        peer.shutdown(socket.SHUT_WR)
        answer = b""
        while part := peer.recv(1024):
            answer += part
    return {"rtt_s": statistics.median(trips), "rate_bits_per_s": json.loads(answer)}


if __name__ == "__main__":
    try:  # the link is measured, not how long this process waits for a core
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        pass
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))))
