"""What importing costs: `import scalade` and the command line bring in nothing heavy before it is needed."""

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "numpy", "pandas", "pyarrow", "pydantic", "scipy", "sympy", "matplotlib", "rich"]
ASK = f"; import sys, json; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"


def loaded_by(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program + ASK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", ["import scalade", "import scalade.cli.app"])
def test_nothing_heavy_is_imported(program):
    assert loaded_by(program) == []


def test_the_parent_of_a_run_needs_no_torch():
    assert {"torch", "pandas", "pyarrow", "scipy"}.isdisjoint(loaded_by("import scalade.launch.run"))


RANK = """
import os, sys, torch, torch.distributed as dist
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from scalade.bench.model import Decoder
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.launch.rank import training
from scalade.parallelism.ddp import replicated
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine
from scalade.parallelism.layout import Layout
shape = ModelShape(layers=1, heads=2, kv_heads=2, width=8, ffn=8, vocab=8, seq_len=4)
engine = build_engine(shape, Recipe(global_batch=2, steps=1), Layout(), Outer(), torch.device("cpu"))
engine.parts = [replicated(engine.parts[0], None, compiled=False)]
tokens = torch.arange(10).reshape(2, 5) % 8
output = engine.train_step(tokens, 1e-3)
assert output.loss.isfinite() and type(engine.parts[0]).__mro__[1].__name__ == "DistributedDataParallel"
print([name for name in ("torch._dynamo", "sympy", "torch.distributed.tensor", "pandas", "pyarrow", "pydantic")
       if name in sys.modules])
import torch._dynamo
assert torch._dynamo.utils.get_optimize_ddp_mode() == "ddp_optimizer"
"""


def test_a_rank_reaches_its_first_step_without_the_compiler():
    """torch.compile's front end would double the start of every rank of a run under DDP."""
    done = subprocess.run([sys.executable, "-c", RANK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
