"""The shared store as the processes of a run see it (server.py), and the way to it: one of some ports.

Needs no torch; torch_store.py makes a torch.distributed.Store of it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

from ..host.placement import WorldError
from .handshake import LENGTH, LONGEST, TAG, Sealed, Stranger, knock
from .server import packed, unpacked

ANSWER_S = 1.5  # for what listens on a port to answer, where there are others to ask
ONLY_S = 10.0  # where there are none
PAUSE_S = (0.02, 0.5)  # between two rounds over the ports: at first, and at last
PASSES = 2  # rounds in which every port had a stranger, after which it is no use to wait
GIVE_UP_S = 30.0  # the same, where one of them was only silent
SLACK_S = 30.0  # beyond a timeout that the server keeps, for it to say so


class StoreLost(ConnectionError):
    """The process that serves the store is gone."""


class StoreLate(TimeoutError):
    """A key did not come within the timeout."""


class StoreClient:
    """One connection; several threads may use it, one after the other. Values are bytes.

    timeout_s: how long `get` and `wait` wait for a key

    Raises
    ------
    StoreLost: by every method, when the server is gone
    """

    def __init__(self, connection: socket.socket, sends: Sealed, hears: Sealed, timeout_s: float) -> None:
        connection.settimeout(None)
        self._socket, self._sends, self._hears, self.timeout_s = connection, sends, hears, timeout_s
        self._lock = threading.Lock()

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(b"set", key, value)

    def get(self, key: str, timeout_s: float | None = None) -> bytes:
        """Waits for it. Raises StoreLate."""
        return self._await((key,), timeout_s, b"1")[0]

    def wait(self, keys: Sequence[str], timeout_s: float | None = None) -> None:
        self._await(keys, timeout_s, b"0")

    def add(self, key: str, amount: int) -> int:
        return int(self._ask(b"add", key, str(amount))[0])

    def check(self, keys: Sequence[str]) -> bool:
        return self._ask(b"check", *keys)[0] == b"1"

    def delete_key(self, key: str) -> bool:
        return self._ask(b"delete", key)[0] == b"1"

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return self._ask(b"compare", key, expected, desired)[0]

    def append(self, key: str, value: str | bytes) -> None:
        self._ask(b"append", key, value)

    def num_keys(self) -> int:
        return int(self._ask(b"count")[0])

    def close(self) -> None:
        self._socket.close()

    def _await(self, keys: Sequence[str], timeout_s: float | None, value: bytes) -> list[bytes]:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return self._ask(b"wait", value, repr(float(timeout_s)), *keys, patience_s=timeout_s + SLACK_S)

    def _ask(self, operation: bytes, *arguments: str | bytes, patience_s: float | None = None) -> list[bytes]:
        encoded = (each.encode() if isinstance(each, str) else bytes(each) for each in arguments)
        body = packed(operation, *encoded)
        if len(body) > LONGEST:
            raise ValueError(f"{len(body)} bytes for one key: at most {LONGEST}")
        with self._lock:
            reply = self._exchange(body, patience_s)
        status, *values = unpacked(reply)
        if status == b"late":
            raise StoreLate(f"no {', '.join(map(str, arguments[2:]))} within {float(arguments[1]):g} s")
        if status != b"ok":
            raise ValueError(f"the shared store refused {operation.decode()}: {values[0].decode()}")
        return values

    def _exchange(self, body: bytes, patience_s: float | None) -> bytes:
        """Send one message and get the reply to it. Raises StoreLost."""
        try:
            self._socket.settimeout(patience_s)
            self._socket.sendall(self._sends.seal(body))
            length = LENGTH.unpack(self._receive(4))[0]
            if length > LONGEST:
                raise StoreLost("the shared store sent what is not its own")
            reply, tag = self._receive(length), self._receive(TAG)
        except OSError as error:
            self._socket.close()  # a reply that came later would be taken for the next one's
            raise StoreLost(f"the shared store is gone ({error.strerror or error})") from None
        if not self._hears.is_next(reply, tag):
            self._socket.close()
            raise StoreLost("the shared store sent what is not its own")
        return reply

    def _receive(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            piece = self._socket.recv(min(count - len(got), 2**20))
            if not piece:
                raise StoreLost("its connection ended")
            got += piece
        return bytes(got)


def find(rank: int, host: str, ports: Sequence[int], secret: bytes, timeout_s: float) -> StoreClient:
    """Connect to the store on the one of `ports` that knows the secret.

    A port on which nobody listens may still become rank 0's. Where strangers listen on all of them rank 0 can have
    none, and it is no use to wait.

    Raises
    ------
    WorldError: it did not come within `timeout_s`, or cannot
    """
    begun, pause_s, full_rounds = time.monotonic(), PAUSE_S[0], 0
    patience_s = ANSWER_S if len(ports) > 1 else min(ONLY_S, timeout_s + ANSWER_S)
    where = f"rank {rank} could not reach rank 0 at {host}, port {', '.join(map(str, ports))}"
    while True:
        knocks = _Knocks(host, secret, patience_s)
        for port in ports:
            if connection := knocks.at(port):
                return StoreClient(*connection, timeout_s)
        waited_s = time.monotonic() - begun
        full_rounds = full_rounds + 1 if len(knocks.strangers) == len(ports) else 0
        if full_rounds >= PASSES and (knocks.are_certain or waited_s > GIVE_UP_S):
            on_each = "something else listens on each of them" if len(ports) > 1 else "something else listens there"
            raise WorldError(f"{where}: {on_each} ({knocks.strangers[-1]}); {ADVICE}")
        if waited_s > timeout_s:
            raise WorldError(
                f"{where}, within {timeout_s:g} s: {knocks.strangers[-1] if knocks.strangers else knocks.error}"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S[1])


class _Knocks:
    """One round over the ports: the strangers that listen, and the last error of the others."""

    def __init__(self, host: str, secret: bytes, patience_s: float) -> None:
        self.host, self.secret, self.patience_s = host, secret, patience_s
        self.strangers: list[Stranger] = []
        self.error = "nobody listens"

    def at(self, port: int) -> tuple[socket.socket, Sealed, Sealed] | None:
        """What `knock` gives; None: the store is not there."""
        try:
            return knock(self.host, port, self.secret, self.patience_s)
        except Stranger as stranger:
            self.strangers.append(stranger)
        except OSError as error:
            self.error = error.strerror or str(error)
        return None

    @property
    def are_certain(self) -> bool:
        return all(stranger.certain for stranger in self.strangers)


ADVICE = (
    "where the results folder is not shared by the hosts, export one SCALADE_SECRET to all of them; "
    "where a port is taken, set MASTER_PORT"
)
