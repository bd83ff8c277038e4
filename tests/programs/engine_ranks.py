"""What the tests of the engines ask of one, and the forked worlds in which it is asked.

deepspeed_ranks.py and megatron_ranks.py are started as `python ..._ranks.py JOBS.json OUT.json`. JOBS: {ranks of a
world: {name: {"kind": a function, "case": ...}}}. torch and the engine's package are imported once; the ranks of each
world are forks of that process, so that their import, which is most of the time, is paid once.
"""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import checkpoints
import parity_ranks
import torch
import torch.distributed as dist

from scalade.bench.comm_probe import CommProbe
from scalade.bench.data import DataSpec, open_source
from scalade.bench.device import Device
from scalade.bench.loop import evaluate
from scalade.bench.measure import Measure
from scalade.bench.recipe import Recipe
from scalade.bench.shape import ModelShape
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.engines import build_engine, refuse
from scalade.parallelism.layout import Layout

CPU = torch.device("cpu")
FOLDER = Path("checkpoints")
RECIPE = dict(parity_ranks.RECIPE)
GROUP_OF_ONE = True  # as the launcher makes one, too


def parity(case: dict) -> dict:
    return parity_ranks.train(case, CPU)


class Run:
    """An engine with its data."""

    def __init__(self, case: dict) -> None:
        self.shape = ModelShape(**parity_ranks.SHAPE | case.get("shape", {}))
        self.recipe = Recipe(**RECIPE | case.get("recipe", {}))
        layout, outer = Layout(**case["layout"]), Outer(**case.get("outer", {}))
        assert refuse(layout, self.shape, self.recipe, outer.replicas) is None
        self.engine = build_engine(self.shape, self.recipe, layout, outer, CPU)
        self.source = open_source(DataSpec(), self.shape.seq_len, self.recipe.seed)

    def steps(self, first: int, last: int) -> list[list[float]]:
        """[loss, gradient norm of this rank's replica] of each step."""
        begin, end = self.engine.rows()
        done = []
        for step in range(first, last):
            start = step * self.recipe.global_batch
            rows = torch.from_numpy(self.source.train_rows(start + begin, start + end))
            output = self.engine.train_step(rows, self.recipe.lr_at(step))
            done.append([total(output.loss), output.grad_norm.item()])
        return done

    def held_out(self) -> dict[str, float]:
        measure = Measure(eval_sequences=parity_ranks.HELD_OUT)
        return {
            row["kind"]: row["val_loss"]
            for row in evaluate(self.engine, self.source, self.recipe, measure, Device("cpu"), 0, 0)
        }


def total(share: torch.Tensor) -> float:
    if dist.is_initialized():
        dist.all_reduce(share)
    return share.item()


def replicas(case: dict) -> dict:
    """Losses of a run with replicas, and the held-out losses before and after its last step."""
    run = Run(case)
    losses = run.steps(0, 7)
    held_out = [run.held_out()]
    losses += run.steps(7, 8)
    held_out.append(run.held_out())
    whole = run.engine.weights()
    run.engine.close()
    return {
        "loss": [loss for loss, _ in losses],
        "held_out": held_out,
        "weights": {name: tensor.double().norm().item() for name, tensor in whole.items()},
    }


def resume(case: dict) -> dict:
    """Steps after a checkpoint, and the same steps of a new engine that loaded it; what another layout is told."""
    folder = FOLDER / case["name"]
    run = Run(case)
    run.steps(0, 3)
    checkpoints.save(run.engine, folder)
    went_on = [*run.steps(3, 6), *run.held_out().values()]
    run.engine.close()
    run = Run(case)
    checkpoints.load(run.engine, folder)
    resumed = [*run.steps(3, 6), *run.held_out().values()]
    run.engine.close()
    told = None
    if "other" in case:
        run = Run(case | {"layout": case["other"]})
        try:
            checkpoints.load(run.engine, folder)
        except ValueError as error:
            told = str(error)
        run.engine.close()
    return {"went_on": went_on, "resumed": resumed, "told": told}


def counts(case: dict) -> dict:
    """{"collective/dimension": [bytes, calls]} of this rank's third step."""
    run = Run(case)
    run.steps(0, 2)
    begin, end = run.engine.rows()
    tokens = torch.from_numpy(run.source.train_rows(begin, end))
    with CommProbe(run.engine.talks()) as probe:
        run.engine.train_step(tokens, 1e-3)
    run.engine.close()
    return {"/".join(key): [probe.bytes[key], probe.calls[key]] for key in probe.calls}


def handed_over(case: dict) -> dict:
    """Weights trained by one engine, held out by it and by another that was given them; and what that gives back."""
    run = Run(case)
    run.steps(0, 3)
    weights, before = run.engine.weights(), run.held_out()["model"]
    run.engine.close()
    run = Run(case | {"layout": case["to"]})
    run.engine.set_weights(weights)
    after, back = run.held_out()["model"], run.engine.weights()
    run.engine.close()
    exact = back.keys() == weights.keys() and all(torch.equal(weights[name], back[name]) for name in weights)
    return {"before": before, "after": after, "exact": exact}


KINDS: dict[str, Callable[[dict], dict]] = {f.__name__: f for f in (parity, replicas, resume, counts, handed_over)}


def rank_main(rank: int, size: int, jobs: dict, folder: Path) -> None:
    for stream in (1, 2):
        os.dup2(os.open(folder / f"rank-{rank}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    try:
        if size > 1 or GROUP_OF_ONE:
            store = dist.FileStore(str(folder / "store"), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        results = {name: KINDS[job["kind"]](job["case"]) for name, job in jobs.items()}
        sys.stdout.flush()
        if size > 1:
            dist.barrier()
        if rank == 0:
            printed = [(folder / f"rank-{r}.1").read_text() for r in range(size)]
            (folder / "result.json").write_text(json.dumps(results | {"printed": printed}))
        if size > 1:
            dist.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_world(size: int, jobs: dict, folder: Path) -> dict:
    folder.mkdir()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            rank_main(rank, size, jobs, folder)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        logs = [(folder / f"rank-{rank}.2").read_text()[-3000:] for rank, code in enumerate(codes) if code]
        raise RuntimeError("\n".join(logs))
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    wanted, out = (Path(argument).absolute() for argument in sys.argv[1:])
    worlds = json.loads(wanted.read_text()).items()
    out.write_text(json.dumps({size: run_world(int(size), jobs, out.parent / f"w{size}") for size, jobs in worlds}))
