"""`scalade comm`: the formulas, the truth check, and real sweeps over gloo and MPI."""

import json
import os
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.bench.collectives import KINDS
from scalade.bench.comm_sweep import CommSweep, Dimension, points, sweep, wrong_result
from scalade.bench.transports import MPI_DTYPES
from scalade.launch.comm import command as comm
from scalade.launch.host.launchers import LAUNCHERS
from scalade.launch.study.comm_case import CommCase, parse_bytes, parse_layout
from scalade.results import links
from scalade.results.schema.columns import COLLECTIVES
from scalade.results.table.read import read_comm, read_runs


class Together:
    """Ranks as threads of this process: every message through one list. A collective done by its definition."""

    def __init__(self, size):
        self.size, self.box, self.meet = size, [None] * size, threading.Barrier(size)

    def exchange(self, rank, value):
        self.meet.wait()
        self.box[rank] = value.clone() if hasattr(value, "clone") else value
        self.meet.wait()
        return list(self.box)


class Here:
    """One thread's transport and ranks. spoil: what a rank does wrong with what it receives."""

    def __init__(self, together, rank, spoil=lambda got: None):
        self.together, self.rank, self.size, self.spoil = together, rank, together.size, spoil

    def _got(self, into, value):
        into.copy_(value)
        self.spoil(into)

    def all_reduce(self, buffer):
        self._got(buffer, sum(self.together.exchange(self.rank, buffer)))

    def all_gather(self, whole, part):
        self._got(whole, torch.cat(self.together.exchange(self.rank, part)))

    def reduce_scatter(self, part, whole):
        self._got(part, sum(self.together.exchange(self.rank, whole)).chunk(self.size)[self.rank])

    def all_to_all(self, received, sent):
        every = self.together.exchange(self.rank, sent)
        self._got(received, torch.cat([each.chunk(self.size)[self.rank] for each in every]))

    def send_recv(self, received, sent):
        self._got(received, self.together.exchange(self.rank, sent)[self.rank - 1])

    def broadcast(self, buffer):
        self._got(buffer, self.together.exchange(self.rank, buffer)[0])

    def barrier(self):
        self.together.meet.wait()

    def settle(self):
        pass

    def slowest(self, seconds):
        every = self.together.exchange(self.rank, torch.tensor(seconds, dtype=torch.float64))
        return torch.stack(every).max(0).values.tolist()


def on_threads(size, asked, spoil=lambda rank: lambda got: None):
    together, rows = Together(size), [None] * size

    def one(rank):
        here = Here(together, rank, spoil(rank))
        rows[rank] = sweep(asked, [Dimension("world", here, 1)], here)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert None not in rows
    return rows


QUICK = partial(CommSweep, sizes_bytes=(64, 200), iterations=3, warmup=1)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_collective_must_give_is_what_its_definition_gives(size, dtype):
    for rows in on_threads(size, QUICK(dtype=dtype)):
        assert [row["collective"] for row in rows[::2]] == list(KINDS) == list(COLLECTIVES)
        for row in rows:
            assert row["correct"] and row["iterations"] == 3
            assert row["busbw_bytes_per_s"] == pytest.approx(
                row["message_bytes"] / row["time_s"] * links.bus_factor(row["collective"], size)
            )
            assert 0 < row["time_min_s"] <= row["time_s"] <= row["time_p95_s"]
        assert wrong_result(rows, "threads") is None


def lost(got):
    got[-1] = -1  # the last element never arrived


def swapped(got):
    got.copy_(got.flip(0))


def doubled(got):
    got.mul_(2)


@pytest.mark.parametrize("spoiled", [lost, swapped, doubled])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_result_on_one_rank_is_seen_by_all_and_has_no_time(kind, spoiled):
    asked = QUICK(collectives=(kind,), sizes_bytes=(400,))
    for rows in on_threads(2, asked, lambda rank: spoiled if rank else lambda got: None):
        assert rows[0]["correct"] is False and "time_s" not in rows[0]
        assert wrong_result(rows, "gloo") == (
            f"{kind} of {rows[0]['message_bytes']} bytes over gloo along world of 2 ranks gave a wrong result"
        )


@given(st.integers(2, 4096), st.floats(1, 1e10), st.floats(1e-7, 100))
def test_bus_bandwidth_is_the_rate_of_a_link_in_the_best_algorithm(ranks, size, seconds):
    """A ring moves (n - 1) parts of S / n over each link, an all-reduce twice that (the counting of the source)."""
    part = size / ranks
    over_link = {
        "all_reduce": 2 * (ranks - 1) * part,
        "reduce_scatter": (ranks - 1) * part,
        "all_gather": (ranks - 1) * part,
        "all_to_all": (ranks - 1) * part,
        "broadcast": size,
        "send_recv": size,
    }
    assert set(over_link) == set(COLLECTIVES)
    for kind, moved in over_link.items():
        assert size / seconds * links.bus_factor(kind, ranks) == pytest.approx(moved / seconds)


@settings(deadline=None)  # the first call imports scipy
@given(st.floats(1e-6, 0.1), st.floats(1e5, 1e12), st.lists(st.integers(1, 2**30), min_size=2, unique=True))
def test_a_line_is_found_again(alpha, beta, sizes):
    line = links.fit_line(sizes, [alpha + size / beta for size in sizes])
    for size in sizes:
        found = line.alpha_s + (size / line.beta_bytes_per_s if line.beta_bytes_per_s else 0)
        assert found == pytest.approx(alpha + size / beta, rel=1e-5)
    assert line.misfit < 1e-5


def test_a_line_wants_two_sizes_and_never_goes_below_zero():
    assert links.fit_line([5, 5], [1.0, 2.0]) is None
    falling = links.fit_line([1, 1000], [2.0, 1.0])
    assert falling.beta_bytes_per_s is None and falling.alpha_s > 0 and falling.misfit > 0.1


def test_links_have_an_interval_over_runs():
    sizes, rows = [1000, 100_000, 10_000_000], []
    for run in range(6):
        alpha, beta = 1e-4 * (1 + run / 100), 1e9 * (1 + run / 100)
        rows += [
            {
                "backend": "gloo",
                "dim": "tp",
                "collective": "all_reduce",
                "group_ranks": 2,
                "message_bytes": size,
                "run_id": f"x-r{run}",
                "time_s": alpha + size / beta,
                "dtype": "float32",
            }
            for size in sizes
        ]
    (fit,) = links.fit_links(rows)
    assert fit.alpha_s.low == pytest.approx(1e-4) and fit.alpha_s.high == pytest.approx(1.05e-4)
    assert fit.beta_bytes_per_s.value == pytest.approx(1.025e9, rel=1e-3) and fit.alpha_s.runs == 6
    first = links.by_size(rows)[0]
    assert first["runs"] == 6 and first["algbw_bytes_per_s"] == pytest.approx(1000 / first["time_s"])


@given(st.integers(1, 10**6), st.integers(1, 9), st.sampled_from(["float32", "bfloat16"]))
def test_a_message_is_whole_elements_and_whole_parts(size, ranks, dtype):
    class Group:
        rank = 0

    Group.size = ranks
    for _, kind, found in points(CommSweep(sizes_bytes=(size,), dtype=dtype), [Dimension("x", Group, 1)]):
        each = getattr(torch, dtype).itemsize * (ranks if KINDS[kind].cut else 1)
        assert found % each == 0 and (found <= size or found == each)


def test_what_is_asked_for_is_read():
    assert comm.sizes_between("1k", "5k", 2) == (1024, 2048, 4096)
    assert parse_bytes("--x", "3M") == 3 * 2**20 == parse_bytes("--x", "3 MiB".replace(" ", ""))
    assert parse_layout("tp=2, dp_shard=3") == {"dp_shard": 3, "tp": 2}


PLAN = dict(
    ranks=None,
    layout=None,
    backend="gloo",
    collectives=(),
    sizes=(1,),
    dtype="float32",
    iterations=1,
    warmup=0,
    seconds_per_size=1.0,
)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"ranks": 1}, "1 rank has nobody to talk to: give at least 2"),
        ({"ranks": 3, "layout": "tp=2"}, "the layout tp 2 has 2 ranks, the world 3"),
        (
            {"layout": "tp=x"},
            "--layout 'tp=x': write dimension=ranks with commas, as dp_shard=2,tp=2, out of replicas, pp, "
            "dp_replicate, dp_shard, cp, tp",
        ),
        ({"backend": "ucc"}, "--backend 'ucc': allowed are gloo, nccl, mpi"),
        (
            {"collectives": ["allreduce"]},
            "--collective 'allreduce': allowed are all_reduce, all_gather, reduce_scatter, "
            "all_to_all, send_recv, broadcast",
        ),
        (
            {"backend": "mpi", "dtype": "bfloat16"},
            "--dtype bfloat16 with --backend mpi: MPI has no such type, MPICH refuses it and Open "
            "MPI adds its bytes up as "
            "another's; allowed are float32, float64",
        ),
        ({"iterations": 0}, "--iterations 0: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(wrong, line):
    with pytest.raises(ValueError) as error:
        comm.plan_case(comm.CommOptions(**PLAN | wrong))
    assert str(error.value) == line


def test_the_parent_knows_what_the_ranks_know():
    assert comm.DTYPES["mpi"] == MPI_DTYPES and set(COLLECTIVES) == set(KINDS)
    case = comm.plan_case(comm.CommOptions(**PLAN | {"layout": "tp=2"}))
    assert CommCase.from_json(case.to_json()) == case and CommCase.is_json(case.to_json())


def scalade(*arguments, **more):
    done = subprocess.run(
        [sys.executable, "-m", "scalade", *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **more,
    )
    return done


SMALL = ["--max-bytes", "64k", "--factor", "8", "--iterations", "4", "--warmup", "1"]


def test_one_sweep_of_two_gloo_ranks_from_the_command_line(tmp_path):
    few = ["--collective", "all_reduce", "--max-bytes", "1k", "--iterations", "1", "--warmup", "0"]
    done = scalade("comm", "--backend", "gloo", "--results", str(tmp_path / "r"), *few)
    assert done.returncode == 0 and "runs: 1 ok" in done.stdout, done.stdout + done.stderr
    assert list(read_comm(tmp_path / "r")["correct"]) == [True]


@pytest.mark.slow
def test_two_gloo_ranks(tmp_path):
    """All collectives in bf16 along a dimension; the second time nothing is run again."""
    command = ["comm", "--layout", "dp_shard=2", "--backend", "gloo", "--dtype", "bfloat16"]
    command += ["--results", str(tmp_path / "r")]
    done = scalade(*command, *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {link["collective"] for link in told["links"]} == set(COLLECTIVES)
    rows, runs = read_comm(tmp_path / "r"), read_runs(tmp_path / "r")
    assert len(rows) == 6 * 3 == runs["comm_rows"][0] and rows["correct"].all()
    assert set(rows["dim"]) == {"dp_shard"} and set(rows["groups"]) == {1} and runs["dp_shard"][0] == 2
    assert runs["backend"][0] == "gloo" and runs["status"][0] == "ok" and runs["launcher"][0] == "local"
    again = scalade(*command, *SMALL)
    assert again.returncode == 0 and "1 had been done before" in again.stdout and "alpha us" in again.stdout
    assert len(read_comm(tmp_path / "r", all_attempts=True)) == len(rows)


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("outside", [False, True], ids=["started", "inside"])
def test_two_mpi_ranks(tmp_path, outside):
    """scalade starts mpirun; mpirun starts scalade."""
    pytest.importorskip("mpi4py")
    command = ["comm", "--backend", "mpi", "--repeats", "2", "--results", str(tmp_path / "r"), *SMALL]
    if outside:
        start = LAUNCHERS["mpirun"].command(2, ["-m", "scalade", *command])
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(start, capture_output=True, text=True, timeout=250, env=env)
    else:
        done = scalade(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    runs, rows = read_runs(tmp_path / "r"), read_comm(tmp_path / "r")
    assert list(runs["status"]) == ["ok", "ok"] and set(runs["backend"]) == {"mpi"} and set(runs["world_size"]) == {2}
    assert set(runs["launcher"]) == {"mpirun"} and runs["mpi_version"].notna().all()
    assert len(rows) == 2 * 6 * 3 and rows["correct"].all()


@pytest.mark.slow
@pytest.mark.mpi
def test_an_error_of_another_mpi_rank_is_a_row(tmp_path):
    pytest.importorskip("mpi4py")
    program = tmp_path / "broken.py"
    program.write_text(
        "import sys\nfrom mpi4py import MPI\nfrom scalade.cli import app as cli\n"
        "from scalade.launch.comm import mpi_rank as comm_mpi\n"
        "def broken(spec):\n    raise RuntimeError('rank 1 is broken')\n"
        "if MPI.COMM_WORLD.rank == 1:\n    comm_mpi.measure_over_mpi = broken\ncli.main()\n"
    )
    command = ["comm", "--backend", "mpi", "--results", str(tmp_path / "r"), *SMALL]
    start = LAUNCHERS["mpirun"].command(2, [str(program), *command])
    done = subprocess.run(start, capture_output=True, timeout=250, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    (row,) = read_runs(tmp_path / "r").to_dict("records")
    assert (row["status"], row["reason"]) == ("failed", "rank 1: RuntimeError: rank 1 is broken")


@pytest.mark.slow
def test_four_gloo_ranks_in_two_groups_each_way_and_a_failure_is_a_row(tmp_path):
    command = ["comm", "--backend", "gloo", "--results", str(tmp_path / "r"), "--collective", "all_reduce", *SMALL]
    done = scalade(*command, "--layout", "pp=2,tp=2")
    assert done.returncode == 0, done.stderr
    rows = read_comm(tmp_path / "r")
    assert sorted(set(rows["dim"])) == ["pp", "tp"] and set(rows["groups"]) == {2} and set(rows["group_ranks"]) == {2}
    failed = scalade(*command, "--ranks", "2", "--time-limit", "0.1")
    assert failed.returncode == 1
    assert "timeout" in list(read_runs(tmp_path / "r")["status"])
