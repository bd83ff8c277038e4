"""Where faults are injected: sweeps as processes, their ranks found in /proc, and what must hold when all is over.

Every process of a study carries a token of its own in its environment, so that an orphan is found whoever its parent
was.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd
from fake_rank import chained

from scalade import read_runs, read_steps
from scalade.launch.study.study import load_study

HERE = Path(__file__).parent
FAKE = [sys.executable, str(HERE / "fake_rank.py")]
TOKEN = "FAULT_LAB"
STUDY = """
name = "faults"
[model]
size = "tiny-100k"
seq_len = 64
[recipe]
global_batch = 12
[budget]
steps = {steps}
[layout]
dp_replicate = {ranks}
[run]
max_ranks = 4
repeats = {repeats}
time_limit_s = {time_limit_s}
grace_s = 20
hang_limit_s = {hang_limit_s}
isolation = "{isolation}"
"""
MEASURE = """
[measure]
checkpoint_every = 4
log_every = 1
eval_sequences = 8
"""
UNDISTURBED = {}  # (ranks, steps) -> the losses of a run of real ranks
SWEEP = """
import os, sys, time
from pathlib import Path
if os.environ.get("FAKE_CLOCK"):
    from fake_clock import set_clock
    set_clock(os.environ["FAKE_CLOCK"])
from scalade.launch import run
study, results, retry, *command = sys.argv[1:]
if command:
    run.run_study.__kwdefaults__["command"] = command
sys.argv = ["scalade", "run", study, "--results", results, "--quiet", *(["--retry-failed"] if retry == "retry" else [])]
from scalade.cli.app import main
main()
"""


class Lab:
    """One study, and everything that was started for it."""

    def __init__(
        self,
        folder,
        seed,
        *,
        repeats,
        ranks="[2]",
        steps=20,
        hang_limit_s=20,
        time_limit_s=60,
        results=None,
        isolation="fresh",
        real=False,
        **env,
    ):
        """real: ranks that train, and take a checkpoint every 4 steps; else fake ones."""
        self.study, self.results, self.real = folder / "study.toml", results or folder / "r", real
        self.isolation, self.repeats, self.ranks = isolation, repeats, ranks
        self._write = lambda limit=hang_limit_s, whole=time_limit_s: self.study.write_text(
            STUDY.format(
                steps=steps,
                ranks=ranks,
                repeats=self.repeats,
                hang_limit_s=limit,
                time_limit_s=whole,
                isolation=self.isolation,
            )
            + MEASURE * real
        )
        self._write()
        self.steps, self.rng, self.token = steps, random.Random(seed), uuid.uuid4().hex
        self.mounted = []  # folders, by a fault that needs a disk of its own
        self.damaged = set()  # attempts, as in rows(), that a fault has hurt: they need not stand
        fake = {"FAKE_SYNC": "1", "FAKE_STEP_S": "0.005", "FAKE_CHECKPOINT": "4", "FAKE_CHAIN": "1"}
        fake |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))}  # fake_clock
        self.env = os.environ | {TOKEN: self.token, "OMP_NUM_THREADS": "1"} | fake | env
        print(f"seed {seed}")

    def sweep(self, retry=False, **env):
        command = [sys.executable, "-c", SWEEP, str(self.study), str(self.results), "retry" if retry else ""]
        command += [] if self.real else FAKE
        return subprocess.Popen(
            command,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self, process, limit_s=120):
        """(status, standard output, standard error) of a sweep, which has to come to its end."""
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            left = sorted(self.processes())
            raise AssertionError(f"a sweep hangs: no end in {limit_s} s; processes {left}") from None
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def reach(self, process, limit_s=60):
        """Wait until the run that is on has come to a random step; (run_id, step), or None where all was over first."""
        aim, deadline = self.rng.randrange(0, self.steps - 2), time.monotonic() + limit_s
        while process.poll() is None:
            assert time.monotonic() < deadline, f"a sweep does not come to step {aim} in {limit_s} s"
            if (now := self.step()) and now[1] >= aim:
                return now
            time.sleep(0.002)
        return None

    def one_more(self):
        """A run more of each case: work for a sweep that would have none."""
        self.repeats += 1
        self._write()

    def processes(self):
        """{pid: environment} of the live processes of this study."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                content = Path(f"/proc/{name}/environ").read_bytes()
                if self.token.encode() in content:
                    found[int(name)] = dict(item.partition(b"=")[::2] for item in content.split(b"\0"))
        return found

    def rank(self, number):
        """The live process of that rank, or None."""
        ranks = (pid for pid, env in self.processes().items() if env.get(b"RANK") == str(number).encode())
        return next(ranks, None)

    def scratch(self):
        """Of the run that is on, or None."""
        for scratch in self.results.glob("runs/*/scratch"):
            with suppress(OSError):
                if scratch.joinpath("step").read_bytes() and not any(scratch.parent.glob("a[0-9]*")):
                    return scratch
        return None

    def step(self):
        """(run, step) that is on, or None."""
        scratch = self.scratch()
        with suppress(OSError, ValueError, AttributeError):
            return scratch.parent.name, int(scratch.joinpath("step").read_bytes())
        return None

    def hurt_each_run(self, hurt):
        """A sweep, and `hurt(run_id)` once in every run, when it has reached a random step; to its end."""
        process, target, hurt_runs = self.sweep(FAKE_LINGER_S="0.5"), {}, []  # none ends before it was looked at
        deadline = time.monotonic() + 200
        while process.poll() is None:
            assert time.monotonic() < deadline, "the sweep does not end"
            if now := self.step():
                run_id, step = now
                aim = target.setdefault(run_id, self.rng.randrange(1, self.steps - 2))
                if step >= aim and run_id not in hurt_runs:
                    time.sleep(self.rng.uniform(0, 0.005))
                    hurt(run_id)
                    hurt_runs.append(run_id)
            time.sleep(0.002)
        return hurt_runs, process

    def rows(self):
        """{run folder / attempt: the row's bytes}"""
        files = self.results.glob("runs/*/a*/run.json")
        return {str(file.parent.relative_to(self.results)): file.read_bytes() for file in files}

    def standing(self):
        """The rows that no fault has hurt."""
        return {name: row for name, row in self.rows().items() if name not in self.damaged}

    def settled(self, limit_s=10):
        """Wait until what a fault left has been ended by whoever has to; an orphan is a violation."""
        deadline = time.monotonic() + limit_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, f"orphans: {left}"

    def finish(self, **env):
        """Start the study again until it is done; nothing that stood may change."""
        before = self.standing()
        self._write(60, 150)
        code, out, err = self.ended(self.sweep(retry=True, **env), 200)
        assert code == 0, (out, err)
        after = self.rows()
        changed = [name for name, row in before.items() if after.get(name) != row]
        assert not changed, f"rows that stood have changed or are gone: {changed}"
        return self.check()

    def check(self):
        """Every run has its row, once, with the losses of an undisturbed run, and nothing is left over."""
        self.settled()
        study = load_study(self.study)
        wanted = {f"{case.case_id}-r{repeat}" for case in study.all_cases for repeat in range(study.run.repeats)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a fault has damaged
            attempts, last = read_runs(self.results, all_attempts=True), read_runs(self.results)
            steps = read_steps(self.results)
        hurt = [f"runs/{row.run_id}/a{row.attempt}" in self.damaged for row in attempts.itertuples()]
        ok = attempts[(attempts["status"] == "ok") & ~pd.Series(hurt, index=attempts.index, dtype=bool)]
        assert sorted(ok["run_id"]) == sorted(wanted), "each run once"
        assert set(attempts["run_id"]) == wanted
        assert not attempts.duplicated(["run_id", "attempt"]).any()
        assert set(last["status"]) == {"ok"}
        assert not list(self.results.glob("runs/*/scratch")) and not list(self.results.glob("runs/*/reserve"))
        self.check_losses(ok, steps)
        return attempts

    def check_losses(self, ok, steps):
        """A step left out, taken twice or begun from what was damaged would show."""
        chain = self.undisturbed()
        assert set(ok["loss"]) == {chain[-1]}, "the losses are not those of an undisturbed run"
        for run_id, own in steps.groupby("run_id"):
            assert own["loss"].tolist() == chain, f"{run_id}: its steps are not those of an undisturbed run"

    def undisturbed(self):
        """The losses of the steps of a run that nothing happens to."""
        if not self.real:
            chain = []
            while len(chain) < self.steps:
                chain.append(chained(chain))
            return chain
        key = self.ranks, self.steps
        if key not in UNDISTURBED:
            folder = self.study.with_name("undisturbed")
            folder.mkdir()
            other = Lab(folder, 0, repeats=1, ranks=self.ranks, steps=self.steps, hang_limit_s=60, real=True)
            code, out, err = other.ended(other.sweep())
            assert code == 0, (out, err)
            UNDISTURBED[key] = read_steps(other.results)["loss"].tolist()
        return UNDISTURBED[key]

    def close(self):
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def starts(results, run_id):
    """The log of a run's starts."""
    return [json.loads(line) for line in (results / "runs" / run_id / "starts.jsonl").read_text().splitlines()]
