"""The short forms of hosts and counts that schedulers write, and where an srun's tasks meet."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalade.launch.host.hostlist import expand_counts, expand_hosts
from scalade.launch.host.placement import WorldError, find_placement
from scalade.launch.store.meeting import slurm_point
from scalade.launch.store.secret import derive, ports_of


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("n1", ["n1"]),
        ("n1,n3", ["n1", "n3"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],login", ["n08", "n09", "n10", "n12", "login"]),
        ("r[1-2]c[0-1]", ["r1c0", "r1c1", "r2c0", "r2c1"]),
        ("r[1-2]c[0,2]-ib", ["r1c0-ib", "r1c2-ib", "r2c0-ib", "r2c2-ib"]),
        ("gpu-a.site.org", ["gpu-a.site.org"]),
        ("lux[1-2]-ib, x9 ,\tx10", ["lux1-ib", "lux2-ib", "x9", "x10"]),
        (" n[1, 3-3]\n", ["n1", "n3"]),
    ],
)
def test_host_lists(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    [
        "n[1-3",
        "n1-3]",
        "n[a-b]",
        "n[1[2]]",
        "n[]",
        "n[3-1]",
        "n[1,10-9]",
        "n1 n2",
        "n[0-99999999]",
        "n]1[",
        "n[1]]2[",
        "n[1-2]-[3",
        "r[0-1999]n[0-999]",
        "a,n[0-999999]",
    ],
)
def test_what_is_no_host_list(text):
    with pytest.raises(ValueError, match="not a host list"):
        expand_hosts(text)


def test_a_range_that_runs_backwards_is_said_to():
    with pytest.raises(ValueError, match=re.escape("not a host list: 'n[3-1]': 3-1 runs backwards")):
        expand_hosts("n[3-1]")
    with pytest.raises(WorldError, match="SLURM_STEP_NODELIST.* 3-1 runs backwards.*MASTER_ADDR"):
        slurm_point(STEP | {"SLURM_STEP_NODELIST": "n[3-1]"})


@pytest.mark.parametrize("text", ["1(x1000001)", "2,1(x1000000)", "2,", "1(x)", "-1", ""])
def test_what_are_no_counts(text):
    with pytest.raises(ValueError, match="not counts per node"):
        expand_counts(text)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9)), min_size=1, max_size=6))
def test_counts(runs):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    assert expand_counts(text) == [count for count, times in runs for _ in range(times)]


STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1,3",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "99",
    "SLURM_NODELIST": "n[1-4]",
}


def test_a_task_of_srun_knows_its_place():
    """Of the step, not of the job around it: SLURM_NTASKS and SLURM_NODELIST may be the job's."""
    place = find_placement(STEP)
    assert (place.source, place.rank, place.size, place.local_rank, place.local_size) == ("slurm", 2, 4, 1, 3)
    point = slurm_point(STEP)
    assert (point.host, point.other, point.alone, point.name, point.port) == ("n2", "n3", False, "17-3.0", None)
    assert slurm_point(STEP | {"SLURM_STEP_NODELIST": "n4"}).alone
    elsewhere = slurm_point(STEP | {"MASTER_ADDR": "h", "MASTER_PORT": "77"})
    assert (elsewhere.host, elsewhere.ports(b"any")) == ("h", (77,))
    with pytest.raises(WorldError, match="MASTER_PORT=70000: must be a port"):
        slurm_point(STEP | {"MASTER_PORT": "70000"})
    assert find_placement({key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"}) is None
    assert find_placement(STEP | {"RANK": "0", "WORLD_SIZE": "1"}).source == "torchrun"


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64), st.integers(0, 10**7), st.integers(0, 10**7))
def test_steps_that_know_one_secret_meet_on_ports_of_their_own(given_to_all, step, other):
    """Eight of 20,000: two steps seldom share one, and whoever has no secret can name none of them before."""
    ports = ports_of(derive(given_to_all, "step", str(step)))
    assert len(set(ports)) == 8 and all(10_000 <= port < 30_000 for port in ports)
    assert (ports == ports_of(derive(given_to_all, "step", str(other)))) == (step == other)


def test_no_fallback_to_this_host():
    with pytest.raises(WorldError, match="SLURM_STEP_NODELIST.*MASTER_ADDR"):
        slurm_point({key: value for key, value in STEP.items() if key != "SLURM_STEP_NODELIST"})
