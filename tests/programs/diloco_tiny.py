"""A small engine in plain PyTorch for the tests of the outer algorithms, and the program that their ranks run.

Four tanh layers between an embedding and a head. Given a group, the parameters are sharded by hand over its ranks
(all-gather, local rows, reduce-scatter by all-reduce), but for the norm-like vector `gain`, which all of them hold.
Run as `python diloco_tiny.py SPEC.json`: one rank of a job of `replicas x inner` ranks.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import torch
import torch.distributed as dist
import torch.nn.functional as F

from scalade.bench.comm_probe import CommProbe, uncounted
from scalade.bench.engine import LocalParameter, StepOutput
from scalade.bench.recipe import Recipe
from scalade.parallelism.diloco import engine as diloco_engine
from scalade.parallelism.diloco.config import Outer
from scalade.parallelism.diloco.engine import build_outer
from scalade.parallelism.state_file import read_state, write_state

VOCAB, WIDTH, LAYERS, SEQ, BATCH = 16, 8, 4, 6, 16


def initial_parameters(dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"embedding": (VOCAB, WIDTH)} | {f"blocks.{i}": (WIDTH, WIDTH) for i in range(LAYERS)}
    shapes |= {"gain": (WIDTH,), "head": (VOCAB, WIDTH)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).mul(0.4).to(dtype) for k, s in shapes.items()}


def loss_of(parameters: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    hidden = parameters["embedding"][tokens[:, :-1]]
    for i in range(LAYERS):
        hidden = hidden + torch.tanh(hidden @ parameters[f"blocks.{i}"].T)
    logits = (hidden * (1 + parameters["gain"])) @ parameters["head"].T
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def batch(step: int) -> torch.Tensor:
    """The global batch of a step; each row repeats a short pattern, so that there is something to learn."""
    generator = torch.Generator().manual_seed(100 + step)
    start = torch.randint(VOCAB, (BATCH, 1), generator=generator)
    stride = torch.randint(1, 4, (BATCH, 1), generator=generator)
    return (start + stride * torch.arange(SEQ + 1)) % VOCAB


@dataclass
class TinyEngine:
    recipe: Recipe
    group: object = None

    def __post_init__(self):
        self.index, self.ways = (self.group.rank(), self.group.size()) if self.group else (0, 1)
        whole = initial_parameters()
        self.local = {k: self._shard(k, v).clone().requires_grad_() for k, v in whole.items()}
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.recipe.optimizer]
        self.optimizer = kind(self.local.values(), lr=0.0, weight_decay=self.recipe.weight_decay)

    def _shard(self, name, whole):
        return whole if name == "gain" else whole.chunk(self.ways)[self.index]

    def _whole(self):
        whole = {}
        for name, shard in self.local.items():
            if self.ways == 1 or name == "gain":
                whole[name] = shard.detach().clone().requires_grad_()
                continue
            parts = [torch.empty_like(shard) for _ in range(self.ways)]
            dist.all_gather(parts, shard.detach(), group=self.group)
            whole[name] = torch.cat(parts).requires_grad_()
        return whole

    def rows(self):
        each = self.recipe.global_batch // self.ways
        return self.index * each, (self.index + 1) * each

    def train_step(self, tokens, lr):
        whole = self._whole()
        loss = loss_of(whole, tokens) / self.ways
        loss.backward()
        for name, parameter in whole.items():
            if self.ways > 1:
                dist.all_reduce(parameter.grad, group=self.group)
            self.local[name].grad = self._shard(name, parameter.grad).clone()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        norm = torch.stack([p.grad.norm() for p in whole.values()]).norm()
        return StepOutput(loss.detach(), norm)

    def eval_loss(self, tokens, counted):
        with torch.no_grad():
            return loss_of(self._whole(), tokens[counted]) * counted.sum()

    def parameters_written(self):
        pass

    def local_parameters(self):
        for name, value in self.local.items():
            layer = int(name.split(".")[1]) if name.startswith("blocks") else None
            yield LocalParameter(name, value.detach(), layer, self.ways if name == "gain" else 1)

    def optimizer_state(self):
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if torch.is_tensor(value))

    def talks(self):
        return {}

    def evaluations(self):
        return {"model": self.eval_loss}

    def save(self, out):
        state = {str(i): kept for i, kept in self.optimizer.state_dict()["state"].items()}
        write_state(out, f"{self.index}.safetensors", {"local": self.local, "state": state})

    def load(self, saved):
        content = read_state(saved, f"{self.index}.safetensors")
        for name, value in self.local.items():
            value.data.copy_(content["local"][name])
        state = {int(i): kept for i, kept in content["state"].items()}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})

    def close(self):
        pass


def recipe_of(**changes) -> Recipe:
    return Recipe(**(dict(global_batch=BATCH, steps=12, lr=0.02, weight_decay=0.01) | changes))


def build(outer: Outer, recipe: Recipe, inner: int = 1):
    """The engine on this rank; in a job, replicas are the outer dimension of the ranks."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    placed, replica, position = outer.placed_replicas, rank // inner, rank % inner
    replica_group = inner_group = None
    for i in range(inner if placed > 1 else 0):
        group = dist.new_group([m * inner + i for m in range(placed)])
        replica_group = group if i == position else replica_group
    for m in range(placed if inner > 1 else 0):
        group = dist.new_group([m * inner + i for i in range(inner)])
        inner_group = group if m == replica else inner_group
    return build_outer(
        outer,
        recipe,
        LAYERS,
        lambda own: TinyEngine(own, inner_group),
        replica_group=replica_group,
        replica_index=replica,
        inner_group=inner_group,
    )


def run(engine, recipe, first=0, last=None, save_at=None, folder=None):
    """Losses (this rank's shares), rows of extras, and the evaluation at the end."""
    losses, extras = [], []
    for step in range(first, last or recipe.steps):
        start, end = engine.rows()
        output = engine.train_step(batch(step)[start:end], recipe.lr_at(step))
        losses.append(float(output.loss))
        extras.append({k: float(v) for k, v in output.extra.items()})
        if step + 1 == save_at:
            checkpoints.save(engine, Path(folder))
    start, end = engine.rows()
    rows = batch(10_000)[start:end]
    counted = torch.ones(len(rows), dtype=torch.bool)
    evals = {kind: float(loss(rows, counted)) / BATCH for kind, loss in engine.evaluations().items()}
    return {"losses": losses, "extras": extras, "evals": evals}


def count_round(engine, outer) -> dict:
    """What the engine says that a round of its exchanges sends, and what a probe sees of the next one."""
    said, probe = engine.count_round(), CommProbe(engine.talks())
    diloco_engine.uncounted = lambda: probe
    start, end = engine.rows()
    for step in range(outer.sync_every):
        engine.train_step(batch(20_000 + step)[start:end], 0.01)
    diloco_engine.uncounted = uncounted
    return {"said": said.totals()["collective"], "seen": probe.totals()["collective"]}


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text())
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), spec["world"]
    dist.init_process_group("gloo", init_method=f"file://{spec_file}.store", rank=rank, world_size=world)
    results = []
    for job in spec["jobs"]:
        recipe, outer = recipe_of(**job.get("recipe", {})), Outer(**job["outer"])
        engine = build(outer, recipe, job.get("inner", 1))
        if job.get("load"):
            checkpoints.load(engine, Path(job["load"]))
        result = run(engine, recipe, job.get("first", 0), job.get("last"), job.get("save_at"), job.get("save"))
        result["parameters"] = {p.name: p.data.flatten().tolist() for p in engine.local_parameters()}
        result["round"] = count_round(engine, outer)
        engine.close()
        results.append(result)
        dist.barrier()
    Path(f"{spec_file}.{rank}").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
