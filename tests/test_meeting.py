"""Where the tasks of one srun meet when ports are taken: strangers are recognised, and waiting in vain is not long."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from test_launch_worker import FAKE, finish, nothing_left, rows, write_study

from scalade.launch import meeting, worker
from scalade.launch.environment import WorldError, slurm_meeting_point

NONCE = "17-3.0"


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


STRANGERS = [
    None, b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 400, b"scalade-meeting 17-4.0 80\n", b"scalade-meeting 17-3.0\n",
    b"scalade-meeting 17-3.0 port\n", "scalade-meeting \u00e9".encode("latin-1"),
]  # fmt: skip


@pytest.mark.parametrize("words", STRANGERS)
def test_a_stranger_on_the_first_port_is_passed_by(port, words):
    ports = (port(words), free())
    host = meeting.Host(ports, NONCE, 4321)
    try:
        assert host.port == ports[1]
        assert meeting.find(1, "localhost", ports, NONCE, 20.0)[1] == 4321
        with pytest.raises(WorldError, match="within 0 s"):
            meeting.find(1, "localhost", ports, "18-3.0", 0.0)  # another job's task comes by
    finally:
        host.close()
    with socket.create_server(("", ports[1])):
        pass


def test_rank_0_may_come_later(port):
    ports, hosts = (port(), free()), []
    timer = threading.Timer(0.5, lambda: hosts.append(meeting.Host(ports, NONCE, 4321)))
    timer.start()
    try:
        address, found = meeting.find(1, "localhost", ports, NONCE, 60.0)
        assert found == 4321 and socket.getaddrinfo(address, None, flags=socket.AI_NUMERICHOST)
    finally:
        timer.join()
        hosts[0].close()


def test_rank_0_answers_after_a_connection_that_broke(monkeypatch):
    """EMFILE and errors of the network come out of accept(2), of a connection that is not worth the run."""
    listener = socket.create_server(("", 0))
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]

    class Failing:
        shutdown, close, getsockname = listener.shutdown, listener.close, listener.getsockname

        def accept(self):
            if failures:
                raise failures.pop()
            return listener.accept()

    monkeypatch.setattr(meeting, "_first_free", lambda ports: Failing())
    host = meeting.Host((1,), NONCE, 4321)
    try:
        assert meeting.find(1, "localhost", (host.port, free()), NONCE, 60.0)[1] == 4321 and not failures
    finally:
        host.close()


@pytest.mark.slow
def test_rank_0_listens_once_it_has_the_time_to_answer():
    """The import of torch holds the interpreter: others would take a silent port for a stranger's."""
    code = """
import sys
from scalade.launch import meeting, worker
def host(*where): sys.exit(0 if "torch.distributed" in sys.modules else 3)
meeting.Host = host
worker.join_supervisors({**%r, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "1"})
"""
    assert subprocess.run([sys.executable, "-c", code % STEP]).returncode == 0


def test_where_all_ports_are_taken_nobody_waits(port, monkeypatch):
    slept = []
    monkeypatch.setattr(meeting.time, "sleep", slept.append)
    ports = (port(b"HTTP/1.1 400 Bad Request\r\n"), port(b"no\n"))
    with pytest.raises(WorldError, match=rf"rank 0 could not listen .*\({ports[0]}, {ports[1]}\): set MASTER_PORT"):
        meeting.Host(ports, NONCE, 1)
    with pytest.raises(WorldError, match="rank 3 could not find rank 0 at localhost.*something else listens on each"):
        meeting.find(3, "localhost", ports, NONCE, 1e9)
    assert len(slept) < meeting.PASSES


STEP = {"SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "2", "PATH": "/usr/bin:/bin", "FAKE_JOIN_S": "60"}  # fmt: skip


def tasks(tmp_path, results, **env):
    """Both tasks of a step that srun started."""
    command = [sys.executable, str(FAKE), str(write_study(tmp_path)), str(results)]
    return [
        subprocess.Popen(
            command, env=STEP | env | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def test_rank_0_leaves_no_socket_where_the_store_fails(monkeypatch):
    closed = []

    def fail(place, address, port, timeout_s, listener):
        os.close(listener)
        raise WorldError("no store")

    monkeypatch.setattr(worker, "connect", fail)
    monkeypatch.setattr(meeting, "Host", lambda *where: SimpleNamespace(close=lambda: closed.append(1)))
    with pytest.raises(WorldError, match="no store"):
        worker.join_supervisors(STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "1"})
    assert closed


@pytest.mark.slow
def test_the_tasks_of_an_srun_meet_beside_a_stranger(tmp_path, port):
    """The stranger has the step's first port, and takes connections without a word."""
    port(None, slurm_meeting_point(STEP | {"SLURM_STEP_ID": (step := str(os.getpid()))})[1][0])
    codes, said = finish(tasks(tmp_path, tmp_path / "r", SLURM_STEP_ID=step))
    assert codes == [0, 0], said
    (row,) = rows(tmp_path / "r")
    assert (row["status"], row["launcher"], row["world_size"]) == ("ok", "srun", 2)
    assert nothing_left(tmp_path)


@pytest.mark.slow
def test_the_tasks_of_an_srun_end_soon_where_they_cannot_meet(tmp_path, port):
    begun = time.monotonic()
    tried = tasks(tmp_path, tmp_path / "r", SLURM_STEP_ID="3", MASTER_PORT=str(port()), FAKE_JOIN_S="3000")
    codes, said = finish(tried, timeout_s=200)
    assert codes == [1, 1] and time.monotonic() - begun < 200
    assert "rank 0 could not listen on any port" in said[0] and "something else listens on each of them" in said[1]


needs_a_namespace = pytest.mark.skipif(
    not (shutil.which("unshare") and shutil.which("ip"))
    or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
    reason="no network namespace can be made here (root, unshare, ip)",
)
ONLY_IPV6 = "ip link set lo up && ip addr del 127.0.0.1/8 dev lo && "


def inside(before, *command, **env):
    """A command in a network namespace of its own."""
    return subprocess.run(
        ["unshare", "-n", "sh", "-c", f'{before} exec "$@"', "sh", *map(str, command)], capture_output=True, text=True,
        timeout=200, **env,
    )  # fmt: skip


SAYS = "from scalade.launch.environment import listen, loopback as l; a = l(); print(a, *listen(a).getsockname()[:1])"


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
REACHES = "from scalade.launch.environment import reachable_address as r; print(r(['a', 'b'], 'fd00:5ca1::9'))"


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
