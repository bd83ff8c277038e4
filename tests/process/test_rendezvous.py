"""The truth check: a wrong or split world is found, and said, before anything is computed."""

import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalade.launch.host.placement import Placement, WorldError, find_placement
from scalade.launch.host.sockets import listen, reachable_address
from scalade.launch.process.rank_environment import child_environment
from scalade.launch.process.rendezvous import Seat, agree, wrong_world


class MemoryStore:
    """torch's store, as far as it is used here."""

    def __init__(self):
        self.content, self.lock = {}, threading.Lock()

    def set(self, key, value):
        self.content[key] = value.encode()

    def get(self, key):
        while key not in self.content:
            pass
        return self.content[key]

    def add(self, key, amount):
        with self.lock:
            self.content[key] = str(int(self.content.get(key, b"0")) + amount).encode()
            return int(self.content[key])

    def check(self, keys):
        return all(key in self.content for key in keys)


def seat(rank, size=2, **changes):
    return replace(Seat(rank, rank, size, "run-a", "host0", 100 + rank, "cpu"), **changes)


def meet(seats, timeout_s=5.0):
    """What each of these ranks is told: its seats, or the WorldError."""
    store, told = MemoryStore(), [None] * len(seats)

    def come(i):
        try:
            told[i] = agree(store, seats[i], timeout_s)
        except WorldError as error:
            told[i] = error

    threads = [threading.Thread(target=come, args=(i,)) for i in range(len(seats))]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    return told


@given(st.integers(1, 6), st.randoms(use_true_random=False))
def test_a_whole_world_agrees_in_any_order(size, random):
    seats = [seat(rank, size) for rank in range(size)]
    arriving = random.sample(seats, size)
    assert wrong_world(arriving) is None
    assert all(told == tuple(seats) for told in meet(arriving))


@pytest.mark.parametrize(
    "seats, said",
    [
        ([seat(0), seat(0, pid=7)], ["rank 0 came more than once", "rank 1 is missing", "pid 7", "pid 100"]),
        ([seat(0), seat(1, size=4)], ["disagree about the size", "rank 1 (host host0, pid 101) says 4"]),
        ([seat(0), seat(1, nonce="run-b")], ["different jobs", "belongs to run run-b"]),
        ([seat(0, device="cuda:0 GPU-1"), seat(1, device="cuda:0 GPU-1")], ["share one GPU", "GPU-1"]),
        ([seat(0, size=3), seat(2, size=3)], ["a world of 3 ranks was asked for and 2 came", "within 0.2 s"]),
    ],
)
def test_every_rank_of_a_wrong_world_is_told_what_was_found(seats, said):
    for told in meet(seats, timeout_s=0.2):
        assert isinstance(told, WorldError)
        for part in said:
            assert part in str(told)


def test_one_gpu_on_two_hosts_is_two_gpus():
    assert wrong_world([seat(0, device="cuda:0"), seat(1, device="cuda:0", host="host1")]) is None


def test_a_rank_that_comes_to_a_whole_world_is_sent_away():
    store = MemoryStore()
    assert agree(store, seat(0, size=1), 1.0)
    with pytest.raises(WorldError, match=r"already whole: rank 0 \(host host0, pid 100\)"):
        agree(store, seat(0, size=1, nonce="run-b", pid=9), 1.0)


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SLURM = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    "env, source, rank, size",
    [
        (TORCHRUN | MPICH | SLURM, "torchrun", 1, 4),
        (MPICH | SLURM, "mpi", 2, 3),
        (OPENMPI | {"PMIX_RANK": "3"} | SLURM, "mpi", 3, 5),
        (SLURM, "slurm", 0, 6),
    ],
)
def test_the_innermost_launcher_is_asked_first(env, source, rank, size):
    place = find_placement(env)
    assert (place.source, place.rank, place.size) == (source, rank, size)


def test_no_launcher_and_contradicting_launchers():
    assert find_placement({"SLURM_PROCID": "0", "PATH": "/bin"}) is None  # in a batch script, not in srun
    with pytest.raises(WorldError, match="WORLD_SIZE=nothing"):
        find_placement({"RANK": "0"})
    with pytest.raises(WorldError, match="RANK=4 and WORLD_SIZE=4"):
        find_placement(TORCHRUN | {"RANK": "4"})


def test_a_child_hears_of_no_launcher_but_ours():
    place = Placement("mpi", 2, 3, 0, 1)
    env = child_environment(MPICH | OPENMPI | {"HOME": "/h"}, place, "127.0.0.1", 5, threads=3)
    assert env["RANK"] == "2" and env["WORLD_SIZE"] == "3" and env["MASTER_PORT"] == "5" and env["HOME"] == "/h"
    assert env["OMP_NUM_THREADS"] == "3" and env["OMP_WAIT_POLICY"] == "PASSIVE"
    assert child_environment({"OMP_WAIT_POLICY": "active"}, place, "h", 5, threads=1)["OMP_WAIT_POLICY"] == "active"
    assert find_placement(env) == Placement("torchrun", 2, 3, 0, 1)
    assert not [key for key in env if key.startswith(("OMPI_", "PMI_", "PMIX_", "MPI_"))]


def test_addresses():
    assert reachable_address(["a", "a"], "a") == "127.0.0.1"
    with listen("127.0.0.1") as one, listen("127.0.0.1") as two:
        assert one.getsockname()[1] != two.getsockname()[1]


def test_ranks_json_holds_no_secrets_of_the_run():
    from scalade.launch.process.rendezvous import ranks_json

    assert json.loads(ranks_json([seat(0)])) == [
        {"rank": 0, "local_rank": 0, "host": "host0", "pid": 100, "device": "cpu"}
    ]
