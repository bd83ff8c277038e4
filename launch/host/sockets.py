"""Addresses of this host, and sockets that listen at them."""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import lru_cache

from .placement import WorldError

LOOPBACKS = ("127.0.0.1", "::1")


def listen(address: str, port: int = 0, backlog: int = 1024) -> socket.socket:
    """A listening socket at `address`. port: 0: a free one.

    Raises
    ------
    OSError: somebody listens there, or the address is not this host's
    """
    listener = socket.socket(_family(address))
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(port > 0))  # of one that has just ended
        listener.bind((address, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_anywhere(port: int = 0, backlog: int = 1024) -> socket.socket:
    """A listening socket on every address of this host, of IPv4 and IPv6. port: 0: a free one.

    Raises
    ------
    OSError: somebody listens on that port
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=both)


@lru_cache(maxsize=1)
def loopback() -> str:
    """The address at which this host reaches itself: IPv4's, else IPv6's.

    Raises
    ------
    WorldError: there is none
    """
    for address in LOOPBACKS:
        with suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing; fails also where the device is down
            return address
    raise WorldError(f"this host has neither {' nor '.join(LOOPBACKS)}, by which ranks meet: `ip link set lo up`")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def reachable_address(hosts: list[str], towards: str) -> str:
    """An address of this host that the other hosts can connect to: that of the route towards one of them.

    Raises
    ------
    WorldError: there is no route, over IPv4 or IPv6, or no such host
    """
    if len(set(hosts)) <= 1:
        return loopback()
    last: OSError | None = None
    try:
        routes = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)
    except OSError as error:
        routes, last = [], error
    for family, kind, _, _, address in routes:
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # sends nothing: only asks which interface would be used
                return probe.getsockname()[0]
        except OSError as error:
            last = error
    raise WorldError(f"no address of this host reaches host {towards}: {last.strerror if last else 'it has none'}")
