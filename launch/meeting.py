"""Where the tasks of one srun meet: on the first port of a series that nobody else has, found by a handshake.

Every task computes the same series from the job's and the step's number. Rank 0 listens on the first of its ports that
it can have and answers whoever knows the run's nonce with the port of its store, which is any that is free. The others
ask one port after the other: a stranger that listens there knows no nonce. A port on which nobody listens may still
become rank 0's; so where all ports have strangers, rank 0 can have none, and waiting would be in vain.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from .environment import WorldError, listen_anywhere

ANSWER_S = 1.0  # for what listens on a port to answer
PAUSE_S = (0.02, 0.5)  # between two rounds over the ports: at first, and at last
PASSES = 2  # rounds in which every port had a stranger, after which it is in vain
LONGEST = 256  # bytes of a question or an answer
HELLO = "scalade-meeting"


class Host:
    """Rank 0's side: answers, in a thread of its own, until it is closed.

    Raises
    ------
    WorldError: none of the ports is free
    """

    def __init__(self, ports: Sequence[int], nonce: str, store_port: int) -> None:
        self._question, self._answer = f"{HELLO} {nonce}\n".encode(), f"{HELLO} {nonce} {store_port}\n".encode()
        self._listener = _first_free(ports)
        self.port: int = self._listener.getsockname()[1]
        self._closed = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._reply, args=(connection,), daemon=True).start()
            except (OSError, RuntimeError):  # closed; or one connection broke, or there are too many: it asks again
                time.sleep(PAUSE_S[0])

    def _reply(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(ANSWER_S)
            if _line(connection) == self._question:
                connection.sendall(self._answer)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()


def _first_free(ports: Sequence[int]) -> socket.socket:
    for port in ports:
        with suppress(OSError):
            return listen_anywhere(port)
    here, tried = socket.gethostname(), ", ".join(map(str, ports))
    raise WorldError(f"rank 0 could not listen on any port of this step on {here} ({tried}): set MASTER_PORT")


def find(rank: int, host: str, ports: Sequence[int], nonce: str, timeout_s: float) -> tuple[str, int]:
    """The others' side: (address, port) of rank 0's store.

    Raises
    ------
    WorldError: rank 0 did not come within `timeout_s`, or cannot: others have all of its ports
    """
    deadline, pause_s, in_vain, last = time.monotonic() + timeout_s, PAUSE_S[0], 0, "nobody listens"
    while True:
        strangers = 0
        for port in ports:
            try:
                if found := _ask(host, port, nonce):
                    return found
                strangers += 1
            except OSError as error:
                last = error.strerror or str(error)
        in_vain = in_vain + 1 if strangers == len(ports) else 0
        where = f"rank {rank} could not find rank 0 at {host}, ports {', '.join(map(str, ports))}"
        if in_vain == PASSES:
            raise WorldError(f"{where}: something else listens on each of them; set MASTER_PORT")
        if time.monotonic() > deadline:
            raise WorldError(f"{where}, within {timeout_s:g} s: {last}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S[1])


def _ask(host: str, port: int, nonce: str) -> tuple[str, int] | None:
    """None: a stranger answered, or nothing did. Raises OSError: nobody listens there."""
    with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
        address = connection.getpeername()[0]
        try:
            connection.sendall(f"{HELLO} {nonce}\n".encode())
            words = _line(connection).decode(errors="replace").split()
        except OSError:
            return None
    ours = len(words) == 3 and words[:2] == [HELLO, nonce] and words[2].isdigit()
    return (address, int(words[2])) if ours else None


def _line(connection: socket.socket) -> bytes:
    """Up to the end of a line, of what comes, or of what a line may have; within ANSWER_S in all."""
    text, deadline = b"", time.monotonic() + ANSWER_S
    while not text.endswith(b"\n") and len(text) < LONGEST and time.monotonic() < deadline:
        piece = connection.recv(1)
        if not piece:
            break
        text += piece
    return text
