"""Worlds of supervisors, started by hand or by a launcher, and what they leave behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from places import PROGRAMS

from scalade.results.store.store import RunStore

FAKE = PROGRAMS.joinpath("fake_worker.py")
STUDY = """
name = "s"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 12
[budget]
steps = {steps}
[measure]
warmup_steps = 1
[layout]
dp_replicate = {ranks}
[run]
repeats = {repeats}
launcher = "{launcher}"
time_limit_s = 60
{more}
"""


def write_study(folder, ranks="[2]", steps=5, repeats=1, launcher="torchrun", more=""):
    path = folder / "study.toml"
    path.write_text(STUDY.format(ranks=ranks, steps=steps, repeats=repeats, launcher=launcher, more=more))
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_hand(study, results, ranks, size, port, **env):
    """Supervisors with torchrun's variables, without torchrun."""
    started = []
    for rank in ranks:
        env |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(FAKE), str(study), str(results)]
        started.append(
            subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return started


def finish(processes, timeout_s=90):
    said = [process.communicate(timeout=timeout_s) for process in processes]
    return [process.returncode for process in processes], ["".join(each) for each in said]


def rows(results):
    store = RunStore(results)
    return sorted(map(store.row, store.begun()), key=lambda row: row["run_id"])


def nothing_left(text):
    deadline = time.monotonic() + 5
    while True:
        left = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(text).encode() in (entry / "cmdline").read_bytes():
                    left.append(int(entry.name))
            except OSError:
                pass
        if not left or time.monotonic() > deadline:
            return not left
        time.sleep(0.05)
