"""Another local user beside a run: what the handshake and the shared store give to who does not know the secret."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from fault_lab import FAKE, SWEEP
from hypothesis import given
from hypothesis import strategies as st
from places import PROGRAMS
from worker_worlds import by_hand, finish, free_port, rows, write_study

from scalade.launch.host.placement import WorldError
from scalade.launch.host.sockets import listen
from scalade.launch.process.progress import Reporter
from scalade.launch.process.rendezvous import Seat, agree
from scalade.launch.store import secret as secrets_of
from scalade.launch.store import server as store_server
from scalade.launch.store.client import StoreClient, StoreLate, StoreLost, find
from scalade.launch.store.handshake import ANSWER, HELLO, LENGTH, TAG, VERDICT, YES, Greeting, Stranger, keys, knock
from scalade.launch.store.secret import derive, exported, shared
from scalade.launch.store.server import StoreServer, packed
from scalade.results import files
from scalade.results.store.store import RunStore

SECRET = b"of this run"
NOBODY = 65534
ANSWER_S = 30.0  # far more than it takes


def store(server, secret=SECRET, timeout_s=60.0):
    return StoreClient(*knock("127.0.0.1", server.port, secret, ANSWER_S), timeout_s)


@pytest.fixture
def server():
    with StoreServer([listen("127.0.0.1")], SECRET) as server:
        yield server


def received(connection, count):
    """So many bytes, or fewer where it ends."""
    got = b""
    with suppress(ConnectionError):
        while len(got) < count and (piece := connection.recv(count - len(got))):
            got += piece
    return got


def closed(connection):
    connection.settimeout(ANSWER_S)
    return received(connection, 2**16) is not None and received(connection, 1) == b""


def test_a_client_with_another_secret_is_sent_away_at_once_and_a_line_says_so(server, capfd):
    begun = time.monotonic()
    with pytest.raises(Stranger, match="does not know this one's secret") as refusal:
        store(server, b"of another")
    assert refusal.value.certain and time.monotonic() - begun < store_server.SILENCE_S
    line = capfd.readouterr().err
    assert re.fullmatch(
        r"scalade: rendezvous: refused a connection from 127.0.0.1 port \d+: it does not know this run's secret\n", line
    )
    with pytest.raises(WorldError, match="rank 1 could not reach rank 0 at 127.0.0.1, port .* something else listens"):
        find(1, "127.0.0.1", (server.port,), b"of another", 1e9)


def test_the_secret_is_in_nothing_that_is_sent():
    """Both sides of a connection and the store's messages, as whoever listens on the wire has them."""
    wire, secret = [], b"q" * 32
    with StoreServer([listen("127.0.0.1")], secret) as server:
        with relay(server.port, lambda piece: wire.append(piece) or piece) as port:
            client = StoreClient(*knock("127.0.0.1", port, secret, ANSWER_S), 60.0)
            client.set("key", "value")
            assert client.get("key") == b"value"
    heard = b"".join(wire)
    assert b"value" in heard and secret not in heard  # not encrypted; not given away


class relay:
    """A stranger between the two: hands on what `change` makes of each piece that a client sends."""

    def __init__(self, port, change):
        self.to, self.change, self.kept = port, change, ExitStack()
        self.listener = self.kept.enter_context(listen("127.0.0.1"))

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self.listener.getsockname()[1]

    def __exit__(self, *error):
        self.kept.close()

    def _serve(self):
        with suppress(OSError):
            while True:
                client = self.kept.enter_context(self.listener.accept()[0])
                server = self.kept.enter_context(socket.create_connection(("127.0.0.1", self.to)))
                for here, there, change in ((client, server, self.change), (server, client, lambda piece: piece)):
                    threading.Thread(target=self._pump, args=(here, there, change), daemon=True).start()

    @staticmethod
    def _pump(here, there, change):
        with suppress(OSError):
            while piece := here.recv(2**16):
                there.sendall(change(piece))
            there.shutdown(socket.SHUT_WR)


def test_a_message_changed_on_the_way_ends_the_connection_and_changes_nothing(server, capfd):
    forged = lambda piece: piece.replace(b"true", b"lies")  # noqa: E731
    with relay(server.port, forged) as port:
        client = StoreClient(*knock("127.0.0.1", port, SECRET, ANSWER_S), 60.0)
        client.set("before", "1")
        with pytest.raises(StoreLost):
            client.set("verdict", "true")
    assert not store(server).check(["verdict"]) and store(server).get("before") == b"1"
    assert "it sent a message that is not the next of its own" in capfd.readouterr().err


def test_a_recorded_connection_played_again_is_refused(server):
    """A stranger has every byte of a rank's connection, its handshake and its `add`."""
    wire = []
    with relay(server.port, lambda piece: wire.append(piece) or piece) as port:
        client = StoreClient(*knock("127.0.0.1", port, SECRET, ANSWER_S), 60.0)
        assert client.add("world/arrived", 1) == 1
    with socket.create_connection(("127.0.0.1", server.port)) as again:
        assert len(received(again, HELLO)) == HELLO
        again.sendall(b"".join(wire))
        assert closed(again)
    assert store(server).get("world/arrived") == b"1"


def test_a_message_sent_twice_is_refused(server):
    connection, sends, _ = knock("127.0.0.1", server.port, SECRET, ANSWER_S)
    with connection:
        message = sends.seal(packed(b"add", b"n", b"1"))
        connection.sendall(message + message)
        assert closed(connection)
    assert store(server).get("n") == b"1"


def test_the_servers_own_answer_sent_back_to_it_opens_nothing():
    one, two = Greeting(SECRET), Greeting(SECRET)
    c = os.urandom(32)
    said, both = one.verdict(c + derive(SECRET, "client", one.hello()[8:], c))
    assert both and said[:1] == YES
    assert two.verdict(c + said[1:])[1] is None  # another connection's S
    assert one.verdict(c + said[1:])[1] is None  # the same one's: the sides' words differ
    first, second = keys(SECRET, b"s", b"c"), keys(SECRET, b"s", b"c")
    assert first[0].seal(b"x") != second[1].seal(b"x"), "each direction has its own key"


@given(st.binary(max_size=200), st.integers(0, 3))
def test_a_server_that_knows_no_secret_is_not_believed(noise, cut):
    """It says YES, or whatever else, to every answer."""
    with listen("127.0.0.1") as listener:

        def answer():
            with listener.accept()[0] as peer:
                peer.sendall(Greeting(b"another").hello())
                received(peer, ANSWER)
                peer.sendall((YES + noise.ljust(TAG, b"\0"))[: VERDICT - cut])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Stranger):
            knock("127.0.0.1", listener.getsockname()[1], SECRET, ANSWER_S)
        thread.join()


def test_silent_connections_and_a_flood_of_them_keep_no_rank_waiting(server, monkeypatch):
    monkeypatch.setattr(store_server, "SILENCE_S", 1.0)
    with ExitStack() as flood:
        silent = [
            flood.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_S))
            for _ in range(3 * store_server.UNKNOWN)
        ]
        ranks = [find(rank, "127.0.0.1", (server.port,), SECRET, 60.0) for rank in range(2)]
        seats = [Seat(rank, rank, 2, "n", "h", rank, "cpu") for rank in range(2)]
        other = threading.Thread(target=agree, args=(ranks[1], seats[1], 60.0))
        other.start()
        assert agree(ranks[0], seats[0], 60.0) == tuple(seats)
        other.join()
        assert all(closed(each) for each in silent), "some are kept"
        assert server.refused == len(silent)


def test_of_many_silent_connections_the_oldest_are_closed_long_before_their_time(server, monkeypatch, capfd):
    """So that they cannot use up the files that a process may open."""
    monkeypatch.setattr(store_server, "SILENCE_S", 3600.0)
    monkeypatch.setattr(store_server, "UNKNOWN", 8)
    with ExitStack() as kept:

        def silent():
            return kept.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=ANSWER_S))

        known, early = store(server), [silent() for _ in range(8)]
        assert all(len(received(each, HELLO)) == HELLO for each in early)  # all are there, and known to the server
        late = [silent() for _ in range(5)]
        assert all(len(received(each, HELLO)) == HELLO for each in late)
        assert all(closed(each) for each in early[:5])
        assert known.add("n", 1) == 1, "who is known is not counted"
        for each in early[5:] + late:  # open, with nothing to read
            each.setblocking(False)
            with pytest.raises(BlockingIOError):
                each.recv(1)
    assert "it said nothing, as many others" in capfd.readouterr().err


def test_what_a_known_client_may_not_say(server):
    connection, sends, _ = knock("127.0.0.1", server.port, SECRET, ANSWER_S)
    with connection:
        connection.sendall(LENGTH.pack(2**32 - 1) + sends.seal(b""))
        assert closed(connection)
    for body in (b"", b"\0\0\0\x09x", packed(b"no such"), packed(b"set", b"k"), packed(b"add", b"k", b"many")):
        connection, sends, hears = knock("127.0.0.1", server.port, SECRET, ANSWER_S)
        with connection:
            connection.sendall(sends.seal(body))
            length = LENGTH.unpack(received(connection, 4))[0]
            said, tag = received(connection, length), received(connection, TAG)
            assert hears.is_next(said, tag) and b"no" in said[:8]
    assert store(server).num_keys() == 0


def test_waiting_for_keys(server):
    one, two = store(server), store(server)
    timer = threading.Timer(0.2, one.set, ("b", "2"))
    one.set("a", "1")
    timer.start()
    two.wait(["a", "b"], 60.0)
    assert two.get("b") == b"2"
    with pytest.raises(StoreLate, match=r"no c within 0.1 s"):
        two.get("c", 0.1)
    assert two.get("a") == b"1", "a late answer would be taken for this one's"
    server.close()
    with pytest.raises(StoreLost):
        two.get("a")


# The secret itself.


def test_a_secret_that_can_be_guessed_is_refused():
    assert exported({}) is None and exported({"SCALADE_SECRET": "x" * 32}) == b"x" * 32
    with pytest.raises(WorldError, match=r"SCALADE_SECRET has 6 characters.*export SCALADE_SECRET=\$\(python3"):
        exported({"SCALADE_SECRET": "123456"})


def test_supervisors_share_one_secret_by_a_file_that_is_theirs_alone(tmp_path):
    before = os.umask(0)
    try:
        with shared(tmp_path, "7-0.0", False, None) as one, shared(tmp_path, "7-0.0", True, None) as two:
            (file,) = tmp_path.iterdir()
            assert one == two and file.stat().st_mode & 0o777 == 0o600
            assert bytes.fromhex(file.read_text()) != one, "what is used is derived from it"
        assert not list(tmp_path.iterdir())
        with shared(tmp_path, "7-0.0", True, None) as three:
            assert three != one, "each start has its own"
        with shared(tmp_path, "7-0.0", True, b"x" * 32) as one, shared(tmp_path, "7-1.0", True, b"x" * 32) as two:
            assert one != two and not list(tmp_path.iterdir())
    finally:
        os.umask(before)


def test_the_file_of_supervisors_that_were_killed_is_removed_by_a_later_start(tmp_path):
    killed = (
        "import os, pathlib, sys; from scalade.launch.store.secret import shared\n"
        "with shared(pathlib.Path(sys.argv[1]), 'killed', True, None): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path)], timeout=120).returncode == -9
    (left,) = tmp_path.iterdir()
    with shared(tmp_path, "next", True, None):
        pass
    assert left.exists(), "it may be of supervisors that meet now"
    others = [tmp_path / f"{left.name}0", tmp_path / f".meeting-{'0' * 24}", tmp_path / f".meeting-{'1' * 24}"]
    others[0].write_text("of another name")
    others[1].symlink_to(others[0])
    others[2].mkdir()
    for file in (left, *others):
        os.utime(file, (0, time.time() - secrets_of.STALE_S - 60), follow_symlinks=False)
    with shared(tmp_path, "next", False, None):
        assert left.exists(), "rank 0 removes it, who else made a file or not"
    with shared(tmp_path, "next", True, b"x" * 32):
        pass
    assert sorted(tmp_path.iterdir()) == sorted(others) and others[0].read_text() == "of another name"


@pytest.mark.parametrize("planted", ["readable", "link", "fifo", "folder"])
def test_a_secret_that_another_may_know_is_refused(tmp_path, planted):
    with shared(tmp_path, "a", True, None):
        (file,) = tmp_path.iterdir()
    if planted == "readable":
        file.write_text("00" * 32 + "\n")
        file.chmod(0o644)
    elif planted == "link":
        (tmp_path / "elsewhere").write_text("00" * 32 + "\n")
        (tmp_path / "elsewhere").chmod(0o600)
        file.symlink_to(tmp_path / "elsewhere")
    elif planted == "fifo":
        os.mkfifo(file, 0o600)
    else:
        file.mkdir()
    with pytest.raises(WorldError, match="export SCALADE_SECRET"), shared(tmp_path, "a", False, None):
        pass


def test_who_began_the_file_and_did_not_finish_is_waited_for_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets_of, "WHOLE_S", 0.1)
    with shared(tmp_path, "a", True, None):
        (file,) = tmp_path.iterdir()
    file.touch(0o600)
    with pytest.raises(WorldError, match="did not finish; remove it"), shared(tmp_path, "a", False, None):
        pass


def test_a_scratch_folder_and_what_is_in_it_are_this_users_alone(tmp_path, monkeypatch):
    """Whatever the umask, and whatever was there."""
    store, before = RunStore(tmp_path), os.umask(0)
    try:
        scratch = store.scratch("c-r0")
        files.write(scratch / "spec.json", "{}", sync=False)
        files.stream(scratch / "rank-0.log").close()
        (scratch / "rank-1.log").write_text("of an older version, open to all")
        files.stream(scratch / "rank-1.log").close()
        Reporter(scratch, 1, active=True).phase("building")
        modes = {file.name: file.stat().st_mode & 0o777 for file in scratch.iterdir()}
        assert set(modes.values()) == {0o600} and len(modes) >= 4, modes
        assert scratch.stat().st_mode & 0o777 == 0o700
        scratch.chmod(0o777)
        assert store.scratch("c-r0").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(OSError, match="cannot make the scratch folder of run c-r0: belongs to user") as refusal:
        store.scratch("c-r0")
    assert "remove it" in str(refusal.value)


# Another user beside a real run.

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
SPY = PROGRAMS.joinpath("spy.py")


def spy(*arguments):
    """What tests/programs/spy.py finds, as the user nobody."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SPY), str(NOBODY), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "local"])
def test_another_user_beside_a_run_reads_nothing_and_changes_nothing(tmp_path, launcher):
    """He looks at every process and file, and speaks to every port of the run: forges, guesses, floods."""
    before = os.umask(0)  # the user's folders are open to all: what is the run's own is not
    try:
        for folder in (tmp_path, *list(tmp_path.parents)[:2]):
            folder.chmod(0o755)
        results, study = tmp_path / "r", write_study(tmp_path, steps=100, launcher=launcher)
        env = {"FAKE_STEP_S": "0.05", "FAKE_TORCH": "1", "OMP_NUM_THREADS": "1"}
        if launcher == "torchrun":
            workers = by_hand(study, results, [0, 1], 2, free_port(), **env)
        else:
            command, pipe = [sys.executable, "-c", SWEEP, str(study), str(results), "", *FAKE], subprocess.PIPE
            workers = [subprocess.Popen(command, env=os.environ | env, stdout=pipe, stderr=pipe, text=True)]
    finally:
        os.umask(before)
    deadline = time.monotonic() + 120
    while not list(results.glob("runs/*/scratch/step")):
        assert time.monotonic() < deadline and all(worker.poll() is None for worker in workers)
        time.sleep(0.02)
    owned = [worker.pid for worker in workers]
    ranks = [
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if pid not in owned and str(results).encode() in _file(f"/proc/{pid}/cmdline")
    ]
    secrets = {value for pid in ranks for value in re.findall(rb"SCALADE_SECRET=(\w+)", _file(f"/proc/{pid}/environ"))}
    assert len(ranks) >= 2 and len(secrets) == 1, "both ranks know one secret"
    found = spy(results, ",".join(map(str, ports_of(*owned, *ranks))), *owned, *ranks)
    codes, said = finish(workers)
    assert found["ports"] and found["spoken"] >= len(found["ports"])
    assert codes == [0] * len(workers) and [row["status"] for row in rows(results)] == ["ok"], said
    assert not found["scratch"], "files of the run that he can read"
    assert not found["environments"]
    secret = secrets.pop().decode()
    assert secret not in json.dumps(found) and secret not in "".join(said)
    for file in filter(Path.is_file, results.rglob("*")):
        assert secret.encode() not in file.read_bytes(), file
    assert sum(text.count("refused a connection from 127.0.0.1") for text in said) >= 1
    assert not list(results.glob(".meeting-*"))


def ports_of(*pids):
    """On which these processes listen."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    sockets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    lines = [line.split() for table in ("tcp", "tcp6") for line in _file(f"/proc/net/{table}").decode().splitlines()]
    listening = [line for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]
    return sorted({int(line[1].rsplit(":", 1)[1], 16) for line in listening})


def _file(name):
    with suppress(OSError):
        return Path(name).read_bytes()
    return b""
