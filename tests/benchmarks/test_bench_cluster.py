"""100,000 cases handed to a cluster, looked at, and cancelled: seconds of CPU and peak memory of each command.

Slurm's commands are stand-ins of a few lines that answer at once: counted is what `scalade` itself does (CPU time of
its process, without theirs; peak resident memory of its process, from its start).
"""

import json
import os
import subprocess
import sys

import pytest
from study_text import BASE

STUDY = BASE.replace(
    "global_batch = 8", f"global_batch = 8\nlr = {[n / 1e6 for n in range(1, 10_001)]}\nseed = {list(range(10))}"
)
TARGET_S, TARGET_BYTES = 10.0, 10**9
COMMANDS = {
    "submit": ["submit", "STUDY", "--results", "RESULTS", "--scheduler", "slurm"],
    "submit again": ["submit", "STUDY", "--results", "RESULTS", "--scheduler", "slurm"],
    "status": ["status", "RESULTS"],
    "status --json": ["status", "RESULTS", "--json"],
    "cancel": ["cancel", "RESULTS"],
}
STAND_INS = {  # $QUEUE/ID: the tasks of a job, as squeue prints them
    "scontrol": "echo 'MaxArraySize = 1001'; echo 'MaxJobCount = 1000000'",
    "sbatch": """
        id=$((100 + $(ls "$QUEUE" | wc -l)))
        awk -v id=$id '/^#SBATCH --job-name=/ {sub(/.*=/, ""); name = $0}
                       /^#SBATCH --array=/ {sub(/.*=0-/, ""); last = $0 + 0}
                       END {for (i = 0; i <= last; i++) print id "_" i "|PENDING|0:00|" name "||Priority"}' \\
            "$2" > "$QUEUE/$id"
        echo $id""",
    "squeue": 'cat "$QUEUE"/*',
    "scancel": 'for id; do rm "$QUEUE/${id%%_*}"; done',
    "sacct": "exit 1",
}
PROGRAM = """
import atexit, json, os, sys
def used():
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    json.dump({"cpu_s": sum(os.times()[:2]), "peak_bytes": peak * 1024}, open(os.environ["USED"], "w"))
atexit.register(used)
sys.argv[0] = "scalade"
from scalade.cli.app import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Runs one command, after those before it: ({"cpu_s", "peak_bytes"}, what it printed)."""
    folder = tmp_path_factory.mktemp("cluster")
    for made in ("bin", "queue"):
        (folder / made).mkdir()
    for name, script in STAND_INS.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "study.toml").write_text(STUDY)
    env = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "QUEUE": str(folder / "queue")}
    env["USED"] = str(folder / "used")
    places = {"STUDY": str(folder / "study.toml"), "RESULTS": str(folder / "r")}

    def run(words):
        command = [sys.executable, "-c", PROGRAM, *(places.get(word, word) for word in words)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return json.loads((folder / "used").read_text()), done.stdout, len(list((folder / "queue").iterdir()))

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_cluster(benchmark, desk, name):
    """In this order, as each goes on from the one before."""
    found = []
    benchmark.pedantic(lambda: found.append(desk(COMMANDS[name])), rounds=1, iterations=1)
    used, said, jobs = found[0]
    assert jobs == (0 if name == "cancel" else 100), said[-1000:]
    benchmark.extra_info |= {
        "total_s": used["cpu_s"],
        "target_s": TARGET_S,
        "peak_rss_bytes": used["peak_bytes"],
        "target_rss_bytes": TARGET_BYTES,
        "printed_bytes": len(said),
    }
