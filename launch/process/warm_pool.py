"""`isolation = "pool"`: ranks start once and run one case after the other, which saves their start (imports).

Fresh processes stay the default, and the unit of repetition: a case may be disturbed by what the one before it left
behind (allocator, caches, clocks). Supervisor and rank talk over a socket pair: an order is one JSON message, {"spec",
"address", "port", "secret"}; the answer is `done`, or `leaving` where the case left something behind that would disturb
the next (rank/reset.py). Anything else that happens to a rank ends all of them, and the next run starts new ones.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ...results import files
from ..host.placement import SECRET, Placement
from .guard import MARK
from .rank_environment import child_environment
from .run_spec import RunSpec
from .scratch import SPEC, log_file, report_file
from .supervisor import RANK_COMMAND, Child

ARGUMENT = "pool:"  # in the place of a spec's path: the number of the socket
DONE, LEAVING = b"done", b"leaving"
EXIT_S = 5.0  # for a rank to exit, once its socket is closed
LIMIT = 2**16


class WarmRank:
    """A rank's process with the interface of one that runs one run only (supervisor.Process)."""

    def __init__(self, process: subprocess.Popen, control: socket.socket) -> None:
        self.process, self.control, self.pid = process, control, process.pid
        self.busy = self.leaving = False

    @property
    def returncode(self) -> int | None:
        return self.process.returncode if self.busy or self.process.returncode is not None else 0

    def poll(self) -> int | None:
        """None while it is at an order; 0 once that is done."""
        if self.process.poll() is None and self.busy:
            with suppress(BlockingIOError, ConnectionError):
                answer = self.control.recv(64)
                if answer:
                    self.busy, self.leaving = False, answer == LEAVING
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.process.wait(timeout)

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def ready(self) -> bool:
        return self.process.poll() is None and not self.busy and not self.leaving


class WarmPool:
    """The ranks that this supervisor keeps, all of one world size."""

    def __init__(self) -> None:
        self._warm: dict[Placement, WarmRank] = {}

    def start(
        self,
        spec: RunSpec,
        places: Sequence[Placement],
        mark: str,
        secret: str,
        command: Sequence[str] = RANK_COMMAND,
        prefix: Callable[[Placement], Sequence[str]] = lambda place: (),
    ) -> list[Child]:
        """As supervisor.start, but idle ranks of this pool get the order, where all are there."""
        scratch = Path(spec.scratch)
        files.write(scratch / SPEC, spec.to_json(), sync=False)
        if list(self._warm) != list(places) or not all(warm.ready for warm in self._warm.values()):
            self.close()
            for place in places:
                self._warm[place] = _begin(spec, place, mark, command, prefix)
        for place, warm in self._warm.items():
            files.remove(report_file(scratch, place.rank))
            order = {"spec": str(scratch / SPEC), "address": spec.address, "port": spec.port}
            order["secret"] = secret
            with suppress(ConnectionError):  # it has died since: poll will say so
                warm.control.send(json.dumps(order).encode())
            warm.busy = True
        return [Child(place.rank, warm) for place, warm in self._warm.items()]

    def close(self) -> None:
        """Close the ranks' sockets, wait for them to exit, and kill those that do not."""
        for warm in self._warm.values():
            warm.control.close()
        for warm in self._warm.values():
            with suppress(subprocess.TimeoutExpired):
                warm.wait(EXIT_S)
            if warm.process.poll() is None:
                warm.process.kill()
                warm.wait()
        self._warm = {}


def _begin(
    spec: RunSpec, place: Placement, mark: str, command: Sequence[str], prefix: Callable[[Placement], Sequence[str]]
) -> WarmRank:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = child_environment(os.environ, place, spec.address, spec.port, spec.threads) | {MARK: mark}
    with theirs, files.stream(log_file(Path(spec.scratch), place.rank)) as log:
        process = subprocess.Popen(
            [*prefix(place), *command, f"{ARGUMENT}{theirs.fileno()}"],
            env=env,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    ours.setblocking(False)
    return WarmRank(process, ours)


def serve(descriptor: int, run: Callable[[Path], bool]) -> None:
    """The rank's side: every order until the supervisor goes. run(spec file): whether another case may follow."""
    with socket.socket(fileno=descriptor) as control:
        while True:
            message = control.recv(LIMIT)
            if not message:
                return
            order = json.loads(message)
            os.environ |= {"MASTER_ADDR": order["address"], "MASTER_PORT": str(order["port"])}
            os.environ[SECRET] = order["secret"]
            file = Path(order["spec"])
            with files.stream(log_file(file.parent, int(os.environ["RANK"]))) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            again = run(file)
            control.send(DONE if again else LEAVING)
            if not again:
                return
