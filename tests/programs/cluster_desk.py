"""A user's desk beside a real cluster: studies submitted, watched, cancelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

from scalade.launch.cluster.status import status
from scalade.results.store.store import RunStore

SIX = """
name = "six"
[model]
size = "tiny-100k"
seq_len = 32
[recipe]
global_batch = 8
lr = [1e-3, 3e-3]
[budget]
steps = 3
[measure]
warmup_steps = 1
eval_sequences = 0
[[layout]]
dp_replicate = [1, 2]
[[layout]]
dp_shard = 4
[run]
time_limit_s = 100
"""
LONG = """
name = "long"
[model]
size = "tiny-100k"
seq_len = 32
[recipe]
global_batch = 8
[budget]
steps = {steps}
[measure]
eval_sequences = 0
checkpoint_every = 20
[layout]
dp_replicate = 2
[run]
time_limit_s = 600
"""
REPLICAS = (
    LONG.replace("global_batch = 8", "global_batch = 12")
    .replace("checkpoint_every = 20\n", "")
    .replace(
        "dp_replicate = 2",
        """dp_replicate = 1
[outer]
algorithm = "diloco"
replicas = 3
sync_every = 10
quorum = 2
quorum_timeout_s = 60""",
    )
)


class Desk:
    """A user at the cluster: a folder with a study and a site profile, and the command line."""

    def __init__(self, cluster, folder, study, *, per_node=2, signal_s=20):
        self.cluster, self.folder, self.results = cluster, folder, folder / "results"
        self.token = f"desk-{os.urandom(4).hex()}"
        (folder / "study.toml").write_text(study)
        (folder / "site.toml").write_text(SITE.format(per_node=per_node, signal_s=signal_s, token=self.token))
        self.env = cluster.env | {"OMP_NUM_THREADS": "1"}

    def scalade(self, *arguments, fails=False):
        command = [sys.executable, "-m", "scalade", *arguments]
        done = subprocess.run(command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert fails or done.returncode in (0, 1), (done.stdout, done.stderr)
        return done.stdout if not fails else done.stderr

    def submit(self, *options):
        more = ("--profile", "site.toml", "--results", str(self.results), "--json")
        return json.loads(self.scalade("submit", "study.toml", *more, *options))

    def status(self):
        return json.loads(self.scalade("status", str(self.results), "--json"))["jobs"]

    def look(self):
        """As `status`, asked in this process: starting Python again and again takes the cores from the ranks."""
        with patch.dict(os.environ, {"SLURM_CONF": self.env["SLURM_CONF"]}):
            return [vars(line) for line in status(self.results)[0]]

    def wait(self, wanted, timeout_s, what):
        """Until `wanted` holds; the lines of `scalade status`."""
        deadline = time.monotonic() + timeout_s
        while not wanted(lines := self.look()):
            assert time.monotonic() < deadline, f"waited for {what}\n{lines}\n{self.logs()}\n{self.cluster.story()}"
            time.sleep(0.3)
        return self.status()

    def wait_for_step(self, step, timeout_s=150):
        """Until a run has done so many steps."""
        deadline = time.monotonic() + timeout_s
        while True:
            for file in self.results.glob("runs/*/scratch/step"):
                if int(file.read_bytes() or b"0") >= step:
                    return
            assert time.monotonic() < deadline, f"{self.logs()}\n{self.cluster.story()}"
            time.sleep(0.1)

    def logs(self):
        return "\n".join(
            f"== {file.name}\n{file.read_text()[-1500:]}" for file in self.results.glob("submissions/*/*.log")
        )

    def rows(self):
        """The last row of each run, and how many attempts left one."""
        store = RunStore(self.results)
        names = sorted(store.begun())
        return [store.row(name) | {"rows": len(store.attempts(name))} for name in names if store.attempts(name)]

    def table(self):
        """What `scalade show` gives: one row for each run."""
        return json.loads(self.scalade("show", str(self.results), "--json"))

    def nothing_left(self, timeout_s=15):
        """No process of this desk's jobs is alive on any node."""
        deadline = time.monotonic() + timeout_s
        while left := [pid for pid in os.listdir("/proc") if pid.isdigit() and self._mine(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.3)

    def _mine(self, pid):
        try:
            return f"SCALADE_TEST={self.token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def ended(lines):
    return all(line["state"] not in ("waiting", "running") for line in lines)


SITE = """
scheduler = "slurm"
ranks_per_node = {per_node}
signal_s = {signal_s}
[environment]
FI_TCP_IFACE = "lo"  # MPICH's; the "nodes" share one machine
SCALADE_TEST = "{token}"
"""
