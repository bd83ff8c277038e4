"""Runs cases in forked ranks that are killed and started again. Started as `python resume_ranks.py JOBS.json OUT.json`.

A job: {"case", "attempts": [{"kill_at", "delay_s", "damage"}]}. Torch is imported once; every attempt is forked ranks
in a world of their own, as fresh as the start of a process.
"""

import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint  # imported before the forks, which then share it
import torch.distributed.fsdp  # noqa: F401

from scalade.launch.case import Case
from scalade.launch.execute import execute
from scalade.launch.progress import STEP, Reporter
from scalade.launch.rendezvous import World
from scalade.launch.resume import CHECKPOINT

RESULT = "result.json"


def rank_main(case: Case, folder: Path, attempt: int, rank: int, killed: bool) -> None:
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.filterwarnings("ignore")
    try:
        torch.set_num_threads(1)
        if case.ranks > 1:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            store = dist.FileStore(str(folder / f"store-{attempt}"), case.ranks)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks)
        world = World(rank, case.ranks, rank, case.ranks, "cpu", "gloo", 1, ())
        result = execute(case, world, Reporter(folder, case.recipe.steps, active=rank == 0))
        if killed:  # a fast machine is through before the kill
            signal.pause()
        if rank == 0:
            content = {"status": result.status, "row": result.row, "steps": result.steps, "evals": result.evals}
            (folder / RESULT).write_text(json.dumps(content))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def steps_done(folder: Path) -> int:
    try:
        return int((folder / STEP).read_bytes() or 0)
    except (OSError, ValueError):
        return 0


def attempt_run(case: Case, folder: Path, number: int, kill_at: int | None, delay_s: float) -> list[int]:
    """Exit codes (negative: the signal) of the ranks; kill_at: SIGKILL to all once so many steps are done."""
    (folder / STEP).unlink(missing_ok=True)
    children = []
    for rank in range(case.ranks):
        child = os.fork()
        if child == 0:
            rank_main(case, folder, number, rank, killed=kill_at is not None)
        children.append(child)
    if kill_at is not None:
        deadline = time.monotonic() + 60
        failed = False
        while steps_done(folder) < kill_at and time.monotonic() < deadline and not failed:
            time.sleep(0.0005)
            failed = any(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children)
        time.sleep(delay_s)
        for child in children:
            os.kill(child, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def damage(folder: Path, kind: str) -> None:
    newest = max((folder / CHECKPOINT).glob("step-*"), key=lambda path: int(path.name[5:]))
    data = sorted(newest.rglob("*.distcp"))[-1]  # the last rank's
    if kind == "cut off":
        os.truncate(data, data.stat().st_size // 2)
    elif kind == "garbage":
        data.write_bytes(os.urandom(data.stat().st_size))
    elif kind == "garbage metadata":
        (newest / ".metadata").write_bytes(os.urandom((newest / ".metadata").stat().st_size))
    elif kind == "history of nothing":
        (newest / "history.json").write_text("[]")
    elif kind == "half removed":  # killed while the older checkpoint was being removed
        (newest.with_name("step-1") / "x").mkdir(parents=True)
    else:
        raise ValueError(kind)


def run_job(job: dict, folder: Path) -> dict:
    case = Case.from_json(json.dumps(job["case"]))
    folder.mkdir()
    attempts = []
    for number, each in enumerate(job["attempts"]):
        if each.get("damage"):
            damage(folder, each["damage"])
        codes = attempt_run(case, folder, number, each.get("kill_at"), each.get("delay_s", 0.0))
        kept = sorted(path.name for path in (folder / CHECKPOINT).glob("*"))
        log = (folder / "rank-0.log").read_text()
        attempts.append({"codes": codes, "steps_done": steps_done(folder), "kept": kept, "log": log})
        if (folder / RESULT).exists():
            return {"attempts": attempts} | json.loads((folder / RESULT).read_text())
    return {"attempts": attempts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs, out = (Path(argument).absolute() for argument in sys.argv[1:])
    results = {
        name: run_job(job, out.parent / f"job-{number}")
        for number, (name, job) in enumerate(json.loads(jobs.read_text()).items())
    }
    out.write_text(json.dumps(results))
