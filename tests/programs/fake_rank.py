"""A rank for the launch tests: the real `launch.rank` around a program that misbehaves when told to.

Started by path, as `python fake_rank.py SPEC.json`. FAKE_RANK in the environment says what happens, as
`RANK:ACTION@STEP` (`RANK/rN:...`: in the N-th repeat only), several separated by commas. FAKE_TORCH=1 takes the real
rendezvous and all-reduces every step, else the ranks do not meet and torch is not imported. FAKE_STEP_S is the time of
a step. Rank 0 keeps a checkpoint every FAKE_CHECKPOINT steps, and when it is asked to stop. FAKE_SYNC=1: no rank begins
a step before all have ended the last, as if they had all-reduced. FAKE_LINGER_S is a pause before the last step.
FAKE_CHAIN=1: the loss of a step is a digest of all steps before it, so that a step left out, taken twice or begun from
a wrong checkpoint shows in every loss that follows. FAKE_CLOCK: fake_clock.py.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from fake_clock import set_clock

from scalade.launch.process.preemption import Preempted, asked_to_stop
from scalade.launch.process.rendezvous import Seat
from scalade.launch.process.run_spec import RunResult
from scalade.launch.process.scratch import CHECKPOINT
from scalade.launch.process.step_journal import StepJournal
from scalade.launch.rank import main as rank
from scalade.launch.rank.world import World
from scalade.results import files

REAL = os.environ.get("FAKE_TORCH") == "1"


def join_nobody(spec, place, secret):
    (Path(spec.scratch) / f"came-{place.rank}-{os.getpid()}").touch()
    seats = tuple(Seat(r, r, spec.size, spec.nonce, "here", os.getpid() + r, "cpu") for r in range(spec.size))
    return World(place.rank, place.size, place.local_rank, place.local_size, "cpu", "gloo", 1, seats)


def misbehave(action, reporter):
    if action.startswith("kill-once-"):
        mark = Path(action.removeprefix("kill-once-"))
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        time.sleep(600)
    elif action == "raise":
        raise KeyError("no such thing")
    elif action == "oom":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory")
    elif action == "nan":
        raise FloatingPointError("loss is not finite at step 3")
    elif action == "cut":  # the link goes down: every connection of this rank ends
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
                connection.getpeername()  # refused by one that only listens
                connection.shutdown(socket.SHUT_RDWR)
    elif action.startswith("die-writing-"):  # in the middle of the store's N-th system call for the row
        die_writing(int(action.removeprefix("die-writing-")))
    elif action == "exit-once-written":
        while not (reporter.folder.parent / "a1").exists():
            time.sleep(0.005)
        os._exit(7)
    elif action.startswith("clock"):  # somebody sets this host's clock
        real, by_s = time.time, float(action.removeprefix("clock"))
        time.time = lambda: real() + by_s
    elif action == "exit":
        os._exit(7)
    elif action == "grandchild":  # in a session of its own, and its parent does not wait for it
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        files.write(reporter.folder / "grandchild", str(child.pid), sync=False)
    elif action == "await-grandchild":
        while not (reporter.folder / "grandchild").exists():
            time.sleep(0.01)
    elif action == "kill-supervisor":
        os.kill(os.getppid(), signal.SIGKILL)
    elif action == "interrupt-supervisor":
        os.kill(os.getppid(), signal.SIGINT)
    else:
        raise AssertionError(action)


def die_writing(count):
    """SIGKILL before the N-th call of those that write a row, or in the middle of its file."""
    calls = iter(range(count, -1, -1))

    def counted(function):
        def call(*arguments, **folders):
            if next(calls, -1) == 0:
                if function is write:
                    name, content, parent, _ = arguments
                    write(name, content[: len(content) // 2], parent, False)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **folders)

        return call

    write = files._write_new
    files._write_new = counted(write)
    files.os = SimpleNamespace(**{**vars(os), "rename": counted(os.rename), "fsync": counted(os.fsync)})


def wait_for_others(world, folder, step):
    """A barrier of files."""
    (folder / f"at-{world.rank}").write_text(f"{step:9}")
    for other in range(world.size):
        while True:
            with suppress(OSError, ValueError):
                if int((folder / f"at-{other}").read_text()) >= step:
                    break
            time.sleep(0.001)


def chained(losses):
    """The loss of the step after these."""
    text = repr(losses[-1]) if losses else "start"
    return 1 + int(hashlib.sha256(f"{text} {len(losses)}".encode()).hexdigest()[:12], 16) / 16**12


def checkpointed(folder, rank):
    """Losses of the steps that are done, of the last whole checkpoint; as many as it says, where nothing is chained."""
    for path in sorted((folder / CHECKPOINT).glob("step-*"), key=lambda path: -int(path.name[5:])):
        done = int(path.name[5:])
        if os.environ.get("FAKE_CHAIN") != "1":
            return [0.0] * done
        with suppress(OSError, ValueError, TypeError):
            digest, _, text = path.joinpath("state").read_text().partition("\n")
            if digest == hashlib.sha256(text.encode()).hexdigest() and len(losses := json.loads(text)) == done:
                return losses
        if rank == 0:
            os.replace(path, path.with_name(f"damaged-{done}-{os.urandom(2).hex()}"))
    return []


def checkpoint(folder, losses):
    """As resume.save: aside, then renamed. Only what was trained is not in it."""
    done = len(losses)
    aside = folder / CHECKPOINT / f"writing-{done}"
    aside.mkdir(parents=True, exist_ok=True)
    if os.environ.get("FAKE_CHAIN") == "1":
        text = json.dumps(losses)
        (aside / "state").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    os.replace(aside, folder / CHECKPOINT / f"step-{done}")


def program(case, world, reporter):
    todo = {}
    for item in filter(None, os.environ.get("FAKE_RANK", "").split(",")):
        who, _, what = item.partition(":")
        action, _, step = what.partition("@")
        number, _, repeat = who.partition("/")
        if int(number) == world.rank and reporter.folder.parent.name.endswith(repeat):
            todo[int(step)] = action
    every = int(os.environ.get("FAKE_CHECKPOINT", "0"))
    chain, losses = os.environ.get("FAKE_CHAIN") == "1", checkpointed(reporter.folder, world.rank)
    begin = len(losses)
    reporter.begin(begin)
    journal = StepJournal(reporter.folder, active=world.rank == 0)
    training = SimpleNamespace(steps=SimpleNamespace(rows=[]), evals=[])
    for step in range(begin, case.recipe.steps):
        if step in todo:
            misbehave(todo[step], reporter)
        if REAL:
            import torch
            import torch.distributed as dist

            total = torch.ones(1)
            dist.all_reduce(total)
            assert total.item() == world.size
        if os.environ.get("FAKE_SYNC") == "1":
            wait_for_others(world, reporter.folder, step)
        if step == case.recipe.steps - 1:
            time.sleep(float(os.environ.get("FAKE_LINGER_S", "0")))
        time.sleep(float(os.environ.get("FAKE_STEP_S", "0.001")))
        losses.append(chained(losses) if chain else 1.0 / (step + 1))
        training.steps.rows.append({"step": step, "warmup": step < 1, "loss": losses[-1]})
        journal.append(training)
        reporter.step(step + 1, loss=losses[-1], tokens_per_s=100.0)
        stop = asked_to_stop(reporter.folder)
        if world.rank == 0 and (stop or (every and (step + 1) % every == 0)):
            checkpoint(reporter.folder, losses)
        if stop:
            raise Preempted(f"stopped at step {step + 1}")
    steps = {"step": list(range(case.recipe.steps)), "step_time_s": [0.001] * case.recipe.steps}
    steps |= {"loss": losses} if chain else {}
    return RunResult("ok", {"loss": losses[-1] if chain else 1.0, "tokens_per_s": 100.0}, steps)


if __name__ == "__main__":
    if "FAKE_CLOCK" in os.environ:
        set_clock(os.environ["FAKE_CLOCK"])
    if not REAL:
        rank.join, rank.leave = join_nobody, lambda: None
    rank.main(program=program)
    assert REAL or "torch" not in sys.modules
