"""A lab: several hosts on one machine, as network namespaces with shaped links. Up, found again, and down.

Everything that a lab is made of carries its name: namespaces, a folder under /run, and the mark in the environment of
its processes. `down` ends the processes inside and removes all of it, whatever a killed `up` had come to.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...results.wording import count_of
from ..host.link import LINK, Link
from ..process.guard import end_marked, marked, new_mark
from . import network
from . import state as states
from .state import State
from .switch import CLONE_NEWNET, DEVICE

DEFAULT = "lab"
TOLERANCE = 0.15  # of the rate: below this the links are not what was asked


@dataclass(frozen=True)
class Lab:
    """A lab that is up."""

    state: State

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def size(self) -> int:
        return len(self.state.nodes)

    def address(self, node: int) -> str:
        return self.state.nodes[node]["address"]

    def enter(self, node: int, command: Sequence[str]) -> list[str]:
        return network.enter(self.state, node, command)

    def columns(self) -> dict[str, Any]:
        """Of the group "Link"."""
        s = self.state
        return {
            "lab": s.name,
            "link_rate_asked_bits_per_s": s.rate_bits_per_s,
            "link_rtt_asked_s": s.rtt_s,
            "link_rate_measured_bits_per_s": s.rate_measured_bits_per_s,
            "link_rtt_measured_s": s.rtt_measured_s,
        }

    def environment(self) -> dict[str, str]:
        """For what runs on its nodes: the device to talk over, and what the link is."""
        # MPICH's UCX knows one machine for what it is, and would send through its memory.
        return {LINK: json.dumps(self.columns()), "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": DEVICE} | dict.fromkeys(
            ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "FI_TCP_IFACE"), DEVICE
        )

    def measured_again(self) -> Lab:
        """The lab as it is now: links are measured before each study, not only when they were made."""
        rate, rtt = network.measure(self.state)
        return Lab(replace(self.state, rate_measured_bits_per_s=rate, rtt_measured_s=rtt))

    def slow_links(self) -> str | None:
        """Where the links are not what was asked for, in words."""
        asked, got = self.state.rate_bits_per_s, self.state.rate_measured_bits_per_s
        if asked and got and got < (1 - TOLERANCE) * asked:
            return f"asked for {asked / 1e6:g} Mbit/s, one stream gets {got / 1e6:.4g}: this machine does not keep up"
        return None

    def listen(self, backlog: int = 1024) -> socket.socket:
        """A listening socket on a free port of node 0: made in its network by a thread, which alone is moved there."""
        import ctypes

        made: list[socket.socket | OSError] = []

        def make() -> None:
            try:
                with open(states.NETNS / self.state.nodes[0]["namespace"]) as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                made.append(socket.create_server((self.address(0), 0), backlog=backlog))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]


def up(name: str, nodes: int, link: Link) -> Lab:
    """Make a lab and measure its links.

    Raises
    ------
    ValueError: not root, a tool is missing, or the lab is there already
    OSError: a step failed; nothing is left of the lab
    """
    plan = states.plan(name, nodes, link, new_mark())
    _can(link)
    with states.locked():
        there = states.read_state(name)
        if there or plan.folder.exists() or states.namespaces(name):
            what = "is half up"
            if there is not None and there.up:
                what = f"is up already ({count_of(len(there.nodes), 'node')}, {there.link.text()})"
            raise ValueError(f"lab {name!r} {what}: `scalade lab down --name {name}` takes it down")
        try:
            plan.folder.mkdir(mode=0o755)
            plan.write()
            network.write_files(plan)
            if switch := network.build(plan):
                network.release(switch)
            rate, rtt = network.measure(plan)
            plan = replace(plan, up=True, rate_measured_bits_per_s=rate, rtt_measured_s=rtt)
            plan.write()
        except BaseException:
            _remove(name)
            raise
    return Lab(plan)


def _can(link: Link | None = None) -> None:
    why = network.missing() or (network.no_switch() if link and link.rtt_s else None)
    if why:
        raise ValueError(why)


def find(name: str) -> Lab:
    """The lab of that name, if it is up and whole.

    Raises
    ------
    ValueError: it is not; says what is there
    """
    state = states.read_state(name)
    _can()
    if state is None or not state.up:
        there = ", ".join(each["name"] for each in status() if each["up"]) or "none"
        raise ValueError(f"no lab {name!r} is up (there is: {there}): `scalade lab up --name {name}` makes one")
    if broken := _broken(state):
        raise ValueError(f"lab {name!r} is broken: {broken}; `scalade lab down --name {name}`, then up again")
    return Lab(state)


def _broken(state: State) -> str | None:
    gone = [node["name"] for node in state.nodes if not states.is_namespace(node["namespace"])]
    if gone:
        return f"the namespace of {', '.join(gone)} is gone"
    return "its switch is gone" if state.rtt_s and not marked(state.mark) else None


def status() -> list[dict[str, Any]]:
    """Every lab there is anything of."""
    found = []
    for name in states.names():
        try:
            state = states.read_state(name)
        except ValueError:
            continue  # not a lab's name: not ours
        inside = len(processes_in(states.namespaces(name)))
        if state is None:
            why = "what an `up` that was killed has left, or another version made"
            found.append({"name": name, "up": False, "why": why, "processes": inside})
            continue
        trouble = _broken(state) if state.up else "its `up` is at work, or was killed"
        found.append(
            {
                "name": name,
                "up": state.up and not trouble,
                "why": trouble,
                "nodes": len(state.nodes),
                "link": state.link.text(),
                "rate_asked_bits_per_s": state.rate_bits_per_s,
                "rtt_asked_s": state.rtt_s,
                "rate_measured_bits_per_s": state.rate_measured_bits_per_s,
                "rtt_measured_s": state.rtt_measured_s,
                "processes": inside,
            }
        )
    return found


def down(name: str) -> list[str]:
    """Remove a lab, whole or in parts, and end what runs in it. Gives what was removed.

    Raises
    ------
    ValueError: there is nothing of that name
    OSError: something would not go
    """
    states.checked_name(name)
    _can()
    with states.locked():
        if not (states.ROOT / name).exists() and not states.namespaces(name):
            raise ValueError(f"no lab {name!r}: there is {', '.join(states.names()) or 'none'}")
        return _remove(name)


def _remove(name: str) -> list[str]:
    marks, namespaces = states.marks(name), states.namespaces(name)
    deadline = time.monotonic() + 10
    while (inside := processes_in(namespaces)) and time.monotonic() < deadline:
        for pid in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for mark in marks:
        inside += end_marked(mark)
    for namespace in namespaces:
        if not states.is_namespace(namespace):  # `up` was killed before it was one, or it went with the last start
            (states.NETNS / namespace).unlink(missing_ok=True)
            continue
        done = subprocess.run(["ip", "netns", "del", namespace], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"namespace {namespace} would not go: {done.stderr.strip()}")
    shutil.rmtree(states.ROOT / name, ignore_errors=True)
    return [f"{len(namespaces)} namespaces", *([f"{len(inside)} processes that would not end"] if inside else [])]


def processes_in(namespaces: Sequence[str]) -> list[int]:
    """Ids of the processes whose network is one of these; never this one."""
    nets = set()
    for namespace in namespaces:
        with suppress(OSError):
            found = os.stat(states.NETNS / namespace)
            nets.add((found.st_dev, found.st_ino))
    pids = []
    for entry in os.listdir("/proc") if nets else ():
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                found = os.stat(Path("/proc", entry, "ns", "net"))
                if (found.st_dev, found.st_ino) in nets:
                    pids.append(int(entry))
    return pids
