"""Starts a program of the tests as the ranks of one world, and reads what rank 0 left.

Itself the start of the ranks: `python worlds.py SIZE PROGRAM JOBS.json OUT.json` imports what they all need and forks
them. A rank ends without the interpreter's farewell, in which a thread of gloo that lets go of its last work aborts the
process, one time in five (https://github.com/pytorch/pytorch/pull/179291).
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scalade.launch.host.sockets import listen


def run_world(program: str, size: int, jobs: object, folder: Path, timeout_s: int = 280) -> dict:
    """Run `python <program> JOBS.json OUT.json` (a file beside this one) on `size` ranks; what OUT.json then holds."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with listen("127.0.0.1") as free:
        port = free.getsockname()[1]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        # Of its own: a run killed while it compiled leaves a shared cache with half a library, which fails all later.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    command = [sys.executable, __file__, str(size), str(Path(__file__).with_name(program)), "jobs.json", "out.json"]
    world = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True)
    try:
        code = world.wait(timeout=timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(world.pid, signal.SIGKILL)
        world.wait()
    assert not code, "\n".join(log.read_text()[-2000:] for log in sorted(folder.glob("rank-*.log")))
    return json.loads((folder / "out.json").read_text())


def rank_of(size: int) -> int:
    """Returns in each rank, forked here; in their parent never: it ends as the worst of them."""
    if size > 1:  # to import these takes longer than most jobs
        import torch.distributed.fsdp
        import torch.distributed.tensor  # noqa: F401

        import scalade.parallelism.engines  # noqa: F401
    pids = []
    for rank in range(size):
        if not (pid := os.fork()):
            return rank
        pids.append(pid)
    os._exit(int(any([os.waitpid(pid, 0)[1] for pid in pids])))


if __name__ == "__main__":
    del sys.argv[0]
    number = rank_of(int(sys.argv.pop(0)))
    os.environ["RANK"] = str(number)
    log = os.open(f"rank-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
