"""Where the supervisors that torchrun or srun started meet: on which host, at which of its addresses, on which port.

The port is none that a stranger could take before: it follows from what they share (secret.py), as the first of a
series that rank 0 can have. The others try one after the other, and know the right one by the handshake. MASTER_PORT,
where a user sets it, is the only port. Rank 0 listens on the addresses at which the others reach it and on no other.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..host.hostlist import expand_hosts
from ..host.placement import Placement, WorldError
from ..host.sockets import listen, listen_anywhere, loopback, reachable_address
from .secret import ports_of
from .server import StoreServer


@dataclass(frozen=True)
class Point:
    """What all supervisors of one start of a launcher read from their environments, each by itself."""

    host: str  # of rank 0, as the others know it
    name: str  # of this start: unlike any other's, and no secret
    port: int | None = None  # None: those that follow from the secret
    alone: bool = False  # all ranks are on this host
    other: str = ""  # a host of other ranks, where it is known

    def ports(self, secret: bytes) -> tuple[int, ...]:
        return ports_of(secret) if self.port is None else (self.port,)


def torchrun_point(place: Placement, env: Mapping[str, str]) -> Point:
    """Of torchrun, whose agents keep a store of their own at MASTER_PORT; or of another program that set its variables.

    Raises
    ------
    WorldError: they lack one
    """
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        if key not in env:
            raise WorldError(f"{place.source} set rank and size but not {key}: set it to {_MASTER[key]}")
    host, port = env["MASTER_ADDR"], _port(env["MASTER_PORT"])
    start = f"{env.get('TORCHELASTIC_RUN_ID', 'none')}.{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Point(host, f"{start} {host}:{port}", None if agent else port, place.local_size == place.size)


_MASTER = {"MASTER_ADDR": "an address of rank 0's host that every node can reach", "MASTER_PORT": "a free port of it"}


def slurm_point(env: Mapping[str, str]) -> Point:
    """Of one srun's tasks. The host is the step's first; MASTER_ADDR and MASTER_PORT, where they are set, win.

    Raises
    ------
    WorldError: the step's variables are not there, or MASTER_PORT is no port
    """
    port = _port(env["MASTER_PORT"]) if "MASTER_PORT" in env else None
    try:
        job, step, hosts = int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"]), env["SLURM_STEP_NODELIST"]
        first, *others = expand_hosts(hosts)
    except (KeyError, ValueError) as error:
        missing = f"srun left no SLURM_JOB_ID, SLURM_STEP_ID or SLURM_STEP_NODELIST that can be read ({error})"
        raise WorldError(f"{missing}: set MASTER_ADDR and MASTER_PORT") from None
    name = f"{job}-{step}.{env.get('SLURM_RESTART_COUNT', '0')}"
    here = loopback() if not others and "MASTER_ADDR" not in env else env.get("MASTER_ADDR", first)
    return Point(here, name, port, not others, others[0] if others else "")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise WorldError(f"MASTER_PORT={text}: must be a port, from 1 to 65535")
    return int(text)


def serve(point: Point, secret: bytes) -> tuple[StoreServer, str]:
    """Rank 0's side: (the store, an address of it).

    Raises
    ------
    WorldError: none of the ports is free
    """
    addresses, last = _addresses(point), ""
    for port in point.ports(secret):
        listeners: list[socket.socket] = []
        try:
            for address in addresses:
                listeners.append(listen(address, port))
            if not listeners:
                listeners.append(listen_anywhere(port))
            return StoreServer(listeners, secret), addresses[0] if addresses else loopback()
        except OSError as error:
            last = os.strerror(error.errno) if error.errno else str(error)
            for each in listeners:
                each.close()
    tried = ", ".join(map(str, point.ports(secret)))
    raise WorldError(f"rank 0 could not serve the rendezvous at {point.host}, port {tried}: {last}; set MASTER_PORT")


def _addresses(point: Point) -> list[str]:
    """Those of this host at which others reach it: its name's, and that of the route to one of them.

    Empty where none is known: the name is a gateway's, say, or has the loopback's address here and others elsewhere.
    """
    found: dict[str, None] = {}
    with suppress(OSError):
        infos = socket.getaddrinfo(point.host, None, type=socket.SOCK_STREAM)
        # An IPv4-mapped address (::ffff:10.0.0.1) is the IPv4 address again; a link-local one needs its device.
        plain = (str(where[0]).removeprefix("::ffff:") for *_, where in infos)
        found = dict.fromkeys(address for address in plain if not address.startswith("fe80:"))
    if point.other:
        with suppress(WorldError):
            found[reachable_address([point.host, point.other], point.other)] = None
    ours = [address for address in found if _ours(address)]
    from_elsewhere = point.alone or any(not address.startswith(("127.", "::1")) for address in ours)
    return ours if from_elsewhere else []


def _ours(address: str) -> bool:
    with suppress(OSError):
        listen(address).close()
        return True
    return False


def other_host(hosts: Sequence[str]) -> str:
    """One of the hosts that is not the first one's; the first where there is no other."""
    return next((host for host in hosts if host != hosts[0]), hosts[0])
