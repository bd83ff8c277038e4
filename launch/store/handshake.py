"""How two processes prove to each other that they know one secret, without sending it, and authenticate each message.

    server -> client   "scalade1", S            S, C: 32 random bytes each, of this connection alone
    client -> server   C, HMAC(K, "client", S, C)
    server -> client   "+", HMAC(K, "server", S, C)      or "-" and zeros: refused

K is the secret. A recorded handshake is worth nothing, as S and C are new each time, and so is an answer sent back to
its sender, as the two sides' labels differ. Each message then is

    length (4 bytes, big-endian), body, HMAC(K', number of the message (8 bytes), body)

with a K' for each direction, derived from K, S and C: a third party between the two can cut the connection, and cannot
add, change, repeat, drop or reorder a message unnoticed. Nothing is encrypted. HMACs are with SHA-256 (RFC
2104).
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import time

from .secret import derive

MAGIC = b"scalade1"
NONCE = TAG = 32
HELLO, ANSWER, VERDICT = len(MAGIC) + NONCE, NONCE + TAG, 1 + TAG  # bytes
YES, NO = b"+", b"-"
LENGTH = struct.Struct(">I")
LONGEST = 16 * 2**20  # bytes of a message


class Stranger(Exception):
    """The process at the other end does not know the secret, or says that this one does not. The text says which.

    certain: it answered so; False: it was silent, as a busy machine is, too
    """

    def __init__(self, message: str, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


class Sealed:
    """One direction of a connection: messages with their tags, in order."""

    def __init__(self, key: bytes) -> None:
        self._key, self._number = key, 0

    def _tag(self, body: bytes) -> bytes:
        self._number += 1
        return hmac.digest(self._key, self._number.to_bytes(8, "big") + body, "sha256")

    def seal(self, body: bytes) -> bytes:
        assert len(body) <= LONGEST, len(body)
        return LENGTH.pack(len(body)) + body + self._tag(body)

    def is_next(self, body: bytes, tag: bytes) -> bool:
        return hmac.compare_digest(self._tag(body), tag)


def keys(secret: bytes, s: bytes, c: bytes) -> tuple[Sealed, Sealed]:
    """(what the client sends, what the server sends)."""
    return Sealed(derive(secret, "to server", s, c)), Sealed(derive(secret, "to client", s, c))


class Greeting:
    """The server's side, as bytes in and bytes out."""

    def __init__(self, secret: bytes) -> None:
        self._secret, self._s = secret, os.urandom(NONCE)

    def hello(self) -> bytes:
        return MAGIC + self._s

    def verdict(self, answer: bytes) -> tuple[bytes, tuple[Sealed, Sealed] | None]:
        """(what to send, keys or None where the client is a stranger)."""
        c, proof = answer[:NONCE], answer[NONCE:]
        if not hmac.compare_digest(proof, derive(self._secret, "client", self._s, c)):
            return NO + bytes(TAG), None
        return YES + derive(self._secret, "server", self._s, c), keys(self._secret, self._s, c)


def knock(address: str, port: int, secret: bytes, patience_s: float) -> tuple[socket.socket, Sealed, Sealed]:
    """The client's side: (connection, what it sends, what it receives).

    Raises
    ------
    OSError: nobody listens there, or it cannot be reached
    Stranger: what listens there is not ours
    """
    connection = socket.create_connection((address, port), timeout=patience_s)
    greeted = False
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.monotonic() + patience_s
        hello = _receive(connection, HELLO, deadline, MAGIC)
        greeted, s, c = True, hello[len(MAGIC) :], os.urandom(NONCE)
        connection.sendall(c + derive(secret, "client", s, c))
        verdict = _receive(connection, VERDICT, deadline)
        if verdict[:1] == NO:
            raise Stranger("it belongs to another run, or does not know this one's secret", True)
        if not hmac.compare_digest(verdict[1:], derive(secret, "server", s, c)):
            raise Stranger("it does not know this run's secret", True)
    except Stranger:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        # One of ours that has too many strangers may close a connection, too, but not without a greeting.
        raise Stranger("it did not answer", not greeted and isinstance(error, ConnectionError)) from None
    return connection, *keys(secret, s, c)


def _receive(connection: socket.socket, count: int, deadline: float, begin: bytes = b"") -> bytes:
    got = b""
    while len(got) < count:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(count - len(got))
        if not piece:
            raise ConnectionError
        got += piece
        if not got.startswith(begin[: len(got)]):
            raise Stranger("it speaks another language", True)
    return got
