"""Runs cases in forked ranks that are killed and started again. Started as `python resume_ranks.py JOBS.json OUT.json`.

A job: {"case", "attempts": [{"kill_at", "delay_s", "die_at", "damage"}]}. Torch is imported once; every attempt is
forked ranks in a world of their own, as fresh as the start of a process. Jobs that begin alike, with ranks that die at
the same step of the same case, go on from copies of one beginning.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.fsdp  # noqa: F401  # imported before the forks, which then share it

from scalade.bench import tensor_file
from scalade.launch.process.progress import Reporter
from scalade.launch.process.scratch import CHECKPOINT, STEP
from scalade.launch.rank.training import execute
from scalade.launch.rank.world import World
from scalade.launch.study.case import Case

RESULT = "result.json"


class Dying(Reporter):
    """Of a rank that kills itself when it has done one of `die_at` steps."""

    die_at: tuple[int, ...] = ()

    def step(self, done, loss=None, tokens_per_s=None):
        super().step(done, loss, tokens_per_s)
        if done in self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def rank_main(case: Case, folder: Path, attempt: int, rank: int, job: dict) -> None:
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.filterwarnings("ignore")
    try:
        torch.set_num_threads(1)
        if case.ranks > 1 or case.layout.engine == "deepspeed":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            store = dist.FileStore(str(folder / f"store-{attempt}"), case.ranks)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=case.ranks)
        world = World(rank, case.ranks, rank, case.ranks, "cpu", "gloo", 1, ())
        reporter = Dying(folder, case.recipe.steps, active=rank == 0, run_id=f"{case.case_id}-r0")
        reporter.die_at = tuple(job.get("die_at", ()))
        result = execute(case, world, reporter)
        if "kill_at" in job:  # a fast machine is through before the kill
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


def attempt_run(case: Case, folder: Path, number: int, job: dict) -> list[int]:
    """Exit codes (negative: the signal) of the ranks.

    kill_at: SIGKILL to all once so many steps are done, at whatever they are then; die_at: at exactly these steps
    """
    kill_at, delay_s = job.get("kill_at"), job.get("delay_s", 0.0)
    (folder / STEP).unlink(missing_ok=True)
    children = []
    for rank in range(case.ranks):
        child = os.fork()
        if child == 0:
            rank_main(case, folder, number, rank, job)
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


def flip(file: Path, count: int = 4000) -> None:
    """Another content of the same size: bytes of the middle are inverted."""
    content = bytearray(file.read_bytes())
    count = min(count, len(content) // 2)
    begin = (len(content) - count) // 2
    content[begin : begin + count] = bytes(255 - byte for byte in content[begin : begin + count])
    file.write_bytes(content)


class Payload:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return Path.touch, (Path(os.environ["PAYLOAD_RAN"]),)


def payloads() -> list[bytes]:
    """A pickle, and a file as torch.save writes it, that leave a mark."""
    archive = io.BytesIO()
    torch.save(Payload(), archive)
    return [pickle.dumps(Payload()), archive.getvalue()]


def plant(folder: Path, known: bool) -> None:
    """A payload in every file of a run's folder, and under the names that other formats have.

    known: the index is left, and says that the files have to be these
    """
    kinds = payloads()
    for there in (folder / CHECKPOINT).glob("step-*"):
        for kind, name in enumerate((".metadata", "__0_0.distcp", "outer-replica0-rank0.pt", "deepspeed-rank0.pt")):
            (there / name).write_bytes(kinds[kind // 2])
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        if not (known and file.name in ("index.json", "history.json")):
            file.write_bytes(kinds[number % 2])
    for index in (folder / CHECKPOINT).glob("step-*/index.json") if known else ():
        content = json.loads(index.read_text())
        for name in content["files"]:
            data = (index.parent / name).read_bytes()
            content["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]
        index.write_text(json.dumps(content))


def damage(folder: Path, kind: str) -> None:
    newest = max((folder / CHECKPOINT).glob("step-*"), key=lambda path: int(path.name[5:]))
    data = sorted(newest.rglob("*.safetensors"))[-1]  # the last rank's
    step, index = int(newest.name[5:]), newest / "index.json"
    if kind == "cut off":
        os.truncate(data, data.stat().st_size // 2)
    elif kind == "flipped bytes":
        flip(data)
    elif kind == "flipped bytes in both":
        for each in newest.parent.glob("step-*"):
            flip(sorted(each.rglob("*.safetensors"))[-1])
    elif kind == "flipped history":
        flip(newest / "history.json", 40)
    elif kind == "a digit of the history":  # still JSON of the same size
        text = (newest / "history.json").read_text()
        at = text.index('"loss": ') + len('"loss": ')
        (newest / "history.json").write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    elif kind == "missing file":
        data.unlink()
    elif kind == "garbage boxes":
        boxes = sorted(newest.rglob("boxes.json"))[0]
        boxes.write_bytes(os.urandom(boxes.stat().st_size))
    elif kind == "index of nothing":
        index.write_text("[]")
    elif kind == "index of another run":
        content = json.loads(index.read_text())
        index.write_text(json.dumps(content | {"run_id": "0123456789abcdef-r0"}))
    elif kind == "index of another step":
        content = json.loads(index.read_text())
        index.write_text(json.dumps(content | {"step": step + 1}))
    elif kind == "nested index":
        index.write_text("[" * 1_000_000)
    elif kind == "index with a long number":
        index.write_text('{"format": 2, "step": ' + "9" * 100_000 + "}")
    elif kind == "index that leads out":
        content = json.loads(index.read_text())
        content["files"]["../../secret"] = content["files"].pop("history.json")
        index.write_text(json.dumps(content))
    elif kind == "link":
        data.rename(folder / "elsewhere")
        data.symlink_to(folder / "elsewhere")
    elif kind == "pipe":
        data.unlink()
        os.mkfifo(data)
    elif kind == "older format":
        index.unlink()
        (newest / ".metadata").write_bytes(b"")
    elif kind.startswith("payloads"):
        plant(folder, known="index" in kind)
    elif kind == "half removed":  # killed while an older checkpoint was being removed
        (newest.with_name("step-1") / "x").mkdir(parents=True)
    elif kind == "half written, and more":  # killed while a checkpoint was being written; a file of nobody
        (newest.with_name("writing-9") / "x").mkdir(parents=True)
        (newest / "notes.txt").write_text("mine")
        (newest.parent / "step-99").symlink_to(folder)
    else:
        raise ValueError(kind)


def run_job(job: dict, folder: Path, begun: dict[str, dict]) -> dict:
    """begun: what jobs so far began with, as `begin`."""
    case = Case.from_json(json.dumps(job["case"]))
    attempts = begin(case, folder, job["attempts"][0], begun)
    for number, each in enumerate(job["attempts"][len(attempts) :], len(attempts)):
        if each.get("damage"):
            damage(folder, each["damage"])
        attempts.append(attempt(case, folder, number, each))
    result = folder / RESULT
    return {"attempts": attempts} | (json.loads(result.read_text()) if result.exists() else {})


def begin(case: Case, folder: Path, first: dict, begun: dict[str, dict]) -> list[dict]:
    """Make the job's folder; the first attempt in it, where it ends at a step and not at a time: run once, then copied.

    begun: by case and step, the attempt and where its folder is kept; added to
    """
    if "die_at" not in first:
        folder.mkdir()
        return []
    key = json.dumps([case.to_json(), first])
    if key not in begun:
        kept = folder.with_name(f"begun-{len(begun)}")
        kept.mkdir()
        begun[key] = {"attempt": attempt(case, kept, 0, first), "folder": kept}
    shutil.copytree(begun[key]["folder"], folder)
    return [begun[key]["attempt"]]


def attempt(case: Case, folder: Path, number: int, job: dict) -> dict:
    codes = attempt_run(case, folder, number, job)
    kept = sorted(path.name for path in (folder / CHECKPOINT).glob("*"))
    return {"codes": codes, "steps_done": steps_done(folder), "kept": kept, "log": (folder / "rank-0.log").read_text()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # processes are killed here, no machine is; a busy disk would take minutes
    tensor_file.THREAD_BYTES = 1  # as of large files: what is damaged reaches the engine before it is known to be
    jobs, out = (Path(argument).absolute() for argument in sys.argv[1:])
    engines = {job["case"]["layout"].get("engine") for job in json.loads(jobs.read_text()).values()}
    with contextlib.redirect_stdout(sys.stderr):  # before the forks, as seconds of each rank's start
        if "deepspeed" in engines:
            import deepspeed  # noqa: F401
        if "megatron" in engines:
            import scalade.parallelism.megatron.engine  # noqa: F401
    begun: dict[str, dict] = {}
    results = {
        name: run_job(job, out.parent / f"job-{number}", begun)
        for number, (name, job) in enumerate(json.loads(jobs.read_text()).items())
    }
    out.write_text(json.dumps(results))
