"""Making a lab's namespaces and links, by `ip` and `tc`; nothing here touches a device outside of them.

A rate alone: veth pairs to a bridge in a namespace of its own, both ends of each pair made inside the lab, each
limited by a token bucket on what it sends. With a round trip: the switch in user space (switch.py), since this kernel
may have no netem, and one that is asked for a rate only would cost more than the bridge.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..process.guard import MARK
from .state import NETNS, State
from .switch import DEVICE

MTU_VETH = 1500
MTU_SWITCH = 9000  # jumbo frames: the switch pays for each packet
PROBE_S = 1.0
TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "hostname": "hostname"}
PROGRAM = (sys.executable, "-I", "-S")  # standard library only
# Of the shell that is a node's init: its host name and its neighbours' names, for this process and its children alone.
INSIDE = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


def missing() -> str | None:
    """Why no lab can be made here, or None."""
    if os.geteuid() != 0:
        return "a lab makes network namespaces, which only root may: start it as root (or with sudo)"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"a lab needs `{tool}`: `apt-get install -y {package}` brings it"
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "a lab makes network namespaces, which this container may not (it wants CAP_SYS_ADMIN)"
    return None


def no_switch() -> str | None:
    """Why there can be no latency here, or None."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"a lab with a round trip needs /dev/net/tun: {error.strerror}"
    return None


def build(state: State) -> subprocess.Popen | None:
    """Namespaces, devices, addresses and links, in this order; the switch's process where there is one.

    Raises
    ------
    OSError: a step failed; says which and what the tool said
    """
    for node in state.nodes:
        _ip("netns", "add", node["namespace"])
        _quiet_ipv6(node["namespace"])
        _ip("-n", node["namespace"], "link", "set", "lo", "up")
    switch = None
    if state.rtt_s:
        switch = _start_switch(state)
    else:
        _build_bridge(state)
    mtu = MTU_SWITCH if state.rtt_s else MTU_VETH
    in_flight = (state.rate_bits_per_s or 1e9) / 8 * max(state.rtt_s or 0, 0.01) / mtu
    for node in state.nodes:
        inside = ("-n", node["namespace"])
        _ip(*inside, "address", "add", f"{node['address']}/24", "dev", DEVICE)
        _ip(*inside, "link", "set", DEVICE, "mtu", str(mtu))
        if state.rtt_s:
            _ip(*inside, "link", "set", DEVICE, "txqueuelen", str(int(4 * in_flight) + 128))
        _ip(*inside, "link", "set", DEVICE, "up")
        if state.rtt_s:
            _ip(*inside, "route", "replace", "10.99.0.0/24", "dev", DEVICE, "src", node["address"])
    return switch


def _build_bridge(state: State) -> None:
    _ip("netns", "add", state.hub)
    _quiet_ipv6(state.hub)
    _ip("-n", state.hub, "link", "add", "bridge", "type", "bridge")
    for i, node in enumerate(state.nodes):
        port = f"port{i}"
        _ip("-n", node["namespace"], "link", "add", DEVICE, "type", "veth", "peer", "name", port, "netns", state.hub)
        _ip("-n", state.hub, "link", "set", port, "master", "bridge", "up")
        for namespace, device in ((node["namespace"], DEVICE), (state.hub, port)):
            _limit(namespace, device, state.rate_bits_per_s)
    _ip("-n", state.hub, "link", "set", "bridge", "up")


def _limit(namespace: str, device: str, rate_bits_per_s: float | None) -> None:
    """tbf: at most `rate` on the wire, a bucket of 5 ms of it and at least one 64 KiB segment, a queue of 50 ms."""
    if rate_bits_per_s:
        burst = max(65_536, int(rate_bits_per_s / 8 / 200))
        _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf",
             "rate", f"{int(rate_bits_per_s)}bit", "burst", str(burst), "latency", "50ms")  # fmt: skip


def _start_switch(state: State) -> subprocess.Popen:
    program = Path(__file__).with_name("switch.py")
    with open(state.folder / "switch.log", "w") as log:
        process = subprocess.Popen(
            [*PROGRAM, str(program), str(state.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={"PATH": os.environ.get("PATH", ""), MARK: state.mark},
            start_new_session=True,
            cwd="/",
        )
    assert process.stdout
    if process.stdout.readline().strip() != "ready":
        process.kill()
        process.wait()
        printed = (state.folder / "switch.log").read_text().strip().splitlines()
        raise OSError(f"the lab's switch did not start: {printed[-1] if printed else 'it said nothing'}")
    return process


def release(switch: subprocess.Popen) -> None:
    """The links are there: from now on the switch ends with the lab, no longer with the process that made it."""
    assert switch.stdin and switch.stdout
    switch.stdin.write("go\n")
    switch.stdin.close()
    switch.stdout.close()
    switch.returncode = 0  # nobody waits for it: no warning when this object goes


def enter(state: State, node: int, command: Sequence[str]) -> list[str]:
    """The command that runs `command` on a node: in its network, by its name, knowing its neighbours' names."""
    namespace, name = state.nodes[node]["namespace"], state.nodes[node]["name"]
    start = ["nsenter", f"--net={NETNS / namespace}", "unshare", "--uts", "--mount", "--"]
    return [*start, "sh", "-c", INSIDE, name, str(state.folder / "hosts"), *command]


def write_files(state: State) -> None:
    """hosts and rsh."""
    names = {"127.0.0.1": "localhost", "::1": "localhost"} | {node["address"]: node["name"] for node in state.nodes}
    names |= {f"::ffff:{address}": name for address, name in names.items() if ":" not in address}  # as torch looks up
    (state.folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in names.items()))
    cases = "|".join(node["name"] for node in state.nodes)
    prefix = state.nodes[0]["namespace"].removesuffix("n0")
    rsh = state.folder / "rsh"
    rsh.write_text(
        "#!/bin/sh\n"
        "# rsh NODE COMMAND...: as ssh would, but into a node of the lab. Written by `scalade lab up`.\n"
        'while [ "${1#-}" != "$1" ]; do shift; done\n'
        'node="$1"; shift\n'
        f'case "$node" in {cases}) ;; *) echo "rsh: $node is no node of this lab" >&2; exit 1;; esac\n'
        f'exec nsenter --net="{NETNS}/{prefix}$node" unshare --uts --mount -- '
        f"""sh -c '{INSIDE}' "$node" "{state.folder / "hosts"}" sh -c "$*"\n"""
    )
    rsh.chmod(0o755)


def measure(state: State, seconds: float = PROBE_S) -> tuple[float, float]:
    """(rate in bits/s, round trip in s) of the slowest link: each node to the next.

    Raises
    ------
    OSError: nothing came through
    """
    rates, trips = [], []
    for here in range(len(state.nodes)):
        found = _probe(state, here, (here + 1) % len(state.nodes), seconds)
        rates.append(found["rate_bits_per_s"])
        trips.append(found["rtt_s"])
    return min(rates), max(trips)


def _probe(state: State, here: int, there: int, seconds: float) -> dict[str, float]:
    program, address = str(Path(__file__).with_name("probe.py")), state.nodes[there]["address"]
    env = os.environ | {MARK: state.mark}
    server = subprocess.Popen(
        enter(state, there, [*PROGRAM, program, "serve", address]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=env,
    )
    try:
        assert server.stdout
        port = server.stdout.readline().strip()
        command = enter(state, here, [*PROGRAM, program, "measure", address, port, str(seconds)])
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 10 * seconds, env=env)
        if done.returncode:
            raise OSError(f"nothing came through the lab's link: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise OSError("the lab's link did not answer in time") from None
    finally:
        server.kill()
        server.communicate()


def _quiet_ipv6(namespace: str) -> None:
    """No IPv6 inside: nothing there speaks it, and its neighbour discovery is traffic."""
    switch = "for d in all default; do echo 1 > /proc/sys/net/ipv6/conf/$d/disable_ipv6; done"
    subprocess.run(["nsenter", f"--net={NETNS / namespace}", "sh", "-c", switch], capture_output=True)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        printed = (done.stderr.strip().splitlines() or ["no word"])[0]
        raise OSError(f"`{' '.join(command)}` failed: {printed}")
