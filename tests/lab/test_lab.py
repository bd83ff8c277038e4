"""The lab's parts that need no root: what is asked for, the switch's clockwork, who goes where, the mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalade.launch.host.link import LINK, Link, link_columns, parse_link
from scalade.launch.lab import lab as labs
from scalade.launch.lab import network, probe, state, switch
from scalade.launch.lab.executor import InLab, places


@pytest.mark.parametrize(
    ("text", "rate", "rtt"),
    [
        ("100mbit,20ms", 1e8, 0.02),
        ("1gbit", 1e9, None),
        ("20ms", None, 0.02),
        ("1.5Gbit, 500us", 1.5e9, 5e-4),
        ("unshaped", None, None),
        ("10mbit,0ms", 1e7, None),
    ],
)
def test_links_are_read_and_said_again(text, rate, rtt):
    link = parse_link(text)
    assert (link.rate_bits_per_s, link.rtt_s) == (rate, rtt if rtt is None else pytest.approx(rtt))
    assert parse_link(link.text()) == link


@pytest.mark.parametrize("text", ["", "fast", "100mbit,100mbit", "100mbit,20ms,3ms", "100", "-5mbit", "20ms;x", "$(x)"])
def test_what_is_no_link_is_one_line(text):
    with pytest.raises(ValueError) as error:
        parse_link(text)
    ask = "write a rate, a round trip or both, as 1gbit or 100mbit,20ms, or `unshaped`"
    assert str(error.value) == f"--link {text!r}: {ask}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1kbit", "--link '1kbit': the rate must be from 1mbit to 100gbit"),
        ("9s", "--link '9s': the round trip must be at most 2s"),
    ],
)
def test_a_link_is_in_range(text, line):
    with pytest.raises(ValueError, match=line):
        parse_link(text)


A, B, C = (bytes([10, 99, 0, i]) for i in (1, 2, 3))


def packet(to, size=1000):
    return b"\x45" + bytes(15) + to + bytes(size - 20)


def a_switch(rate=8e6, rtt=0.02):
    return switch.Switch({address: switch.Port(0) for address in (A, B, C)}, rate, rtt)


def test_one_packet_takes_its_own_time_and_half_the_round_trip():
    it = a_switch(rate=8e6, rtt=0.02)  # 1000 bytes are 1 ms
    it.take(it.ports[A], packet(B), now=5.0)
    ((due, _),) = it.ports[B].queue
    assert due == pytest.approx(5.0 + 0.001 + 0.010)
    assert not it.ports[A].queue and it.wait_s(5.0) == pytest.approx(0.011)


@given(st.lists(st.integers(100, 1500), min_size=2, max_size=150))
def test_a_burst_arrives_at_the_rate_and_in_order(sizes):
    it = a_switch(rate=8e8)
    for size in sizes:
        it.take(it.ports[A], packet(B, size), now=0.0)
    times = [due for due, _ in it.ports[B].queue]
    assert [len(p) for _, p in it.ports[B].queue] == sizes and times == sorted(times)
    assert times[-1] - 0.01 == pytest.approx(sum(sizes) * 8 / 8e8)


def test_two_senders_share_the_receivers_link_and_overflow_is_dropped():
    it = a_switch(rate=8e6, rtt=0.0)
    for _ in range(600):
        it.take(it.ports[A], packet(C), now=0.0)
        it.take(it.ports[B], packet(C), now=0.0)
    port = it.ports[C]
    gaps = [b - a for (a, _), (b, _) in zip(port.queue, list(port.queue)[1:], strict=False)]
    assert min(gaps) == pytest.approx(0.001) and port.dropped > 0
    assert len(port.queue) + port.dropped == 1200


def test_a_senders_backlog_waits_in_its_own_kernel_and_a_late_switch_costs_no_rate():
    it = a_switch(rate=8e6)
    for _ in range(4):
        it.take(it.ports[A], packet(B), now=0.0)
    assert it.ports[A] not in it.readable(0.0) and it.ports[A] in it.readable(0.0021)
    it.ports[A].busy = True  # it had more, and the switch comes back only after 50 ms
    it.take(it.ports[A], packet(B), now=0.05)
    assert it.ports[A].up_free == pytest.approx(0.005)
    it.ports[A].busy = False  # it had nothing: no credit for idle time
    it.take(it.ports[A], packet(B), now=0.06)
    assert it.ports[A].up_free == pytest.approx(0.061)


@pytest.mark.parametrize("noise", [b"", b"\x60" + bytes(39), packet(bytes([8, 8, 8, 8])), b"\x45short"])
def test_what_belongs_to_no_node_goes_nowhere(noise):
    it = a_switch()
    it.take(it.ports[A], noise, 0.0)
    assert not any(port.queue for port in it.ports.values())


@given(st.integers(1, 40), st.integers(2, 9))
def test_ranks_are_dealt_out_in_blocks(ranks, nodes):
    dealt = places(ranks, nodes)
    of = [node for node, _ in dealt]
    assert of == sorted(of) and set(of) == set(range(min(ranks, nodes)))
    counts = [of.count(node) for node in set(of)]
    assert max(counts) - min(counts) <= 1
    for rank, (node, place) in enumerate(dealt):
        assert (place.rank, place.size, place.local_size) == (rank, ranks, of.count(node))
        assert place.local_rank == rank - of.index(node)


def a_lab(nodes=2):
    return labs.Lab(state.plan("x-1", nodes, Link(1e8, 0.02), "1.mark"))


def test_what_rows_and_ranks_are_told():
    told = a_lab().environment()
    assert told["GLOO_SOCKET_IFNAME"] == "eth0"
    assert link_columns({LINK: told[LINK]}) == {
        "lab": "x-1",
        "link_rate_asked_bits_per_s": 1e8,
        "link_rtt_asked_s": 0.02,
        "link_rate_measured_bits_per_s": None,
        "link_rtt_measured_s": None,
    }
    assert link_columns({}) == {}


def test_torchrun_starts_on_every_node_and_meets_on_the_first():
    command = InLab(a_lab(4), "torchrun").command(8, ["-m", "scalade", "worker", "my study.toml"])
    assert command[1:9] == ["-m", "scalade", "lab", "run", "--name", "x-1", "--nodes", "4"]
    assert command[-6:] == ["--nproc-per-node", "2", "-m", "scalade", "worker", "my study.toml"]
    assert command[command.index("--rdzv-endpoint") + 1].startswith("10.99.0.1:")
    with pytest.raises(ValueError, match="5 ranks do not share 4 nodes evenly"):
        InLab(a_lab(4), "torchrun").command(5, [])
    with pytest.raises(ValueError, match="run.launcher = 'srun': a lab has local, torchrun and mpirun"):
        InLab(a_lab(), "srun").command(2, [])


@pytest.mark.parametrize("name", ["", "A", "-x", "a b", "../x", "x" * 21, "$(id)", "a/b", "a\nb"])
def test_foreign_names_are_refused(name):
    with pytest.raises(ValueError, match="lower-case letters, digits and dashes, at most 20"):
        state.plan(name, 2, Link(), "m")


def test_only_our_own_namespaces_are_ours(tmp_path, monkeypatch):
    ours = ["scalade-lab-a-n0", "scalade-lab-a-sw", "scalade-lab-a-n0-n1", "scalade-lab-a-x7"]
    for name in [*ours, "other", "scalade-lab-a", "n0", "cni"]:
        (tmp_path / name).touch()
    monkeypatch.setattr(state, "NETNS", tmp_path)
    assert state.namespaces("a") == ["scalade-lab-a-n0", "scalade-lab-a-sw", "scalade-lab-a-x7"]
    assert state.namespaces("a-n0") == ["scalade-lab-a-n0-n1"]
    assert len(state.namespaces()) == 4


def test_who_is_not_root_is_told(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ValueError) as error:
        labs.up("x", 2, Link())
    assert str(error.value) == ("a lab makes network namespaces, which only root may: start it as root (or with sudo)")


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(network.shutil, "which", lambda tool: None if tool == "ip" else f"/bin/{tool}")
    assert network.missing() == "a lab needs `ip`: `apt-get install -y iproute2` brings it"


def test_a_container_that_may_not_is_told(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(network.shutil, "which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(network.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    assert network.missing() == "a lab makes network namespaces, which this container may not (it wants CAP_SYS_ADMIN)"


def test_the_programs_need_the_standard_library_only():
    for program in (switch, probe):
        check = f"import runpy; runpy.run_path({program.__file__!r}, run_name='x')"
        subprocess.run([sys.executable, "-I", "-S", "-c", check], check=True, timeout=60)


def test_the_probe_on_this_machines_loopback():
    program = [sys.executable, "-I", "-S", probe.__file__]
    server = subprocess.Popen([*program, "serve", "127.0.0.1"], stdout=subprocess.PIPE, text=True)
    try:
        found = probe.measure("127.0.0.1", int(server.stdout.readline()), 0.2)
    finally:
        server.kill()
        server.communicate()
    assert 0 < found["rtt_s"] < 1 and found["rate_bits_per_s"] > 1e6


def test_rsh_refuses_what_is_no_node(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "ROOT", tmp_path)
    plan = a_lab().state
    plan.folder.mkdir()
    network.write_files(plan)
    command = [plan.folder / "rsh", "-x", "$(touch hit)", "id"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "is no node of this lab" in done.stderr and not Path(tmp_path, "hit").exists()
    subprocess.run(["sh", "-n", plan.folder / "rsh"], check=True)
