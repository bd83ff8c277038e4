"""Where the tasks of one srun meet when ports are taken: strangers are recognised, and waiting in vain is not long."""

import errno
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from worker_worlds import FAKE, finish, nothing_left, rows, write_study

from scalade.launch.host.placement import Placement, WorldError
from scalade.launch.host.sockets import listen
from scalade.launch.store import client as store_client
from scalade.launch.store import meeting
from scalade.launch.store.client import find
from scalade.launch.store.handshake import MAGIC, NO, YES
from scalade.launch.store.meeting import serve, slurm_point, torchrun_point
from scalade.launch.store.secret import derive
from scalade.launch.store.server import StoreServer
from scalade.launch.sweep import join

SECRET = derive(b"a user's", "step", "17-3.0")


class Stranger:
    """Listens on a free port; answers with `words`, or takes the connection and says nothing."""

    def __init__(self, words=None, port=0):
        self.words, self.listener, self.kept = words, socket.create_server(("", port)), []
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.kept.append(connection)
                if self.words is not None:
                    connection.sendall(self.words)
                    connection.close()

    def __enter__(self):
        return self.port

    def __exit__(self, *error):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def free():
    with socket.create_server(("", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def port():
    """Of a stranger: takes what it says, and which port it has."""
    with ExitStack() as stack:
        yield lambda *said: stack.enter_context(Stranger(*said))


HELLO = MAGIC + bytes(32)
STRANGERS = [
    None,
    b"",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\0" * 400,
    MAGIC[:5],
    HELLO,
    HELLO + NO + bytes(32),
    HELLO + YES + bytes(32),
]


@pytest.mark.parametrize("words", STRANGERS)
def test_a_stranger_on_the_first_port_is_passed_by(port, words):
    ports = (port(words), free())
    with StoreServer([listen("127.0.0.1", ports[1])], SECRET):
        store = find(1, "127.0.0.1", ports, SECRET, 20.0)
        store.set("key", b"value")
        assert store.get("key") == b"value"
        with pytest.raises(WorldError, match="within 0 s|something else listens"):
            find(1, "127.0.0.1", ports, derive(SECRET, "another job"), 0.0)
    with socket.create_server(("", ports[1])):
        pass


def test_rank_0_may_come_later(port):
    ports, servers = (port(b"no\n"), free()), []
    timer = threading.Timer(0.5, lambda: servers.append(StoreServer([listen("127.0.0.1", ports[1])], SECRET)))
    timer.start()
    try:
        find(1, "127.0.0.1", ports, SECRET, 60.0).set("key", "value")
    finally:
        timer.join()
        servers[0].close()


def test_the_store_answers_after_a_connection_that_broke():
    """EMFILE and errors of the network come out of accept(2), of a connection that is not worth the run."""
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]

    class Failing(socket.socket):
        def accept(self):
            if failures:
                raise failures.pop()
            return super().accept()

    with listen("127.0.0.1") as plain:
        listener = Failing(fileno=plain.detach())
    with StoreServer([listener], SECRET) as server:
        find(1, "127.0.0.1", (server.port,), SECRET, 60.0).set("key", "value")
    assert not failures


@pytest.mark.parametrize("source", ["slurm", "torchrun"])
def test_rank_0_takes_the_next_port_and_listens_on_the_address_that_is_needed(source, tmp_path):
    env = STEP | {"SLURM_STEP_ID": "1"}
    if source == "torchrun":
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place = Placement(source, 0, 2, 0, 2)
    point = slurm_point(env) if source == "slurm" else torchrun_point(place, env)
    first, second, *_ = point.ports(SECRET)
    assert second != 29500  # the agent's own
    with listen("127.0.0.1", first):
        server, host = serve(point, SECRET)
    with server:
        assert (server.port, host) == (second, "127.0.0.1")
        assert {listener.getsockname()[0] for listener in server._listeners} == {"127.0.0.1"}
        find(1, host, point.ports(SECRET), SECRET, 60.0).set("key", "value")


def test_an_address_that_a_name_has_twice_is_listened_on_once(monkeypatch):
    """As the nodes of a lab have theirs, by IPv4 and mapped into IPv6."""
    twice = [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 0)), (socket.AF_INET6, 1, 6, "", ("::ffff:127.0.0.1", 0, 0, 0))]
    with monkeypatch.context() as names:
        names.setattr(socket, "getaddrinfo", lambda *_, **__: twice)
        server, host = serve(meeting.Point("n0", "a", alone=True), SECRET)
    with server:
        assert host == "127.0.0.1" and len(server._listeners) == 1


def test_a_name_that_is_no_address_of_this_host_is_served_at_all_of_them(monkeypatch):
    """A gateway's or a container's service's: the others reach this host by it all the same."""
    asked = lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("203.0.113.7", 0))]  # noqa: E731
    with monkeypatch.context() as names:
        names.setattr(socket, "getaddrinfo", asked)
        server, host = serve(meeting.Point("service", "a"), SECRET)
    with server:
        assert host == "127.0.0.1" and server._listeners[0].getsockname()[0] in ("::", "0.0.0.0")
        find(0, host, (server.port,), SECRET, 60.0).set("key", "value")


def test_where_all_ports_are_taken_nobody_waits(port, monkeypatch):
    slept = []
    monkeypatch.setattr(store_client.time, "sleep", slept.append)
    ports = (port(b"HTTP/1.1 400 Bad Request\r\n"), port(b"no\n"))
    monkeypatch.setattr(meeting, "ports_of", lambda secret: ports)
    listed = f"{ports[0]}, {ports[1]}"
    with pytest.raises(WorldError, match=rf"rank 0 could not serve .*port {listed}: Address already in use; set M"):
        serve(meeting.Point("127.0.0.1", "a", alone=True), SECRET)
    with pytest.raises(WorldError, match="rank 3 could not reach rank 0 at localhost.*something else listens on each"):
        find(3, "localhost", ports, SECRET, 1e9)
    assert len(slept) < store_client.PASSES


STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NODEID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "PATH": "/usr/bin:/bin",
    "FAKE_JOIN_S": "60",
}


def tasks(tmp_path, results, **env):
    """Both tasks of a step that srun started."""
    command = [sys.executable, str(FAKE), str(write_study(tmp_path)), str(results)]
    return [
        subprocess.Popen(
            command,
            env=STEP | env | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]


def test_rank_0_leaves_no_socket_and_no_file_where_the_world_fails(monkeypatch, tmp_path):
    closed, point = [], slurm_point(STEP | {"SLURM_STEP_ID": "1"})

    class Server:
        port, close = 7, lambda self: closed.append(1)

    def fail(*arguments):
        assert len(list(tmp_path.iterdir())) == 1  # the secret's
        raise WorldError("no store")

    monkeypatch.setattr(join, "serve", lambda *where: (Server(), point.host))
    monkeypatch.setattr(join, "find", fail)
    with pytest.raises(WorldError, match="no store"):
        join.join_supervisors(STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "1"}, tmp_path)
    assert closed and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tasks_of_an_srun_meet_beside_a_stranger(tmp_path, port):
    """The stranger has the step's first port, and takes connections without a word."""
    given, step = secrets.token_hex(32), str(os.getpid())
    point = slurm_point(STEP | {"SLURM_STEP_ID": step})
    port(None, point.ports(derive(given.encode(), "step", point.name))[0])
    codes, said = finish(tasks(tmp_path, tmp_path / "r", SLURM_STEP_ID=step, SCALADE_SECRET=given))
    assert codes == [0, 0], said
    (row,) = rows(tmp_path / "r")
    assert (row["status"], row["launcher"], row["world_size"]) == ("ok", "srun", 2)
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_the_tasks_of_an_srun_end_soon_where_they_cannot_meet(tmp_path, port):
    begun = time.monotonic()
    tried = tasks(tmp_path, tmp_path / "r", SLURM_STEP_ID="3", MASTER_PORT=str(port(b"no")), FAKE_JOIN_S="3000")
    codes, said = finish(tried, timeout_s=200)
    assert codes == [1, 1] and time.monotonic() - begun < 200
    assert "rank 0 could not serve the rendezvous" in said[0] and "something else listens there" in said[1]


needs_a_namespace = pytest.mark.skipif(
    not (shutil.which("unshare") and shutil.which("ip"))
    or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
    reason="no network namespace can be made here (root, unshare, ip)",
)
ONLY_IPV6 = "ip link set lo up && ip addr del 127.0.0.1/8 dev lo && "


def inside(before, *command, **env):
    """A command in a network namespace of its own."""
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{before} exec "$@"', "sh", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=200,
        **env,
    )


SAYS = "from scalade.launch.host.sockets import listen, loopback; a = loopback(); print(a, listen(a).getsockname()[0])"


@needs_a_namespace
@pytest.mark.parametrize("before, address", [("ip link set lo up && ", "127.0.0.1"), (ONLY_IPV6, "::1"), ("", None)])
def test_a_host_meets_itself_by_the_address_that_it_has(before, address):
    done = inside(before, sys.executable, "-c", SAYS)
    if address is None:
        assert done.stderr.splitlines()[-1].endswith(
            "this host has neither 127.0.0.1 nor ::1, by which ranks meet: `ip link set lo up`"
        )
    else:
        assert done.stdout == f"{address} {address}\n", done.stderr


ROUTES = "ip addr add fd00:5ca1::7/64 dev lo nodad && "
REACHES = "from scalade.launch.host.sockets import reachable_address as r; print(r(['a', 'b'], 'fd00:5ca1::9'))"


@needs_a_namespace
def test_the_route_to_a_host_without_ipv4():
    assert inside(ONLY_IPV6 + ROUTES, sys.executable, "-c", REACHES).stdout == "fd00:5ca1::7\n"
    nowhere = inside(ONLY_IPV6, sys.executable, "-c", REACHES).stderr.splitlines()[-1]
    assert "no address of this host reaches host fd00:5ca1::9: Network is unreachable" in nowhere


@needs_a_namespace
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "torchrun"])
def test_a_host_that_has_only_ipv6_runs_a_study(tmp_path, launcher):
    study = write_study(tmp_path, launcher=launcher)
    done = inside(ONLY_IPV6, sys.executable, "-m", "scalade", "run", study, "--results", tmp_path / "r")
    assert done.returncode == 0, done
    assert [row["status"] for row in rows(tmp_path / "r")] == ["ok"]


@needs_a_namespace
def test_a_host_without_a_loopback_device_is_one_line(tmp_path):
    done = inside("", sys.executable, "-m", "scalade", "run", write_study(tmp_path, launcher="local"), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("scalade: this host has neither 127.0.0.1 nor ::1")
    assert len(done.stderr.splitlines()) == 1
