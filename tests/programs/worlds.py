"""Starts a program of the tests as the ranks of one world, and reads what rank 0 left.

Itself the start of each rank: `python worlds.py PROGRAM JOBS.json OUT.json`. It ends without the interpreter's
farewell, in which a thread of gloo that lets go of its last work aborts the process, one time in five
(https://github.com/pytorch/pytorch/pull/179291).
"""

import json
import os
import runpy
import subprocess
import sys
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
    command = [sys.executable, __file__, str(Path(__file__).with_name(program)), "jobs.json", "out.json"]
    logs = [open(folder / f"rank-{rank}.log", "w+") for rank in range(size)]  # noqa: SIM115
    ranks = [
        subprocess.Popen(command, cwd=folder, env=env | {"RANK": str(rank)}, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(timeout=timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert not any(codes), "\n".join(Path(log.name).read_text()[-2000:] for log in logs)
    return json.loads((folder / "out.json").read_text())


if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
