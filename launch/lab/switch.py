"""A switch in user space, for links with latency: one TUN device in each node's namespace, packets between them.

A packet leaves its sender's link when that has sent those before it at its rate, arrives half a round trip later, and
goes down the receiver's link after those before it there. A sender's backlog is not read before its link is free, so
the node's own queue fills, as with a real network card; a receiver's backlog beyond BUFFER_S is dropped, as by a
switch. Times are kept exactly: a packet handed on late by a busy machine does not delay those behind it.

As a program (standard library only): `switch.py STATE.json`, which tells nodes and links. It says `ready` on standard
output once its devices are there, and ends with the process that started it until that has said `go` on standard input,
then with the lab: when the state file is gone or another switch's, or a device is.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import sys
import time
from collections import deque

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DEVICE = "eth0"
BACKLOG_S = 0.002  # of a sender, beyond which its packets wait in its own kernel
BUFFER_S = 0.2  # of a receiver
CATCH_UP_S = 0.1
BATCH = 256
CHECK_S = 0.5
READ = 65536


class Port:
    """One node's link, both ways. Times on time.monotonic()."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.up_free = self.down_free = 0.0
        self.busy = False  # it had more to send when it was last read
        self.queue: deque[tuple[float, bytes]] = deque()  # (when it is due at the node, packet), in order
        self.dropped = 0


class Switch:
    """The clockwork, which knows nothing of devices: `take` what a port has sent, `due` what goes to a port.

    rate_bits_per_s: None is no limit
    """

    def __init__(self, ports: dict[bytes, Port], rate_bits_per_s: float | None, rtt_s: float) -> None:
        self.ports, self.delay_s = ports, rtt_s / 2
        self.s_per_byte = 8 / rate_bits_per_s if rate_bits_per_s else 0.0

    def take(self, port: Port, packet: bytes, now: float) -> None:
        """A packet that `port` has sent: to its receiver's queue, or nowhere."""
        to = self.ports.get(packet[16:20])  # destination, IPv4
        if to is None or packet[0] >> 4 != 4:
            return
        each = len(packet) * self.s_per_byte
        since = now - CATCH_UP_S if port.busy else now  # what waited while nobody looked has lost no time
        port.up_free = max(port.up_free, since) + each
        arrives = port.up_free + self.delay_s
        due = max(to.down_free + each, arrives)
        if due - arrives > BUFFER_S:
            to.dropped += 1
            return
        to.down_free = due
        to.queue.append((due, packet))

    def wait_s(self, now: float) -> float:
        """Until the next packet is due or the next sender may be read."""
        times = [port.queue[0][0] for port in self.ports.values() if port.queue]
        times += [port.up_free - BACKLOG_S for port in self.ports.values() if port.up_free - now > BACKLOG_S]
        return max(0.0, min(times, default=now + CHECK_S) - now)

    def readable(self, now: float) -> list[Port]:
        return [port for port in self.ports.values() if port.up_free - now <= BACKLOG_S]


def open_devices(nodes: list[dict]) -> dict[bytes, Port]:
    """A TUN device in each node's namespace, by the node's address; this process is left in the last of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    ports = {}
    for node in nodes:
        with open(f"/run/netns/{node['namespace']}") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {node['namespace']}: {os.strerror(ctypes.get_errno())}")
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        ports[bytes(map(int, node["address"].split(".")))] = Port(fd)
    return ports


def run(switch: Switch, alive) -> None:
    ports = list(switch.ports.values())
    check_at = 0.0
    while True:
        now = time.monotonic()
        if now >= check_at:
            check_at = now + CHECK_S
            if not alive():
                return
        wait = min(switch.wait_s(now), CHECK_S)
        ready, _, _ = select.select([port.fd for port in switch.readable(now)], [], [], wait)
        for port in ports:
            if port.fd in ready:
                _read(switch, port)
        now = time.monotonic()
        for port in ports:
            _write_due(port, now)


def _write_due(port: Port, now: float) -> None:
    """The packets whose time has come."""
    while port.queue and port.queue[0][0] <= now:
        _, packet = port.queue.popleft()
        try:
            os.write(port.fd, packet)
        except OSError:
            port.dropped += 1  # the device is down, or its node does not keep up


def _read(switch: Switch, port: Port) -> None:
    for _ in range(BATCH):
        try:
            packet = os.read(port.fd, READ)
        except BlockingIOError:
            port.busy = False
            return
        now = time.monotonic()
        switch.take(port, packet, now)
        if port.up_free - now > BACKLOG_S:
            break
    port.busy = True


def main(state_file: str) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(state_file) as file:
        state = json.load(file)
    try:  # a packet is late by as long as the switch waits for a core
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        print("no real-time priority here", file=sys.stderr)
    ports = open_devices(state["nodes"])
    os.chdir("/")
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        return
    libc.prctl(PR_SET_PDEATHSIG, 0)

    def alive() -> bool:
        try:
            with open(state_file) as file:
                return json.load(file)["mark"] == state["mark"]
        except (OSError, ValueError, KeyError):
            return False

    run(Switch(ports, state["rate_bits_per_s"], state["rtt_s"] or 0.0), alive)


if __name__ == "__main__":
    main(sys.argv[1])
