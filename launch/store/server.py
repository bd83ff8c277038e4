"""The store that processes of one run share: keys and values, only for processes that know the run's secret.

torch's TCPStore authenticates nobody, and lists its keys to any process that connects. This one has a handshake before
the first message and a tag on every message (handshake.py). One thread, in a supervisor, serves all; nothing that a
stranger does makes it wait: a connection that is silent is closed after some seconds, the oldest first where there are
many, and one with a wrong answer at once. A rank is admitted however many strangers there are, perhaps at its next try.

A request is a list of byte strings, each behind its length (4 bytes): the operation, then its arguments. So is the
reply: "ok" and values, "late" where a key did not come in time, or "no" and why.
"""

from __future__ import annotations

import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from .handshake import ANSWER, LENGTH, LONGEST, TAG, Greeting, Sealed

SILENCE_S = 10.0  # from a connection to its answer
UNKNOWN = 128  # connections at once that have not answered yet
ACCEPTED = 16  # at a time, between which those that are known are served
LINES = 3  # about strangers
PIECE = 2**18


def packed(*parts: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(part)) + part for part in parts)


def unpacked(body: bytes) -> list[bytes]:
    """Inverse of `packed`. Raises ValueError."""
    parts, at = [], 0
    while at < len(body):
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        if end > len(body):
            raise ValueError("not whole")
        parts.append(body[at + 4 : end])
        at = end
    return parts


class Channel(NamedTuple):
    """Both directions, as the server sees them."""

    receives: Sealed
    sends: Sealed


@dataclass(eq=False)
class Guest:
    """A connection."""

    socket: socket.socket
    address: str
    greeting: Greeting
    until: float  # on time.monotonic(): to answer
    channel: Channel | None = None  # None: it has not proved yet that it knows the secret
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)


@dataclass(eq=False)
class Waiting:
    """A request that is answered when its keys are there."""

    guest: Guest
    keys: list[bytes]
    until: float
    value: bool  # the reply has the value of the first


class StoreServer:
    """Serves until it is closed.

    listeners: listening sockets, which it takes over
    """

    def __init__(self, listeners: Sequence[socket.socket], secret: bytes) -> None:
        self.port: int = listeners[0].getsockname()[1]
        self._secret, self._content, self.refused = secret, dict[bytes, bytes](), 0
        self._listeners, self._waiting = list(listeners), list[Waiting]()
        self._unknown = deque[Guest]()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    def __enter__(self) -> StoreServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._wake.send(b".")
        self._thread.join(10.0)

    def _serve(self) -> None:
        try:
            while True:
                for key, mask in self._selector.select(self._next_deadline()):
                    if key.data is None:
                        return
                    if isinstance(key.data, Guest):
                        self._attend(key.data, mask)
                    else:
                        key.data(key.fileobj)
                self._expire()
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):  # as all are
                    key.fileobj.close()
            self._selector.close()
            self._wake.close()
            if self.refused > LINES:
                _say(f"{self.refused} connections were refused in all")

    def _next_deadline(self) -> float | None:
        times = [waiting.until for waiting in self._waiting] + [guest.until for guest in list(self._unknown)[:1]]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _expire(self) -> None:
        now = time.monotonic()
        while self._unknown and (self._unknown[0].until < now or len(self._unknown) > UNKNOWN):
            guest = self._unknown[0]
            self._refuse(guest, "said nothing" if guest.until < now else "said nothing, as many others")
        for waiting in [each for each in self._waiting if each.until < now]:
            self._waiting.remove(waiting)
            self._reply(waiting.guest, b"late")

    # Connections.

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED):
            try:
                connection, address = listener.accept()
            except OSError:  # no more; or one that broke, or too many files are open: a rank tries again
                return
            connection.setblocking(False)
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            until = time.monotonic() + SILENCE_S
            guest = Guest(connection, f"{address[0]} port {address[1]}", Greeting(self._secret), until)
            self._selector.register(connection, selectors.EVENT_READ, guest)
            self._unknown.append(guest)
            self._send(guest, guest.greeting.hello())

    def _attend(self, guest: Guest, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(guest)
        if mask & selectors.EVENT_READ:
            try:
                piece = guest.socket.recv(PIECE)
            except BlockingIOError:
                return
            except OSError:
                piece = b""
            if not piece:
                self._drop(guest)
                return
            guest.inbox += piece
            self._read(guest)

    def _read(self, guest: Guest) -> None:
        channel = guest.channel or self._admit(guest)
        if channel is None:
            return
        while len(guest.inbox) >= 4:
            length = LENGTH.unpack_from(guest.inbox)[0]
            if length > LONGEST:
                self._refuse(guest, f"sent a message of {length} bytes")
                return
            if len(guest.inbox) < 4 + length + TAG:
                return
            body, tag = bytes(guest.inbox[4 : 4 + length]), bytes(guest.inbox[4 + length : 4 + length + TAG])
            del guest.inbox[: 4 + length + TAG]
            if not channel.receives.is_next(body, tag):
                self._refuse(guest, "sent a message that is not the next of its own")
                return
            self._answer(guest, body)

    def _admit(self, guest: Guest) -> Channel | None:
        """Check its answer, once it is there. None: it is not known (yet)."""
        if len(guest.inbox) < ANSWER:
            return None
        verdict, seals = guest.greeting.verdict(bytes(guest.inbox[:ANSWER]))
        del guest.inbox[:ANSWER]
        self._send(guest, verdict)
        if seals is None:
            self._refuse(guest, "does not know this run's secret")
            return None
        guest.channel = Channel(*seals)
        self._unknown.remove(guest)
        return guest.channel

    def _refuse(self, guest: Guest, what: str) -> None:
        self.refused += 1
        if self.refused <= LINES:
            _say(f"refused a connection from {guest.address}: it {what}")
        self._drop(guest)

    def _drop(self, guest: Guest) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(guest.socket)
        with suppress(ValueError):
            self._unknown.remove(guest)
        self._waiting = [waiting for waiting in self._waiting if waiting.guest is not guest]
        guest.socket.close()

    def _send(self, guest: Guest, content: bytes) -> None:
        guest.outbox += content
        self._flush(guest)

    def _flush(self, guest: Guest) -> None:
        try:
            while guest.outbox:
                del guest.outbox[: guest.socket.send(guest.outbox[:PIECE])]
        except BlockingIOError:
            pass
        except OSError:
            guest.outbox.clear()  # the end of it is read next
        with suppress(KeyError, ValueError):
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if guest.outbox else 0)
            self._selector.modify(guest.socket, events, guest)

    # Requests.

    def _reply(self, guest: Guest, *parts: bytes) -> None:
        assert guest.channel, "only a known connection has made a request"
        self._send(guest, guest.channel.sends.seal(packed(*parts)))

    def _answer(self, guest: Guest, body: bytes) -> None:
        try:
            name, *arguments = unpacked(body)
            if name == b"wait":
                self._wait(guest, *arguments)
                return
            values = OPERATIONS[name](self._content, *arguments)
        except (KeyError, ValueError, TypeError) as error:
            self._reply(guest, b"no", f"{type(error).__name__}: {error}".encode())
            return
        self._reply(guest, b"ok", *values)
        if name in CHANGES:
            self._wake_waiting(arguments[0])

    def _wait(self, guest: Guest, value: bytes, seconds: bytes, *wanted: bytes) -> None:
        waiting = Waiting(guest, list(wanted), time.monotonic() + float(seconds), value == b"1")
        if not self._granted(waiting):
            self._waiting.append(waiting)

    def _granted(self, waiting: Waiting) -> bool:
        if not all(key in self._content for key in waiting.keys):
            return False
        self._reply(waiting.guest, b"ok", *([self._content[waiting.keys[0]]] if waiting.value else []))
        return True

    def _wake_waiting(self, key: bytes) -> None:
        for waiting in [each for each in self._waiting if key in each.keys]:
            if self._granted(waiting):
                self._waiting.remove(waiting)


Content = dict[bytes, bytes]


def _set(content: Content, key: bytes, value: bytes) -> list[bytes]:
    content[key] = value
    return []


def _add(content: Content, key: bytes, amount: bytes) -> list[bytes]:
    content[key] = b"%d" % (int(content.get(key, b"0")) + int(amount))
    return [content[key]]


def _check(content: Content, *keys: bytes) -> list[bytes]:
    return [b"1" if all(key in content for key in keys) else b"0"]


def _delete(content: Content, key: bytes) -> list[bytes]:
    return [b"1" if content.pop(key, None) is not None else b"0"]


def _compare(content: Content, key: bytes, expected: bytes, desired: bytes) -> list[bytes]:
    """As torch's compare_set: where there is no key, an empty expectation sets it; gives what is there then."""
    if content.get(key, b"") == expected:
        content[key] = desired
    return [content.get(key, expected)]


def _append(content: Content, key: bytes, value: bytes) -> list[bytes]:
    content[key] = content.get(key, b"") + value
    return []


OPERATIONS: dict[bytes, Callable[..., list[bytes]]] = {
    b"set": _set,
    b"add": _add,
    b"check": _check,
    b"delete": _delete,
    b"compare": _compare,
    b"append": _append,
    b"count": lambda content: [b"%d" % len(content)],
}
CHANGES = (b"set", b"add", b"compare", b"append")


def _say(line: str) -> None:
    print(f"scalade: rendezvous: {line}", file=sys.stderr, flush=True)
