"""Two ranks over gloo: how long `scalade run` takes to its first step, and what DiLoCo's outer step costs.

`pytest tests/benchmarks/test_bench_ranks.py --benchmark-only`
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

import scalade
from scalade.launch.host.sockets import listen

FOLDER = Path(__file__).parent
STUDY = """
name = "start"
model = {{size = "tiny-100k", seq_len = 32}}
data.source = "stdlib"
recipe.global_batch = 4
budget.steps = 2
layout.{layout} = 2
measure = {{warmup_steps = 1, eval_sequences = 0}}
run = {{max_ranks = 2, threads_per_rank = 1}}
"""


@contextmanager
def slow_link(mbit: int) -> Iterator[list[str]]:
    """What to put before a command so that it runs where loopback carries so much, both directions together."""
    shape = f"ip link set lo up && tc qdisc add dev lo root tbf rate {mbit}mbit burst 256kb latency 200ms"
    place = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", f"{shape} && echo there && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if place.stdout.readline() != "there\n":
            pytest.skip(f"needs a network namespace and tc: {place.communicate()[1].strip()}")
        yield ["nsenter", f"--net=/proc/{place.pid}/ns/net"]
    finally:
        place.kill()
        place.wait()


def two_ranks(*command: str, before: Sequence[str] = ()) -> str:
    """What rank 0 of `python COMMAND` prints, started twice. before: of the command line, as slow_link gives it."""
    with listen("127.0.0.1") as free:
        port = free.getsockname()[1]
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [*before, sys.executable, *command], cwd=FOLDER, env=shared | {"RANK": rank}, stdout=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    try:
        told = [rank.communicate(timeout=250)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert not any(rank.returncode for rank in ranks)
    return told[0].decode()


def start_alone() -> float:
    begin = time.time()
    return float(two_ranks("gloo_ranks.py")) - begin


def start_of_run(study: Path, results: Path) -> float:
    """Seconds from the command to the end of its first step, as the run's own row tells."""
    begin = time.time()
    command = [str(Path(sys.executable).with_name("scalade")), "run", str(study), "--results", str(results), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (run,) = scalade.read_runs(results).to_dict("records")
    assert run["status"] == "ok", run["reason"]
    return datetime.fromisoformat(str(run["started_at"])).timestamp() - begin + run["startup_s"] + run["first_step_s"]


@pytest.mark.parametrize("layout, target, pairs", [("dp_replicate", 1.3, 5), ("dp_shard", None, 3)])
def test_start_up(figure, tmp_path, layout, target, pairs):
    study = tmp_path / "start.toml"
    study.write_text(STUDY.format(layout=layout))

    def measure():
        start_alone()  # fills the file cache
        both = [(start_of_run(study, tmp_path / f"results{i}"), start_alone()) for i in range(pairs)]
        return list(zip(*both, strict=True))

    figure(f"scalade run to its first step, {layout} 2", measure, unit="s", target=target)


def test_outer_step(figure):
    def measure():
        seconds = json.loads(two_ranks("outer_ranks.py", "tiny-12m", "25"))
        return seconds["ours"][5:], seconds["theirs"][5:]

    figure("DiLoCo outer step over copy + all-reduce, 12M, loopback", measure, unit="s", target=1.2)


@pytest.mark.skipif(not all(map(shutil.which, ("unshare", "nsenter", "ip", "tc"))), reason="needs unshare, ip and tc")
@pytest.mark.parametrize("size", ["tiny-2m", "tiny-12m"])
def test_outer_step_on_a_link(figure, size):
    """1 Gbit/s each way: loopback carries both ways."""

    def measure():
        with slow_link(2000) as before:
            seconds = json.loads(two_ranks("outer_ranks.py", size, "15", before=before))
        return seconds["ours"][3:], seconds["theirs"][3:]

    name = f"DiLoCo outer step over copy + all-reduce, {size.removeprefix('tiny-').upper()}, 1 Gbit/s"
    figure(name, measure, unit="s", target=1.2)
