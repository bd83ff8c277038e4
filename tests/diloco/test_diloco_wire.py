"""What the kernel counts on the link against the closed form, in a network namespace of its own."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.plan import bytes_per_sync, wire_bytes

PROGRAM = """
    import json, os, torch, torch.distributed as dist
    from scalade.bench.engine import LocalParameter, StepOutput
    from scalade.parallelism.diloco.config import Outer
    from scalade.parallelism.diloco.engine import OuterEngine
    from scalade.parallelism.diloco.link import Link

    class Still:
        def __init__(self):
            self.parameters = [torch.randn(512, 512) for _ in range(8)]
        def train_step(self, tokens, lr):
            return StepOutput(torch.zeros(()), torch.zeros(()))
        def parameters_written(self):
            pass

        def local_parameters(self):
            return (LocalParameter(str(i), p, 0) for i, p in enumerate(self.parameters))

    def sent():
        return next(int(line.split()[9]) for line in open("/proc/net/dev") if line.split()[0] == "lo:")

    world, rank = int(os.environ["WORLD"]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29555", rank=rank, world_size=world)
    counted = {}
    for kind in ("none", "bf16", "int8", "int4", "topk", "bf16 twoshot", "int4 twoshot"):
        outer = Outer("diloco", world, sync_every=1, **dict(zip(("compression", "exchange"), kind.split())))
        engine = OuterEngine(outer, [Still()], Link(world, 1, dist.group.WORLD), layers=1, replica_batch=1)
        engine.train_step(None, 0.0)
        dist.barrier()
        before = sent()
        dist.barrier()
        engine.train_step(None, 0.0)
        dist.barrier()
        counted[kind] = (sent() - before) / world
        dist.barrier()
    if rank == 0:
        print(json.dumps(counted))
    dist.destroy_process_group()
"""
SHELL = """
    ip link set lo up
    for rank in $(seq 1 $((WORLD - 1))); do RANK=$rank "$PYTHON" -c "$PROGRAM" >/dev/null 2>&1 & done
    RANK=0 "$PYTHON" -c "$PROGRAM" 2>/dev/null
    wait
"""


def namespaces() -> bool:
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="needs a network namespace (root, unshare, ip)")
@pytest.mark.parametrize("world", [2, 4])
def test_the_kernel_counts_the_bytes_of_the_closed_form(world):
    program = textwrap.dedent(PROGRAM)
    env = os.environ | {"WORLD": str(world), "PYTHON": sys.executable, "PROGRAM": program, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["unshare", "-n", "bash", "-c", SHELL], env=env, capture_output=True, text=True, timeout=120)
    counted = json.loads(done.stdout.splitlines()[-1])
    for kind, each in counted.items():
        outer = Outer("diloco", world, **dict(zip(("compression", "exchange"), kind.split(), strict=False)))
        want = wire_bytes(outer, bytes_per_sync(outer, [512 * 512] * 8))
        assert want < each < 1.02 * want, kind  # the rest: TCP's headers and the barrier
