"""What `scalade doctor` really tries: two ranks on this host, started, joined and judged as those of any run.

They all-reduce instead of training; rank 0 leaves what it saw in the scratch folder. As a program
(`python -m scalade.launch.doctor.trial SPEC.json`) this file is one of the ranks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...results import files
from ...results.wording import count_of
from ..host.launchers import LAUNCHERS
from ..process.run_spec import RunResult, read_json
from ..study.case import Case
from ..sweep.scratch_run import ScratchRun

if TYPE_CHECKING:
    from ..process.progress import Reporter
    from ..rank.world import World

FACTS = "facts.json"
SIZES_BYTES = (4, 4 * 2**20)  # latency, bandwidth
REPEATS = 5
COMMAND = (sys.executable, "-m", f"{__package__}.trial")


@dataclass(frozen=True)
class Trial:
    """reason: why it failed, None where it did not."""

    reason: str | None
    facts: dict[str, Any] = field(default_factory=dict)


def try_collectives(device: str, ranks: int, time_limit_s: float, command: tuple[str, ...] = COMMAND) -> Trial:
    """Start `ranks` ranks on `device` (cpu: gloo, cuda: NCCL) and let them all-reduce."""
    run = ScratchRun("doctor", ranks, device, 1, time_limit_s, command)
    with run.folder() as folder:
        outcome = run.execute(folder)
        return Trial(outcome.reason, read_json(folder / FACTS) or {})


def program(case: Case, world: World, reporter: Reporter) -> RunResult:
    """A rank's part, in the place of the training."""
    import torch
    import torch.distributed as dist

    seconds = {}
    for size in SIZES_BYTES:
        times = []
        for _ in range(REPEATS + 1):
            buffer = torch.full((size // 4,), world.rank + 1.0, device=world.device)
            begin = time.perf_counter()
            dist.all_reduce(buffer)
            wrong = bool((buffer != world.size * (world.size + 1) / 2).any())  # also waits for a GPU
            times.append(time.perf_counter() - begin)
            if wrong:
                raise RuntimeError(f"an all-reduce of {size} bytes over {world.backend} gave a wrong sum")
        seconds[size] = min(times[1:])  # the first one connects
    if world.rank == 0:
        files.write(
            reporter.folder / FACTS,
            json.dumps(
                _torch_facts()
                | {
                    "backend": world.backend,
                    "latency_s": seconds[SIZES_BYTES[0]],
                    "bytes_per_s": SIZES_BYTES[1] / seconds[SIZES_BYTES[1]],
                }
            ),
            sync=False,
        )
    return RunResult("ok", {})


def _torch_facts() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda_built": torch.version.cuda,
        "cuda": cuda,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


MPI_PROGRAM = (
    "from mpi4py import MPI; w = MPI.COMM_WORLD; "
    "library = MPI.Get_library_version().replace(chr(0), '').splitlines()[0]; "  # Open MPI's ends with a NUL
    "totals = w.gather(w.allreduce(w.rank + 1)) or (); "  # told by one rank: what two print at once may come mixed
    "[print(f'scalade {w.size} {total}', *library.split()) for total in totals]"
)


def try_mpi(ranks: int, time_limit_s: float) -> Trial:
    """`mpirun -n ranks` as the launcher starts it: do its ranks find each other through mpi4py's library?

    Raises
    ------
    ValueError: there is no mpirun
    """
    command = LAUNCHERS["mpirun"].command(ranks, ["-c", MPI_PROGRAM])
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
        errors="replace",
    )
    try:
        text = process.communicate(timeout=time_limit_s)[0]
    except subprocess.TimeoutExpired:
        return Trial(f"{count_of(ranks, 'rank')} did not come together within {time_limit_s:g} s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    reports = re.findall(r"^scalade ([0-9]+) ([0-9]+) (.+)$", text, re.MULTILINE)
    facts = {"library": reports[0][2]} if reports else {}
    if process.returncode or not reports:
        return Trial(f"mpirun ended with status {process.returncode}: {_last_word(text)}", facts)
    return Trial(_what_is_wrong(reports, ranks), facts)


def _last_word(text: str) -> str:
    """The last line that speaks of an error, else the last line."""
    lines = text.splitlines() or ["no word"]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1]).strip()


def _what_is_wrong(reports: Sequence[tuple[str, str, str]], ranks: int) -> str | None:
    """reports: of each rank (size of its world, sum over the ranks, library). None: all is right."""
    sizes, totals, _ = zip(*reports, strict=True)
    if set(sizes) != {str(ranks)}:
        worlds = ", ".join(sorted(set(sizes)))
        return f"mpirun -n {ranks} made worlds of size {worlds}: it belongs to another MPI than mpi4py"
    if len(reports) != ranks or set(totals) != {str(ranks * (ranks + 1) // 2)}:
        return "an all-reduce over MPI gave a wrong sum"
    return None


if __name__ == "__main__":
    from ..rank.main import main

    main(program=program)
