"""A rank of a real run of which something ends or stops one replica.

FAULT in the environment says what, as `RANK:ACTION@WHERE`, several separated by commas. ACTION: `kill`; `stopS`, a
SIGSTOP with the SIGCONT S seconds later; `sleepS` (rank 0 serves the store and must not be stopped). WHERE: `step6`,
when 6 steps are done; `round2`, inside the second outer step, with half of the rank's message left (or, without a
quorum, before its collective).
"""

import os
import signal
import subprocess
import time

from scalade.launch.rank import main as rank
from scalade.launch.rank.training import execute
from scalade.parallelism.diloco.engine import OuterEngine
from scalade.parallelism.diloco.link import Link
from scalade.parallelism.diloco.quorum import Meeting


def misbehave(action):
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action.startswith("sleep"):
        time.sleep(float(action.removeprefix("sleep")))
        return
    seconds = action.removeprefix("stop")
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def program(case, world, reporter):
    faults = dict(
        reversed(item.split(":")[1].split("@"))
        for item in filter(None, os.environ.get("FAULT", "").split(","))
        if item.startswith(f"{world.rank}:")
    )
    step, put, reduce, rounds = OuterEngine.train_step, Meeting.put, Link.all_reduce, [0]

    def train_step(self, tokens, lr):
        if action := faults.pop(f"step{self.steps_done}", None):
            misbehave(action)
        return step(self, tokens, lr)

    def half(self, key, content):
        if len(content) > 1000 and (action := faults.pop(f"round{key.split('/')[0]}", None)):
            self.store.set(f"{key}/0", content[: len(content) // 2])
            misbehave(action)
        put(self, key, content)

    def all_reduce(self, total):
        rounds[0] += 1
        if action := faults.pop(f"round{rounds[0]}", None):
            misbehave(action)
        return reduce(self, total)

    OuterEngine.train_step, Meeting.put, Link.all_reduce = train_step, half, all_reduce
    return execute(case, world, reporter)


if __name__ == "__main__":
    rank.main(program=program)
